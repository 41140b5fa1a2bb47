"""RLE Lossless (PS3.5 annex G): byte planes, each packed by itself, most significant first.

Not by pylibjpeg-rle: it panics on damaged data with an exception that is no `Exception`, and takes twice the time.
"""

from __future__ import annotations

import struct
from typing import Any

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt

_SLACK = 1024  # bytes that padding may unpack to
_HEADER = 64  # bytes: the number of segments and up to 15 offsets


def decode_planes(frame: bytes, *, rows: int, columns: int, samples: int, allocated: int) -> list[npt.NDArray[Any]]:
    """One [rows, columns] array of uint8 or uint16 a sample. Raises ValueError for what is no such frame."""
    segments = _segments(frame)
    width = allocated // 8
    if len(segments) != samples * width:
        raise ValueError(f"{len(segments)} segments for {samples} samples of {allocated} bits")
    size = rows * columns
    planes = [_unpack(segment, size).reshape(rows, columns) for segment in segments]
    if width == 1:
        return planes
    # little endian words: the low byte first
    return [_words(low, high) for high, low in zip(planes[::2], planes[1::2], strict=True)]


def _segments(frame: bytes) -> list[bytes]:
    if len(frame) < _HEADER:
        raise ValueError("no room for the header")
    count, *offsets = struct.unpack_from("<16L", frame)
    starts = offsets[:count]
    if not 0 < count <= 15 or starts[0] != _HEADER or starts != sorted(starts) or starts[-1] > len(frame):
        raise ValueError("a damaged header")
    return [frame[start:end] for start, end in zip(starts, [*starts[1:], len(frame)], strict=True)]


def _unpack(segment: bytes, size: int) -> npt.NDArray[np.uint8]:
    # what unpacks to more is no plane, and may be a bomb: the codec's error
    plane = np.frombuffer(imagecodecs.packbits_decode(segment, out=size + _SLACK), np.uint8)
    if plane.size < size:
        raise ValueError(f"a segment holds {plane.size} of {size} bytes")
    return plane[:size]  # an odd segment is padded


def _words(low: npt.NDArray[np.uint8], high: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    return cv2.merge([low, high]).view("<u2")[..., 0]
