"""Rule by rule and field by field: whatever one of them does not say as it must is refused, and named."""

from __future__ import annotations

import re

import pytest
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.tag import BaseTag

from cxrnode.dicom.verbatim import Encoded
from cxrnode.errors import ResultError
from cxrnode.report.capture import build_capture
from cxrnode.report.encode import decode, encode
from cxrnode.report.sr import build_sr
from cxrnode.types import ImageResult
from tests.support.bundles import make_bundle
from tests.support.results import SCENARIOS, analysed, cam, check, context, header, preview
from tests.unit.report.test_check import (
    Damage,
    child,
    cut,
    drop,
    evidence,
    group,
    move_evidence,
    put,
    say,
    set_probability,
    share_tracking_uid,
    uid_of,
)

IMAGES = SCENARIOS["mixed"]()


def read(images: list[ImageResult]) -> Dataset:
    return decode(encode(build_sr(images, context())))


def drop_all(item: Dataset, meaning: str) -> None:
    item.ContentSequence = [i for i in item.ContentSequence if i.ConceptNameCodeSequence[0].CodeMeaning != meaning]


def put_number(keyword: str) -> Damage:
    """As what is read from a file has it."""
    tag = BaseTag(tag_for_keyword(keyword) or 0)
    return lambda ds: ds.update({tag: Encoded(tag, "DS", b"70")})


def recode(
    meaning: str, keyword: str, value: str | None, *, number: int = 0, of: str = "ConceptCodeSequence"
) -> Damage:
    """Of an item of a measurement group."""

    def damage(ds: Dataset) -> None:
        code = getattr(child(group(ds, number), meaning), of)[0]
        code.pop(keyword) if value is None else setattr(code, keyword, value)

    return damage


def swap_groups(ds: Dataset) -> None:
    groups = child(ds, "Imaging Measurements").ContentSequence
    groups[0], groups[1] = groups[1], groups[0]


def equipment(keyword: str, value: object) -> Damage:
    return lambda ds: setattr(ds.ContributingEquipmentSequence[0], keyword, value)


def source_of(ds: Dataset) -> Dataset:
    found: Dataset = child(group(ds), "Source").ReferencedSOPSequence[0]
    return found


def measured(ds: Dataset) -> Dataset:
    found: Dataset = child(group(ds), "Probability").MeasuredValueSequence[0]
    return found


FILLED = ("DeviceSerialNumber", "SoftwareVersions", "SeriesDescription", "SeriesNumber", "InstanceNumber",
          "ContentDate", "ContentTime")  # fmt: skip
TYPE_2 = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
          "ReferringPhysicianName", "StudyID", "AccessionNumber")  # fmt: skip
