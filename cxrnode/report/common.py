"""The modules that every result shares: patient and study as the source has them, series and equipment our own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone

from pydicom import Dataset

from cxrnode.dicom.identity import MANUFACTURER, MODEL_NAME
from cxrnode.dicom.uids import is_valid_uid
from cxrnode.errors import ResultError
from cxrnode.report.content import concept, dcm
from cxrnode.report.context import ReportContext
from cxrnode.report.source import Header, ascii_text, choose_character_set
from cxrnode.types import ImageResult, Kind
from engines.bundle import Code

# type 2: written empty where the source has none (PS3.3 C.7.1.1, C.7.2.1)
TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber",
)  # fmt: skip
TYPE_3 = ("IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "StudyDescription")
INHERITED = (*TYPE_2, *TYPE_3)
SERIES_NUMBER = {Kind.SR: 9801, Kind.CAPTURE: 9802}
_SERIES_TEXT = {Kind.SR: "AI report", Kind.CAPTURE: "AI Grad-CAM"}
_MODALITY = {Kind.SR: "SR", Kind.CAPTURE: "OT"}
_SEX = {"M", "F", "O"}
PROCESSING_EQUIPMENT = dcm("109102", "Processing Equipment")


def inherited(header: Header) -> dict[str, str]:
    """The patient and study attributes that a result takes over, cleaned to what their VR allows."""
    values = {keyword: header.get(keyword) for keyword in INHERITED}
    values["PatientSex"] = values["PatientSex"] if values["PatientSex"] in _SEX else ""
    return {k: v for k, v in values.items() if v or k in TYPE_2}


def reading_order(images: Sequence[ImageResult]) -> list[ImageResult]:
    """By series and instance number, then UID and pixels: the same report however the files arrived."""

    def key(image: ImageResult) -> tuple[int, int, str, str]:
        header = Header(image.source)
        return (_number(header, "SeriesNumber"), _number(header, "InstanceNumber"),
                header.get("SOPInstanceUID"), image.pixel_digest)  # fmt: skip

    return sorted(images, key=key)


def lead_of(images: Sequence[ImageResult]) -> ImageResult:
    """The image whose header speaks for the study: the first that was analysed, else the first."""
    ordered = reading_order(images)
    return next((i for i in ordered if i.prediction is not None), ordered[0])


def check_images(images: Sequence[ImageResult]) -> None:
    """A report needs at least one image, valid UIDs, one study, and numbers. Raises ResultError."""
    if not images:
        raise ResultError("a report needs at least one image")
    studies = {Header(i.source).get("StudyInstanceUID") for i in images}
    if len(studies) != 1:
        raise ResultError(f"a report covers one study, these images belong to {len(studies)}")
    for image in images:
        header = Header(image.source)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
            if not is_valid_uid(header.get(keyword)):
                raise ResultError(f"the source's {keyword} is missing or invalid: reject it as missing_uid")
        if (image.prediction is None) == (image.rejection is None):
            raise ResultError("an image result holds either a prediction or a rejection")
        if image.prediction is not None and not all(0 <= p <= 1 for p in image.prediction.probabilities):
            raise ResultError(f"a probability is outside 0..1: {image.prediction.probabilities}")


def new_object(
    context: ReportContext,
    lead: Header,
    images: Sequence[ImageResult],
    *,
    kind: Kind,
    sop_class_uid: str,
    sop_instance_uid: str,
) -> Dataset:
    """Patient, General Study, General Series, Equipment and SOP Common modules (PS3.3 C.7.1.1 ... C.12.1)."""
    ds = Dataset()
    for keyword, value in inherited(lead).items():
        setattr(ds, keyword, value)
    ds.StudyInstanceUID = lead.get("StudyInstanceUID")
    _set_issuer(ds, lead)
    ds.Modality = _MODALITY[kind]
    ds.SeriesInstanceUID = context.series_uid(ds.StudyInstanceUID, kind)
    ds.SeriesNumber = SERIES_NUMBER[kind]
    ds.SeriesDescription = f"{_SERIES_TEXT[kind]} {ascii_text(context.model)} - research use only"[:64].strip()
    _set_equipment(ds, context, images)
    ds.SOPClassUID = sop_class_uid
    ds.SOPInstanceUID = sop_instance_uid
    ds.InstanceNumber = 1
    _set_times(ds, context, lead)
    return ds


def _set_issuer(ds: Dataset, lead: Header) -> None:
    """Issuer of Accession Number (PS3.3 table 10-17), where it is complete."""
    for item in lead.items("IssuerOfAccessionNumberSequence")[:1]:
        local = item.get("LocalNamespaceEntityID")
        if local:
            issuer = Dataset()
            issuer.LocalNamespaceEntityID = local
            ds.IssuerOfAccessionNumberSequence = [issuer]


def _set_equipment(ds: Dataset, context: ReportContext, images: Sequence[ImageResult]) -> None:
    engines = sorted({i.prediction.engine for i in images if i.prediction})  # two, where the GPU was lost midway
    versions = [f"{MANUFACTURER} {context.software_version}", context.model, *engines]
    ds.Manufacturer = MANUFACTURER
    ds.ManufacturerModelName = MODEL_NAME
    ds.DeviceSerialNumber = context.bundle.digest[:16]
    ds.SoftwareVersions = [ascii_text(v)[:64].strip() for v in versions]
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [concept(PROCESSING_EQUIPMENT)]
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = context.bundle.name[:64]
    item.DeviceSerialNumber = context.bundle.digest[:16]
    item.SoftwareVersions = ascii_text(context.bundle.manifest.version)[:64]
    item.DeviceUID = context.device_uid
    item.ContributionDateTime = context.analysed_at.strftime("%Y%m%d%H%M%S.%f%z")
    item.ContributionDescription = "Analysed by a neural network. Research use only."
    ds.ContributingEquipmentSequence = [item]


def _set_times(ds: Dataset, context: ReportContext, lead: Header) -> None:
    """Content and creation time are the start of the analysis, in the source's own time zone where it states one."""
    at = context.analysed_at
    zone = _zone(lead)
    if zone is not None:
        at = at.astimezone(zone)
        ds.TimezoneOffsetFromUTC = at.strftime("%z")
    ds.ContentDate, ds.ContentTime = _da_tm(at)
    ds.InstanceCreationDate, ds.InstanceCreationTime = ds.ContentDate, ds.ContentTime


