"""The part of a source's header that its results need: kept in the store, so that a report never rereads a file."""

from __future__ import annotations

from io import BytesIO

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.multival import MultiValue

from cxrnode.dicom.read import tolerant
from cxrnode.types import ImageResult, InstanceHeader, StoredImage

# patient, study, series and image references (PS3.3 C.7.1.1, C.7.2.1, C.7.3.1, C.12.1, C.7.6.1) and the request
KEPT = frozenset({
    "SpecificCharacterSet", "TimezoneOffsetFromUTC",
    "PatientName", "PatientID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "PatientBirthDate",
    "PatientSex", "OtherPatientIDsSequence", "PatientAge", "PatientSize", "PatientWeight", "PatientComments",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "IssuerOfAccessionNumberSequence", "ReferringPhysicianName", "ProcedureCodeSequence", "ReferencedStudySequence",
    "RequestAttributesSequence", "ReferencedPerformedProcedureStepSequence", "InstitutionName",
    "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "BodyPartExamined",
    "AnatomicRegionSequence", "ViewPosition", "ViewCodeSequence", "PatientOrientation", "Laterality",
    "FrameOfReferenceUID", "PositionReferenceIndicator",
    "SOPClassUID", "SOPInstanceUID", "InstanceNumber", "AcquisitionDate", "AcquisitionTime", "ContentDate",
    "ContentTime", "Rows", "Columns", "PhotometricInterpretation", "Manufacturer", "ManufacturerModelName",
    "NumberOfFrames", "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
})  # fmt: skip


def instance_header(ds: Dataset) -> InstanceHeader:
    """What the store keeps of a data set that `read_header` or `read_instance` gave: its four UIDs are valid."""
    return InstanceHeader(
        study_instance_uid=str(ds.StudyInstanceUID),
        series_instance_uid=str(ds.SeriesInstanceUID),
        sop_instance_uid=str(ds.SOPInstanceUID),
        sop_class_uid=str(ds.SOPClassUID),
        kept=header_to_bytes(report_header(ds)),
        patient_id=plain_text(ds, "PatientID"),
        accession_number=plain_text(ds, "AccessionNumber"),
    )


def plain_text(ds: Dataset, keyword: str) -> str:
    """A text element of a settled data set as it came, several values with their backslash; "" where there is none."""
    value = ds.get(keyword)
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value or "")


def report_header(ds: Dataset) -> Dataset:
    """A new data set with what the reports need of `ds`, pixel data and private elements left behind."""
    header = Dataset()
    for keyword in KEPT:
        if keyword in ds:
            header[keyword] = ds[keyword]
    return header


def header_to_bytes(header: Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    with tolerant():
        write_dataset(buffer, header)
    return bytes(buffer.getvalue())


def header_from_bytes(raw: bytes) -> Dataset:
    with tolerant():
        return read_dataset(BytesIO(raw), is_implicit_VR=False, is_little_endian=True)


def image_result(image: StoredImage) -> ImageResult:
    return ImageResult(
        source=header_from_bytes(image.kept_header),
        pixel_digest=image.pixel_digest,
        prediction=image.prediction,
        rejection=image.rejection,
    )
