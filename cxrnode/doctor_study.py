"""A synthetic study for `cxrnode doctor`: a small Secondary Capture, and the node's report that it is no radiograph.

No patient, no findings. Every UID is derived, so that a destination that was tested before holds the objects once.
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import UID, SecondaryCaptureImageStorage

from cxrnode import __version__
from cxrnode.dicom.header import report_header
from cxrnode.dicom.identity import MANUFACTURER, MODEL_NAME
from cxrnode.dicom.uids import derive_uid
from cxrnode.report.check import check_result
from cxrnode.report.context import ReportContext
from cxrnode.report.encode import encode
from cxrnode.report.sr import build_sr
from cxrnode.store.spool import write_atomic
from cxrnode.types import ImageResult, Kind, Reason, Rejection, ResultObject
from engines.bundle import Bundle

PATIENT_ID = "CXRNODE-DOCTOR"
STUDY_UID = derive_uid("doctor", "study")
_AT = datetime(2000, 1, 1, tzinfo=UTC)  # of every run, so that equal objects have equal bytes
_SIDE = 64  # pixels


def write_study(folder: Path, bundle: Bundle) -> list[ResultObject]:
    """Write the capture and the SR of the study into `folder`, paths relative to it."""
    image = _capture()
    source = ImageResult(
        source=report_header(image),
        pixel_digest=sha256(image.PixelData).hexdigest(),
        rejection=Rejection(reason=Reason.WRONG_MODALITY, detail="a synthetic image, made by cxrnode doctor"),
    )
    context = ReportContext(bundle=bundle, analysed_at=_AT, software_version=__version__)
    report = build_sr([source], context)
    check_result(report, [source], bundle)
    return [_write(folder, image, Kind.CAPTURE), _write(folder, report, Kind.SR)]


def _capture() -> Dataset:
    """A Secondary Capture Image (PS3.3 A.8.1): a grey ramp."""
    ds = Dataset()
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "CXRNODE^DOCTOR", PATIENT_ID, "", ""
    ds.StudyInstanceUID, ds.StudyID = STUDY_UID, "DOCTOR"
    ds.StudyDate, ds.StudyTime = _AT.strftime("%Y%m%d"), _AT.strftime("%H%M%S")
    ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.StudyDescription = "cxrnode doctor: connection test, no patient"
    ds.Modality, ds.SeriesInstanceUID, ds.SeriesNumber = "OT", derive_uid("doctor", "series"), 1
    ds.Laterality, ds.ConversionType = "", "SYN"
    ds.Manufacturer, ds.ManufacturerModelName = MANUFACTURER, MODEL_NAME
    ds.SOPClassUID, ds.SOPInstanceUID = UID(SecondaryCaptureImageStorage), derive_uid("doctor", "capture")
    ds.InstanceNumber, ds.PatientOrientation = 1, ""
    ds.ContentDate, ds.ContentTime = ds.StudyDate, ds.StudyTime
    ds.BurnedInAnnotation = "NO"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = _SIDE
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ramp = np.tile(np.linspace(0, 255, _SIDE).astype(np.uint8), (_SIDE, 1))
    ds.add_new("PixelData", "OB", ramp.tobytes())
    return ds


def _write(folder: Path, ds: Dataset, kind: Kind) -> ResultObject:
    data = encode(ds)
    path = Path(f"{kind.value}.dcm")
    write_atomic(folder / path, data)
    return ResultObject(
        kind=kind, sop_class_uid=str(ds.SOPClassUID), sop_instance_uid=str(ds.SOPInstanceUID),
        study_instance_uid=STUDY_UID, series_instance_uid=str(ds.SeriesInstanceUID), path=path,
        sha256=sha256(data).hexdigest(),
    )  # fmt: skip
