"""How a picture is stored: the pixel modules, and pixel data in each transfer syntax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom import uid as uids
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import get_encoder

SYNTAXES: dict[str, uids.UID] = {
    "implicit": uids.ImplicitVRLittleEndian,
    "explicit": uids.ExplicitVRLittleEndian,
    "deflated": uids.DeflatedExplicitVRLittleEndian,
    "big_endian": uids.ExplicitVRBigEndian,
    "rle": uids.RLELossless,
    "jpeg_baseline": uids.JPEGBaseline8Bit,
    "jpeg_extended": uids.JPEGExtended12Bit,
    "jpeg_lossless": uids.JPEGLosslessSV1,
    "jpeg_lossless_p14": uids.JPEGLossless,
    "jpegls": uids.JPEGLSLossless,
    "jpegls_near": uids.JPEGLSNearLossless,
    "j2k": uids.JPEG2000Lossless,
    "j2k_lossy": uids.JPEG2000,
    "htj2k": uids.HTJ2KLossless,
    "htj2k_rpcl": uids.HTJ2KLosslessRPCL,
    "htj2k_lossy": uids.HTJ2K,
}
LOSSY = frozenset({"jpeg_baseline", "jpeg_extended", "jpegls_near", "j2k_lossy", "htj2k_lossy"})


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How the picture is stored.

    voi: none, window, windows, exact, sigmoid, lut; modality: none, rescale, lut.
    """

    bits_stored: int = 12
    bits_allocated: int | None = None  # 8 up to 8 bits stored, else 16
    high_bit: int | None = None  # bits_stored - 1 unless told; higher for old scanners
    overlay_bits: bool = False  # noise in the bits above the high bit, as old overlays in pixel data leave
    signed: bool = False
    photometric: str = "MONOCHROME2"  # MONOCHROME1, RGB, YBR_FULL, PALETTE COLOR too
    planar: int = 0
    voi: str = "window"
    modality: str = "none"
    padding: int | None = None  # stored value of a 10 % frame around the picture
    shape_inverse: bool = False  # PresentationLUTShape INVERSE
    syntax: str = "explicit"

    @property
    def allocated(self) -> int:
        return self.bits_allocated or (8 if self.bits_stored <= 8 else 16)

    @property
    def colour(self) -> bool:
        return self.photometric.startswith(("RGB", "YBR"))


def store_picture(ds: Dataset, picture: npt.NDArray[np.float32], how: Coding) -> None:
    """Image Pixel, Modality LUT and VOI LUT modules such that the displayed picture is `picture`."""
    ds.Rows, ds.Columns = picture.shape
    ds.BitsAllocated, ds.BitsStored = how.allocated, how.bits_stored
    ds.HighBit = how.bits_stored - 1 if how.high_bit is None else how.high_bit
    ds.PixelRepresentation = int(how.signed)
    ds.SamplesPerPixel = 3 if how.colour else 1
    ds.PhotometricInterpretation = how.photometric
    if how.colour or how.photometric == "PALETTE COLOR":
        _store_colour(ds, picture, how)
        return
    if how.voi == "sigmoid":
        picture = np.clip(picture, 0.005, 0.995)
        picture = (0.5 - np.log(1 / picture - 1) / 12).astype(np.float32)  # the window is a third of the range
    shown = 1 - picture if how.photometric == "MONOCHROME1" or how.shape_inverse else picture
    top = 2**how.bits_stored - 1
    values = np.rint(shown * top).astype(np.int32)
    if how.modality == "lut":
        values = top - values  # a reversing modality LUT: whoever forgets it, shows the negative
    offset = 2 ** (how.bits_stored - 1) if how.signed else 0
    values -= offset
    if how.padding is not None:
        edge = min(picture.shape) // 10
        frame = np.ones(picture.shape, dtype=bool)
        frame[edge:-edge, edge:-edge] = False
        values[frame] = how.padding
        ds.PixelPaddingValue = how.padding
    _modality_lut(ds, how, offset, top)
    _voi_lut(ds, how, offset, top)
    if how.shape_inverse:
        ds.PresentationLUTShape = "INVERSE"
    encode(ds, values, how)


def _modality_lut(ds: Dataset, how: Coding, offset: int, top: int) -> None:
    if how.modality == "rescale":
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1000", "0.5", "US"
    elif how.modality == "lut":
        ds.ModalityLUTSequence = [_lut(range(top, -1, -1), how, first=-offset, bits=16, signed=how.signed)]
        ds.ModalityLUTSequence[0].ModalityLUTType = "US"


