"""From codes to what a viewer shows: modality LUT, VOI LUT and presentation as one function of the code.

PS3.3 sections C.11.1 (modality LUT), C.11.2 (VOI LUT), C.7.6.3.1.2 (photometric interpretation), C.8.11.3 (DX), and
PS3.4 section N.2 (their order). The function is a ramp (rescale and linear window: nearly all radiographs) or a table.

Decisions. A VOI LUT is preferred to a window; of several, the first counts that is usable and shows something of the
picture. Without such a one the range of the pixels is shown. MONOCHROME1 is inverted; so is
Presentation LUT Shape INVERSE, which says the same thing and never inverts a second time. Padding is black.
DX "for processing" has no VOI, and its photometric interpretation is no statement about display: there the sign of
Pixel Intensity Relationship says what is dense, and a linear relationship is made logarithmic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom import uid as uids

from cxrnode.dicom.codecs import CodeArray, Codes
from cxrnode.dicom.verbatim import DAMAGE
from cxrnode.types import FloatArray

RANGE = (0.0005, 0.9995)  # quantiles shown without a VOI: single dead or hot pixels do not set the contrast
SHOWN_MIN = 0.02  # share of the pixels that a usable window shows between black and white ...
CONTRAST_MIN = 0.03  # ... and the standard deviation (of 0..1) that it gives; radiographs have 0.15 to 0.3
MIDDLE_MAX = 0.05  # share of the middle half of the picture (a quarter of its area) that padding may cover
_NEAR = 1e-3  # codes from black to white: a window that no code but one falls into
_FAR = 1e9  # codes; the ends of a window further away come of a nonsensical header
_SAMPLE = 256  # statistics look at a grid of at least this many rows and columns
_Values = npt.NDArray[np.float64]
_Modality = tuple[float, float] | _Values  # (slope, intercept), or the output for each code


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """Linear from `black` to `white` (codes, not whole numbers); black > white is a falling ramp."""

    black: float
    white: float

    def __call__(self, codes: npt.NDArray[Any]) -> FloatArray:
        scale = 1.0 / (self.white - self.black)
        shown = codes.astype(np.float32)
        shown *= np.float32(scale)
        shown -= np.float32(self.black * scale)
        return np.clip(shown, 0.0, 1.0, out=shown)

    @property
    def inverse(self) -> Ramp:
        return Ramp(black=self.white, white=self.black)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One output (0..1) a code."""

    outputs: FloatArray  # [2 ** bits]

    def __call__(self, codes: npt.NDArray[Any]) -> FloatArray:
        return np.take(self.outputs, codes)

    @property
    def inverse(self) -> Table:
        return Table(outputs=1.0 - self.outputs)


Tone = Ramp | Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """The codes low..high stand for no picture (PS3.3 section C.7.5.1.1.2)."""

    low: int
    high: int


def tone_of(ds: Dataset, decoded: Codes, padding: Padding | None) -> Tone:
    """The function from codes to 0..1, dense bone white. It never fails: what is unusable is left out."""
    if decoded.colour:
        return Ramp(black=0.0, white=float((1 << decoded.bits) - 1))
    sample = _sample(decoded.codes, padding)
    modality = _modality(ds, decoded)
    usable = (tone for tone in _vois(ds, decoded, modality) if _shows(tone, sample))
    tone = next(usable, None) or _whole_range(modality, sample)
    return tone.inverse if is_inverted(ds) else tone


def is_inverted(ds: Dataset) -> bool:
    """Whether small values are dense bone."""
    if sign := _raw_sign(ds):
        return sign == 1
    shape = str(ds.get("PresentationLUTShape") or "").strip().upper()
    return str(ds.get("PhotometricInterpretation") or "").strip().upper() == "MONOCHROME1" or shape == "INVERSE"


def _raw_sign(ds: Dataset) -> int:
    """Of detector data, 1: more X-rays, higher values (PS3.3 C.8.11.3.1.2); -1: the reverse; 0: not stated, or no such
    data."""
    if str(ds.get("SOPClassUID")) != uids.DigitalXRayImageStorageForProcessing:
        return 0
    sign = _whole(ds, "PixelIntensityRelationshipSign")
    return sign if sign in (1, -1) else 0


