"""Every code that a result says, against two tables that are not cxrnode's: pydicom's, and the standard's written down.

A code is its value, its scheme and its meaning (PS3.3 section 8); the tables of PS3.16 are named beside each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.sr._cid_dict import cid_concepts
from pydicom.sr._concepts_dict import concepts

from cxrnode.report.capture import build_capture
from cxrnode.report.encode import decode, encode
from cxrnode.report.sr import build_sr
from engines.bundle import load_bundle, shipped_bundles
from tests.support.results import NORMAL, SCENARIOS, UNDETERMINED, analysed, cam, context, preview

Code = tuple[str, str, str]

NAMES: dict[Code, str] = {  # concept names, and the template that asks for each
    ("126000", "DCM", "Imaging Measurement Report"): "TID 1500, CID 7021",
    ("121049", "DCM", "Language of Content Item and Descendants"): "TID 1204",
    ("121005", "DCM", "Observer Type"): "TID 1002",
    ("121012", "DCM", "Device Observer UID"): "TID 1004",
    ("121013", "DCM", "Device Observer Name"): "TID 1004",
    ("121014", "DCM", "Device Observer Manufacturer"): "TID 1004",
    ("121015", "DCM", "Device Observer Model Name"): "TID 1004",
    ("121016", "DCM", "Device Observer Serial Number"): "TID 1004",
    ("121058", "DCM", "Procedure reported"): "TID 1500",
    ("111017", "DCM", "CAD Processing and Findings Summary"): "TID 4001, TID 4101",
    ("121111", "DCM", "Summary"): "annex D, as in CID 7002",
    ("126010", "DCM", "Imaging Measurements"): "TID 1500",
    ("125007", "DCM", "Measurement Group"): "TID 1501",
    ("112039", "DCM", "Tracking Identifier"): "TID 1501",
    ("112040", "DCM", "Tracking Unique Identifier"): "TID 1501",
    ("121071", "DCM", "Finding"): "TID 1501",
    ("363698007", "SCT", "Finding Site"): "TID 1501",
    ("111001", "DCM", "Algorithm Name"): "TID 4019",
    ("111003", "DCM", "Algorithm Version"): "TID 4019",
    ("111002", "DCM", "Algorithm Parameters"): "TID 4019",
    ("122405", "DCM", "Algorithm Manufacturer"): "TID 4019",
    ("122157", "DCM", "Probability"): "annex D",
    ("260753009", "SCT", "Source"): "TID 1501",
    ("111065", "DCM", "Summary of Analyses"): "TID 4000, TID 4100",
    ("130403", "DCM", "Gradient-weighted class activation"): "annex D, as in CID 217",
    ("121106", "DCM", "Comment"): "annex D, as in CID 12101",
}
VALUES: dict[Code, int | str] = {  # coded values, and the context group that holds each, or where else it comes from
    ("en-US", "RFC5646", "English (United States)"): "CID 5000",
    ("121007", "DCM", "Device"): 270,
    ("399208008", "SCT", "Plain chest X-ray"): "SNOMED CT, Plain chest X-ray (procedure)",
    ("363679005", "SCT", "Imaging procedure"): 100,
    ("111241", "DCM", "All algorithms succeeded; without findings"): 6047,
    ("111242", "DCM", "All algorithms succeeded; with findings"): 6047,
    ("111243", "DCM", "Not all algorithms succeeded; without findings"): 6047,
    ("111244", "DCM", "Not all algorithms succeeded; with findings"): 6047,
    ("111245", "DCM", "No algorithms succeeded; without findings"): 6047,
    ("111222", "DCM", "Succeeded"): 6042,
    ("111224", "DCM", "Failed"): 6042,
    ("111225", "DCM", "Not Attempted"): 6042,
    ("52101004", "SCT", "Present"): 240,
    ("272519000", "SCT", "Absent"): 240,
    ("373068000", "SCT", "Undetermined"): 240,
    ("39607008", "SCT", "Lung"): 6204,
    ("1", "UCUM", "no units"): 7181,
    ("109102", "DCM", "Processing Equipment"): 7005,
    ("121322", "DCM", "Source image for image processing operation"): 7202,
    ("130403", "DCM", "Gradient-weighted class activation"): 217,
}
LABELS: dict[Code, int | str] = {  # of the bundles
    ("840544004", "SCT", "Suspected COVID-19"): (
        "SNOMED CT, Suspected disease caused by severe acute respiratory coronavirus 2 (situation)"
    ),
    ("75570004", "SCT", "Viral pneumonia"): "SNOMED CT, Viral pneumonia (disorder)",
    ("17621005", "SCT", "Normal"): 222,
}
CONCEPTS: Any = concepts  # scheme -> keyword -> code -> (meaning, context groups)
GROUPS: Any = cid_concepts
SEQUENCES = {
    "ConceptNameCodeSequence", "ConceptCodeSequence", "MeasurementUnitsCodeSequence", "PurposeOfReferenceCodeSequence",
    "DerivationCodeSequence",
}  # fmt: skip


def codes_in(ds: Dataset) -> Iterator[tuple[str, Code]]:
    """(keyword of the sequence, code) of every code of a data set."""
    for element in ds:
        if element.VR != "SQ":
            continue
        for item in element.value:
            if "CodeMeaning" in item:
                yield element.keyword, (item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning)
            yield from codes_in(item)


def said() -> dict[str, set[Code]]:
    """By the keyword of their sequence, the codes of every kind of result."""
    found: dict[str, set[Code]] = {}
    some_normal = [analysed(SCENARIOS["mixed"]()[0].source, NORMAL), *SCENARIOS["mixed"]()[1:]]
    every = [make() for name, make in SCENARIOS.items() if name not in ("ordered", "dirty")] + [some_normal]
    results = [build_sr(images, context()) for images in every]
    results += [build_capture(analysed(probabilities=p), preview(), cam(), context()) for p in (NORMAL, UNDETERMINED)]
    for ds in results:
        for keyword, code in codes_in(decode(encode(ds))):
            found.setdefault(keyword, set()).add(code)
    return found


def test_every_code_is_one_of_the_standard_s() -> None:
    found = said()
    assert set(found) == SEQUENCES
    assert found["ConceptNameCodeSequence"] == set(NAMES) | set(LABELS)
    assert set().union(*found.values()) == set(NAMES) | set(VALUES) | set(LABELS)


# of SNOMED CT and RFC 5646, what no context group of the standard holds
NOT_IN_PYDICOM = {"en-US", "399208008", "840544004", "75570004"}
OTHER_MEANING = {"260753009": "Source (attribute)"}  # pydicom has the fully specified name


@pytest.mark.parametrize("code", [*NAMES, *VALUES, *LABELS])
def test_pydicom_knows_the_code_by_this_meaning(code: Code) -> None:
    value, scheme, meaning = code
    known = {text for codes in CONCEPTS.get(scheme, {}).values() for v, (text, _) in codes.items() if v == value}
    if value in NOT_IN_PYDICOM:
        assert not known
    else:
        assert OTHER_MEANING.get(value, meaning) in known


@pytest.mark.parametrize(("code", "group"), [(c, g) for c, g in {**VALUES, **LABELS}.items() if isinstance(g, int)])
def test_a_coded_value_is_in_its_context_group(code: Code, group: int) -> None:
    value, scheme, meaning = code
    keywords = [k for k, codes in CONCEPTS[scheme].items() if value in codes and codes[value][0] == meaning]
    assert set(keywords) & set(GROUPS[group][scheme])


@pytest.mark.parametrize("folder", shipped_bundles(), ids=lambda folder: folder.name)
def test_the_shipped_bundles_say_these_labels(folder: object) -> None:
    codes = {(c.value, c.scheme, c.meaning) for c in (label.code for label in load_bundle(str(folder)).labels)}
    assert codes == set(LABELS)
