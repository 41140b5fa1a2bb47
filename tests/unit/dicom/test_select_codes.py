"""The gate's codes against pydicom's copy of the standard's context groups, and the edges of its rules."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom import Dataset
from pydicom.sr._cid_dict import cid_concepts
from pydicom.sr._snomed_dict import mapping
from pydicom.sr.codedict import codes

from cxrnode.dicom.orientation import is_turned_from_detector, lie_of
from cxrnode.dicom.select import select
from cxrnode.types import Reason
from tests.support.make_dicom import chest, code

TO_SRT = mapping["SCT"]
# CID 4031 Common Anatomic Regions: what shows the chest
CHEST = {"Chest", "Mediastinum", "Heart", "Apex of Lung", "Chest and Abdomen", "Chest, Abdomen and Pelvis",
         "Neck and Chest", "Neck, Chest and Abdomen", "Neck, Chest, Abdomen and Pelvis"}  # fmt: skip
# what devices write besides, with its name in SNOMED CT
WIDER = {"51185008": "thorax", "43799004": "thoracic cavity", "39607008": "lung", "181216001": "both lungs",
         "3341006": "right lung", "44029006": "left lung"}  # fmt: skip
# CID 4010 DX View: the frontal ones, and what belongs to a skull, a foot, a breast or a specimen
FRONTAL = {"frontal", "postero-anterior", "antero-posterior"}
ELSEWHERE = {"acanthioparietal", "orbitoparietal", "Occlusal projection", "plantodorsal", "verticosubmental",
             "tissue specimen", "parietoacanthial", "submentovertical", "dorsoplantar", "parieto-orbital", "axial",
             "tangential", "cranio-caudal", "caudo-cranial", "oblique caudo-cranial", "oblique cranio-caudal",
             "frontal-oblique axial", "sagittal-oblique axial", "oblique axial"}  # fmt: skip


def concepts(cid: int) -> list[tuple[str, str]]:
    """Code value and meaning of a context group's members."""
    group = getattr(codes, f"cid{cid}")
    return [(c.value, c.meaning) for c in (getattr(group, keyword) for keyword in cid_concepts[cid]["SCT"])]


def in_both_schemes(value: str) -> list[tuple[str, str]]:
    return [(value, "SCT"), *([(TO_SRT[value], "SRT")] if value in TO_SRT else [])]


def film(**said: Any) -> Dataset:
    silent = {"StudyDescription": None, "ViewPosition": "", "PatientOrientation": None, "ViewCodeSequence": None}
    return chest(80, 72, kind="DX", overrides=silent | said)


def reason(**said: Any) -> Reason | None:
    rejection = select(film(**said))
    return rejection.reason if rejection else None


@pytest.mark.parametrize(("value", "meaning"), [*concepts(4031), *WIDER.items()])
def test_every_anatomic_region_of_the_standard_is_chest_or_is_not(value: str, meaning: str) -> None:
    expected = None if meaning in CHEST or value in WIDER else Reason.WRONG_BODY_PART
    for coded, scheme in in_both_schemes(value):
        region = [code(coded, scheme, "x")]
        assert reason(BodyPartExamined="", AnatomicRegionSequence=region) == expected, (coded, meaning)


@pytest.mark.parametrize(("value", "meaning"), [c for c in concepts(4010) if c[1] not in ELSEWHERE])
def test_every_view_of_the_standard_that_a_chest_can_have_is_frontal_or_is_not(value: str, meaning: str) -> None:
    for coded, scheme in in_both_schemes(value):
        expected = None if meaning in FRONTAL else Reason.LATERAL
        assert reason(ViewCodeSequence=[code(coded, scheme, "x")]) == expected, (coded, meaning)
        # a stated frontal view ends the question: the series' text is asked no more
        said = {"ViewCodeSequence": [code(coded, scheme, "x")], "SeriesDescription": "lateral"}
        assert reason(**said) == expected, (coded, meaning)


def test_the_first_view_code_that_says_something_decides() -> None:
    pa, lateral, unknown = (code(v, "SCT", "x") for v in ("272479007", "399067008", "1"))
    assert reason(ViewCodeSequence=[unknown, pa, lateral]) is None
    assert reason(ViewCodeSequence=[unknown, lateral, pa]) == Reason.LATERAL


