"""Films for an int8 engine's scales, prepared as those that the node analyses."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from cxrnode.archive import check_archive, iter_items
from cxrnode.errors import ArchiveError, Rejected
from cxrnode.item import Item
from cxrnode.location import read_item
from cxrnode.types import FloatArray
from cxrnode.workers import decode
from engines.bundle import InputShape
from engines.preprocess import to_batch

_MOST = 512  # films: their largest magnitudes change little after a few hundred
_BATCH = 8
_WHITE = {np.dtype(np.uint8): np.float32(0xFF), np.dtype(np.uint16): np.float32(0xFFFF)}


def calibration_batches(folder: Path, shape: InputShape) -> Iterator[FloatArray]:
    """float32 [N, C, H, W], N <= 8, of the chest radiographs (DICOM) and pictures (PNG, JPEG) in `folder`.

    Raises ArchiveError where it holds none.
    """
    check_archive(folder)
    with tempfile.TemporaryDirectory() as spool:
        items = iter_items(folder, spool=Path(spool), skip=Path(spool))
        films = islice((film for item in items if (film := _film(item, shape)) is not None), _MOST)
        empty = True
        while batch := list(islice(films, _BATCH)):
            empty = False
            yield to_batch(batch, shape.channels)
    if empty:
        raise ArchiveError(f"{folder} holds no chest radiograph: give a folder of DICOM, PNG or JPEG films")


def _film(item: Item, shape: InputShape) -> FloatArray | None:
    """[H, W], as the network takes it; None where the file is no film."""
    if item.rejection:
        return None
    if image := decode(item.location(), shape).image:
        return image.pixels
    try:
        raw = np.frombuffer(read_item(item.location()), np.uint8)
        picture = cv2.imdecode(raw, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH) if raw.size else None
    except (Rejected, cv2.error):
        return None
    if picture is None or picture.dtype not in _WHITE:
        return None
    grey = picture.astype(np.float32) / _WHITE[picture.dtype]
    return shape.prepared(grey)