def padding_of(ds: Dataset, decoded: Codes) -> Padding | None:
    """None where there is none, where the stored bits can hold no value of it, and where it is no padding: it would
    cover MIDDLE_MAX of the middle half of the picture, and padding lies around one."""
    first = _whole(ds, "PixelPaddingValue")
    if first is None or decoded.colour:
        return None
    last = _whole(ds, "PixelPaddingRangeLimit")
    low, high = sorted(_as_stored(value, decoded) for value in (first, first if last is None else last))
    low, high = max(low, 0), min(high, (1 << decoded.bits) - 1)
    rows, columns = (side // 4 for side in decoded.codes.shape)
    middle = decoded.codes[rows:-rows:4, columns:-columns:4]
    if low > high or float(np.mean((middle >= low) & (middle <= high))) > MIDDLE_MAX:
        return None
    return Padding(low=low, high=high)


def _as_stored(value: int, decoded: Codes) -> int:
    """The code of a value, perhaps none that the bits can hold. Of signed pixels it may be written as unsigned."""
    return (value - 65536 if decoded.offset and 32768 <= value < 65536 else value) + decoded.offset


def _sample(codes: CodeArray, padding: Padding | None) -> CodeArray:
    step = max(1, min(codes.shape) // _SAMPLE)
    sample = codes[::step, ::step].ravel()
    if padding is not None:
        picture = sample[(sample < padding.low) | (sample > padding.high)]
        sample = picture if picture.size else sample
    return sample


def _shows(tone: Tone, sample: CodeArray) -> bool:
    """False for a window beside the picture, which blanks it, and for one so wide that it flattens it."""
    shown = tone(sample)
    inside = float(np.mean((shown > 0.0) & (shown < 1.0)))
    return inside >= SHOWN_MIN and float(shown.std()) >= CONTRAST_MIN


def _whole_range(modality: _Modality, sample: CodeArray) -> Tone:
    """The pixels' own range, through the modality LUT where that is a table or falls."""
    if isinstance(modality, tuple):
        low, high = np.quantile(sample, RANGE, method="nearest").astype(float)
        high = max(high, low + 1.0)
        return Ramp(black=low, white=high) if modality[0] > 0 else Ramp(black=high, white=low)
    low, high = np.quantile(modality[sample], RANGE, method="nearest")
    return Table(outputs=np.clip((modality - low) / max(high - low, 1e-9), 0, 1).astype(np.float32))


def _vois(ds: Dataset, decoded: Codes, modality: _Modality) -> Iterator[Tone]:
    """What the header offers, in the order of preference: VOI LUTs, then windows, each in the header's order."""
    values = _line(modality, decoded) if isinstance(modality, tuple) else modality
    for lut in _luts(ds, "VOILUTSequence", negative=float(values.min()) < 0):
        top = float(lut.entries.max())
        full = float((1 << lut.bits) - 1)
        scale = top if top > full or top < full / 2 else full  # a depth that its own entries contradict
        yield Table(outputs=(lut(np.rint(values)) / max(scale, 1.0)).astype(np.float32))
    function = str(ds.get("VOILUTFunction") or "LINEAR").strip().upper()
    for center, width in zip(_decimals(ds, "WindowCenter"), _decimals(ds, "WindowWidth"), strict=False):
        if center is None or width is None or width <= 0:
            continue
        if function == "SIGMOID":
            exponent = np.clip(-4.0 * (values - center) / width, -700, 700)
            yield Table(outputs=(1.0 / (1.0 + np.exp(exponent))).astype(np.float32))
        elif function == "LINEAR_EXACT":
            yield from _linear(modality, center - width / 2, center + width / 2, decoded)
        elif width > 1:
            yield from _linear(modality, center - width / 2, center - 1 + width / 2, decoded)


def _linear(modality: _Modality, low: float, high: float, decoded: Codes) -> Iterator[Tone]:
    if not isinstance(modality, tuple):
        yield Table(outputs=np.clip((modality - low) / max(high - low, 1e-9), 0, 1).astype(np.float32))
        return
    black, white = ((end - modality[1]) / modality[0] + decoded.offset for end in (low, high))
    if max(abs(black), abs(white)) < _FAR and abs(white - black) > _NEAR:
        yield Ramp(black=black, white=white)


def _modality(ds: Dataset, decoded: Codes) -> _Modality:
    for lut in _luts(ds, "ModalityLUTSequence", negative=decoded.offset > 0):
        return lut(_line((1.0, 0.0), decoded))
    slope, intercept = _decimal(ds, "RescaleSlope"), _decimal(ds, "RescaleIntercept")
    line = (1.0, 0.0) if slope is None or intercept is None or slope == 0 else (slope, intercept)
    if _raw_sign(ds) == 1 and str(ds.get("PixelIntensityRelationship") or "").strip().upper() == "LIN":
        return np.log1p(np.maximum(_line(line, decoded), 0.0))
    return line


def _line(modality: tuple[float, float], decoded: Codes) -> _Values:
    values = np.arange(1 << decoded.bits, dtype=np.float64) - decoded.offset
    return values * modality[0] + modality[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lut:
    """LUT Descriptor and LUT Data (PS3.3 section C.11.1.1.1)."""

    entries: _Values
    first: int
    bits: int

    def __call__(self, values: _Values) -> _Values:
        index = np.clip(values - self.first, 0, len(self.entries) - 1).astype(np.intp)
        return self.entries[index]


def _luts(ds: Dataset, keyword: str, *, negative: bool) -> Iterator[_Lut]:
    """The items' tables but those that contradict their descriptor. negative: what is looked up has negative values."""
    try:
        items = list(ds[keyword].value)
    except DAMAGE:
        return
    for item in items:
        try:
            lut = _lut(ds, item, negative=negative)
        except DAMAGE:
            continue
        if lut is not None:
            yield lut


def _lut(ds: Dataset, item: Dataset, *, negative: bool) -> _Lut | None:
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count %= 65536  # read as signed where the pixels are
    data = item.LUTData
    if isinstance(data, bytes):
        one_byte = bits <= 8 and len(data) in (count, count + 1)
        little = ds.original_encoding[1] is not False
        data = np.frombuffer(data, "u1" if one_byte else "<u2" if little else ">u2")
    entries = np.asarray(data, np.float64).ravel()[: count or 65536]
    if first > 32767 and negative:
        first -= 65536  # written as unsigned
    if entries.size < 2 or entries.size < count or not 1 <= bits <= 16 or entries.max() <= entries.min():
        return None
    return _Lut(entries=entries, first=first, bits=bits)


def _decimals(ds: Dataset, keyword: str) -> list[float | None]:
    """Each value as a finite number, or None."""
    try:
        value = ds[keyword].value
        return [_finite(part) for part in ([value] if isinstance(value, str | int | float) else list(value))]
    except DAMAGE:
        return []


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except DAMAGE:
        return None
    return number if np.isfinite(number) else None


def _decimal(ds: Dataset, keyword: str) -> float | None:
    """The first value as a finite number."""
    return next(iter(_decimals(ds, keyword)), None)


def _whole(ds: Dataset, keyword: str) -> int | None:
    number = _decimal(ds, keyword)
    return None if number is None else int(number)