OTHERS = {
    "PatientName": "X", "PatientID": "X", "PatientBirthDate": "19000101", "PatientSex": "M", "StudyDate": "20000101",
    "StudyTime": "010101", "ReferringPhysicianName": "X", "StudyID": "X", "AccessionNumber": "X",
    "SpecificCharacterSet": "ISO_IR 100", "IssuerOfPatientID": "X", "IssuerOfPatientIDQualifiersSequence": [Dataset()],
    "OtherPatientIDsSequence": [Dataset()], "IssuerOfAccessionNumberSequence": [Dataset()], "PatientAge": "001D",
    "StudyDescription": "X",
}  # fmt: skip
MODEL = "ContributingEquipmentSequence names no model"
ANOTHER = "ContributingEquipmentSequence names another model"
PURPOSE = "ContributingEquipmentSequence does not say what the model did"
COMMON: list[tuple[Damage, str]] = [
    (put("SOPClassUID", "1.2.840.10008.5.1.4.1.1.1"), "SOP Class UID 1.2.840.10008.5.1.4.1.1.1 is no result's"),
    (cut("SeriesInstanceUID"), "SeriesInstanceUID is invalid"),
    (put("SOPInstanceUID", uid_of("StudyInstanceUID")), "SOPInstanceUID is the source's"),
    (put("SOPInstanceUID", uid_of("SeriesInstanceUID")), "SOPInstanceUID is the source's"),
    (put("SeriesInstanceUID", uid_of("SOPInstanceUID")), "SeriesInstanceUID is the source's"),
    (cut("StudyInstanceUID"), "StudyInstanceUID differs"),
    (cut("TimezoneOffsetFromUTC"), "TimezoneOffsetFromUTC is absent"),
    *((put("TimezoneOffsetFromUTC", text), "TimezoneOffsetFromUTC is no offset")
      for text in ("0100", "-0000", "+1401", "-1201", "+0160", "MEZ")),
    (put("Manufacturer", "X"), "loop guard"),
    (put("ManufacturerModelName", "X"), "loop guard"),
    (put("DeviceSerialNumber", "X"), ANOTHER),
    (equipment("DeviceUID", "1.x"), MODEL),
    (lambda ds: delattr(ds.ContributingEquipmentSequence[0], "DeviceUID"), MODEL),
    (lambda ds: ds.ContributingEquipmentSequence.append(ds.ContributingEquipmentSequence[0]), MODEL),
    (put("ContributingEquipmentSequence", []), MODEL),
    (equipment("Manufacturer", "X"), ANOTHER),
    (equipment("ManufacturerModelName", "X"), ANOTHER),
    (equipment("DeviceSerialNumber", "X"), ANOTHER),
    (equipment("SoftwareVersions", None), "does not say which version"),
    (equipment("PurposeOfReferenceCodeSequence", []), PURPOSE),
    (lambda ds: setattr(ds.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0], "CodeValue", "1"),
     PURPOSE),
    (lambda ds: setattr(ds.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0], "CodeMeaning", "X"),
     PURPOSE),
    (equipment("ContributionDescription", "Analysed."), "ContributionDescription does not say"),
    *((cut(k), f"{k} is empty") for k in FILLED),
    *((put(k, None), f"{k} is empty") for k in FILLED),
    *((cut(k), f"{k} .type 2. is absent") for k in TYPE_2),
    *((put(k, v), f"{k} differs from the source's") for k, v in OTHERS.items()),
    (put_number("PatientSize"), "PatientSize differs from the source's"),
    (put_number("PatientWeight"), "PatientWeight differs from the source's"),
    (put("SeriesDescription", "AI"), "SeriesDescription does not say"),
]  # fmt: skip
EVIDENCE = "CurrentRequestedProcedureEvidenceSequence does not hold exactly the images and their captures"
REPORT: list[tuple[Damage, str]] = [
    (move_evidence, "evidence in PertinentOtherEvidenceSequence"),
    (share_tracking_uid, "two measurement groups share a Tracking UID"),
    (put("CompletionFlag", "PARTIAL"), "CompletionFlag is 'PARTIAL', not 'COMPLETE'"),
    (put("VerificationFlag", "VERIFIED"), "VerificationFlag is 'VERIFIED', not 'UNVERIFIED'"),
    (put("SeriesNumber", 9802), "SeriesNumber is '?9802'?, not 9801"),
    (put("InstanceNumber", 2), "InstanceNumber is '?2'?, not 1"),
    (lambda ds: setattr(ds.CurrentRequestedProcedureEvidenceSequence[0], "StudyInstanceUID", "1.2"), EVIDENCE),
    (lambda ds: setattr(evidence(ds), "SeriesInstanceUID", "1.2"), EVIDENCE),
    (lambda ds: setattr(evidence(ds).ReferencedSOPSequence[0], "ReferencedSOPInstanceUID", "1.2"), EVIDENCE),
    (lambda ds: setattr(evidence(ds).ReferencedSOPSequence[1], "ReferencedSOPClassUID", "1.2"), EVIDENCE),
    (put("CurrentRequestedProcedureEvidenceSequence", []), EVIDENCE),
    (lambda ds: setattr(evidence(ds), "ReferencedSOPSequence", []), EVIDENCE),
    (cut("PerformedProcedureCodeSequence"), "PerformedProcedureCodeSequence .type 2. is not empty"),
    (put("ReferencedPerformedProcedureStepSequence", [Dataset()]), "StepSequence .type 2. is not empty"),
    (lambda ds: setattr(ds.ContentTemplateSequence[0], "TemplateIdentifier", "1501"),
     "Imaging Measurement Report is not"),
    (lambda ds: setattr(ds.ContentTemplateSequence[0], "MappingResource", "X"), "Imaging Measurement Report is not"),
    (put("ContinuityOfContent", "CONTINUOUS"), "Imaging Measurement Report is not what it must be"),
    (lambda ds: setattr(ds.ConceptNameCodeSequence[0], "CodeValue", "1"), "Imaging Measurement Report is missing"),
    (lambda ds: setattr(child(ds, "Device Observer UID"), "UID", "1.x"), "Device Observer UID is"),
    (lambda ds: setattr(child(ds, "Device Observer UID"), "UID", "1.2"), "Device Observer UID is not the Device UID"),
    (lambda ds: setattr(child(ds, "Device Observer Name"), "TextValue", "X"), "Device Observer Name is not what"),
    (lambda ds: setattr(child(ds, "Summary"), "RelationshipType", "HAS CONCEPT MOD"), "Summary is not CONTAINS TEXT"),
    (lambda ds: setattr(child(ds, "Summary"), "ValueType", "UIDREF"), "Summary is not CONTAINS TEXT"),
    (say("Research use only. Not for diagnostic use.", "For research."), "research use only"),
    (say("2 NOT ANALYSED", "1 NOT ANALYSED"), "the summary does not say that silence is not normal"),
    (say("they must not be read as normal", "fine"), "the summary does not say that silence is not normal"),
    (say("1 of 3 images", "1 of 2 images"), "the summary does not say how many images were analysed"),
    (say("images analysed by cxr3-test", "images analysed by another"), "how many images were analysed"),
    (say("Image 1: 2.25.790 ", "Image 1: 2.25.791 "), "does not mention image 1"),
    (say("Image 3: 2.25.792 ", "Image 3: 2.25.7921 "), "does not mention image 3"),
    (say("COVID (covid", "NORMAL (covid"), "what came of image 1"),
    (say("0.930 present", "0.931 present"), "what came of image 1"),
    (say("the decoder crashed", "nobody knows"), "what came of image 3"),
    (swap_groups, "image 1: .*image 2: "),
    (lambda ds: child(ds, "Imaging Measurements").ContentSequence.append(group(ds)),
     "4 measurement groups for 3 images"),
    (lambda ds: drop(group(ds), "Finding Site"), "image 1: Finding Site is missing"),
    (lambda ds: drop_all(group(ds), "Algorithm Parameters"), "image 1: Algorithm Parameters is missing"),
    (lambda ds: drop(group(ds, 1), "Algorithm Parameters"), "image 2: Algorithm Parameters is not what"),
    (lambda ds: drop(group(ds), "Algorithm Manufacturer"), "image 1: Algorithm Manufacturer is missing"),
    (lambda ds: setattr(child(group(ds), "Algorithm Name"), "TextValue", ""), "image 1: Algorithm Name is not what"),
    (lambda ds: setattr(child(group(ds), "Tracking Unique Identifier"), "UID", "1.x"),
     "image 1: Tracking Unique Ident"),
    (lambda ds: setattr(child(group(ds), "Tracking Identifier"), "TextValue", "X"),
     "image 1: Tracking Identifier is not"),
    (lambda ds: setattr(source_of(ds), "ReferencedSOPClassUID", "1.2.3"), "image 1: Source is not what it must be"),
    (lambda ds: setattr(child(group(ds), "Source"), "ReferencedSOPSequence", []), "image 1: Source is not what"),
    (lambda ds: child(group(ds), "Source").ReferencedSOPSequence.append(source_of(ds)), "image 1: Source is not what"),
    (lambda ds: setattr(child(group(ds), "Source"), "ValueType", "TEXT"), "image 1: Source is not CONTAINS IMAGE"),
    (recode("Summary of Analyses", "CodeValue", "111225", number=2), "image 3: Summary of Analyses is not what"),
    (recode("Summary of Analyses", "CodeValue", "111225"), "image 1: Summary of Analyses is not what it must be"),
    (recode("Summary of Analyses", "CodingSchemeDesignator", "99X"), "image 1: Summary of Analyses is not what"),
    (recode("Summary of Analyses", "CodeMeaning", "Fine"), "image 1: Summary of Analyses is not what it must be"),
    (recode("Suspected COVID-19", "CodeValue", "272519000"), "image 1: Suspected COVID-19 is not what it must be"),
    (recode("Normal", "CodeValue", "52101004"), "image 1: Normal is not what it must be"),
    (recode("Finding", "CodeValue", "373068000"), "image 1: Finding is not what it must be"),
    (recode("Finding", "CodeValue", "75570004"), "image 1: Finding is not what it must be"),
    (recode("Finding", "CodeValue", None), "image 1: Finding is not what it must be"),
    (lambda ds: group(ds, 1).ContentSequence.append(child(group(ds), "Probability")),
     "image 2: a content item follows"),
    (lambda ds: group(ds, 2).ContentSequence.append(child(group(ds), "Normal")), "image 3: a content item follows"),
    (lambda ds: setattr(child(group(ds), "Probability"), "MeasuredValueSequence", []),
     "image 1: Probability is not what"),
    (lambda ds: setattr(measured(ds).MeasurementUnitsCodeSequence[0], "CodeValue", "%"), "image 1: Probability is not"),
    (lambda ds: setattr(measured(ds), "MeasurementUnitsCodeSequence", []), "image 1: Probability is not what"),
    (lambda ds: setattr(measured(ds), "FloatingPointValue", 0.5), "image 1: Probability is not what it must be"),
    (lambda ds: delattr(measured(ds), "NumericValue"), "image 1: Probability is not what it must be"),
    (set_probability("0.930002"), "image 1: Probability is not what it must be"),
    (set_probability("0.929998"), "image 1: Probability is not what it must be"),
]  # fmt: skip
SOURCE, SERIES = "SourceImageSequence does not", "ReferencedSeriesSequence does not"
CAPTURE: list[tuple[Damage, str]] = [
    (put("Modality", "SR"), "Modality is 'SR', not 'OT'"),
    (put("SeriesNumber", 9801), "SeriesNumber is '?9801'?, not 9802"),
    (put("InstanceNumber", 2), "InstanceNumber is not the source's"),
    (put("ImageType", ["DERIVED", "PRIMARY"]), "ImageType"),
    (cut("ImageType"), "ImageType"),
    (put("DerivationDescription", "Grad-CAM of cxr3-test 1.0.0"), "DerivationDescription"),
    (put("DerivationDescription", "Map. Research use only. Not for diagnostic use."), "DerivationDescription"),
    (put("DerivationCodeSequence", []), "DerivationCodeSequence"),
    (lambda ds: setattr(ds.DerivationCodeSequence[0], "CodeValue", "1"), "DerivationCodeSequence"),
    (put("SeriesDescription", "Grad-CAM"), "SeriesDescription"),
    (put("ImageComments", "covid."), "ImageComments"),
    (put("ImageComments", "normal. Research use only. Not for diagnostic use."), "ImageComments"),
    (put("PatientOrientation", ["R", "F"]), "PatientOrientation"),
    (cut("PatientOrientation"), "PatientOrientation"),
    (lambda ds: setattr(ds.SourceImageSequence[0], "PurposeOfReferenceCodeSequence", []), SOURCE),
    (lambda ds: setattr(ds.SourceImageSequence[0], "ReferencedSOPClassUID", "1.2.3"), SOURCE),
    (lambda ds: setattr(ds.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0], "CodeValue", "121320"), SOURCE),
    (lambda ds: ds.SourceImageSequence.append(ds.SourceImageSequence[0]), SOURCE),
    (cut("ReferencedSeriesSequence"), SERIES),
    (lambda ds: setattr(ds.ReferencedSeriesSequence[0], "SeriesInstanceUID", "1.2"), SERIES),
    (lambda ds: setattr(ds.ReferencedSeriesSequence[0], "ReferencedInstanceSequence", []), SERIES),
    *((cut(k), f"{k} is None, not") for k in (
        "BodyPartExamined", "SamplesPerPixel", "PlanarConfiguration", "BitsAllocated", "HighBit", "PixelRepresentation",
        "BitsStored", "BurnedInAnnotation", "ConversionType", "PhotometricInterpretation",
    )),
    (put("RecognizableVisualFeatures", "YES"), "RecognizableVisualFeatures is 'YES', not 'NO'"),
    (put("PixelRepresentation", 1), "PixelRepresentation is 1, not 0"),
    (cut("PixelData"), "PixelData holds 0 bytes, Rows and Columns ask for"),
    (lambda ds: setattr(ds, "PixelData", ds.PixelData + b"\0\0"), "Rows and Columns ask for"),
    (cut("Rows"), "Rows and Columns ask for 0"),
    (cut("Columns"), "Rows and Columns ask for 0"),
    (lambda ds: (cut("Rows")(ds), cut("PixelData")(ds)), "PixelData holds 0 bytes, Rows and Columns ask for 0"),
    (lambda ds: setattr(ds, "PixelData", b"\x07" * len(ds.PixelData)), "blank"),
]  # fmt: skip
SENTENCES = [  # whole: what a field engineer reads in the log
    r"SOP Class UID [\d.]+ is no result's",
    r"(SOPInstanceUID|SeriesInstanceUID) is (invalid|the source's)",
    r"\w+ differs from the source's",
    r"TimezoneOffsetFromUTC (is absent|is no offset|differs from the source's, and with it the study's time)",
    r"\w+ \(type 2\) is (absent|not empty)",
    r"\w+ is empty",
    r"\w+ is [^ ]+, not [^ ]+",
    "Manufacturer or ManufacturerModelName is not the node's: its loop guard would not know the object",
    r"ContributingEquipmentSequence names (no model \(Device UID\)|another model)",
    "ContributingEquipmentSequence does not say (what the model did|which version)",
    "(ContributionDescription|DerivationDescription) does not say that it is for research use only",
    "SeriesDescription does not say what it is, and that it is for research use only",
    "evidence in PertinentOtherEvidenceSequence",
    "CurrentRequestedProcedureEvidenceSequence does not hold exactly the images and their captures",
    "Device Observer UID is not the Device UID of the contributing equipment",
    r"\d measurement groups for \d images",
    "two measurement groups share a Tracking (UID|Identifier)",
    r"(image \d: )?[\w -]+ is missing, or another item stands in its place",
    r"(image \d: )?[\w -]+ is not (CONTAINS|HAS CONCEPT MOD|HAS OBS CONTEXT) [\w ]+",
    r"(image \d: )?[\w -]+ is not what it must be",
    r"(image \d: )?a content item follows that must not be there",
    "the summary does not say that (it is for research use only|silence is not normal)",
    "the summary does not say how many images were analysed",
    r"the summary does not (mention|say what came of) image \d",
    r"ImageType is not DERIVED\\SECONDARY",
    "DerivationCodeSequence does not say what it is",
    "ImageComments does not say what was found, and that it is for research use only",
    "InstanceNumber is not the source's",
    "PatientOrientation is not that of the upright picture",
    "(SourceImageSequence|ReferencedSeriesSequence) does not name the source image and its (purpose|series)",
    r"PixelData holds \d+ bytes, Rows and Columns ask for \d+",
    "the picture is blank",
]


