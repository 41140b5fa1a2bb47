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
from cxrnode.report.patients import by_patient
from cxrnode.report.source import Header, ascii_text
from cxrnode.types import ImageResult, Kind
from engines.bundle import Code

# type 2: written empty where the source has none (PS3.3 C.7.1.1, C.7.2.1)
TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber",
)  # fmt: skip
TYPE_3 = (
    "SpecificCharacterSet", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "OtherPatientIDsSequence",
    "PatientAge", "PatientSize", "PatientWeight", "StudyDescription", "IssuerOfAccessionNumberSequence",
)  # fmt: skip
SERIES_NUMBER = {Kind.SR: 9801, Kind.CAPTURE: 9802}
_SERIES_TEXT = {Kind.SR: "AI report", Kind.CAPTURE: "AI Grad-CAM"}
_MODALITY = {Kind.SR: "SR", Kind.CAPTURE: "OT"}
_CLOCKS_DIFFER = timedelta(minutes=5)  # of a device and of this machine
PROCESSING_EQUIPMENT = dcm("109102", "Processing Equipment")


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
    patients = len(by_patient(images))
    if patients != 1:
        raise ResultError(f"a report covers one patient, these images belong to {patients}")
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
    """Patient, General Study, General Series, Equipment and SOP Common modules (PS3.3 C.7.1.1 ... C.12.1).

    Patient and study are the source's, byte for byte, under its Specific Character Set. Raises ResultError where one of
    them cannot be copied whole.
    """
    ds = Dataset()
    lead.copy_into(ds, *TYPE_2, empty=True)
    lead.copy_into(ds, *TYPE_3)
    ds.StudyInstanceUID = lead.get("StudyInstanceUID")
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


def _set_equipment(ds: Dataset, context: ReportContext, images: Sequence[ImageResult]) -> None:
    engines = sorted({i.prediction.engine for i in images if i.prediction})  # two, where the GPU was lost midway
    versions = [f"{MANUFACTURER} {context.software_version}", context.model, *engines]
    ds.Manufacturer = MANUFACTURER
    ds.ManufacturerModelName = MODEL_NAME
    ds.DeviceSerialNumber = context.bundle.digest[:16]
    ds.SoftwareVersions = [ascii_text(v)[:64].strip() for v in versions]
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [concept(context.purpose or PROCESSING_EQUIPMENT)]
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = context.bundle.name[:64]
    item.DeviceSerialNumber = context.bundle.digest[:16]
    item.SoftwareVersions = ascii_text(context.bundle.manifest.version)[:64]
    item.DeviceUID = context.device_uid
    item.ContributionDateTime = context.analysed_at.strftime("%Y%m%d%H%M%S.%f%z")
    item.ContributionDescription = "Analysed by a neural network. Research use only."
    ds.ContributingEquipmentSequence = [item]


def _set_times(ds: Dataset, context: ReportContext, lead: Header) -> None:
    """Content, series and creation time: the start of the analysis; and the offset from UTC of all times (C.12.1).

    The offset holds for the study's date and time too, which are copied: it is the source's own where that states one.
    Where it states none, its times are taken for local ones of this machine, so the offset is that of its zone when the
    study was made (an hour less or more than now, where clocks are put forward in between), and our own times are told
    in it. A study that would then lie after its analysis comes from another zone: nobody knows which, and no offset is
    claimed.
    """
    at = context.analysed_at
    zone = _zone(lead) or _zone_of_study(lead, at)
    if zone is not None:
        at = at.astimezone(zone)
        ds.TimezoneOffsetFromUTC = at.strftime("%z")
    ds.ContentDate, ds.ContentTime = _da_tm(at)
    ds.SeriesDate, ds.SeriesTime = _da_tm((context.series_at or context.analysed_at).astimezone(at.tzinfo))
    ds.InstanceCreationDate, ds.InstanceCreationTime = ds.ContentDate, ds.ContentTime


def _zone_of_study(lead: Header, at: datetime) -> timezone | None:
    """This machine's, as it was then. `at`: in this machine's zone as it is now."""
    now = at.utcoffset() or timedelta()
    try:
        made = datetime.strptime(f"{lead.get('StudyDate')} {lead.get('StudyTime')[:4]}", "%Y%m%d %H%M")
        shift = (made.astimezone().utcoffset() or now) - (at.astimezone().utcoffset() or now)
    except (ValueError, OverflowError, OSError):  # no date, or none that this machine can tell the zone of
        return _whole_minutes(now)
    zone = _whole_minutes(now + shift)
    return zone if made.replace(tzinfo=zone) <= at + _CLOCKS_DIFFER else None


def _whole_minutes(offset: timedelta) -> timezone:
    """Of the zones before time zones, which go by seconds."""
    return timezone(timedelta(minutes=round(offset / timedelta(minutes=1))))


def _da_tm(at: datetime) -> tuple[str, str]:
    return at.strftime("%Y%m%d"), at.strftime("%H%M%S.%f")


def _zone(lead: Header) -> timezone | None:
    text = lead.get("TimezoneOffsetFromUTC")
    if len(text) != 5 or text[0] not in "+-" or not text[1:].isdigit() or text == "-0000":
        return None
    hours, minutes = int(text[1:3]), int(text[3:])
    delta = timedelta(hours=hours, minutes=minutes) * (1 if text[0] == "+" else -1)
    if minutes > 59 or not timedelta(hours=-12) <= delta <= timedelta(hours=14):  # the VR's range (PS3.5 section 6.2)
        return None
    return timezone(delta)


def set_frame_of_reference(ds: Dataset, images: Sequence[ImageResult]) -> None:
    """The frame of reference that all images share, if they do (PS3.3 C.7.4.1; projection images seldom have one)."""
    uids = {Header(i.source).get("FrameOfReferenceUID") for i in images}
    uid = uids.pop() if len(uids) == 1 else ""
    if uid.startswith(("0.", "1.", "2.")):  # the roots there are; optional here, so dropped rather than repeated
        ds.FrameOfReferenceUID = uid
        ds.PositionReferenceIndicator = ""


def name_private_schemes(ds: Dataset, codes: Iterable[Code]) -> None:
    """Coding Scheme Identification of the bundle's private schemes (PS3.3 C.12.1)."""
    private = sorted({c.scheme for c in codes if c.scheme.startswith("99")})
    if private:
        ds.CodingSchemeIdentificationSequence = [_private_scheme(s) for s in private]


def _private_scheme(designator: str) -> Dataset:
    item = Dataset()
    item.CodingSchemeDesignator = designator
    item.CodingSchemeName = "Private codes of the model bundle"
    item.CodingSchemeResponsibleOrganization = MANUFACTURER
    return item


def _number(header: Header, keyword: str) -> int:
    text = header.get(keyword)
    return int(text) if text else 0
