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

from cxrnode.dicom.codecs import CodeArray, Codes, Layout, decode, layout, require_pixels
from cxrnode.dicom.orientation import lie_of
from cxrnode.dicom.select import MIN_SIDE
from cxrnode.dicom.tone import Padding, Ramp, Tone, padding_of, tone_of
from cxrnode.errors import Rejected
from cxrnode.types import FloatArray, Reason

__all__ = ["MAX_ERROR", "MEAN_ERROR", "REDUCED_MAX_ERROR", "GreyImage", "load_grey", "require_pixels"]

# of the fast path against the plain full-size one, on the tensor 224x224 in 0..1 (tests/property/test_pixels.py)
MEAN_ERROR = 0.002
MAX_ERROR = 0.06
REDUCED_MAX_ERROR = 0.1  # of JPEG 2000 at reduced resolution: at hard edges under a window a third of the range wide

# What the node asks of `load_grey`, and training with it (one preprocessing, design rule 8), in pixels.
PREVIEW_LONG_SIDE = 1024
REDUCED_LEAST = 512  # long side that reduced JPEG 2000 decoding must leave: a quarter of the time of 1024

_SATURATED = 0.98  # share of the pixels at the ends from which no radiograph is left
_CONSTANT = 0.01  # standard deviation (of 0..1) below which there is no picture
_RELATED = 0.5  # correlation of neighbouring pixels; radiographs have 0.9 and more
_ASPECT = 5.0  # long side over short side; the longest chest views have 1.6
_NARROW = 64.0  # codes between black and white below which limiting to whole codes would be seen
_STRETCH = 16  # a ramp shorter than 65536 / 16 codes is stretched, lest rounding be seen


@dataclass(frozen=True, slots=True, kw_only=True)
class GreyImage:
    """A radiograph ready for `engines.preprocess.prepare` and for the capture."""

    pixels: FloatArray  # [h, w] 0..1, upright where the header says how it lay (see `orientation`)
    rows: int  # of the source
    columns: int
    photometric_interpretation: str


def load_grey(ds: Dataset, *, long_side: int = 1024, least: int | None = None, fast: bool = True) -> GreyImage:
    """Decode, show and reduce. Smaller images keep their size; larger ones get a long side of `long_side` pixels.

    least: JPEG 2000 may be decoded at a reduced resolution whose long side has at least so many pixels, and the
    result is then no longer than that; 0.9 * long_side unless told. fast=False takes the plain way: pydicom's
    decoders, everything at full size, then one resize. Raises Rejected: NO_PIXELS, MULTI_FRAME, TRUNCATED,
    UNDECODABLE, IMPLAUSIBLE_PIXELS.
    """
    found = layout(ds)
    _check_shape(found.rows, found.columns)
    decoded = decode(ds, found, least=least or round(0.9 * long_side), fast=fast)
    padding = padding_of(ds, decoded)
    tone = tone_of(ds, decoded, padding)
    scale = min(long_side, max(decoded.codes.shape)) / max(found.rows, found.columns)
    size = max(1, round(found.rows * min(scale, 1))), max(1, round(found.columns * min(scale, 1)))
    pixels = _show(decoded, tone, padding, size, found) if fast else _show_plainly(decoded, tone, padding, size)
    _check_plausible(pixels)
    lie = lie_of(ds)
    if lie is not None and lie.is_frontal and not lie.is_upright:
        pixels = lie.upright(pixels)
    return GreyImage(
        pixels=pixels, rows=found.rows, columns=found.columns, photometric_interpretation=found.photometric
    )


def _show(decoded: Codes, tone: Tone, padding: Padding | None, size: tuple[int, int], found: Layout) -> FloatArray:
    if not isinstance(tone, Ramp) or abs(tone.white - tone.black) < _NARROW:
        shown = _blackened(tone(decoded.codes), decoded, padding)
        return np.asarray(_resize(shown, size, found, decoded.scale), np.float32)
    codes, ramp = _widened(_limited(decoded, tone, padding), tone)
    return ramp(_resize(codes, size, found, decoded.scale))


def _show_plainly(decoded: Codes, tone: Tone, padding: Padding | None, size: tuple[int, int]) -> FloatArray:
    shown = _blackened(tone(decoded.codes), decoded, padding)
    return np.asarray(cv2.resize(shown, size[::-1], interpolation=cv2.INTER_AREA), np.float32)


def _blackened(shown: FloatArray, decoded: Codes, padding: Padding | None) -> FloatArray:
    if padding is not None:
        shown[(decoded.codes >= padding.low) & (decoded.codes <= padding.high)] = 0.0
    return shown


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


def _widened(codes: CodeArray, ramp: Ramp) -> tuple[CodeArray, Ramp]:
    """Codes of a short ramp, stretched to 16 bits: the resize rounds to codes."""
    low, high = sorted((ramp.black, ramp.white))
    first = max(0, math.floor(low))
    times = 65535 // max(1, math.ceil(high) - first)
    if times < _STRETCH:
        return codes, ramp
    wide = (codes.astype(np.uint16) - np.uint16(first)) * np.uint16(times)
    return wide, Ramp(black=(ramp.black - first) * times, white=(ramp.white - first) * times)


def _resize(image: CodeArray, size: tuple[int, int], found: Layout, scale: int) -> CodeArray:
    """To (rows, columns). Halving, then one bilinear step of less than two, averages as well as OpenCV's area mode
    and costs a tenth of it."""
    if scale > 1:
        return _resample(image, size, found, scale)
    while image.shape[0] >= 2 * size[0] and image.shape[1] >= 2 * size[1]:
        halved = ((image.shape[1] + 1) // 2, (image.shape[0] + 1) // 2)
        image = cv2.resize(image, halved, interpolation=cv2.INTER_LINEAR)
    return image if image.shape == size else cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def _resample(image: CodeArray, size: tuple[int, int], found: Layout, scale: int) -> CodeArray:
    """A wavelet's low band is no block average: its samples lie on every `scale`th source pixel from the first."""
    step_y, step_x = found.rows / size[0], found.columns / size[1]
    onto_source = np.array([[step_x, 0, 0.5 * step_x - 0.5], [0, step_y, 0.5 * step_y - 0.5]])
    return cv2.warpAffine(
        image, onto_source / scale, size[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip


def _check_shape(rows: int, columns: int) -> None:
    short, long = sorted((rows, columns))
    if short < MIN_SIDE or long > _ASPECT * short:
        raise Rejected(Reason.IMPLAUSIBLE_PIXELS, f"{columns} x {rows} pixels")


def _check_plausible(pixels: FloatArray) -> None:
    """Collimation may black out two thirds of a radiograph; beyond that, flat, or noise: no lung to look at."""
    lines = pixels[::8]
    pixels = pixels[::2, ::2]
    saturated = float(np.mean((pixels <= 0.004) | (pixels >= 0.996)))
    if float(pixels.std()) < _CONSTANT:
        raise Rejected(Reason.IMPLAUSIBLE_PIXELS, "the image is constant, or nearly so")
    if saturated >= _SATURATED:
        raise Rejected(Reason.IMPLAUSIBLE_PIXELS, f"{100 * saturated:.0f} % of the pixels are black or white")
    left, right = lines[:, :-1].ravel(), lines[:, 1:].ravel()
    if float(np.mean((left - left.mean()) * (right - right.mean()))) < _RELATED * float(left.std() * right.std()):
        raise Rejected(Reason.IMPLAUSIBLE_PIXELS, "neighbouring pixels are unrelated: noise")
