"""The Structured Report: one Comprehensive 3D SR a study (PS3.3 A.35.13), root template TID 1500 (PS3.16)."""

from __future__ import annotations

from collections.abc import Sequence

from highdicom.sr import ContentItem
from pydicom import Dataset
from pydicom.uid import UID

from cxrnode.dicom.identity import MANUFACTURER, MODEL_NAME, RESEARCH_USE
from cxrnode.report.capture import GRAD_CAM
from cxrnode.report.common import (
    check_images,
    lead_of,
    name_private_schemes,
    new_object,
    reading_order,
    set_frame_of_reference,
)
from cxrnode.report.content import (
    CONCEPT_MOD,
    OBS_CONTEXT,
    code,
    container,
    copied_code,
    dcm,
    num,
    reference,
    sct,
    sop_reference,
    text,
    uidref,
)
from cxrnode.report.context import ReportContext, finding_of, finding_word, state_of
from cxrnode.report.orders import requests
from cxrnode.report.patients import differences
from cxrnode.report.source import Header, ascii_text
from cxrnode.types import ImageResult, Kind, Outcome, Prediction, Reason, Rejection, ResultObject
from engines.bundle import MODEL, Bundle, Code

COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
TITLE = dcm("126000", "Imaging Measurement Report")
PROCEDURE_REPORTED = dcm("121058", "Procedure reported")
CHEST_X_RAY = sct("399208008", "Plain chest X-ray")
IMAGING = sct("363679005", "Imaging procedure")
SUMMARY = dcm("121111", "Summary")
COMMENT = dcm("121106", "Comment")
RUN_STATUS = dcm("111017", "CAD Processing and Findings Summary")
IMAGE_STATUS = dcm("111065", "Summary of Analyses")
SUCCEEDED, FAILED, NOT_ATTEMPTED = (
    dcm("111222", "Succeeded"), dcm("111224", "Failed"), dcm("111225", "Not Attempted"),
)  # fmt: skip
MEASUREMENTS = dcm("126010", "Imaging Measurements")
GROUP = dcm("125007", "Measurement Group")
TRACKING_IDENTIFIER = dcm("112039", "Tracking Identifier")
TRACKING_UID = dcm("112040", "Tracking Unique Identifier")
FINDING = dcm("121071", "Finding")
SITE = sct("363698007", "Finding Site")
LUNG = sct("39607008", "Lung")
UNDETERMINED = sct("373068000", "Undetermined")
SOURCE = sct("260753009", "Source")
PROBABILITY = dcm("122157", "Probability")
ALGORITHM_NAME = dcm("111001", "Algorithm Name")
ALGORITHM_VERSION = dcm("111003", "Algorithm Version")
ALGORITHM_PARAMETERS = dcm("111002", "Algorithm Parameters")
ALGORITHM_MANUFACTURER = dcm("122405", "Algorithm Manufacturer")
OBSERVER_UID = dcm("121012", "Device Observer UID")

# CID 6047, by (all analysed, any finding); no algorithm succeeded has no such pair
_RUN_STATUS = {
    (True, False): dcm("111241", "All algorithms succeeded; without findings"),
    (True, True): dcm("111242", "All algorithms succeeded; with findings"),
    (False, False): dcm("111243", "Not all algorithms succeeded; without findings"),
    (False, True): dcm("111244", "Not all algorithms succeeded; with findings"),
}
NONE_SUCCEEDED = dcm("111245", "No algorithms succeeded; without findings")
_NO_CHEST_X_RAY = {Reason.WRONG_MODALITY, Reason.WRONG_BODY_PART, Reason.NOT_A_PATIENT}


def build_sr(
    images: Sequence[ImageResult],
    context: ReportContext,
    predecessor: ResultObject | None = None,
    *,
    alone: bool = True,
) -> Dataset:
    """A patient's report on all `images` of one study, analysed or not, without file meta (see `encode`).

    predecessor: the SR on fewer images of the study that this one takes the place of. alone: the study holds no other
    patient's images. Raises ResultError where the images belong to several studies or patients, lack a UID, or have an
    identifier that cannot be copied whole; never for any other dirt in a header.
    """
    check_images(images)
    ordered = reading_order(images)
    lead = Header(lead_of(images).source)
    ds = new_object(
        context, lead, ordered, kind=Kind.SR, sop_class_uid=COMPREHENSIVE_3D_SR,
        sop_instance_uid=context.sr_uid(images, alone=alone),
    )  # fmt: skip
    set_frame_of_reference(ds, ordered)
    _set_document(ds, ordered, lead)
    if predecessor:
        ds.PredecessorDocumentsSequence = [_predecessor(predecessor)]
    _set_content(ds, ordered, context, _procedure(ordered, lead), alone=alone)
    name_private_schemes(ds, (label.code for label in context.bundle.labels))
    return ds


