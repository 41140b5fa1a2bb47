"""A report and a capture written out: every attribute, every item with its code, every UID by its causes."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset

from cxrnode.report.capture import build_capture
from cxrnode.report.content import concept, dcm
from cxrnode.report.encode import decode, encode
from cxrnode.report.sr import build_sr
from cxrnode.types import ImageResult, Kind, Reason, ResultObject
from tests.support.bundles import make_bundle
from tests.support.results import (
    AT,
    NORMAL,
    POSITIVE,
    SCENARIOS,
    UNDETERMINED,
    analysed,
    cam,
    context,
    header,
    preview,
    rejected,
)

DIGEST = "0123456789abcdef" * 4
HERE = replace(context(replace(make_bundle(), digest=DIGEST)), analysed_at=AT)


def uid(*causes: str) -> str:
    """As every version derived them since 0.1.0: what was stored once keeps its UID when it is made again."""
    namespace = uuid.uuid5(uuid.NAMESPACE_DNS, "cxrnode.results")
    return f"2.25.{uuid.uuid5(namespace, chr(0).join(causes)).int}"


PATIENT = hashlib.sha256(b"PHANTOM-1\0").hexdigest()  # no issuer
FIRST = ("2.25.77", PATIENT, "2.25.790", "a1" * 32)
SECOND, THIRD = (("2.25.77", PATIENT, f"2.25.79{n}", "b2" * 32) for n in (1, 2))


def coded(items: list[Dataset]) -> str:
    (item,) = items
    return f"({item.CodeValue}, {item.CodingSchemeDesignator}, {item.CodeMeaning})"


def value_of(item: Dataset) -> str:
    if item.ValueType == "CODE":
        return coded(item.ConceptCodeSequence)
    if item.ValueType == "NUM":
        (measured,) = item.MeasuredValueSequence
        return f"{measured.NumericValue} {coded(measured.MeasurementUnitsCodeSequence)}"
    if item.ValueType in {"IMAGE", "COMPOSITE"}:
        (ref,) = item.ReferencedSOPSequence
        return f"{ref.ReferencedSOPClassUID} {ref.ReferencedSOPInstanceUID}"
    if item.ValueType == "CONTAINER":
        template = "".join(
            f" {t.MappingResource} {t.TemplateIdentifier}" for t in item.get("ContentTemplateSequence", [])
        )
        return f"{item.ContinuityOfContent}{template}"
    return str(item.UID if item.ValueType == "UIDREF" else item.TextValue)


def told(item: Dataset, depth: int = 0) -> Iterator[str]:
    name = coded(item.ConceptNameCodeSequence)
    yield f"{'>' * depth}{item.get('RelationshipType', '')} {item.ValueType} {name} = {value_of(item)}"
    for child in item.get("ContentSequence", []):
        yield from told(child, depth + 1)


def read(images: list[ImageResult]) -> Dataset:
    return decode(encode(build_sr(images, HERE)))


ALGORITHM = f"""\
>>>HAS CONCEPT MOD TEXT (111001, DCM, Algorithm Name) = cxr3-test
>>>HAS CONCEPT MOD TEXT (111003, DCM, Algorithm Version) = 1.0.0
>>>HAS CONCEPT MOD TEXT (111002, DCM, Algorithm Parameters) = covid: present at 0.5, absent below 0.2
>>>HAS CONCEPT MOD TEXT (111002, DCM, Algorithm Parameters) = viral: present at 0.5, absent below 0.2
>>>HAS CONCEPT MOD TEXT (111002, DCM, Algorithm Parameters) = normal: present at 0.5, absent below 0.2
>>>HAS CONCEPT MOD TEXT (111002, DCM, Algorithm Parameters) = weights sha256 {"ab" * 32}
>>>HAS CONCEPT MOD TEXT (111002, DCM, Algorithm Parameters) = bundle sha256 {DIGEST}
"""
MANUFACTURER = ">>>HAS CONCEPT MOD TEXT (122405, DCM, Algorithm Manufacturer) = cxrnode\n"
POSITIVE_WORDS = "COVID (covid 0.930 present, viral 0.050 absent, normal 0.020 absent)"
MIXED = f"""\
 CONTAINER (126000, DCM, Imaging Measurement Report) = SEPARATE DCMR 1500
