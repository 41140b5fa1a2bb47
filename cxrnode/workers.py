"""What runs in the worker processes: reading headers, decoding, making and writing result objects.

Each function takes and gives plain data that pickles, and is a pure function of it but for the file it writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydicom import Dataset

from cxrnode.archive import Item, is_nested, open_item, read_item
from cxrnode.dicom.header import image_result, instance_header
from cxrnode.dicom.pixels import PREVIEW_LONG_SIDE, REDUCED_LEAST, load_grey
from cxrnode.dicom.read import pixel_digest, read_header, read_instance
from cxrnode.dicom.select import select
from cxrnode.errors import Rejected, ResultError
from cxrnode.metrics import device_name
from cxrnode.report.capture import build_capture
from cxrnode.report.check import check_result
from cxrnode.report.context import ReportContext
from cxrnode.report.encode import encode
from cxrnode.report.sr import build_sr
from cxrnode.store.spool import write_atomic
from cxrnode.types import (
    ByteArray,
    FloatArray,
    ImageResult,
    Kind,
    NewItem,
    PreparedImage,
    Reason,
    Rejection,
    ResultObject,
    StoredImage,
    Study,
)
from engines.bundle import InputShape

cv2.setNumThreads(1)  # one image a process; the processes fill the cores

_MAGIC = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """An item that was read: its picture, or why there is none."""

    pixel_digest: str | None = None
    image: PreparedImage | None = None
    rejection: Rejection | None = None
    device: str = ""  # what kind made the image, see metrics.device_name


def scan(items: Sequence[Item]) -> list[NewItem]:
    """Find out which study each item belongs to, from its header alone."""
    return [_scan_one(item) for item in items]


def _scan_one(item: Item) -> NewItem:
    if item.rejection:
        return NewItem(path=item.path, location=item.location(), rejection=item.rejection)
    try:
        with open_item(item.location()) as f:
            if item.kind != "file" and is_nested(f.read(_MAGIC)):
                raise Rejected(Reason.NESTED_ARCHIVE, "unpack it and give it as an archive of its own")
            f.seek(0)
            header = read_header(f)
    except Rejected as e:
        return NewItem(path=item.path, location=item.location(), rejection=e.rejection)
    return NewItem(path=item.path, location=item.location(), header=instance_header(header))


def decode(location: dict[str, Any], shape: InputShape) -> Decoded:
    """Read, gate and decode one item, down to the network's input and the capture's preview."""
    try:
        raw = read_item(location)
    except Rejected as e:
        return Decoded(rejection=e.rejection)
    try:
        ds = read_instance(raw)
    except Rejected as e:
        return _unreadable(raw, e.rejection)
    digest = pixel_digest(ds)
    if rejection := select(ds):
        return Decoded(pixel_digest=digest, rejection=rejection)
    try:
        return Decoded(pixel_digest=digest, image=_picture(ds, shape), device=_device(ds))
    except Rejected as e:
        return Decoded(pixel_digest=digest, rejection=e.rejection)


def _device(ds: Dataset) -> str:
    return device_name(str(ds.get("Manufacturer", "")), str(ds.get("ManufacturerModelName", "")))


def _unreadable(raw: bytes, rejection: Rejection) -> Decoded:
    """A file whose header is sound and whose pixels are not: what its header rules out needs no pixels."""
    try:
        ds = read_header(BytesIO(raw))
    except Rejected:
        return Decoded(rejection=rejection)
    return Decoded(pixel_digest=sha256(raw).hexdigest(), rejection=select(ds) or rejection)


def _picture(ds: Dataset, shape: InputShape) -> PreparedImage:
    grey = load_grey(ds, long_side=PREVIEW_LONG_SIDE, least=REDUCED_LEAST)
    return PreparedImage(
        pixels=shape.prepared(grey.pixels),
        preview=np.rint(grey.pixels * 255).astype(np.uint8),
        rows=grey.rows,
        columns=grey.columns,
        photometric_interpretation=grey.photometric_interpretation,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where results go; paths in the store are relative to `root`."""

    root: Path

    def object_path(self, study_instance_uid: str, kind: Kind, uid: str) -> Path:
        return self.root / "dicom" / study_instance_uid / f"{kind.value}-{uid}.dcm"

    def quarantine_path(self, uid: str) -> Path:
        return self.root / "quarantine" / f"{uid}.dcm"


def make_capture(
    output: Output, context: ReportContext, image: StoredImage, preview: ByteArray, cam: FloatArray
) -> ResultObject:
    """Build, check and write the Grad-CAM capture of one image. Raises ResultError, StorageFullError."""
    shown = image_result(image)
    return _write(output, context, Kind.CAPTURE, build_capture(shown, preview, cam, context), [shown])


def make_sr(output: Output, context: ReportContext, study: Study) -> ResultObject:
    """Build, check and write the one SR of a study. Raises ResultError, StorageFullError."""
    images = [image_result(image) for image in study.images]
    predecessor = study.predecessor_of(context.sr_uid(images))
    return _write(output, context, Kind.SR, build_sr(images, context, predecessor), images)


def _write(
    output: Output, context: ReportContext, kind: Kind, ds: Dataset, images: Sequence[ImageResult]
) -> ResultObject:
    uid, study = str(ds.SOPInstanceUID), str(ds.StudyInstanceUID)
    data = encode(ds)
    try:
        check_result(ds, images)
    except ResultError:
        write_atomic(output.quarantine_path(uid), data)
        raise
    path = output.object_path(study, kind, uid)
    write_atomic(path, data)
    return ResultObject(
        kind=kind,
        sop_class_uid=str(ds.SOPClassUID),
        sop_instance_uid=uid,
        study_instance_uid=study,
        series_instance_uid=str(ds.SeriesInstanceUID),
        path=path.relative_to(output.root),
        sha256=sha256(data).hexdigest(),
        model=context.bundle.digest,
        software=context.software_version,
    )