def assert_refused(ds: Dataset, images: list[ImageResult], expected: str) -> None:
    with pytest.raises(ResultError, match=expected) as refused:
        check(ds, images)
    start, _, findings = str(refused.value).partition(" failed its checks: ")
    assert start == f"result {ds.get('SOPInstanceUID')}"
    for finding in findings.split("; "):
        assert any(re.fullmatch(sentence, finding) for sentence in SENTENCES), finding


_REPORT = encode(build_sr(IMAGES, context()))
_CAPTURE = encode(build_capture(IMAGES[0], preview(128, 112), cam(), context(), long_side=256))


@pytest.mark.parametrize("number", range(len(COMMON + REPORT)))
def test_a_damaged_report(number: int) -> None:
    damage, expected = (COMMON + REPORT)[number]
    ds = decode(_REPORT)
    damage(ds)
    assert_refused(ds, IMAGES, expected)


@pytest.mark.parametrize("number", range(len(COMMON + CAPTURE)))
def test_a_damaged_capture(number: int) -> None:
    damage, expected = (COMMON + CAPTURE)[number]
    ds = decode(_CAPTURE)
    damage(ds)
    assert_refused(ds, IMAGES[:1], expected)


@pytest.mark.parametrize("images", ["positive", "normal", "undetermined", "mixed", "lateral"])
def test_the_run_status_is_the_images_own(images: str) -> None:
    ds = read(SCENARIOS[images]())
    check(ds, SCENARIOS[images]())
    status = child(ds, "CAD Processing and Findings Summary").ConceptCodeSequence[0]
    said = status.CodeValue
    for other in {"111241", "111242", "111243", "111244", "111245", ""} - {said}:
        status.CodeValue = other
        with pytest.raises(ResultError, match="CAD Processing and Findings Summary is not what it must be"):
            check(ds, SCENARIOS[images]())