def _da_tm(at: datetime) -> tuple[str, str]:
    return at.strftime("%Y%m%d"), at.strftime("%H%M%S.%f")


def _zone(lead: Header) -> timezone | None:
    text = lead.get("TimezoneOffsetFromUTC")
    if len(text) != 5 or text[0] not in "+-" or not text[1:].isdigit() or text == "-0000":
        return None
    hours, minutes = int(text[1:3]), int(text[3:])
    if minutes > 59 or not -12 <= (hours if text[0] == "+" else -hours) <= 14:
        return None
    delta = timedelta(hours=hours, minutes=minutes)
    return timezone(delta if text[0] == "+" else -delta)


def set_frame_of_reference(ds: Dataset, images: Sequence[ImageResult]) -> None:
    """The frame of reference that all images share, if they do (PS3.3 C.7.4.1; projection images seldom have one)."""
    uids = {Header(i.source).get("FrameOfReferenceUID") for i in images}
    uid = uids.pop() if len(uids) == 1 else ""
    if uid.startswith(("0.", "1.", "2.")):  # the roots there are; optional here, so dropped rather than repeated
        ds.FrameOfReferenceUID = uid
        ds.PositionReferenceIndicator = ""


def finish(ds: Dataset, lead: Header, codes: Iterable[Code]) -> Dataset:
    """Choose the character set that holds every text, and name the private coding schemes (PS3.3 C.12.1)."""
    codes = list(codes)
    texts = [*inherited(lead).values(), *_texts_of_requests(ds), *(c.meaning for c in codes)]
    character_set = choose_character_set(lead.character_set, texts)
    if character_set is not None:
        ds.SpecificCharacterSet = character_set
    private = sorted({c.scheme for c in codes if c.scheme.startswith("99")})
    if private:
        ds.CodingSchemeIdentificationSequence = [_private_scheme(s) for s in private]
    return ds


def _texts_of_requests(ds: Dataset) -> list[str]:
    requests = ds.get("ReferencedRequestSequence", [])
    return [str(element.value) for item in requests for element in item if element.VR in {"SH", "LO"}]


def _private_scheme(designator: str) -> Dataset:
    item = Dataset()
    item.CodingSchemeDesignator = designator
    item.CodingSchemeName = "Private codes of the model bundle"
    item.CodingSchemeResponsibleOrganization = MANUFACTURER
    return item


def _number(header: Header, keyword: str) -> int:
    text = header.get(keyword)
    return int(text) if text else 0
