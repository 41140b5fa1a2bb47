"""The node's own checker: what leaves the node was validated by the node (design rule 7).

The public validators do not notice a missing Tracking UID, Algorithm Version or Procedure Reported, evidence in the
wrong sequence, or a report that says nothing of an image. This one does; each rule has a test that breaks it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pydicom import Dataset

from cxrnode.dicom.needed import tags
from cxrnode.dicom.uids import is_valid_uid
from cxrnode.dicom.verbatim import verbatim
from cxrnode.errors import ResultError
from cxrnode.report.check_capture import capture_findings
from cxrnode.report.check_content import Triple, dcm, in_reading_order, triple
from cxrnode.report.check_sr import sr_findings
from cxrnode.report.check_tree import codes_of
from cxrnode.report.source import Header
from cxrnode.types import ImageResult
from engines.bundle import Bundle, Code

_COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"  # PS3.4 annex B.5
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_PROCESSING_EQUIPMENT = dcm("109102", "Processing Equipment")  # CID 7005
TYPE_2 = (  # of the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1)
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber",
)  # fmt: skip
COPIED = (
    *TYPE_2, "SpecificCharacterSet", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence",
    "OtherPatientIDsSequence", "IssuerOfAccessionNumberSequence", "PatientAge", "PatientSize", "PatientWeight",
    "StudyDescription",
)  # fmt: skip
_COPIED_TAGS = tags(*COPIED)
_FILLED = (
    "DeviceSerialNumber", "SoftwareVersions", "SeriesDescription", "SeriesNumber", "InstanceNumber",
    "ContentDate", "ContentTime", "SeriesDate", "SeriesTime",
)  # fmt: skip


def check_result(ds: Dataset, images: Sequence[ImageResult], bundle: Bundle, *, purpose: Code | None = None) -> None:
    """Check a report or a capture against the images it speaks of and the bundle that answered for them.

    purpose: of the model as contributing equipment, where a site has configured its own.
    Raises ResultError that lists every finding.
    """
    if not images:
        raise ResultError("no images to check against")
    findings = [*_common_findings(ds, images, bundle, triple(purpose) if purpose else _PROCESSING_EQUIPMENT)]
    sop_class = ds.get("SOPClassUID")
    if sop_class == _COMPREHENSIVE_3D_SR:
        findings += sr_findings(ds, images, bundle)
    elif sop_class == _SECONDARY_CAPTURE:
        findings += capture_findings(ds, images, bundle)
    else:
        findings.append(f"SOP Class UID {sop_class} is no result's")
    if findings:
        raise ResultError(f"result {ds.get('SOPInstanceUID')} failed its checks: " + "; ".join(findings))


def _common_findings(ds: Dataset, images: Sequence[ImageResult], bundle: Bundle, purpose: Triple) -> Iterator[str]:
    yield from _identity_findings(ds, [Header(i.source) for i in images])
    ordered = in_reading_order(images)
    lead = next((image for image in ordered if image.prediction), ordered[0])
    yield from _inheritance_findings(ds, lead.source)
    yield from _zone_findings(ds, Header(lead.source))
    yield from _equipment_findings(ds, bundle, purpose)


def _zone_findings(ds: Dataset, source: Header) -> Iterator[str]:
    """The offset that all times are told in is the source's where it states one; none only where none can be right."""
    offset, stated = str(ds.get("TimezoneOffsetFromUTC", "")), source.get("TimezoneOffsetFromUTC")
    if _is_offset(stated):
        if offset != stated:
            yield "TimezoneOffsetFromUTC differs from the source's, and with it the study's time"
    elif offset and not _is_offset(offset):
        yield "TimezoneOffsetFromUTC is no offset"
    elif not offset:
        made = source.get("StudyDate") + source.get("StudyTime")[:4]
        if made <= str(ds.get("ContentDate", "")) + str(ds.get("ContentTime", ""))[:4]:
            yield "TimezoneOffsetFromUTC is absent"


def _is_offset(text: str) -> bool:
    """PS3.5 section 6.2, VR DT: -1200 to +1400, and no -0000."""
    if not re.fullmatch(r"[+-][01]\d[0-5]\d", text) or text == "-0000":
        return False
    return -1200 <= int(text) <= 1400


def _identity_findings(ds: Dataset, sources: Sequence[Header]) -> Iterator[str]:
    taken = {s.get(k) for s in sources for k in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")}
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        uid = ds.get(keyword)
        if not is_valid_uid(uid):
            yield f"{keyword} is invalid"
        elif uid in taken:
            yield f"{keyword} is the source's"
    if any(ds.get("StudyInstanceUID") != s.get("StudyInstanceUID") for s in sources):
        yield "StudyInstanceUID differs from the source's"


def _inheritance_findings(ds: Dataset, source: Dataset) -> Iterator[str]:
    """Patient and study are the source's, byte for byte, and so is the character set that says how to read them."""
    written = verbatim(ds, _COPIED_TAGS)
    for keyword in COPIED:
        if keyword in TYPE_2 and keyword not in ds:
            yield f"{keyword} (type 2) is absent"
        elif _bytes(written, keyword) != _bytes(source, keyword):
            yield f"{keyword} differs from the source's"


def _bytes(ds: Dataset, keyword: str) -> object:
    """The value of an element as it is encoded; of a sequence, its items. None: it is absent or empty."""
    element = ds.get_item(keyword) if keyword in ds else None
    return (element.VR, element.value) if element is not None and len(element.value) else None


def _equipment_findings(ds: Dataset, bundle: Bundle, purpose: Triple) -> Iterator[str]:
    """The node made it (its loop guard knows its own objects by that), with this bundle."""
    if ds.get("Manufacturer") != "cxrnode" or ds.get("ManufacturerModelName") != "cxrnode chest radiograph analysis":
        yield "Manufacturer or ManufacturerModelName is not the node's: its loop guard would not know the object"
    for keyword in _FILLED:
        if ds.get(keyword) in (None, ""):
            yield f"{keyword} is empty"
    serial = bundle.digest[:16]
    equipment = list(ds.get("ContributingEquipmentSequence") or [])
    if len(equipment) != 1 or not is_valid_uid(equipment[0].get("DeviceUID")):
        yield "ContributingEquipmentSequence names no model (Device UID)"
        return
    said = [equipment[0].get(k) for k in ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber")]
    if said != ["cxrnode", bundle.name[:64], serial] or ds.get("DeviceSerialNumber") != serial:
        yield "ContributingEquipmentSequence names another model"
    if codes_of(equipment[0], "PurposeOfReferenceCodeSequence") != [purpose]:
        yield "ContributingEquipmentSequence does not say what the model did"
    if not equipment[0].get("SoftwareVersions"):
        yield "ContributingEquipmentSequence does not say which version"
    if equipment[0].get("ContributionDescription") != "Analysed by a neural network. Research use only.":
        yield "ContributionDescription does not say that it is for research use only"
