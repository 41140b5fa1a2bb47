"""What runs in the worker processes: reading headers, decoding, making and writing result objects.

Each function takes and gives plain data that pickles, and is a pure function of it but for the file it writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import file_digest, sha256
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from pydicom import Dataset

from cxrnode.container import recognise
from cxrnode.dicom.header import header_from_bytes, image_result, instance_header
from cxrnode.dicom.pixels import PREVIEW_LONG_SIDE, REDUCED_LEAST, load_grey
from cxrnode.dicom.read import pixel_digest, read_header, read_instance
from cxrnode.dicom.select import select
from cxrnode.dicom.text import encoded
from cxrnode.errors import Rejected, ResultError, unexpected
from cxrnode.item import Item, nested
from cxrnode.location import is_away, open_item
from cxrnode.metrics import device_name
from cxrnode.report.capture import build_capture
from cxrnode.report.check import check_result
from cxrnode.report.context import ReportContext
from cxrnode.report.encode import decode as decode_result
from cxrnode.report.encode import encode
from cxrnode.report.patients import by_patient, patient_of
from cxrnode.report.sr import build_sr
from cxrnode.store.data_dir import DataDir
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
    Report,
    ResultObject,
    StoredImage,
    Study,
)
from engines.bundle import InputShape

DECODE_CPU_S = 8.0  # of processor time: ten times what the largest film takes
cv2.setNumThreads(1)  # one image a process; the processes fill the cores


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """An item that was read: its picture, or why there is none."""

    pixel_digest: str | None = None
    image: PreparedImage | None = None
    rejection: Rejection | None = None
    device: str = ""  # what kind made the image, see metrics.device_name
    away: bool = False  # what it lies on is not there just now: the rejection is none of the image's


def scan(items: Sequence[Item]) -> list[NewItem]:
    """Find out which study each item belongs to, from its header alone."""
    return [_scan_one(item) for item in items]


def _scan_one(item: Item) -> NewItem:
    if item.rejection:
        return NewItem(path=item.path, location=item.location(), rejection=item.rejection)
    try:
        with open_item(item.location()) as f:
            if item.at.kind != "file" and (kind := recognise(f)):
                return NewItem(path=item.path, location=item.location(), rejection=nested(kind))
            f.seek(0)
            header = instance_header(read_header(f))
    except Rejected as e:
        return NewItem(path=item.path, location=item.location(), rejection=e.rejection)
    except Exception as e:  # noqa: BLE001 (one item's trouble is that item's row; its neighbours go on)
        return NewItem(path=item.path, location=item.location(), rejection=unexpected(e))
    return NewItem(path=item.path, location=item.location(), header=header)


def decode(location: dict[str, Any], shape: InputShape, kept_header: bytes = b"") -> Decoded:
    """Read, gate and decode one item, down to the network's input and the capture's preview.

    kept_header: what was kept of it when it was scanned, if it was. A file may have been replaced since.
    """
    try:
        return _decode(location, shape, kept_header)
    except Exception as e:  # noqa: BLE001 (one item's trouble is that item's row; its neighbours go on)
        return Decoded(rejection=unexpected(e))


def _decode(location: dict[str, Any], shape: InputShape, kept_header: bytes) -> Decoded:
    try:
        with open_item(location) as f:
            ds = read_instance(f)
    except Rejected as e:
        return Decoded(rejection=e.rejection, away=True) if is_away(e) else _unreadable(location, e.rejection)
    if kept_header and _whose(ds.encoded) != _whose(header_from_bytes(kept_header)):
        detail = "it holds another image, or another patient's, than when it was scanned: start over with --restart"
        return Decoded(rejection=Rejection(reason=Reason.UNREADABLE_FILE, detail=detail))
    digest = pixel_digest(ds)
    if rejection := select(ds):
        return Decoded(pixel_digest=digest, rejection=rejection)
    try:
        return Decoded(pixel_digest=digest, image=_picture(ds, shape), device=_device(ds))
    except Rejected as e:
        return Decoded(pixel_digest=digest, rejection=e.rejection)


def _whose(header: Dataset) -> tuple[bytes, ...]:
    uids = (encoded(header, keyword).strip(b"\0 ") for keyword in ("StudyInstanceUID", "SOPInstanceUID"))
    return (*patient_of(header), *uids)


def _device(ds: Dataset) -> str:
    return device_name(str(ds.get("Manufacturer", "")), str(ds.get("ManufacturerModelName", "")))


def _unreadable(location: dict[str, Any], rejection: Rejection) -> Decoded:
    """A file whose header is sound and whose pixels are not: what its header rules out needs no pixels."""
    try:
        with open_item(location) as f:
            ds = read_header(f)
            f.seek(0)
            digest = file_digest(cast(BufferedReader, f), "sha256").hexdigest()
    except Rejected:
        return Decoded(rejection=rejection)
    return Decoded(pixel_digest=digest, rejection=select(ds) or rejection)


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
    """Where results go; paths in the store are relative to `root`. data_dir: of a node, which may go away."""

    root: Path
    data_dir: DataDir | None = None

    def check(self) -> None:
        """Raises DataDirAwayError where it is not there."""
        if self.data_dir:
            self.data_dir.check()

    @contextmanager
    def there(self) -> Iterator[None]:
        """It is there, before and after: what is written meanwhile lies in it, and in no empty mount point."""
        self.check()
        try:
            yield
        finally:
            self.check()

    def object_path(self, study_instance_uid: str, kind: Kind, uid: str) -> Path:
        return self.root / "dicom" / study_instance_uid / f"{kind.value}-{uid}.dcm"

    def quarantine_path(self, uid: str) -> Path:
        return self.root / "quarantine" / f"{uid}.dcm"


def make_capture(
    output: Output, context: ReportContext, image: StoredImage, preview: ByteArray, cam: FloatArray
) -> ResultObject:
    """Build, check and write the Grad-CAM capture of one image.

    Raises ResultError, StorageFullError, DataDirAwayError.
    """
    shown = image_result(image)
    with output.there():
        return _write(output, context, Kind.CAPTURE, build_capture(shown, preview, cam, context), [shown])


def make_sr(output: Output, context: ReportContext, study: Study) -> tuple[Report, ...]:
    """Build, check and write the SRs of a study: one for each patient whose images it holds, or why it is held back.

    Raises StorageFullError, DataDirAwayError.
    """
    images = [image_result(image) for image in study.images]
    patients = by_patient(images)
    with output.there():
        return tuple(_report(output, context, study, images, places, len(patients)) for places in patients)


def _report(
    output: Output,
    context: ReportContext,
    study: Study,
    images: Sequence[ImageResult],
    places: tuple[int, ...],
    patients: int,
) -> Report:
    made = {c.sop_instance_uid: c for c in study.captures if c.series_instance_uid}  # 0.1.0 kept no series
    mine = [images[place] for place in places]
    mine = [replace(i, capture=made.get(context.capture_uid(i))) if i.prediction else i for i in mine]
    try:
        uid = context.sr_uid(mine, alone=patients == 1)
        before = _predecessor(output, study.earlier, uid, patient_of(mine[0].source) if patients > 1 else None)
        ds = build_sr(mine, context, before, alone=patients == 1)
        sr = _write(output, context, Kind.SR, ds, mine)
    except ResultError as e:
        return Report(images=places, held_back=Rejection(reason=Reason.RESULT_INVALID, detail=str(e)))
    return Report(images=places, sr=sr, predecessor_uid=before.sop_instance_uid if before else None)


def _predecessor(
    output: Output, earlier: Sequence[ResultObject], uid: str, patient: tuple[bytes, ...] | None
) -> ResultObject | None:
    """The SR that `uid` takes the place of, only ever the same patient's: of a repeat, the one before its first making.

    An earlier SR that cannot be read any more is taken for the patient's where the study holds no other (None).
    """
    before = None
    for sr in earlier:
        if sr.sop_instance_uid == uid:
            break
        try:
            with (output.root / sr.path).open("rb") as f:
                same = patient is None or patient_of(read_header(f).encoded) == patient
        except (OSError, Rejected):
            same = patient is None
        before = sr if same else before
    return before


def _write(
    output: Output, context: ReportContext, kind: Kind, ds: Dataset, images: Sequence[ImageResult]
) -> ResultObject:
    uid, study = str(ds.SOPInstanceUID), str(ds.StudyInstanceUID)
    data = encode(ds)
    try:
        check_result(
            decode_result(data), images, context.bundle, purpose=context.purpose
        )  # what leaves is what is checked
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
