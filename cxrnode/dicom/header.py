"""The part of a source's header that its results need: kept in the store, so that a report never rereads a file."""

from __future__ import annotations

from io import BytesIO

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from cxrnode.dicom.needed import KEPT_TAGS
from cxrnode.dicom.read import SourceDataset
from cxrnode.dicom.text import text_of
from cxrnode.dicom.verbatim import verbatim
from cxrnode.types import ImageResult, InstanceHeader, StoredImage


def instance_header(ds: SourceDataset) -> InstanceHeader:
    """What the store keeps of a data set that `read_header` or `read_instance` gave: its four UIDs are valid."""
    kept = report_header(ds)
    return InstanceHeader(
        study_instance_uid=str(ds.StudyInstanceUID),
        series_instance_uid=str(ds.SeriesInstanceUID),
        sop_instance_uid=str(ds.SOPInstanceUID),
        sop_class_uid=str(ds.SOPClassUID),
        kept=header_to_bytes(kept),
        patient_id=text_of(kept, "PatientID"),
        accession_number=text_of(kept, "AccessionNumber"),
    )


def report_header(ds: Dataset) -> Dataset:
    """A new data set with what the reports need of `ds`, as its source encoded it (`verbatim`), without pixel data."""
    if isinstance(ds, SourceDataset):
        return ds.encoded
    header = Dataset()  # one that was made in memory: nobody has encoded it yet
    for tag in KEPT_TAGS & set(ds.keys()):
        header[tag] = ds[tag]
    return header_from_bytes(header_to_bytes(header))


def header_to_bytes(header: Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, header)
    return bytes(buffer.getvalue())


def header_from_bytes(raw: bytes) -> Dataset:
    return verbatim(read_dataset(BytesIO(raw), is_implicit_VR=False, is_little_endian=True))


def image_result(image: StoredImage) -> ImageResult:
    return ImageResult(
        source=header_from_bytes(image.kept_header),
        pixel_digest=image.pixel_digest,
        prediction=image.prediction,
        rejection=image.rejection,
    )
