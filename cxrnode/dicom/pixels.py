"""A decoded radiograph as a viewer would show it: float32 0..1, dense bone white, at most `long_side` long.

Where the tone is a ramp (rescale and linear window), the image is resized before it is applied: the codes are limited
to the ramp's ends first, so that limiting and averaging come in the order of the full-size way, and the two give the
same up to the rounding of codes. A table (LUT sequences, sigmoid) is applied at full size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from pydicom import Dataset

from cxrnode.dicom.codecs import CodeArray, Codes, decode, layout, require_pixels
from cxrnode.dicom.read import tolerant
from cxrnode.dicom.select import MIN_SIDE
from cxrnode.dicom.tone import Padding, Ramp, Tone, padding_of, tone_of
from cxrnode.errors import Rejected
from cxrnode.types import FloatArray, Reason

__all__ = ["MAX_ERROR", "MEAN_ERROR", "GreyImage", "load_grey", "require_pixels"]

# of the fast path against the plain full-size one, on the tensor 224x224 in 0..1 (tests/property/test_pixels.py)
MEAN_ERROR = 0.004
MAX_ERROR = 0.06

_SATURATED = 0.98  # share of the pixels at the ends from which no radiograph is left
_CONSTANT = 0.01  # standard deviation (of 0..1) below which there is no picture
_ASPECT = 5.0  # long side over short side; the longest chest views have 1.6
_NARROW = 64.0  # codes between black and white below which rounding to codes would be seen


@dataclass(frozen=True, slots=True, kw_only=True)
class GreyImage:
    """A radiograph ready for `engines.preprocess.prepare` and for the capture."""

    pixels: FloatArray  # [h, w] 0..1, the source's aspect ratio
    rows: int  # of the source
    columns: int
    photometric_interpretation: str


def load_grey(ds: Dataset, *, long_side: int = 1024, fast: bool = True) -> GreyImage:
    """Decode, show and reduce. Smaller images keep their size; larger ones get a long side of `long_side` pixels.

    fast=False takes the plain way: pydicom's decoders, everything at full size, then one resize. Raises Rejected:
    NO_PIXELS, MULTI_FRAME, TRUNCATED, UNDECODABLE, IMPLAUSIBLE_PIXELS.
    """
    with tolerant():
        found = layout(ds)
        _check_shape(found.rows, found.columns)
        decoded = decode(ds, found, long_side=long_side, fast=fast)
        padding = padding_of(ds, decoded)
        tone = tone_of(ds, decoded, padding)
    size = _target(found.rows, found.columns, long_side)
    pixels = _show(decoded, tone, padding, size) if fast else _show_plainly(decoded, tone, padding, size)
    _check_plausible(pixels)
    return GreyImage(
        pixels=pixels, rows=found.rows, columns=found.columns, photometric_interpretation=found.photometric
    )


def _target(rows: int, columns: int, long_side: int) -> tuple[int, int]:
    scale = min(1.0, long_side / max(rows, columns))
    return max(1, round(rows * scale)), max(1, round(columns * scale))


def _show(decoded: Codes, tone: Tone, padding: Padding | None, size: tuple[int, int]) -> FloatArray:
    narrow = isinstance(tone, Ramp) and abs(tone.white - tone.black) < _NARROW
    if not isinstance(tone, Ramp) or narrow:
        return _show_plainly(decoded, tone, padding, size)
    return tone(_resize(_limited(decoded, tone, padding), size))


def _limited(decoded: Codes, ramp: Ramp, padding: Padding | None) -> CodeArray:
    """The codes, limited to the ramp's ends, with padding at its black end."""
    codes, top = decoded.codes, (1 << decoded.bits) - 1
    low, high = sorted((ramp.black, ramp.white))
    lowest, highest = max(0, math.floor(low)), min(top, math.ceil(high))
    if padding is not None:
        black = lowest if ramp.black < ramp.white else highest
        if not _is_black(padding, ramp):
            codes = np.where((codes < padding.low) | (codes > padding.high), codes, codes.dtype.type(black))
    if lowest > 0 or highest < top:
        codes = np.clip(codes, codes.dtype.type(min(lowest, top)), codes.dtype.type(max(highest, 0)))
    return codes


def _is_black(padding: Padding, ramp: Ramp) -> bool:
    return padding.high <= ramp.black if ramp.black < ramp.white else padding.low >= ramp.black


def _show_plainly(decoded: Codes, tone: Tone, padding: Padding | None, size: tuple[int, int]) -> FloatArray:
    shown = tone(decoded.codes)
    if padding is not None:
        shown[(decoded.codes >= padding.low) & (decoded.codes <= padding.high)] = 0.0
    return np.asarray(_resize(shown, size), np.float32)


def _resize(image: CodeArray, size: tuple[int, int]) -> CodeArray:
    """Area averaging to (rows, columns); by a whole factor first, which OpenCV does ten times faster."""
    rows, columns = image.shape
    factor = min(rows // size[0], columns // size[1])
    if factor > 1 and rows % factor == 0 and columns % factor == 0:
        image = cv2.resize(image, (columns // factor, rows // factor), interpolation=cv2.INTER_AREA)
    if image.shape == size:
        return image
    real = image.astype(np.float32, copy=False)  # means of codes would be rounded to codes a second time
    return cv2.resize(real, size[::-1], interpolation=cv2.INTER_AREA)


def _check_shape(rows: int, columns: int) -> None:
    short, long = sorted((rows, columns))
    if short < MIN_SIDE or long > _ASPECT * short:
        raise Rejected(Reason.IMPLAUSIBLE_PIXELS, f"{columns} x {rows} pixels")


def _check_plausible(pixels: FloatArray) -> None:
    """Collimation may black out two thirds of a radiograph; what is beyond, or flat, holds no lung to look at."""
    saturated = float(np.mean((pixels <= 0.004) | (pixels >= 0.996)))
    if float(pixels.std()) < _CONSTANT:
        raise Rejected(Reason.IMPLAUSIBLE_PIXELS, "the image is constant, or nearly so")
    if saturated >= _SATURATED:
        raise Rejected(Reason.IMPLAUSIBLE_PIXELS, f"{100 * saturated:.0f} % of the pixels are black or white")