def _voi_lut(ds: Dataset, how: Coding, offset: int, top: int) -> None:
    slope, intercept = (0.5, -1000.0) if how.modality == "rescale" else (1.0, 0.0)
    first = 0 if how.modality == "lut" else -offset
    low, high = first * slope + intercept, (first + top) * slope + intercept
    if how.voi in ("window", "windows"):  # PS3.3 C.11.2.1.2.1: the window's ends are c - 0.5 -/+ (w - 1) / 2
        ds.WindowCenter, ds.WindowWidth = f"{(low + high) / 2 + 0.5:g}", f"{high - low + 1:g}"
    elif how.voi in ("exact", "sigmoid"):
        ds.WindowCenter, ds.WindowWidth = f"{(low + high) / 2:g}", f"{high - low:.9g}"
        ds.VOILUTFunction = "LINEAR_EXACT" if how.voi == "exact" else "SIGMOID"
        if how.voi == "sigmoid":
            ds.WindowWidth = f"{(high - low) / 3:.9g}"
    elif how.voi == "lut":
        entries = np.rint(np.linspace(0, 4095, top + 1)).astype(int).tolist()
        signed = how.signed and how.modality != "lut"
        ds.VOILUTSequence = [_lut(entries, how, first=int(low), bits=12, signed=signed)]
    if how.voi == "windows":
        ds.WindowCenter, ds.WindowWidth = [ds.WindowCenter, "3000"], [ds.WindowWidth, "10"]
        ds.WindowCenterWidthExplanation = ["NORMAL", "HARDER"]


def _lut(entries: Any, how: Coding, *, first: int, bits: int, signed: bool) -> Dataset:
    entries = list(entries)
    item = Dataset()
    item.add_new(0x00283002, "SS" if signed else "US", [len(entries) % 65536, first, bits])
    item.add_new(0x00283006, "OW", np.asarray(entries, ">u2" if how.syntax == "big_endian" else "<u2").tobytes())
    return item


def _store_colour(ds: Dataset, picture: npt.NDArray[np.float32], how: Coding) -> None:
    grey = np.rint(picture * 255).astype(np.uint8)
    if how.photometric == "PALETTE COLOR":
        ramp = (np.arange(256, dtype="<u2") * 257).tobytes()
        for channel in ("Red", "Green", "Blue"):
            setattr(ds, f"{channel}PaletteColorLookupTableDescriptor", [256, 0, 16])
            setattr(ds, f"{channel}PaletteColorLookupTableData", ramp)
        encode(ds, grey.astype(np.int32), how)
        return
    ds.PlanarConfiguration = how.planar
    chroma = np.full_like(grey, 128) if "YBR" in how.photometric else grey
    planes = [grey, chroma, chroma]
    encode(ds, np.stack(planes, axis=0 if how.planar else -1), how)


# --- pixel data in each transfer syntax


def encode(ds: Dataset, values: npt.NDArray[Any], how: Coding) -> None:
    mask = 2**how.bits_stored - 1
    stored = (values.astype(np.int32) & mask).astype(np.uint32)
    if how.high_bit is not None:
        stored <<= how.high_bit - how.bits_stored + 1
    if how.signed and how.allocated > how.bits_stored and how.high_bit is None and not how.overlay_bits:
        stored = values.astype(np.int32)  # sign-extended, as most writers do
    if how.overlay_bits:
        above = ds.HighBit + 1
        noise = np.random.default_rng(1).integers(0, 2 ** (how.allocated - above), stored.shape, np.uint32)
        stored |= noise << above
    words = (stored & (2**how.allocated - 1)).astype(np.uint8 if how.allocated == 8 else np.uint16)
    native = words.tobytes() if how.syntax != "big_endian" else words.byteswap().tobytes()
    native += b"\0" * (len(native) % 2)
    if how.syntax in ("implicit", "explicit", "deflated", "big_endian"):
        ds.PixelData = native
        ds["PixelData"].VR = "OB" if how.allocated == 8 and how.syntax != "implicit" else "OW"
        return
    frame = _ENCODERS[how.syntax](ds, words, native, how)
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    if how.syntax in LOSSY:
        ds.LossyImageCompression, ds.LossyImageCompressionRatio = "01", f"{len(native) / len(frame):.2f}"
        methods = {"jpegls": "ISO_14495_1", "j2k": "ISO_15444_1", "htj2k": "ISO_15444_15"}
        ds.LossyImageCompressionMethod = methods.get(how.syntax.partition("_")[0], "ISO_10918_1")


