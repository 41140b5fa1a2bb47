"""The input gate: each way a radiograph says that it is a frontal chest, and each reason to refuse one."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from pydicom import Dataset

from cxrnode.dicom.identity import MANUFACTURER
from cxrnode.dicom.read import read_header, read_instance
from cxrnode.dicom.select import select
from cxrnode.types import Reason
from tests.support.make_dicom import chest, code, to_bytes

SR = "1.2.840.10008.5.1.4.1.1.88.34"


def header(kind: str = "CR", **overrides: Any) -> Dataset:
    """A chest whose free text says nothing, so that each test says one thing."""
    silent = {"StudyDescription": None, "ViewPosition": "", "PatientOrientation": None, "ViewCodeSequence": None}
    return chest(80, 72, kind=kind, overrides=silent | overrides)


def mute(kind: str = "CR", **overrides: Any) -> Dataset:
    return header(kind, **{"BodyPartExamined": "", "AnatomicRegionSequence": None} | overrides)


def reason(ds: Dataset) -> Reason | None:
    rejection = select(ds)
    return None if rejection is None else rejection.reason


@pytest.mark.parametrize("kind", ["CR", "DX", "DX_PROCESSING", "SC"])
def test_frontal_chest_is_accepted(kind: str) -> None:
    assert select(header(kind)) is None
    assert select(chest(80, 72, kind=kind, drop_type2=True, overrides={"BodyPartExamined": "CHEST"})) is None


@pytest.mark.parametrize("sop_class", [SR, "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.33"])
def test_own_result_is_known_before_anything_else(sop_class: str) -> None:
    assert reason(header("SC", Manufacturer=MANUFACTURER, SOPClassUID=sop_class, Modality="SR")) == Reason.OWN_RESULT
    assert reason(header("CR", Manufacturer=MANUFACTURER)) is None


@pytest.mark.parametrize(
    "sop_class",
    [SR, "1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.88.59", "1.2.840.10008.5.1.4.1.1.104.1",
     "1.2.840.10008.5.1.4.1.1.9.1.1", "1.2.840.10008.5.1.4.1.1.481.3", "1.2.840.10008.5.1.4.1.1.66.4",
     "1.2.840.10008.5.1.4.1.1.66", "1.2.840.10008.5.1.4.1.1.67", "1.2.840.10008.1.3.10"],
)  # fmt: skip
def test_objects_that_are_no_images(sop_class: str) -> None:
    assert reason(header(SOPClassUID=sop_class)) == Reason.NOT_AN_IMAGE


def test_modality_of_a_report_is_no_image() -> None:
    assert reason(header(Modality="KO")) == Reason.NOT_AN_IMAGE


@pytest.mark.parametrize(
    ("kind", "modality", "sop_class", "expected"),
    [
        ("CR", "CT", None, Reason.WRONG_MODALITY),
        ("CR", "", None, None),
        ("CR", "DX", None, None),
        ("CR", "RG", None, None),
        ("DX", "MG", None, Reason.WRONG_MODALITY),
        ("SC", "OT", None, None),
        ("SC", "SC", None, None),
        ("SC", "CR", None, None),
        ("SC", "CT", None, Reason.WRONG_MODALITY),
        ("CR", "CT", "1.2.840.10008.5.1.4.1.1.2", Reason.WRONG_MODALITY),
        ("CR", "CR", "1.2.840.10008.5.1.4.1.1.2", Reason.WRONG_MODALITY),
        ("CR", "CR", "1.3.46.670589.2.3.1.1", None),  # a vendor's own class, taken at its modality's word
        ("CR", "OT", "1.3.46.670589.2.3.1.1", Reason.WRONG_MODALITY),
    ],
)
def test_modality_and_class(kind: str, modality: str, sop_class: str | None, expected: Reason | None) -> None:
    overrides = {"Modality": modality} | ({"SOPClassUID": sop_class} if sop_class else {})
    assert reason(header(kind, **overrides)) == expected


@pytest.mark.parametrize("part", ["CHEST", "THORAX", "CHEST PA", "LUNG", "CHESTABDOMEN", "CHESTABDPELVIS", "NECKCHEST",
                                  "Thorax", "TORAX", "TÓRAX", "PULMON", "POUMONS", "KLATKA PIERSIOWA"])  # fmt: skip
def test_body_parts_that_show_the_chest(part: str) -> None:
    assert select(mute(BodyPartExamined=part)) is None


@pytest.mark.parametrize("part", ["ABDOMEN", "SKULL", "HAND", "RIB", "SPINE", "TSPINE", "THORACIC SPINE", "CLAVICLE",
                                  "THORACOLUMBAR", "EXTREMITY", "BREAST", "BWS", "COLUMNA TORACICA"])  # fmt: skip
def test_other_body_parts_are_refused(part: str) -> None:
    rejection = select(mute(BodyPartExamined=part, StudyDescription="Chest"))
    assert rejection is not None
    assert rejection.reason == Reason.WRONG_BODY_PART
    assert rejection.detail == f"BodyPartExamined {part}"


@pytest.mark.parametrize("value", ["51185008", "816094009", "43799004", "39607008", "T-D3000", "416550000"])
def test_coded_region_decides_first(value: str) -> None:
    assert select(mute(AnatomicRegionSequence=[code(value, "SCT", "x")])) is None


def test_other_coded_region_is_refused() -> None:
    assert reason(mute(AnatomicRegionSequence=[code("85562004", "SCT", "Hand")])) == Reason.WRONG_BODY_PART


@pytest.mark.parametrize("kind", ["CR", "DX", "SC"])
def test_silence_is_refused(kind: str) -> None:
    rejection = select(mute(kind))
    assert rejection is not None
    assert rejection.reason == Reason.WRONG_BODY_PART
    assert rejection.detail == "BodyPartExamined is empty and nothing else says chest"


@pytest.mark.parametrize(
    ("keyword", "text"),
    [("StudyDescription", "XR CHEST 2 VIEWS"), ("StudyDescription", "Röntgen-Thorax in 2 Ebenen"),
     ("SeriesDescription", "Rx tórax PA"), ("ProtocolName", "W034 Thorax p.a."), ("StudyDescription", "CXR"),
     ("PerformedProcedureStepDescription", "Radiographie du thorax de face"), ("SeriesDescription", "PA_CHEST"),
     ("RequestedProcedureDescription", "RX TORACE"), ("StudyDescription", "RTG klatki piersiowej"),
     ("StudyDescription", "胸部正面"), ("StudyDescription", "Рентгенография органов грудной клетки"),
     ("StudyDescription", "RADIOGRAFIA PULMONAR"), ("StudyDescription", "Lungenübersicht")],
)  # fmt: skip
def test_free_text_in_many_languages(keyword: str, text: str) -> None:
    assert select(mute(**{keyword: text})) is None
    assert select(mute(BodyPartExamined="UNKNOWN", **{keyword: text})) is None


@pytest.mark.parametrize("text", ["BWS 2 Ebenen", "Thoracic spine AP", "Darstellung", "Behandlung", "Columna torácica"])
def test_free_text_that_only_looks_like_chest(text: str) -> None:
    assert reason(mute(StudyDescription=text)) == Reason.WRONG_BODY_PART


def test_series_text_is_nearer_than_study_text() -> None:
    assert reason(mute(SeriesDescription="Hand AP", StudyDescription="Chest and hand")) == Reason.WRONG_BODY_PART
    assert reason(mute(SeriesDescription="Chest PA", StudyDescription="Abdomen and chest")) is None


def test_detail_never_quotes_free_text() -> None:
    rejection = select(mute(BodyPartExamined="Ms Jane Q. Public's left hand"))
    assert rejection is not None
    assert "Jane" not in rejection.text


@pytest.mark.parametrize("view", ["LL", "RL", "LATERAL", "LAT", "L LAT", "RAO", "LPO", "Lateral erect"])
def test_lateral_view_positions(view: str) -> None:
    assert reason(header(ViewPosition=view)) == Reason.LATERAL


@pytest.mark.parametrize(
    "view", ["", "PA", "AP", "LLD", "RLD", "AP LLD", "AP SUPINE", "LATERAL DECUB", "UNKNOWN", "ERECT"]
)
def test_views_that_are_frontal_or_unsaid(view: str) -> None:
    assert select(header(ViewPosition=view)) is None


@pytest.mark.parametrize("value", ["399198007", "399173006", "399067008", "R-10236", "R-10232", "399135007"])
def test_lateral_view_codes(value: str) -> None:
    assert reason(header("DX", ViewCodeSequence=[code(value, "SCT", "x")])) == Reason.LATERAL


@pytest.mark.parametrize("value", ["272479007", "399348003", "399033003", "R-10206"])
def test_frontal_view_codes(value: str) -> None:
    ds = header("DX", ViewCodeSequence=[code(value, "SCT", "x")])
    assert select(ds) is None
    ds.PatientOrientation = ["A", "F"]
    assert reason(ds) == Reason.ORIENTATION_UNCLEAR


@pytest.mark.parametrize(("orientation", "expected"), [(["A", "F"], Reason.LATERAL), (["P", "F"], Reason.LATERAL),
                                                       (["L", "F"], None), (["R", "F"], None), (["LP", "F"], None),
                                                       ("", None), ("nonsense", None)])  # fmt: skip
def test_patient_orientation(orientation: Any, expected: Reason | None) -> None:
    assert reason(header(PatientOrientation=orientation)) == expected


@pytest.mark.parametrize(
    "text", ["Chest lateral", "Thorax seitlich", "Thorax profil", "Tórax perfil", "CHEST LAT", "Torace LL"]
)
def test_lateral_by_its_series_text(text: str) -> None:
    assert reason(header(SeriesDescription=text)) == Reason.LATERAL
    assert reason(header(ProtocolName=text)) == Reason.LATERAL


@pytest.mark.parametrize("text", ["Chest PA and LAT", "Bilateral ribs and chest", "Latex allergy", "Chest plate"])
def test_series_text_that_does_not_say_lateral(text: str) -> None:
    assert select(header(SeriesDescription=text)) is None


def test_study_text_never_decides_the_view() -> None:
    assert select(header(StudyDescription="Chest lateral", PerformedProcedureStepDescription="Chest lateral")) is None


@pytest.mark.parametrize("conversion", ["SD", "SI", "DRW", "DV", "SYN", "WSD", "sd", "PHOTO"])
def test_a_page_a_drawing_or_a_screen_is_no_radiograph_whatever_the_text_says(conversion: str) -> None:
    ds = header("SC", ConversionType=conversion, StudyDescription="Chest PA", SeriesDescription="Thorax")
    assert reason(ds) == Reason.WRONG_MODALITY
    assert reason(header("CR", ConversionType=conversion)) == Reason.WRONG_MODALITY


@pytest.mark.parametrize("conversion", ["DF", "DI", "", None])
def test_a_digitised_film_and_a_digital_interface_stay_candidates(conversion: str | None) -> None:
    assert select(header("SC", ConversionType=conversion)) is None


@pytest.mark.parametrize(
    ("further", "expected"),
    [("SCREEN SAVE", Reason.WRONG_MODALITY), ("SCREENSHOT", Reason.WRONG_MODALITY),
     ("DOSE REPORT", Reason.WRONG_MODALITY),
     ("SCANNED", Reason.WRONG_MODALITY), ("POST_PROCESSED", None), ("RT", None), ("", None)],
)  # fmt: skip
def test_image_type_that_names_a_screen_or_a_page(further: str, expected: Reason | None) -> None:
    assert reason(header("SC", ImageType=["DERIVED", "SECONDARY", further])) == expected


@pytest.mark.parametrize("text", ["Scanned documents", "Dokumente", "Screenshots"])
def test_a_series_of_pages_is_none_of_films(text: str) -> None:
    assert reason(header("SC", ConversionType=None, SeriesDescription=text)) == Reason.WRONG_MODALITY
    assert select(header("SC", ConversionType=None, SeriesDescription="Screening thorax")) is None


ANIMALS: list[dict[str, Any]] = [
    {"PatientSpeciesDescription": "Canis lupus familiaris"},
    {"PatientSpeciesDescription": "Feline"},
    {"PatientSpeciesCodeSequence": [code("448771007", "SCT", "Canis lupus familiaris")]},
    {"PatientSpeciesCodeSequence": [code("L-80A00", "SRT", "Felis catus")]},
    {"PatientBreedDescription": "Labrador"},
    {"PatientBreedCodeSequence": [code("132555001", "SCT", "Labrador retriever")]},
    {"AnatomicalOrientationType": "QUADRUPED"},
    {"PatientOrientation": ["RT", "CD"]},
    {"PatientOrientation": ["CR", "LE"]},
    {"PatientOrientation": ["D", "CDRT"]},
    {"PatientSexNeutered": "ALTERED"},
    {"ResponsiblePerson": "Doe^Jane", "ResponsiblePersonRole": "OWNER"},
    {"StudyDescription": "Canine thorax"},
    {"SeriesDescription": "Thorax Hund"},
    {"StudyDescription": "Dog chest VD"},
    {"BodyPartExamined": "CHEST CAT"},
    {"InstitutionName": "University Veterinary Clinic"},
    {"InstitutionName": "Small Animal Hospital"},
    {"StrainDescription": "C57BL/6"},
    {"StrainCodeSequence": [code("3028467", "MGI", "C57BL/6")]},
    {"StudyDescription": "Thorax Phantom"},
    {"QualityControlImage": "YES"},
    {"QualityControlSubject": "YES"},
    {"CalibrationImage": "YES"},
]


@pytest.mark.parametrize("said", ANIMALS, ids=str)
def test_animals_and_phantoms(said: dict[str, Any]) -> None:
    assert reason(header(**said)) == Reason.NOT_A_PATIENT
    for kind in ("DX", "SC"):
        assert reason(header(kind, **said)) == Reason.NOT_A_PATIENT


@pytest.mark.parametrize("said", [
    *ANIMALS, {"ConversionType": "SD"}, {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
    {"PatientOrientation": ["A", "F"]}, {"PatientOrientation": "", "FieldOfViewRotation": 90},
    {"PatientOrientation": "", "FieldOfViewHorizontalFlip": "YES"},
    {"PatientOrientation": "", "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("read", [read_instance, lambda raw: read_header(BytesIO(raw))], ids=["instance", "header"])
def test_the_gate_says_the_same_of_what_was_read(said: dict[str, Any], read: Any) -> None:
    """What the gate asks is among the elements that are read at all (see `needed`)."""
    ds = chest(96, 96, overrides=said)
    assert select(ds) is not None
    assert select(read(to_bytes(ds))) == select(ds)


@pytest.mark.parametrize(
    "said",
    [{"PatientSpeciesDescription": "Human"}, {"PatientSpeciesDescription": "Homo sapiens"},
     {"PatientSpeciesDescription": ""}, {"PatientSpeciesDescription": "UNKNOWN"},
     {"PatientSpeciesDescription": "Mensch"},
     {"PatientSpeciesCodeSequence": [code("337915000", "SCT", "Homo sapiens")]},
     {"PatientSpeciesCodeSequence": [code("L-85B00", "SRT", "homo sapiens")]}, {"PatientSpeciesCodeSequence": []},
     {"AnatomicalOrientationType": "BIPED"}, {"ResponsiblePerson": "Doe^Jane", "ResponsiblePersonRole": "PARENT"},
     {"PatientBreedDescription": ""}, {"PatientBreedCodeSequence": []}, {"StudyDescription": "Chest, dog bite"},
     {"StudyDescription": "Thorax, Sturz vom Pferd"}, {"QualityControlImage": "NO"}, {"QualityControlImage": "BOTH"},
     {"StudyDescription": "CAT and chest film"}, {"PatientName": "Dog^Canine"},
     {"StudyDescription": "Chest, animal bite"}],
    ids=str,
)  # fmt: skip
def test_people(said: dict[str, Any]) -> None:
    assert select(header(**said)) is None


@pytest.mark.parametrize("view", [{"ViewPosition": "PA"}, {"ViewPosition": "AP"}])
@pytest.mark.parametrize("lie", [["A", "F"], ["P", "F"], ["F", "A"], ["L", "P"], ["AL", "F"]])
def test_an_orientation_that_contradicts_the_stated_view(view: dict[str, Any], lie: list[str]) -> None:
    assert reason(header(PatientOrientation=lie, **view)) == Reason.ORIENTATION_UNCLEAR


@pytest.mark.parametrize(
    ("said", "expected"),
    [({"FieldOfViewRotation": "90"}, Reason.ORIENTATION_UNCLEAR),
     ({"FieldOfViewRotation": "180"}, Reason.ORIENTATION_UNCLEAR),
     ({"FieldOfViewRotation": "0", "FieldOfViewHorizontalFlip": "YES"}, Reason.ORIENTATION_UNCLEAR),
     ({"FieldOfViewRotation": "90", "PatientOrientation": "nonsense"}, Reason.ORIENTATION_UNCLEAR),
     ({"FieldOfViewRotation": "0", "FieldOfViewHorizontalFlip": "NO"}, None), ({"FieldOfViewRotation": ""}, None),
     ({"FieldOfViewRotation": "270", "FieldOfViewHorizontalFlip": "YES", "PatientOrientation": ["L", "F"]}, None),
     ({"FieldOfViewRotation": "270", "ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, None)],
    ids=str,
)  # fmt: skip
def test_a_field_of_view_says_nothing_of_the_patient(said: dict[str, Any], expected: Reason | None) -> None:
    assert reason(header("DX", **{"PatientOrientation": ""} | said)) == expected


def test_several_frames() -> None:
    assert reason(header(NumberOfFrames=2)) == Reason.MULTI_FRAME
    assert select(header(NumberOfFrames=1)) is None


def test_tiny_images() -> None:
    assert reason(header(Rows=63)) == Reason.IMPLAUSIBLE_PIXELS
    assert reason(header(Columns=1)) == Reason.IMPLAUSIBLE_PIXELS


@pytest.mark.parametrize("keyword", ["Modality", "BodyPartExamined", "ViewPosition", "Manufacturer", "SOPClassUID",
                                     "NumberOfFrames", "Rows", "SeriesDescription", "PatientOrientation"])  # fmt: skip
@pytest.mark.parametrize(("vr", "value"), [("OB", b"\x00\xff"), ("FD", [1.5, 2.5]), ("SQ", []), ("LO", ["a", "b"]),
                                           ("UN", b""), ("AT", 0x00100010), ("PN", "A^B")])  # fmt: skip
def test_wrong_representations_never_crash(keyword: str, vr: str, value: Any) -> None:
    ds = header()
    tag = ds[keyword].tag if keyword in ds else {"NumberOfFrames": 0x00280008, "SeriesDescription": 0x0008103E,
                                                 "PatientOrientation": 0x00200020}[keyword]  # fmt: skip
    ds.add_new(tag, vr, value)
    select(ds)
    for sequence in ("ViewCodeSequence", "AnatomicRegionSequence"):
        ds.add_new(sequence, vr, value)
        select(ds)


def test_empty_data_set() -> None:
    assert reason(Dataset()) == Reason.WRONG_MODALITY
