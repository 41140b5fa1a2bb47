"""The node's own checker: what leaves the node was validated by the node (design rule 7).

The public validators do not notice a missing Tracking UID, Algorithm Version or Procedure Reported, evidence in the
wrong sequence, or a report that says nothing of an image. This one does; each rule has a test that breaks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydicom import Dataset

from cxrnode.dicom.identity import MANUFACTURER, MODEL_NAME
from cxrnode.dicom.needed import tags
from cxrnode.dicom.uids import is_valid_uid
from cxrnode.dicom.verbatim import verbatim
from cxrnode.errors import ResultError
from cxrnode.report.capture import SECONDARY_CAPTURE
from cxrnode.report.check_capture import capture_findings
from cxrnode.report.check_sr import sr_findings
from cxrnode.report.common import lead_of
from cxrnode.report.encode import encode
from cxrnode.report.source import Header
from cxrnode.report.sr import COMPREHENSIVE_3D_SR
from cxrnode.types import ImageResult

__all__ = ["check_result", "encode"]
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
    "ContentDate", "ContentTime",
)  # fmt: skip


def check_result(ds: Dataset, images: Sequence[ImageResult]) -> None:
    """Check a report or a capture against the images it speaks of. Raises ResultError that lists every finding."""
    findings = [*_common_findings(ds, images)]
    sop_class = ds.get("SOPClassUID")
    if sop_class == COMPREHENSIVE_3D_SR:
        findings += sr_findings(ds, images)
    elif sop_class == SECONDARY_CAPTURE:
        findings += capture_findings(ds, images)
    else:
        findings.append(f"SOP Class UID {sop_class} is no result's")
    if findings:
        raise ResultError(f"result {ds.get('SOPInstanceUID')} failed its checks: " + "; ".join(findings))


def _common_findings(ds: Dataset, images: Sequence[ImageResult]) -> Iterator[str]:
    if not images:
        yield "no images to check against"
        return
    yield from _identity_findings(ds, [Header(i.source) for i in images])
    yield from _inheritance_findings(ds, lead_of(images).source)
    yield from _equipment_findings(ds)


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


def _equipment_findings(ds: Dataset) -> Iterator[str]:
    if ds.get("Manufacturer") != MANUFACTURER or ds.get("ManufacturerModelName") != MODEL_NAME:
        yield "Manufacturer or ManufacturerModelName is not the node's: its loop guard would not know the object"
    for keyword in _FILLED:
        if ds.get(keyword) in (None, ""):
            yield f"{keyword} is empty"
    equipment = ds.get("ContributingEquipmentSequence") or []
    if not any(is_valid_uid(item.get("DeviceUID")) for item in equipment):
        yield "ContributingEquipmentSequence names no model (Device UID)"