def _by_pydicom(syntax: str, **options: Any) -> Any:
    """RLE, JPEG-LS and JPEG 2000 with pydicom's own encoders."""

    def encode_frame(ds: Dataset, words: npt.NDArray[Any], native: bytes, how: Coding) -> bytes:
        if how.signed and syntax != "rle":  # pydicom demands that the codestream's sign agrees with the header's
            words = _sign_extended(words, how)
        pixels = words if words.ndim == 2 or not how.planar else np.moveaxis(words, 0, -1)
        described = _encode_options(ds, how)
        if syntax == "rle":  # it packs bytes, and knows of no bits stored and no sign
            described |= {"bits_stored": how.allocated, "pixel_representation": 0}
        encoder = get_encoder(SYNTAXES[syntax])
        return bytes(encoder.encode(np.ascontiguousarray(pixels), index=None, **described, **options))

    return encode_frame


def _encode_options(ds: Dataset, how: Coding) -> dict[str, Any]:
    keywords = (
        "rows", "columns", "samples_per_pixel", "bits_allocated", "bits_stored", "pixel_representation",
        "photometric_interpretation",
    )  # fmt: skip
    options = {name: ds[name.title().replace("_", "")].value for name in keywords}
    return {**options, "number_of_frames": 1, "planar_configuration": 0 if how.colour else None}


def _sign_extended(words: npt.NDArray[Any], how: Coding) -> npt.NDArray[Any]:
    shift = how.allocated - how.bits_stored
    signed = words.view(np.int8 if how.allocated == 8 else np.int16)
    extended: npt.NDArray[Any] = np.right_shift(np.left_shift(signed, shift), shift)
    return extended


def _by_jpeg(level: int | None = None, predictor: int | None = None) -> Any:
    """JPEG baseline, extended (12 bit) and lossless with libjpeg-turbo."""

    def encode_frame(ds: Dataset, words: npt.NDArray[Any], native: bytes, how: Coding) -> bytes:
        bits = how.bits_stored if predictor else (8 if how.allocated == 8 else 12)
        arr = words & (2**bits - 1)
        arr = np.ascontiguousarray(arr if arr.ndim == 2 or not how.planar else np.moveaxis(arr, 0, -1))
        options: dict[str, Any] = {"bitspersample": bits, "level": level}
        if predictor:
            options |= {"lossless": True, "predictor": predictor}
        if how.colour:
            space = how.photometric[:3].replace("YBR", "YCBCR")
            options |= {"colorspace": space, "outcolorspace": space, "subsampling": "444"}
        return bytes(imagecodecs.jpeg8_encode(arr, **options))

    return encode_frame


def _by_htj2k(**options: Any) -> Any:
    """OpenJPH, which takes every sample of 16 bits as a precision of 16, whatever Bits Stored says."""

    def encode_frame(ds: Dataset, words: npt.NDArray[Any], native: bytes, how: Coding) -> bytes:
        pixels = _sign_extended(words, how) if how.signed else words
        pixels = pixels if pixels.ndim == 2 or not how.planar else np.moveaxis(pixels, 0, -1)
        return bytes(imagecodecs.htj2k_encode(np.ascontiguousarray(pixels), **options))

    return encode_frame


_ENCODERS: dict[str, Any] = {
    "rle": _by_pydicom("rle"),
    "jpegls": _by_pydicom("jpegls"),
    "jpegls_near": _by_pydicom("jpegls_near", jls_error=2),
    "j2k": _by_pydicom("j2k"),
    "j2k_lossy": _by_pydicom("j2k_lossy", j2k_cr=[8]),
    "htj2k": _by_htj2k(),
    "htj2k_rpcl": _by_htj2k(),
    "htj2k_lossy": _by_htj2k(reversible=False, level=0.00002),
    "jpeg_baseline": _by_jpeg(level=97),
    "jpeg_extended": _by_jpeg(level=97),
    "jpeg_lossless": _by_jpeg(predictor=1),
    "jpeg_lossless_p14": _by_jpeg(predictor=4),
}
