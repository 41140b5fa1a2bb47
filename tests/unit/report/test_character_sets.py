"""Text in every character set: a result's bytes are its source's, found by a parser that shares nothing with ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.datadict import tag_for_keyword

from cxrnode.dicom.text import text_of
from tests.support.character_sets import CASES, Case
from tests.support.copied_text import IN_SEQUENCES, ORDER, PROCEDURE, SEQUENCES, TEXT, results, source
from tests.support.dirty import Element, dirty_file, item, sequence
from tests.support.encoded import BIG, DEFLATED, EXPLICIT, IMPLICIT, flat, parse
from tests.support.results import header

SYNTAXES = {"explicit": EXPLICIT, "implicit": IMPLICIT, "big endian": BIG, "deflated": DEFLATED}


def text_in(file: bytes) -> dict[str, bytes]:
    """Every element that is no sequence, by its path."""
    return {path: value for path, _, value in flat(parse(file, SEQUENCES))}


def path_of(*keywords: str) -> str:
    return "[0].".join(f"{tag_for_keyword(k):08X}" for k in keywords)


SAME = [path_of(k) for k in (*TEXT, "SpecificCharacterSet", "StudyInstanceUID")] + [
    path_of(above, k) for above, of in IN_SEQUENCES.items() for k in of
]
IN_REPORT = {
    path_of("RequestAttributesSequence", k): path_of("ReferencedRequestSequence", k) for k in ORDER
}  # of the order
PROCEDURE_REPORTED = "121058"


def report_place_of_procedure(report: dict[str, bytes]) -> str:
    """The path of the code's item: where in the tree it stands is none of this test's business."""
    named = [p for p, v in report.items() if p.endswith(".0040A043[0].00080100") and v == PROCEDURE_REPORTED.encode()]
    (name,) = named
    return name.removesuffix("0040A043[0].00080100") + "0040A168[0]."


def assert_same(case: Case, file: bytes, report: bytes, capture: bytes) -> None:
    theirs = text_in(file)
    assert theirs[path_of("PatientName")].startswith(case.value)
    for name, made in (("report", report), ("capture", capture)):
        result, copied = text_in(made), {path: path for path in SAME}
        if name == "report":
            copied |= IN_REPORT
            if case.value.strip():  # blanks are no code
                place = report_place_of_procedure(result)
                copied |= {path_of("ProcedureCodeSequence", k): place + path_of(k) for k in PROCEDURE}
        for here, there in copied.items():
            assert result.get(there) == theirs.get(here), f"{name} {there} of {here}"
        ours = [(p, v) for p, vr, v in flat(parse(made)) if p not in copied.values() and vr not in BINARY]
        assert [(p, v) for p, v in ours if not set(v) <= OUR_CHARACTERS] == [], name


# of our own words: ASCII, without what ISO IR 13 and the national versions of ISO 646 have other characters for
OUR_CHARACTERS = set(range(0x20, 0x7E)) | {0x0D, 0x0A, 0x00}
BINARY = {"FD", "OB", "US"}


@pytest.mark.parametrize("name", CASES)
def test_every_byte_of_text_is_the_sources(name: str, tmp_path: Path) -> None:
    file = source(CASES[name])
    assert_same(CASES[name], file, *results(tmp_path, file))


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("name", ["H.3.2", "kanji with 3D", "2022 IR 13", "GB18030 of four bytes", "of odd length"])
def test_so_it_is_in_every_transfer_syntax(name: str, syntax: str, tmp_path: Path) -> None:
    file = source(CASES[name], SYNTAXES[syntax])
    assert_same(CASES[name], file, *results(tmp_path, file))


def test_items_keep_a_character_set_of_their_own(tmp_path: Path) -> None:
    own, above = CASES["IR 144"], CASES["H.3.2"]
    elements: dict[str, Element] = {"SpecificCharacterSet": ("CS", above.terms), "PatientName": ("PN", above.value)}
    for keyword, of in {**IN_SEQUENCES, "RequestAttributesSequence": ORDER, "ProcedureCodeSequence": PROCEDURE}.items():
        text: dict[str, Element] = {k: (vr, own.value) for k, vr in of.items()}
        elements[keyword] = (
            "SQ", sequence(EXPLICIT, item(EXPLICIT, {**text, "SpecificCharacterSet": ("CS", own.terms)}))
        )  # fmt: skip
    report, capture = (text_in(r) for r in results(tmp_path, dirty_file(elements)))
    place = report_place_of_procedure(report)
    for name in (*IN_SEQUENCES, "ReferencedRequestSequence", place):
        terms = place + path_of("SpecificCharacterSet") if name == place else path_of(name, "SpecificCharacterSet")
        assert report[terms] == b"ISO_IR 144"
    assert report[path_of("ReferencedRequestSequence", "RequestedProcedureID")] == own.value
    assert capture[path_of("OtherPatientIDsSequence", "PatientID")] == own.value
    assert report[path_of("SpecificCharacterSet")] == capture[path_of("SpecificCharacterSet")] == above.terms + b" "


def test_two_texts_that_cannot_be_read_stay_two() -> None:
    read = {text_of(header({"PatientID": ("LO", v), "SpecificCharacterSet": ("CS", b"ISO_IR 192")}), "PatientID")
            for v in (b"\xff", b"\xfe", b"A\xff")}  # fmt: skip
    assert read == {"\\xff", "\\xfe", "A\\xff"}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.text is not None])
def test_what_can_be_read_is_read(name: str) -> None:
    """For look-ups and the eye: no other text than the standard's."""
    case = CASES[name]
    raw = {"PatientID": ("LO", case.value), "SpecificCharacterSet": ("CS", case.terms)}
    assert text_of(header(raw), "PatientID") == (case.text or "").strip()