@pytest.mark.parametrize(("side", "expected"), [(63, Reason.IMPLAUSIBLE_PIXELS), (64, None)])
@pytest.mark.parametrize("keyword", ["Rows", "Columns"])
def test_the_smallest_film(keyword: str, side: int, expected: Reason | None) -> None:
    assert reason(**{keyword: side}) == expected


@pytest.mark.parametrize(("frames", "expected"), [("", None), (0, None), (1, None), (2, Reason.MULTI_FRAME)])
def test_one_frame_is_an_image_and_two_are_several(frames: Any, expected: Reason | None) -> None:
    assert reason(NumberOfFrames=frames) == expected


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        ({"ViewPosition": "LL"}, "ViewPosition LL"),
        ({"ViewCodeSequence": [code("399067008", "SCT", "x")]}, "ViewCodeSequence 399067008"),
        ({"PatientOrientation": ["A", "F"]}, "PatientOrientation A\\F"),
        ({"SeriesDescription": "Chest lateral"}, "by its SeriesDescription"),
        ({"ProtocolName": "Chest lateral"}, "by its ProtocolName"),
        ({"Modality": "CT"}, "CT"),
        ({"NumberOfFrames": 7}, "7 frames"),
        ({"Rows": 63}, "72 x 63 pixels"),
        ({"ConversionType": "SD"}, "ConversionType SD"),
        ({"QualityControlImage": "YES"}, "QualityControlImage YES"),
        ({"PatientSexNeutered": "UNALTERED"}, "PatientSexNeutered UNALTERED"),
        ({"PatientBreedDescription": "Labrador"}, "by its breed"),
        ({"InstitutionName": "Tierklinik"}, "by its InstitutionName"),
        (
            {"BodyPartExamined": "", "AnatomicRegionSequence": None, "SeriesDescription": "Hand"},
            "by its SeriesDescription",
        ),
        (
            {"BodyPartExamined": "", "AnatomicRegionSequence": [code("85562004", "SCT", "Hand")]},
            "AnatomicRegionSequence 85562004",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_a_refusal_names_the_element_that_decided(said: dict[str, Any], detail: str) -> None:
    rejection = select(film(**said))
    assert rejection
    assert rejection.detail == detail


# -- how a film lies


@pytest.mark.parametrize(
    ("cosines", "lie"),
    [
        ([1, 0, 0, 0, 0, -1], "L\\F"), ([-1, 0, 0, 0, 0, -1], "R\\F"), ([1, 0, 0, 0, 0, 1], "L\\H"),
        ([0, 1, 0, 0, 0, -1], "P\\F"), ([0, -1, 0, 0, 0, -1], "A\\F"), ([0, 0, -1, -1, 0, 0], "F\\R"),
        ([0.6, 0.5, 0.4, 0.1, 0.2, -0.9], "L\\F"),
        ([1, 0, 0, 1, 0, 0], None), ([0, 0, 0, 0, 0, -1], None), ([1, 0, 0, 0, 0, 0], None), ([1, 0, 0, 0, 0], None),
    ],
)  # fmt: skip
def test_image_orientation_says_it_where_patient_orientation_does_not(cosines: list[float], lie: str | None) -> None:
    ds = film(ImageOrientationPatient=cosines)
    assert (str(lie_of(ds)) if lie_of(ds) else None) == lie
    ds.PatientOrientation = ["R", "H"]
    assert str(lie_of(ds)) == "R\\H"  # which goes before it


@pytest.mark.parametrize(
    ("rotation", "flip", "turned"),
    [("0", "NO", False), ("360", "NO", False), ("90", "NO", True), ("270", "", True), ("0", "YES", True),
     ("", "Y", True), ("", "", False), ("nonsense", "NO", False)],
)  # fmt: skip
def test_a_field_of_view_that_was_turned(rotation: str, flip: str, turned: bool) -> None:
    ds = Dataset()
    ds.add_new("FieldOfViewRotation", "LO", rotation)
    ds.FieldOfViewHorizontalFlip = flip
    assert is_turned_from_detector(ds) is turned