def _procedure(ordered: Sequence[ImageResult], lead: Header) -> ContentItem:
    """The imaging procedure: the source's own code where a complete one is there, else by what the images are."""
    for item in lead.items("ProcedureCodeSequence"):
        if all(item.raw(keyword) for keyword in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")):
            copy = Dataset()
            item.copy_into(copy, "SpecificCharacterSet", "CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion",
                           "CodeMeaning")  # fmt: skip
            return copied_code(PROCEDURE_REPORTED, copy, CONCEPT_MOD)
    chest = any(i.rejection is None or i.rejection.reason not in _NO_CHEST_X_RAY for i in ordered)
    return code(PROCEDURE_REPORTED, CHEST_X_RAY if chest else IMAGING, CONCEPT_MOD)


def run_status(images: Sequence[ImageResult], bundle: Bundle) -> Code:
    """CAD processing and findings summary (CID 6047). Whatever is not clearly normal counts as a finding."""
    predictions = [i.prediction for i in images if i.prediction is not None]
    if not predictions:
        return NONE_SUCCEEDED
    found = [finding_of(bundle, p) for p in predictions]
    return _RUN_STATUS[len(predictions) == len(images), any(f is None or not f.normal for f in found)]


def image_status(image: ImageResult) -> Code:
    """CID 6042 for one image."""
    if image.rejection is None:
        return SUCCEEDED
    return FAILED if image.rejection.reason.outcome is Outcome.FAILED else NOT_ATTEMPTED


def summary_text(ordered: Sequence[ImageResult], context: ReportContext, *, alone: bool = True) -> str:
    """The report in words: how many images were analysed, what was found, and which were not analysed and why."""
    analysed = sum(i.prediction is not None for i in ordered)
    lines = [RESEARCH_USE, f"{analysed} of {len(ordered)} images analysed by {ascii_text(context.model)}."]
    if analysed < len(ordered):
        missing = len(ordered) - analysed
        lines.append(f"{missing} NOT ANALYSED: nothing is said about them, they must not be read as normal.")
    if not alone:
        lines.append("CAUTION: other images of this study carry another patient; they are not in this report.")
    if differing := differences(i.source for i in ordered):
        lines.append(f"CAUTION: the images carry one patient ID and differ in {' and '.join(differing)}.")
    lines += [f"Image {n}: {image_text(image, context)}" for n, image in enumerate(ordered, 1)]
    return "\r\n".join(lines)


def image_text(image: ImageResult, context: ReportContext) -> str:
    """One image in words, without patient data."""
    header = Header(image.source)
    where = f"series {header.get('SeriesNumber') or '-'}, instance {header.get('InstanceNumber') or '-'}"
    name = f"{header.get('SOPInstanceUID')} ({where})"
    if image.rejection is not None:
        return f"{name}: {not_analysed_text(image.rejection)}"
    assert image.prediction is not None  # noqa: S101 (check_images saw to it)
    return f"{name}: {prediction_text(context.bundle, image.prediction)}"


def not_analysed_text(rejection: Rejection) -> str:
    return f"NOT ANALYSED - {ascii_text(rejection.text)}"


def prediction_text(bundle: Bundle, prediction: Prediction) -> str:
    parts = [
        f"{label.name} {p:.3f} {state_of(label, p).word}"
        for label, p in zip(bundle.labels, prediction.probabilities, strict=True)
    ]
    return f"{finding_word(bundle, prediction).upper()} ({', '.join(parts)})"


def _set_document(ds: Dataset, ordered: Sequence[ImageResult], lead: Header) -> None:
    """SR Document General and SR Document Series modules (PS3.3 C.17.2, C.17.1)."""
    ds.CompletionFlag = "COMPLETE"
    ds.VerificationFlag = "UNVERIFIED"
    ds.PerformedProcedureCodeSequence = []
    ds.ReferencedPerformedProcedureStepSequence = []
    ds.CurrentRequestedProcedureEvidenceSequence = [_evidence(ordered)]
    if orders := requests(ordered, lead):
        ds.ReferencedRequestSequence = orders


def _evidence(ordered: Sequence[ImageResult]) -> Dataset:
    """Every image, analysed or not, once (two images may share their UID), then the captures that were made of them for
    the same request: Hierarchical SOP Instance Reference."""
    series: dict[str, dict[str, str]] = {}
    for header in (Header(i.source) for i in ordered):
        series.setdefault(header.get("SeriesInstanceUID"), {})[header.get("SOPInstanceUID")] = header.get("SOPClassUID")
    for capture in (i.capture for i in ordered if i.capture):
        series.setdefault(capture.series_instance_uid, {})[capture.sop_instance_uid] = capture.sop_class_uid
    study = Dataset()
    study.StudyInstanceUID = Header(ordered[0].source).get("StudyInstanceUID")
    study.ReferencedSeriesSequence = []
    for uid, instances in series.items():
        item = Dataset()
        item.SeriesInstanceUID = uid
        item.ReferencedSOPSequence = [sop_reference(sop_class, sop) for sop, sop_class in instances.items()]
        study.ReferencedSeriesSequence.append(item)
    return study


def _predecessor(sr: ResultObject) -> Dataset:
    """One item of the Predecessor Documents Sequence (PS3.3 table C.17-2): Hierarchical SOP Instance Reference."""
    series = Dataset()
    series.SeriesInstanceUID = sr.series_instance_uid
    series.ReferencedSOPSequence = [sop_reference(sr.sop_class_uid, sr.sop_instance_uid)]
    study = Dataset()
    study.StudyInstanceUID = sr.study_instance_uid
    study.ReferencedSeriesSequence = [series]
    return study


def _set_content(
    ds: Dataset, ordered: Sequence[ImageResult], context: ReportContext, procedure: ContentItem, *, alone: bool
) -> None:
    """TID 1500. The run status and the summary extend the template: they stand first, as a reader needs them."""
    parameters = _algorithm_parameters(context.bundle)
    children = [
        *_language_and_observer(context),
        procedure,
        code(RUN_STATUS, run_status(ordered, context.bundle)),
        text(SUMMARY, summary_text(ordered, context, alone=alone)),
        container(MEASUREMENTS, [_group(image, context, parameters) for image in ordered]),
    ]
    ds.update(container(TITLE, children, relation=None, template="1500"))


def _language_and_observer(context: ReportContext) -> list[ContentItem]:
    """TID 1204 and TID 1001 with TID 1002 and TID 1004: a device observed, no person did."""
    language = Code(value="en-US", scheme="RFC5646", meaning="English (United States)")
    return [
        code(dcm("121049", "Language of Content Item and Descendants"), language, CONCEPT_MOD),
        code(dcm("121005", "Observer Type"), dcm("121007", "Device"), OBS_CONTEXT),
        uidref(OBSERVER_UID, context.device_uid, OBS_CONTEXT),
        text(dcm("121013", "Device Observer Name"), ascii_text(context.model), OBS_CONTEXT),
        text(dcm("121014", "Device Observer Manufacturer"), MANUFACTURER, OBS_CONTEXT),
        text(dcm("121015", "Device Observer Model Name"), MODEL_NAME, OBS_CONTEXT),
        text(dcm("121016", "Device Observer Serial Number"), context.bundle.digest[:16], OBS_CONTEXT),
    ]


def _group(image: ImageResult, context: ReportContext, parameters: Sequence[str]) -> ContentItem:
    """TID 1501: one image, whole."""
    children = [
        text(TRACKING_IDENTIFIER, context.tracking_identifier(image), OBS_CONTEXT),
        uidref(TRACKING_UID, context.tracking_uid(image), OBS_CONTEXT),
    ]
    if image.prediction is not None:
        label = finding_of(context.bundle, image.prediction)
        children.append(code(FINDING, UNDETERMINED if label is None else label.code))
        children.append(code(SITE, LUNG, CONCEPT_MOD))
    engine = (f"engine {ascii_text(image.prediction.engine)}",) if image.prediction else ()
    children += _algorithm(context, (*parameters, *engine))
    if image.prediction is not None:
        children += _probabilities(context.bundle, image.prediction)
    children.append(_source_image(image))
    if image.capture:
        children.append(reference(GRAD_CAM, image.capture.sop_class_uid, image.capture.sop_instance_uid))
    children.append(code(IMAGE_STATUS, image_status(image)))
    if image.prediction is not None:
        children += _evaluations(context.bundle, image.prediction)
    children.append(text(COMMENT, f"Image {image_text(image, context)}"))
    return container(GROUP, children, template="1501")


def _algorithm(context: ReportContext, parameters: Sequence[str]) -> list[ContentItem]:
    """TID 4019."""
    return [
        text(ALGORITHM_NAME, context.bundle.name, CONCEPT_MOD),
        text(ALGORITHM_VERSION, ascii_text(context.bundle.manifest.version), CONCEPT_MOD),
        *(text(ALGORITHM_PARAMETERS, p, CONCEPT_MOD) for p in parameters),
        text(ALGORITHM_MANUFACTURER, MANUFACTURER, CONCEPT_MOD),
    ]


def _algorithm_parameters(bundle: Bundle) -> tuple[str, ...]:
    thresholds = (
        f"{label.name}: present at {label.present_at:g}, absent below {label.absent_below:g}" for label in bundle.labels
    )
    weights = bundle.manifest.files.get(MODEL, "unknown")
    return (*thresholds, f"weights sha256 {weights}", f"bundle sha256 {bundle.digest}")


def _probabilities(bundle: Bundle, prediction: Prediction) -> list[ContentItem]:
    """TID 300, one a label: the concept modifier says of what it is the probability."""
    return [
        num(PROBABILITY, p, [code(FINDING, label.code, CONCEPT_MOD)])
        for label, p in zip(bundle.labels, prediction.probabilities, strict=True)
    ]


def _evaluations(bundle: Bundle, prediction: Prediction) -> list[ContentItem]:
    return [
        code(label.code, state_of(label, p).value)
        for label, p in zip(bundle.labels, prediction.probabilities, strict=True)
    ]


def _source_image(image: ImageResult) -> ContentItem:
    header = Header(image.source)
    sop_class = header.get("SOPClassUID")
    is_image = "Image Storage" in UID(sop_class).name
    return reference(SOURCE, sop_class, header.get("SOPInstanceUID"), is_image=is_image)