@pytest.mark.parametrize("probabilities", [(0.0, 0.0, 1.0), (1.0, 1.0, 0.0), (0.93, 0.05, 0.02), (0.5, 0.2, 0.1)])
def test_a_probability_is_the_same_within_a_millionth(probabilities: tuple[float, ...]) -> None:
    images = [analysed(probabilities=probabilities)]
    ds = read(images)
    check(ds, images)
    text = float(measured(ds).NumericValue)
    measured(ds).NumericValue = f"{text - 9e-7 if text else 9e-7:.8f}"
    check(ds, images)


@pytest.mark.parametrize(
    ("probabilities", "finding"),
    [((0.6, 0.7, 0.9), "75570004"), ((0.7, 0.6, 0.9), "840544004"), ((0.4, 0.4, 0.5), "17621005")],
)
def test_the_finding_is_the_most_probable_abnormal_one(probabilities: tuple[float, ...], finding: str) -> None:
    images = [analysed(probabilities=probabilities)]
    ds = read(images)
    code = child(group(ds), "Finding").ConceptCodeSequence[0]
    assert code.CodeValue == finding
    check(ds, images)
    for other in {"75570004", "840544004", "17621005", "373068000"} - {finding}:
        code.CodeValue = other
        with pytest.raises(ResultError, match="image 1: Finding is not what it must be"):
            check(ds, images)


