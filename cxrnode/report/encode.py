"""A result as the bytes of a DICOM file (PS3.10 section 7.1). The store writes them."""

from __future__ import annotations

from io import BytesIO

from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from cxrnode.dicom.uids import IMPLEMENTATION_CLASS_UID

_PREAMBLE = 132  # bytes, prefix included
IMPLEMENTATION_VERSION_NAME = "CXRNODE"  # SH: no version in it, so that a repeat repeats the bytes


def encode(ds: Dataset) -> bytes:
    """`ds` as a Part 10 file, explicit VR little endian; equal data sets give equal bytes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    ds.file_meta = meta
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def decode(data: bytes) -> Dataset:
    """What `encode` wrote, its elements as they are encoded until somebody touches them (`dcmread` converts some)."""
    f = BytesIO(data)
    f.seek(_PREAMBLE)
    read_dataset(f, False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2)
    return read_dataset(f, False, True)
