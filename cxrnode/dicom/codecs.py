"""Pixel data -> sample codes: the stored bits of each pixel as an unsigned number, whatever the transfer syntax.

Signed samples are held in offset binary (code = value + 2**(bits - 1)), so that one unsigned type serves all, and so
that averaging and table look-up need no special case.

Two ways lead there: a fast decoder for each common encoding of grey images, and pydicom's pixel machinery with its
plugins for everything else and wherever the fast one fails. Both give the same codes; only JPEG 2000 may be decoded at
a reduced resolution, which its wavelet offers nearly for nothing. JPEG (DCT and lossless) has one way, libjpeg-turbo,
for pydicom's needs a GPL plugin.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import cv2
import imagecodecs
import jpeg_ls  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset
from pydicom import uid as uids
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut

from cxrnode.dicom import budget
from cxrnode.dicom.codestream import Codestream, describe
from cxrnode.dicom.fragments import DEFLATED_FRAME, ENCAPSULATED_UNCOMPRESSED, fragments, is_encapsulated
from cxrnode.dicom.runlength import decode_planes
from cxrnode.dicom.verbatim import DAMAGE
from cxrnode.errors import Rejected
from cxrnode.types import Reason

CodeArray = npt.NDArray[Any]  # uint8 or uint16

GREY = ("MONOCHROME1", "MONOCHROME2")
_TILES = 1 << 13  # of JPEG 2000: a decoder takes some kilobytes for each before it looks at any
_NATIVE = (uids.ImplicitVRLittleEndian, uids.ExplicitVRLittleEndian, uids.DeflatedExplicitVRLittleEndian)
_JPEG = (uids.JPEGBaseline8Bit, uids.JPEGExtended12Bit, uids.JPEGLossless, uids.JPEGLosslessSV1)
_JPEG_LS = (uids.JPEGLSLossless, uids.JPEGLSNearLossless)
_JPEG_2000 = (uids.JPEG2000, uids.JPEG2000Lossless, uids.HTJ2K, uids.HTJ2KLossless, uids.HTJ2KLosslessRPCL)
_CODEC_ERRORS = (*DAMAGE, RuntimeError, imagecodecs.DelayedImportError, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The Image Pixel module (PS3.3 section C.7.6.3), checked."""

    rows: int
    columns: int
    samples: int
    allocated: int  # 8 or 16
    stored: int  # 2..allocated
    high_bit: int
    signed: bool
    photometric: str

    @property
    def grey(self) -> bool:
        return self.samples == 1 and self.photometric in GREY

    @property
    def length(self) -> int:
        """Of a native frame, bytes."""
        length = self.rows * self.columns * self.samples * self.allocated // 8
        return length * 2 // 3 if self.photometric == "YBR_FULL_422" else length

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("u1") if self.allocated == 8 else np.dtype("<u2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """codes: [h, w], of which `bits` are used; every `scale`th of the source's rows and columns, from the first."""

    codes: CodeArray
    bits: int
    offset: int  # stored value = code - offset
    scale: int = 1
    colour: bool = False  # luminance of a colour image: modality and VOI LUT do not apply


def layout(ds: Dataset) -> Layout:
    """Raises Rejected: NO_PIXELS, MULTI_FRAME, IMPLAUSIBLE_PIXELS (size), UNDECODABLE (a contradictory module)."""
    require_pixels(ds)
    allocated = _integer(ds, "BitsAllocated")
    stored = _integer(ds, "BitsStored", allocated)
    found = Layout(
        rows=_integer(ds, "Rows"), columns=_integer(ds, "Columns"), samples=_integer(ds, "SamplesPerPixel", 1),
        allocated=allocated, stored=stored, high_bit=_integer(ds, "HighBit", stored - 1),
        signed=_integer(ds, "PixelRepresentation", 0) == 1,
        photometric=str(ds.get("PhotometricInterpretation") or "MONOCHROME2").strip().upper(),
    )  # fmt: skip
    frames = str(ds.get("NumberOfFrames") or "")
    if frames.isdigit() and int(frames) > 1:
        raise Rejected(Reason.MULTI_FRAME, f"{frames} frames")
    if found.rows * found.columns > budget.PIXELS:
        raise Rejected(Reason.TOO_LARGE, f"{found.columns} x {found.rows} pixels")
    if not found.rows * found.columns:
        raise Rejected(Reason.IMPLAUSIBLE_PIXELS, f"{found.columns} x {found.rows} pixels")
    if allocated not in (8, 16) or not 1 < stored <= allocated or not stored - 1 <= found.high_bit < allocated:
        raise Rejected(Reason.UNDECODABLE, f"{stored} bits of {allocated}, high bit {found.high_bit}")
    return found


def require_pixels(ds: Dataset) -> None:
    """Raises Rejected(NO_PIXELS) for a data set without Pixel Data, or with empty ones."""
    if "PixelData" not in ds or not ds.PixelData:
        raise Rejected(Reason.NO_PIXELS)


def decode(ds: Dataset, found: Layout, *, least: int, fast: bool = True) -> Codes:
    """The codes of a single-frame image, whose long side is not reduced below `least` pixels.

    fast=False takes pydicom's way: the reference that the fast one is tested against. Raises Rejected(TRUNCATED),
    Rejected(UNDECODABLE).
    """
    if not is_encapsulated(ds):
        return _decode_native(ds, found, fast=fast)
    frame = b"".join(fragments(ds.PixelData))
    if _syntax(ds) in (ENCAPSULATED_UNCOMPRESSED, DEFLATED_FRAME):
        return _decode_plain_frame(ds, frame, found)
    stream = describe(frame)
    if stream is not None:
        _check_stream(stream, found)
    failures = []
    for way in _ways(stream, _syntax(ds), fast=fast):
        try:
            codes = way(ds, frame, stream, found, least)
            if codes is not None:
                return _of_either_sign(codes, stream, found)
        except _CODEC_ERRORS as error:
            failures.append(_said(error))
    syntax = stream.syntax if stream is not None else _syntax(ds)
    raise Rejected(Reason.UNDECODABLE, f"{syntax.name}: {'; '.join(failures)}")


_Way = Callable[[Dataset, bytes, Any, Layout, int], Codes | None]


def _ways(stream: Codestream | None, syntax: uids.UID, *, fast: bool) -> tuple[_Way, ...]:
    if stream is not None and stream.syntax in _JPEG:
        return (_jpeg,)
    if fast and stream is None and syntax == uids.RLELossless:
        return (_decode_fast,)  # pydicom's own would unpack whatever there is, byte by byte
    return (_decode_fast, _decode_by_pydicom) if fast else (_decode_by_pydicom,)


def _syntax(ds: Dataset) -> uids.UID:
    """The declared transfer syntax; explicit little endian for a data set made in memory."""
    meta = getattr(ds, "file_meta", None)
    return uids.UID(
        str(meta.TransferSyntaxUID) if meta and "TransferSyntaxUID" in meta else uids.ExplicitVRLittleEndian
    )


def _check_stream(stream: Codestream, found: Layout) -> None:
    if (stream.rows, stream.columns) != (found.rows, found.columns):
        raise Rejected(Reason.UNDECODABLE, f"the codestream holds {stream.columns} x {stream.rows} pixels")
    if stream.components != found.samples:
        raise Rejected(Reason.UNDECODABLE, f"the codestream holds {stream.components} components")
    if stream.tiles > _TILES:
        raise Rejected(Reason.UNDECODABLE, f"the codestream holds {stream.tiles} tiles")
    if not stream.complete:  # most decoders would make up the rest of the picture
        raise Rejected(Reason.TRUNCATED, "the codestream has no end marker, or is too short for its pixels")


def _decode_native(ds: Dataset, found: Layout, *, fast: bool) -> Codes:
    _check_length(ds.PixelData, found)
    if fast and found.grey and _syntax(ds) in _NATIVE:
        return _codes(_words(ds.PixelData, found), found, None)
    try:
        return _decode_by_pydicom(ds, b"", None, found, 0)
    except _CODEC_ERRORS as error:
        raise Rejected(Reason.UNDECODABLE, f"native pixel data: {_said(error)}") from None


def _check_length(data: bytes, found: Layout) -> None:
    if len(data) < found.length:
        raise Rejected(Reason.TRUNCATED, f"{len(data)} of {found.length} bytes of pixel data")


def _words(data: bytes, found: Layout) -> npt.NDArray[Any]:
    words = np.frombuffer(data, found.dtype, count=found.rows * found.columns)
    return words.reshape(found.rows, found.columns)


def _decode_plain_frame(ds: Dataset, frame: bytes, found: Layout) -> Codes:
    """One frame as it is, or deflated; never more is inflated than the header declares."""
    syntax = _syntax(ds)
    try:
        data = frame if syntax == ENCAPSULATED_UNCOMPRESSED else zlib.decompressobj(-15).decompress(frame, found.length)
        _check_length(data, found)
        if found.samples == 1:
            return _as_codes(ds, _words(data, found), found, None)
        return _decode_by_pydicom(_recoded(ds, data), b"", None, found, 0)
    except _CODEC_ERRORS as error:
        raise Rejected(Reason.UNDECODABLE, f"{syntax}: {_said(error)}") from None


def _recoded(ds: Dataset, pixel_data: bytes) -> Dataset:
    """The Image Pixel module for pydicom's decoders: each refuses a transfer syntax other than its own, not none."""
    again = Dataset()
    again.update(ds.group_dataset(0x0028))
    again.add_new("PixelData", "OW", pixel_data)
    return again


def _jpeg(ds: Dataset, frame: bytes, stream: Codestream, found: Layout, _least: int) -> Codes:
    if stream.components == 1:
        return _as_codes(ds, _two_dimensional(imagecodecs.jpeg8_decode(frame)), found, stream)
    if stream.components != 3:
        raise ValueError(f"{stream.components} components")
    transformed = found.photometric != "RGB" if stream.transformed is None else stream.transformed
    space = "YCBCR" if transformed else "RGB"
    array = imagecodecs.jpeg8_decode(frame, colorspace=space, outcolorspace=space)
    if transformed:
        return Codes(codes=np.ascontiguousarray(array[..., 0]), bits=stream.precision, offset=0, colour=True)
    return _luminance(array, stream.precision)


def _decode_fast(ds: Dataset, frame: bytes, stream: Codestream | None, found: Layout, least: int) -> Codes | None:
    """None where no fast decoder is known to give the same as pydicom."""
    if stream is None:
        return _rle(ds, frame, found) if _syntax(ds) == uids.RLELossless else None
    if stream.components != 1 or not found.grey:
        return None
    if stream.syntax in _JPEG_2000:
        return _jpeg2000(frame, stream, found, least)
    return _codes(_jpegls(frame, stream), found, stream)


def _rle(ds: Dataset, frame: bytes, found: Layout) -> Codes:
    planes = decode_planes(
        frame, rows=found.rows, columns=found.columns, samples=found.samples, allocated=found.allocated
    )
    if found.samples == 1:
        return _as_codes(ds, planes[0], found, None)
    if found.photometric == "YBR_FULL":
        return Codes(codes=planes[0], bits=found.allocated, offset=0, colour=True)
    return _luminance(np.dstack(planes), found.stored)


def _jpegls(frame: bytes, stream: Codestream) -> npt.NDArray[Any]:
    raw, info = jpeg_ls.decode_pixel_data(frame)
    dtype = "u1" if info["bits_per_sample"] <= 8 else "<u2"
    return np.frombuffer(raw, dtype).reshape(stream.rows, stream.columns)


def _two_dimensional(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.ndim != 2:
        raise ValueError(f"{array.ndim} dimensions")
    return array


def _jpeg2000(frame: bytes, stream: Codestream, found: Layout, least: int) -> Codes | None:
    """Pillow scales the samples to 8 or 16 bits and holds signed ones in offset binary."""
    wider = stream.precision > found.stored and not found.signed and found.high_bit == found.stored - 1
    if not (stream.precision == found.stored or wider) or stream.signed != found.signed:
        return None
    halvings = _halvings(max(found.rows, found.columns), least, stream.levels)
    with Image.open(BytesIO(frame), formats=["JPEG2000"]) as image:
        if image.mode not in ("L", "I;16"):
            return None
        # Pillow's attribute of JPEG 2000 images shadows the method of all others
        setattr(image, "reduce", halvings)  # noqa: B010
        # it rounds the halved size where the standard takes the ceiling (ITU-T T.800 section B.5)
        image._size = _ceiled(found.columns, halvings), _ceiled(found.rows, halvings)
        image.load()
        array = np.asarray(image)
    full = 8 if image.mode == "L" else 16
    codes = np.right_shift(array, full - stream.precision) if full > stream.precision else array
    if wider and int(codes.max()) >> found.stored:
        return None  # what stands above the stored bits is no part of the picture, and may be averaged into it
    return Codes(codes=codes, bits=found.stored, offset=_offset(found), scale=1 << halvings)


def _of_either_sign(decoded: Codes, stream: Codestream | None, found: Layout) -> Codes:
    """A JPEG 2000 codestream says of itself whether its samples are signed. Where the header contradicts it, either may
    be wrong; under the wrong one, values jump by half of the range, and the picture is folded."""
    if stream is None or stream.syntax not in _JPEG_2000 or stream.signed == found.signed or decoded.colour:
        return decoded
    half = 1 << (decoded.bits - 1)
    other = np.bitwise_xor(decoded.codes, decoded.codes.dtype.type(half))
    if _roughness(other) >= _roughness(decoded.codes):
        return decoded
    return replace(decoded, codes=other, offset=half - decoded.offset)


def _roughness(codes: CodeArray) -> float:
    return float(np.mean(np.abs(np.diff(codes[::8].astype(np.int32)))))


def _ceiled(side: int, halvings: int) -> int:
    return -(-side >> halvings) << halvings


def _halvings(side: int, least: int, most: int) -> int:
    """How often `side` can be halved without falling below `least`, at most `most` times."""
    times = 0
    while times < most and -(-side >> (times + 1)) >= least:
        times += 1
    return times


def _decode_by_pydicom(
    ds: Dataset, _frame: bytes, stream: Codestream | None, found: Layout, _least: int
) -> Codes:  # fmt: skip
    declared = _syntax(ds)
    syntax = declared if stream is None else _agreed(stream, declared)
    if syntax != declared:
        ds = _recoded(ds, ds.PixelData)
    # see `runlength` for RLE; for JPEG-LS, pydicom would also take a plugin that this project does not install
    plugin = "pydicom" if syntax == uids.RLELossless else "pyjpegls" if syntax in _JPEG_LS else ""
    array, _ = get_decoder(syntax).as_array(ds, index=0, decoding_plugin=plugin, **_corrections(found, stream))
    if found.samples == 1:
        return _as_codes(ds, array, found, stream)
    return _luminance(array, found.stored)


def _corrections(found: Layout, stream: Codestream | None) -> dict[str, Any]:
    """pydicom cuts off what lies above Bits Stored, wherever the high bit is, and believes a Planar Configuration
    that JPEG codestreams do not have."""
    if stream is None:
        return {"bits_stored": found.allocated}
    return {"planar_configuration": 0} | ({"bits_stored": stream.precision} if stream.lossy else {})


def _as_codes(ds: Dataset, array: npt.NDArray[Any], found: Layout, stream: Codestream | None) -> Codes:
    if found.photometric == "PALETTE COLOR":
        shown = apply_color_lut(array, ds)
        return _luminance(shown, 8 * shown.dtype.itemsize)
    if not found.grey:
        raise ValueError(f"one sample a pixel as {found.photometric}")
    return _codes(_two_dimensional(array), found, stream)


def _agreed(stream: Codestream, declared: uids.UID) -> uids.UID:
    """The codestream knows better than the header which family it is of; within it the header may be right."""
    same = any(stream.syntax in family and declared in family for family in (_JPEG_LS, _JPEG_2000))
    return declared if same else stream.syntax


def _native_order(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _luminance(array: npt.NDArray[Any], bits: int) -> Codes:
    """ITU-R BT.601 luminance of RGB [h, w, 3], as OpenCV and Pillow weigh it."""
    array = _native_order(array)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{array.dtype} {array.shape} is no RGB image")
    grey = cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_RGB2GRAY)
    return Codes(codes=grey, bits=bits, offset=0, colour=True)


def _offset(found: Layout) -> int:
    return 1 << (found.stored - 1) if found.signed else 0


def _codes(words: npt.NDArray[Any], found: Layout, stream: Codestream | None) -> Codes:
    """Cut the stored bits out of the allocated (PS3.5 section 8.1.1) or coded ones: above may lie old overlays."""
    precision = found.allocated if stream is None else stream.precision
    words = _native_order(words)
    if stream is not None and stream.lossy and found.signed == (words.dtype.kind == "i"):  # it may overshoot
        words = np.clip(words, -_offset(found), (1 << found.stored) - 1 - _offset(found))
    unsigned = words.view(f"u{words.dtype.itemsize}")
    shift = found.high_bit - found.stored + 1 if precision > found.stored else 0
    mask = (1 << found.stored) - 1
    if shift:
        unsigned = np.right_shift(unsigned, shift)
    if found.stored < 8 * unsigned.dtype.itemsize and (found.signed or int(unsigned.max()) > mask):
        unsigned = np.bitwise_and(unsigned, unsigned.dtype.type(mask))
    if found.signed:
        unsigned = np.bitwise_xor(unsigned, unsigned.dtype.type(_offset(found)))
    return Codes(codes=unsigned, bits=found.stored, offset=_offset(found))


def _said(error: BaseException) -> str:
    """What a codec said, on one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _integer(ds: Dataset, keyword: str, default: int | None = None) -> int:
    value = ds.get(keyword)
    if isinstance(value, int | str) and str(value).strip().isdigit():
        return int(value)
    if default is None or value not in (None, ""):
        raise Rejected(Reason.UNDECODABLE, f"{keyword} is missing or no number")
    return default