def test_another_bundle_is_another_model() -> None:
    with pytest.raises(ResultError, match="names another model"):
        check(read(IMAGES), IMAGES, make_bundle(version="2"))


def test_what_the_source_says_of_its_orientation_and_number_is_the_capture_s() -> None:
    unsaid = analysed(header(overrides={"PatientOrientation": None, "InstanceNumber": None}))
    ds = build_capture(unsaid, preview(64, 56), cam(), context(), long_side=256)
    check(ds, [unsaid])
    ds.PatientOrientation = ["L", "F"]
    with pytest.raises(ResultError, match="PatientOrientation is not that of the upright picture"):
        check(ds, [unsaid])


def test_the_offset_of_all_times_is_the_source_s() -> None:
    image = analysed(header({"TimezoneOffsetFromUTC": ("SH", b"+0530")}))
    ds = build_sr([image], context())
    check(ds, [image])
    ds.TimezoneOffsetFromUTC = "+0100"
    with pytest.raises(ResultError, match="TimezoneOffsetFromUTC differs from the source's"):
        check(ds, [image])


def test_all_that_is_wrong_is_told() -> None:
    ds = decode(_REPORT)
    ds.PatientID, ds.Manufacturer, ds.StudyInstanceUID = "X", "ACME", "1.2.3"
    drop(group(ds, 1), "Comment")
    with pytest.raises(ResultError) as refused:
        check(ds, IMAGES)
    assert str(refused.value) == (
        f"result {ds.SOPInstanceUID} failed its checks: StudyInstanceUID differs from the source's; "
        "PatientID differs from the source's; Manufacturer or ManufacturerModelName is not the node's: its loop guard "
        "would not know the object; image 2: Comment is missing, or another item stands in its place"
    )