>HAS CONCEPT MOD CODE (121049, DCM, Language of Content Item and Descendants) = (en-US, RFC5646, English (United States))
>HAS OBS CONTEXT CODE (121005, DCM, Observer Type) = (121007, DCM, Device)
>HAS OBS CONTEXT UIDREF (121012, DCM, Device Observer UID) = {uid("device", DIGEST)}
>HAS OBS CONTEXT TEXT (121013, DCM, Device Observer Name) = cxr3-test 1.0.0
>HAS OBS CONTEXT TEXT (121014, DCM, Device Observer Manufacturer) = cxrnode
>HAS OBS CONTEXT TEXT (121015, DCM, Device Observer Model Name) = cxrnode chest radiograph analysis
>HAS OBS CONTEXT TEXT (121016, DCM, Device Observer Serial Number) = 0123456789abcdef
>HAS CONCEPT MOD CODE (121058, DCM, Procedure reported) = (399208008, SCT, Plain chest X-ray)
>CONTAINS CODE (111017, DCM, CAD Processing and Findings Summary) = (111244, DCM, Not all algorithms succeeded; with findings)
>CONTAINS TEXT (121111, DCM, Summary) = Research use only. Not for diagnostic use.\r
1 of 3 images analysed by cxr3-test 1.0.0.\r
2 NOT ANALYSED: nothing is said about them, they must not be read as normal.\r
Image 1: 2.25.790 (series 1, instance 1): {POSITIVE_WORDS}\r
Image 2: 2.25.791 (series 1, instance 2): NOT ANALYSED - not a frontal view: ViewPosition=LL\r
Image 3: 2.25.792 (series 1, instance 3): NOT ANALYSED - the decoder crashed on this file
>CONTAINS CONTAINER (126010, DCM, Imaging Measurements) = SEPARATE
>>CONTAINS CONTAINER (125007, DCM, Measurement Group) = SEPARATE DCMR 1501
>>>HAS OBS CONTEXT TEXT (112039, DCM, Tracking Identifier) = cxr3-test {uid("tracking", DIGEST, *FIRST)[-16:]}
>>>HAS OBS CONTEXT UIDREF (112040, DCM, Tracking Unique Identifier) = {uid("tracking", DIGEST, *FIRST)}
>>>CONTAINS CODE (121071, DCM, Finding) = (840544004, SCT, Suspected COVID-19)
>>>HAS CONCEPT MOD CODE (363698007, SCT, Finding Site) = (39607008, SCT, Lung)
{ALGORITHM}\
>>>HAS CONCEPT MOD TEXT (111002, DCM, Algorithm Parameters) = engine cpu onnxruntime 1.31.1 fp32
{MANUFACTURER}\
>>>CONTAINS NUM (122157, DCM, Probability) = 0.93 (1, UCUM, no units)
>>>>HAS CONCEPT MOD CODE (121071, DCM, Finding) = (840544004, SCT, Suspected COVID-19)
>>>CONTAINS NUM (122157, DCM, Probability) = 0.05 (1, UCUM, no units)
>>>>HAS CONCEPT MOD CODE (121071, DCM, Finding) = (75570004, SCT, Viral pneumonia)
>>>CONTAINS NUM (122157, DCM, Probability) = 0.02 (1, UCUM, no units)
>>>>HAS CONCEPT MOD CODE (121071, DCM, Finding) = (17621005, SCT, Normal)
>>>CONTAINS IMAGE (260753009, SCT, Source) = 1.2.840.10008.5.1.4.1.1.1 2.25.790
>>>CONTAINS CODE (111065, DCM, Summary of Analyses) = (111222, DCM, Succeeded)
>>>CONTAINS CODE (840544004, SCT, Suspected COVID-19) = (52101004, SCT, Present)
>>>CONTAINS CODE (75570004, SCT, Viral pneumonia) = (272519000, SCT, Absent)
>>>CONTAINS CODE (17621005, SCT, Normal) = (272519000, SCT, Absent)
>>>CONTAINS TEXT (121106, DCM, Comment) = Image 2.25.790 (series 1, instance 1): {POSITIVE_WORDS}
>>CONTAINS CONTAINER (125007, DCM, Measurement Group) = SEPARATE DCMR 1501
>>>HAS OBS CONTEXT TEXT (112039, DCM, Tracking Identifier) = cxr3-test {uid("tracking", DIGEST, *SECOND)[-16:]}
>>>HAS OBS CONTEXT UIDREF (112040, DCM, Tracking Unique Identifier) = {uid("tracking", DIGEST, *SECOND)}
{ALGORITHM}{MANUFACTURER}\
>>>CONTAINS IMAGE (260753009, SCT, Source) = 1.2.840.10008.5.1.4.1.1.1 2.25.791
>>>CONTAINS CODE (111065, DCM, Summary of Analyses) = (111225, DCM, Not Attempted)
>>>CONTAINS TEXT (121106, DCM, Comment) = Image 2.25.791 (series 1, instance 2): NOT ANALYSED - not a frontal view: ViewPosition=LL
>>CONTAINS CONTAINER (125007, DCM, Measurement Group) = SEPARATE DCMR 1501
>>>HAS OBS CONTEXT TEXT (112039, DCM, Tracking Identifier) = cxr3-test {uid("tracking", DIGEST, *THIRD)[-16:]}
>>>HAS OBS CONTEXT UIDREF (112040, DCM, Tracking Unique Identifier) = {uid("tracking", DIGEST, *THIRD)}
{ALGORITHM}{MANUFACTURER}\
>>>CONTAINS IMAGE (260753009, SCT, Source) = 1.2.840.10008.5.1.4.1.1.1 2.25.792
>>>CONTAINS CODE (111065, DCM, Summary of Analyses) = (111224, DCM, Failed)
>>>CONTAINS TEXT (121106, DCM, Comment) = Image 2.25.792 (series 1, instance 3): NOT ANALYSED - the decoder crashed on this file"""  # noqa: E501 (a line is an item)


def test_a_report_s_content() -> None:
    assert "\n".join(told(read(SCENARIOS["mixed"]()))) == MIXED


def plain(ds: Dataset, *but: str) -> dict[str, object]:
    """Every attribute but these, by keyword; sequences as lists of such."""
    return {
        e.keyword: [plain(item) for item in e.value] if e.VR == "SQ"
        else [str(v) for v in e.value] if e.VM > 1 else str(e.value)
        for e in ds if e.keyword not in but
    }  # fmt: skip


PATIENT_AND_STUDY = {
    "SpecificCharacterSet": "ISO_IR 192", "TimezoneOffsetFromUTC": "+0100",
    "StudyDate": "20240102", "StudyTime": "030405", "AccessionNumber": "ACC1",
    "ReferringPhysicianName": "Ref^Phys", "StudyDescription": "Chest", "PatientName": "Phantom^Chest",
    "PatientID": "PHANTOM-1", "PatientBirthDate": "19600229", "PatientSex": "O", "StudyInstanceUID": "2.25.77",
    "StudyID": "1",
}  # fmt: skip
EQUIPMENT = {
    "Manufacturer": "cxrnode", "ManufacturerModelName": "cxrnode chest radiograph analysis",
    "DeviceSerialNumber": "0123456789abcdef",
    "SoftwareVersions": ["cxrnode 0.1.0", "cxr3-test 1.0.0", "cpu onnxruntime 1.31.1 fp32"],
    "ContributingEquipmentSequence": [{
        "Manufacturer": "cxrnode", "ManufacturerModelName": "cxr3-test", "DeviceSerialNumber": "0123456789abcdef",
        "DeviceUID": uid("device", DIGEST), "SoftwareVersions": "1.0.0",
        "ContributionDateTime": "20261121221507.123456+0100",
        "ContributionDescription": "Analysed by a neural network. Research use only.",
        "PurposeOfReferenceCodeSequence": [
            {"CodeValue": "109102", "CodingSchemeDesignator": "DCM", "CodeMeaning": "Processing Equipment"}
        ],
    }],
}  # fmt: skip
TIMES = {
    "InstanceCreationDate": "20261121", "InstanceCreationTime": "221507.123456", "ContentDate": "20261121",
    "ContentTime": "221507.123456", "SeriesDate": "20261121", "SeriesTime": "221507.123456",
}  # fmt: skip
CR = "1.2.840.10008.5.1.4.1.1.1"


def ref(instance: str, **more: object) -> dict[str, object]:
    return {"ReferencedSOPClassUID": CR, "ReferencedSOPInstanceUID": instance, **more}


def test_a_report_names_the_one_whose_place_it_takes() -> None:
    before = ResultObject(
        kind=Kind.SR, sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34", sop_instance_uid="2.25.5",
        series_instance_uid="2.25.6", study_instance_uid="2.25.7", path=Path("x"), sha256="0" * 64,
    )  # fmt: skip
    named = decode(encode(build_sr([analysed()], HERE, before))).PredecessorDocumentsSequence
    instance = {"ReferencedSOPClassUID": "1.2.840.10008.5.1.4.1.1.88.34", "ReferencedSOPInstanceUID": "2.25.5"}
    series = {"SeriesInstanceUID": "2.25.6", "ReferencedSOPSequence": [instance]}
    assert [plain(item) for item in named] == [{"StudyInstanceUID": "2.25.7", "ReferencedSeriesSequence": [series]}]
    assert "PredecessorDocumentsSequence" not in build_sr([analysed()], HERE)


def test_a_report_s_other_modules() -> None:
    causes = sorted((" ".join((*FIRST, "analysed")), " ".join((*SECOND, "lateral")),
                     " ".join((*THIRD, "decoder_crashed"))))  # fmt: skip
    ds = read(SCENARIOS["mixed"]())
    assert plain(ds, "ContentSequence", "ConceptNameCodeSequence", "ContentTemplateSequence") == {
        **PATIENT_AND_STUDY, **EQUIPMENT, **TIMES,
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.34", "SOPInstanceUID": uid("instance", "sr", DIGEST, *causes),
        "Modality": "SR", "SeriesInstanceUID": uid("series", "2.25.77", DIGEST, "sr"), "SeriesNumber": "9801",
        "SeriesDescription": "AI report cxr3-test 1.0.0 - research use only", "InstanceNumber": "1",
        "ReferencedPerformedProcedureStepSequence": [], "PerformedProcedureCodeSequence": [],
        "ValueType": "CONTAINER", "ContinuityOfContent": "SEPARATE",
        "CompletionFlag": "COMPLETE", "VerificationFlag": "UNVERIFIED",
        "CurrentRequestedProcedureEvidenceSequence": [{
            "StudyInstanceUID": "2.25.77",
            "ReferencedSeriesSequence": [{
                "SeriesInstanceUID": "2.25.78",
                "ReferencedSOPSequence": [ref("2.25.790"), ref("2.25.791"), ref("2.25.792")],
            }],
        }],
    }  # fmt: skip


def test_a_capture_s_modules() -> None:
    image = SCENARIOS["mixed"]()[0]
    ds = decode(encode(build_capture(image, preview(), cam(), HERE)))
    purpose = {"CodeValue": "121322", "CodingSchemeDesignator": "DCM",
               "CodeMeaning": "Source image for image processing operation"}  # fmt: skip
    assert plain(ds, "PixelData") == {
        **PATIENT_AND_STUDY, **EQUIPMENT, **TIMES,
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7",
        "SOPInstanceUID": uid("instance", "capture", DIGEST, *FIRST, "long_side=1024"),
        "Modality": "OT", "SeriesInstanceUID": uid("series", "2.25.77", DIGEST, "capture"), "SeriesNumber": "9802",
        "SeriesDescription": "AI Grad-CAM cxr3-test 1.0.0 - research use only", "InstanceNumber": "1",
        "ConversionType": "WSD", "ImageType": ["DERIVED", "SECONDARY"], "BodyPartExamined": "CHEST",
        "BurnedInAnnotation": "NO", "RecognizableVisualFeatures": "NO", "PatientOrientation": ["L", "F"],
        "ImageComments": "covid. Research use only. Not for diagnostic use.",
        "DerivationDescription": "Grad-CAM of cxr3-test 1.0.0 over the radiograph, windowed and resized. "
                                 "Research use only. Not for diagnostic use.",
        "DerivationCodeSequence": [{
            "CodeValue": "130403", "CodingSchemeDesignator": "DCM", "CodeMeaning": "Gradient-weighted class activation",
        }],
        "SourceImageSequence": [ref("2.25.790", PurposeOfReferenceCodeSequence=[purpose])],
        "ReferencedSeriesSequence": [
            {"SeriesInstanceUID": "2.25.78", "ReferencedInstanceSequence": [ref("2.25.790")]}
        ],
        "SamplesPerPixel": "3", "PhotometricInterpretation": "RGB", "PlanarConfiguration": "0", "Rows": "1024",
        "Columns": "668", "BitsAllocated": "8", "BitsStored": "8", "HighBit": "7", "PixelRepresentation": "0",
    }  # fmt: skip


# --- statuses


@pytest.mark.parametrize(
    ("images", "status", "meaning"),
    [
        ([analysed(probabilities=NORMAL)], "111241", "All algorithms succeeded; without findings"),
        ([analysed(probabilities=POSITIVE)], "111242", "All algorithms succeeded; with findings"),
        ([analysed(probabilities=UNDETERMINED)], "111242", "All algorithms succeeded; with findings"),
        ([analysed(probabilities=NORMAL), rejected()], "111243", "Not all algorithms succeeded; without findings"),
        ([analysed(probabilities=POSITIVE), rejected()], "111244", "Not all algorithms succeeded; with findings"),
        ([analysed(probabilities=NORMAL), analysed(probabilities=POSITIVE, digest="c3")], "111242",
         "All algorithms succeeded; with findings"),
        ([rejected()], "111245", "No algorithms succeeded; without findings"),
    ],
)  # fmt: skip
def test_the_run_status_by_what_came_of_the_images(images: list[ImageResult], status: str, meaning: str) -> None:
    (item,) = [i for i in read(images).ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "111017"]
    assert coded(item.ConceptCodeSequence) == f"({status}, DCM, {meaning})"


@pytest.mark.parametrize("reason", [r for r in Reason if r.in_report])
def test_the_status_of_an_image_by_its_reason(reason: Reason) -> None:
    """Failed is what the node could not do; what it was not made for was not attempted."""
    (group,) = groups(read([rejected(reason=reason)]))
    (status,) = [i.ConceptCodeSequence[0] for i in group if i.ConceptNameCodeSequence[0].CodeValue == "111065"]
    assert status.CodeValue == {"failed": "111224", "not_analysed": "111225"}[reason.outcome]


def groups(ds: Dataset) -> list[list[Dataset]]:
    (measured,) = [i for i in ds.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "126010"]
    return [list(group.ContentSequence) for group in measured.ContentSequence]


def test_no_finding_is_undetermined() -> None:
    (group,) = groups(read([analysed(header(), UNDETERMINED)]))
    findings = [coded(i.ConceptCodeSequence) for i in group if i.ConceptNameCodeSequence[0].CodeValue == "121071"]
    assert findings == ["(373068000, SCT, Undetermined)"]


@pytest.mark.parametrize(
    ("reasons", "procedure"),
    [
        ([Reason.WRONG_MODALITY, Reason.WRONG_BODY_PART, Reason.NOT_A_PATIENT], "(363679005, SCT, Imaging procedure)"),
        ([Reason.WRONG_MODALITY, Reason.LATERAL], "(399208008, SCT, Plain chest X-ray)"),
    ],
)
def test_the_procedure_is_a_chest_x_ray_where_one_of_the_images_may_be(reasons: list[Reason], procedure: str) -> None:
    ds = read([rejected(reason=reason) for reason in reasons])
    (item,) = [i for i in ds.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "121058"]
    assert coded(item.ConceptCodeSequence) == procedure


def test_a_result_reads_back_as_it_was_encoded(recwarn: pytest.WarningsRecorder) -> None:
    ds = build_sr(SCENARIOS["mixed"](), HERE)
    again = decode(encode(ds))
    assert [e.tag for e in again] == [e.tag for e in ds]  # nothing of the file's meta information
    assert not recwarn.list
    assert encode(again) == encode(ds)


def test_a_code_that_is_said_a_hundred_times_is_made_once() -> None:
    assert concept(dcm("121071", "Finding")) is concept(dcm("121071", "Finding"))
    assert concept(dcm("121071", "Other")).CodeMeaning == "Other"
