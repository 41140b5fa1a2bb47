"""One mutation a rule: a good object is damaged, and the checker must say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from pydicom import Dataset

from cxrnode.dicom.text import text_of
from cxrnode.errors import ResultError
from cxrnode.report.capture import build_capture
from cxrnode.report.encode import decode, encode
from cxrnode.report.sr import build_sr
from tests.support.results import NORMAL, SCENARIOS, analysed, cam, check, context, header, preview

Damage = Callable[[Dataset], object]
IMAGES = SCENARIOS["mixed"]()
SOURCE = IMAGES[0].source


def child(item: Dataset, meaning: str) -> Dataset:
    found: list[Dataset] = [i for i in item.ContentSequence if i.ConceptNameCodeSequence[0].CodeMeaning == meaning]
    return found[0]


def group(ds: Dataset, number: int = 0) -> Dataset:
    found: Dataset = child(ds, "Imaging Measurements").ContentSequence[number]
    return found


def drop(item: Dataset, meaning: str) -> None:
    item.ContentSequence.remove(child(item, meaning))


def put(keyword: str, value: object) -> Damage:
    return lambda ds: setattr(ds, keyword, value)


def cut(keyword: str) -> Damage:
    return lambda ds: delattr(ds, keyword)


def evidence(ds: Dataset) -> Dataset:
    series: Dataset = ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    return series


def say(old: str, new: str) -> Damage:
    def damage(ds: Dataset) -> None:
        item = child(ds, "Summary")
        assert old in item.TextValue
        item.TextValue = item.TextValue.replace(old, new)

    return damage


def move_evidence(ds: Dataset) -> None:
    ds.PertinentOtherEvidenceSequence = ds.CurrentRequestedProcedureEvidenceSequence
    del ds.CurrentRequestedProcedureEvidenceSequence


def share_tracking_uid(ds: Dataset) -> None:
    child(group(ds, 1), "Tracking Unique Identifier").UID = child(group(ds), "Tracking Unique Identifier").UID


def set_probability(value: str) -> Damage:
    return lambda ds: setattr(child(group(ds), "Probability").MeasuredValueSequence[0], "NumericValue", value)


def borrow_finding(ds: Dataset) -> None:
    group(ds, 1).ContentSequence.append(child(group(ds), "Finding"))


def uid_of(keyword: str) -> str:
    return text_of(SOURCE, keyword)


COMMON: list[tuple[Damage, str]] = [
    (cut("SOPInstanceUID"), "SOPInstanceUID is invalid"),
    (put("SOPInstanceUID", uid_of("SOPInstanceUID")), "SOPInstanceUID is the source's"),
    (put("SeriesInstanceUID", uid_of("SeriesInstanceUID")), "SeriesInstanceUID is the source's"),
    (put("StudyInstanceUID", "1.2.3"), "StudyInstanceUID differs"),
    (put("PatientID", "4712"), "PatientID differs"),
    (put("PatientName", "Somebody^Else"), "PatientName differs"),
    (put("AccessionNumber", "1"), "AccessionNumber differs"),
    (cut("PatientBirthDate"), "PatientBirthDate .type 2. is absent"),
    (cut("StudyID"), "StudyID .type 2. is absent"),
    (put("Manufacturer", "ACME"), "loop guard"),
    (put("ManufacturerModelName", "scanner"), "loop guard"),
    (cut("SoftwareVersions"), "SoftwareVersions is empty"),
    (cut("SeriesDescription"), "SeriesDescription is empty"),
    (cut("ContentDate"), "ContentDate is empty"),
    (cut("ContributingEquipmentSequence"), "names no model"),
    (put("SOPClassUID", "1.2.840.10008.5.1.4.1.1.1"), "is no result's"),
]
REPORT: list[tuple[Damage, str]] = [
    (put("CompletionFlag", "PARTIAL"), "CompletionFlag is 'PARTIAL'"),
    (put("VerificationFlag", "VERIFIED"), "VerificationFlag is 'VERIFIED'"),
    (put("Modality", "OT"), "Modality is 'OT'"),
    (cut("ContentTemplateSequence"), "Imaging Measurement Report is not what it must be"),
    (move_evidence, "PertinentOther"),
    (move_evidence, "does not hold exactly the images"),
    (lambda ds: evidence(ds).ReferencedSOPSequence.pop(), "does not hold exactly the images"),
    (lambda ds: evidence(ds).ReferencedSOPSequence.append(evidence(ds).ReferencedSOPSequence[0]), "exactly the images"),
    (lambda ds: setattr(evidence(ds).ReferencedSOPSequence[0], "ReferencedSOPClassUID", "1.2"), "exactly the images"),
    (lambda ds: drop(ds, "Procedure reported"), "Procedure reported is missing"),
    (lambda ds: drop(ds, "Device Observer UID"), "Device Observer UID is missing"),
    (lambda ds: drop(ds, "CAD Processing and Findings Summary"), "CAD Processing and Findings Summary is"),
    (lambda ds: setattr(child(ds, "CAD Processing and Findings Summary").ConceptCodeSequence[0], "CodeValue", "111242"),
     "CAD Processing and Findings Summary is"),
    (lambda ds: drop(ds, "Summary"), "research use only"),
    (say("Research use only.", ""), "research use only"),
    (say("1 of 3 images", "3 of 3 images"), "how many images"),
    (say("Image 2:", "Picture 2:"), "does not mention image 2"),
    (say("not a frontal view", "fine"), "what came of image 2"),
    (lambda ds: child(ds, "Imaging Measurements").ContentSequence.pop(), "2 measurement groups for 3 images"),
    (share_tracking_uid, "share a Tracking UID"),
    (lambda ds: drop(group(ds), "Tracking Unique Identifier"), "image 1: Tracking Unique Identifier is missing"),
    (lambda ds: drop(group(ds, 1), "Tracking Identifier"), "image 2: Tracking Identifier is missing"),
    (lambda ds: drop(group(ds), "Algorithm Name"), "image 1: Algorithm Name is missing"),
    (lambda ds: drop(group(ds), "Algorithm Version"), "image 1: Algorithm Version is missing"),
    (lambda ds: drop(group(ds), "Source"), "image 1: Source is"),
    (lambda ds: setattr(child(group(ds), "Source").ReferencedSOPSequence[0], "ReferencedSOPInstanceUID", "1.2.3"),
     "image 1: Source is"),
    (lambda ds: drop(group(ds, 1), "Summary of Analyses"), "image 2: Summary of Analyses is missing"),
    (lambda ds: drop(group(ds, 1), "Comment"), "image 2: Comment is missing"),
    (borrow_finding, "image 2: a content item follows that must not be there"),
    (set_probability("1.5"), "image 1: Probability is not what it must be"),
    (set_probability("0.5"), "image 1: Probability is"),
    (lambda ds: drop(group(ds), "Probability"), "image 1: Probability is"),
    (lambda ds: drop(group(ds), "Viral pneumonia"), "image 1: Viral pneumonia is missing"),
    (lambda ds: drop(group(ds), "Finding"), "image 1: Finding is"),
    (lambda ds: setattr(child(group(ds), "Finding").ConceptCodeSequence[0], "CodeValue", "17621005"),
     "image 1: Finding is"),
]  # fmt: skip
CAPTURE: list[tuple[Damage, str]] = [
    (put("PixelData", b"\x00\x01"), "PixelData holds 2 bytes"),
    (lambda ds: setattr(ds, "PixelData", bytes(len(ds.PixelData))), "blank"),
    (put("Rows", 7), "Rows and Columns ask for"),
    (put("PhotometricInterpretation", "MONOCHROME2"), "PhotometricInterpretation"),
    (put("BitsStored", 7), "BitsStored"),
    (put("BurnedInAnnotation", "YES"), "BurnedInAnnotation"),
    (put("ConversionType", "DI"), "ConversionType"),
    (cut("RecognizableVisualFeatures"), "RecognizableVisualFeatures"),
    (put("ImageType", ["ORIGINAL", "PRIMARY"]), "ImageType"),
    (cut("DerivationDescription"), "DerivationDescription"),
    (cut("SourceImageSequence"), "SourceImageSequence"),
    (lambda ds: setattr(ds.SourceImageSequence[0], "ReferencedSOPInstanceUID", "1.2.3"), "SourceImageSequence"),
    (lambda ds: delattr(ds.SourceImageSequence[0], "PurposeOfReferenceCodeSequence"), "SourceImageSequence"),
]
_GOOD_REPORT = encode(build_sr(IMAGES, context()))
_GOOD_CAPTURE = encode(build_capture(IMAGES[0], preview(128, 112), cam(), context(), long_side=256))


@pytest.mark.parametrize("number", range(len(COMMON + REPORT)))
def test_a_damaged_report_is_refused(number: int) -> None:
    damage, expected = (COMMON + REPORT)[number]
    ds = decode(_GOOD_REPORT)
    check(ds, IMAGES)
    damage(ds)
    with pytest.raises(ResultError, match=expected):
        check(ds, IMAGES)


@pytest.mark.parametrize("number", range(len(CAPTURE)))
def test_a_damaged_capture_is_refused(number: int) -> None:
    damage, expected = CAPTURE[number]
    ds = decode(_GOOD_CAPTURE)
    check(ds, IMAGES[:1])
    damage(ds)
    with pytest.raises(ResultError, match=expected):
        check(ds, IMAGES[:1])


def test_a_good_report_on_other_images_is_refused() -> None:
    ds = build_sr(IMAGES, context())
    with pytest.raises(ResultError, match="image 1: Finding is not what it must be"):
        check(ds, [analysed(IMAGES[0].source, NORMAL), *IMAGES[1:]])
    with pytest.raises(ResultError):
        check(ds, IMAGES[:2])
    with pytest.raises(ResultError, match="no images"):
        check(ds, [])


def test_a_capture_belongs_to_one_analysed_image() -> None:
    ds = decode(_GOOD_CAPTURE)
    for images in (IMAGES[:2], IMAGES[1:2]):
        with pytest.raises(ResultError, match="one analysed image"):
            check(ds, images)


def test_a_character_set_that_cannot_hold_the_name_is_refused() -> None:
    images = SCENARIOS["japanese"]()
    ds = build_sr(images, context())
    ds.SpecificCharacterSet = "ISO_IR 100"
    with pytest.raises(ResultError, match="SpecificCharacterSet"):
        check(ds, images)


def test_every_finding_is_listed() -> None:
    ds = build_sr([analysed()], context())
    ds.CompletionFlag, ds.VerificationFlag = "PARTIAL", "VERIFIED"
    with pytest.raises(ResultError, match=r"CompletionFlag.*VerificationFlag"):
        check(ds, [analysed()])


def test_what_is_no_probability_is_never_written() -> None:
    image = analysed(header())
    assert image.prediction is not None
    for wrong in (float("nan"), -0.1, 1.1):
        broken = replace(image, prediction=replace(image.prediction, probabilities=(wrong, 0.5, 0.5)))
        with pytest.raises(ResultError, match=r"outside 0\.\.1"):
            build_sr([broken], context())
