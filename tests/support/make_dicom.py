"""Valid CR, DX and SC objects of a synthetic chest, in every encoding a PACS may send.

    ds = chest(512, 420, kind="DX", bits_stored=12, syntax="jpeg_lossless")
    path = write(ds, tmp_path / "a.dcm")

The same `seed` gives the same picture whatever the encoding, and the same picture has the same UIDs: a test
that needs two objects uses two seeds or passes `uids=`.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom import Dataset, FileDataset
from pydicom import uid as uids
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filereader import dcmread
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
}
LOSSY = frozenset({"jpeg_baseline", "jpeg_extended", "jpegls_near", "j2k_lossy"})
SOP_CLASSES = {
    "CR": uids.ComputedRadiographyImageStorage,
    "DX": uids.DigitalXRayImageStorageForPresentation,
    "DX_PROCESSING": uids.DigitalXRayImageStorageForProcessing,
    "SC": uids.SecondaryCaptureImageStorage,
}
TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "ReferringPhysicianName", "StudyID", "AccessionNumber", "SeriesNumber", "Manufacturer", "InstanceNumber",
    "PatientOrientation", "BodyPartExamined", "ViewPosition", "AcquisitionContextSequence", "DetectorType",
    "Laterality",
)  # fmt: skip


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


def phantom(rows: int = 512, columns: int = 420, seed: int = 0) -> npt.NDArray[np.float32]:
    """A frontal chest: float32 [rows, columns] in 0..1 (both reached), dense bone white, the border black."""
    rng = np.random.default_rng(seed)
    y = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, columns, dtype=np.float32)[None, :]
    image = 0.08 + 0.5 * _soft(1 - (x / 0.92) ** 4 - (y / 1.3) ** 4)
    for side in (-1, 1):
        lung = 1 - ((x - side * (0.42 + 0.02 * rng.random())) / 0.3) ** 2 - ((y + 0.05) / 0.66) ** 2
        image -= 0.36 * _soft(3 * lung)
    heart = 1 - ((x - 0.12) / (0.26 + 0.08 * rng.random())) ** 2 - ((y - 0.25) / 0.33) ** 2
    image += 0.22 * _soft(3 * heart) + 0.3 * np.exp(-((x / 0.09) ** 2)) * _soft(4 - 4 * np.abs(y))
    ribs = np.sin(14 * (y + 0.35 * x * x) + rng.random()) > 0.55
    image += 0.07 * ribs * (np.abs(x) < 0.8) + 0.25 * _soft(6 * (y - 0.62 + 0.25 * x * x))
    coarse = rng.random((max(4, rows // 48), max(4, columns // 48)), dtype=np.float32) - 0.5
    image += 0.12 * cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)
    image += rng.normal(0, 0.006, (rows, columns)).astype(np.float32)
    image *= (np.abs(x) < 0.95) & (np.abs(y) < 0.97)
    image = np.clip(image, 0.0, 0.97)
    image[rows // 14 : rows // 9, columns // 12 : columns // 8] = 1.0  # the lead marker
    blurred = cv2.GaussianBlur(image, (5, 5), 0.7)  # no detector draws a hard edge
    return np.asarray(blurred, np.float32)


def _soft(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return a.clip(0, 1)


def chest(
    rows: int = 512,
    columns: int = 420,
    *,
    seed: int = 0,
    kind: str = "CR",
    view: str = "PA",
    body_part: str = "CHEST",
    image: npt.NDArray[np.float32] | None = None,
    uids: tuple[str, str, str] | None = None,
    drop_type2: bool = False,
    overrides: dict[str, Any] | None = None,
    **coding: Any,
) -> FileDataset:
    """A complete object. kind: CR, DX, DX_PROCESSING, SC.

    overrides: keyword -> value; None deletes the element.
    uids: (study, series, instance). Further keywords are those of `Coding`, for instance syntax="j2k".
    """
    how = Coding(**coding)
    picture = phantom(rows, columns, seed) if image is None else image
    ds = _new_file(SOP_CLASSES[kind], uids or _uids_of(picture, kind, view), how)
    _patient_and_study(ds, kind, body_part)
    {"CR": _cr, "DX": _dx, "DX_PROCESSING": _dx, "SC": _sc}[kind](ds, view)
    store_picture(ds, picture, how)
    if kind.startswith("DX"):
        _dx_pixel_attributes(ds, how)
    for keyword in TYPE_2 if drop_type2 else ():
        if keyword in ds:
            del ds[keyword]
    for keyword, value in (overrides or {}).items():
        if value is None:
            ds.pop(keyword, None)
        else:
            setattr(ds, keyword, value)
    return ds


def to_bytes(ds: Dataset) -> bytes:
    """The whole file."""
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write(ds: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_bytes(ds))
    return path


def recode(ds: Dataset, syntax: str) -> FileDataset:
    """The same object (same UIDs) in another lossless transfer syntax; `ds` is native little endian."""
    again = dcmread(BytesIO(to_bytes(ds)))
    stored = again.pixel_array
    again.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    again.set_original_encoding(syntax == "implicit", syntax != "big_endian")
    _encode(again, stored, Coding(bits_stored=again.BitsStored, syntax=syntax))
    return again


# --- the picture


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
    _encode(ds, values, how)


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
        _encode(ds, grey.astype(np.int32), how)
        return
    ds.PlanarConfiguration = how.planar
    chroma = np.full_like(grey, 128) if "YBR" in how.photometric else grey
    planes = [grey, chroma, chroma]
    _encode(ds, np.stack(planes, axis=0 if how.planar else -1), how)


# --- pixel data in each transfer syntax


def _encode(ds: Dataset, values: npt.NDArray[Any], how: Coding) -> None:
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
        ds.LossyImageCompressionMethod = {"jpegls": "ISO_14495_1", "j2k": "ISO_15444_1"}.get(
            how.syntax.partition("_")[0], "ISO_10918_1"
        )


def _by_pydicom(syntax: str, **options: Any) -> Any:
    """RLE, JPEG-LS and JPEG 2000 with pydicom's own encoders."""

    def encode(ds: Dataset, words: npt.NDArray[Any], native: bytes, how: Coding) -> bytes:
        if how.signed and syntax != "rle":  # pydicom demands that the codestream's sign agrees with the header's
            words = _sign_extended(words, how)
        pixels = words if words.ndim == 2 or not how.planar else np.moveaxis(words, 0, -1)
        described = _encode_options(ds, how)
        if syntax == "rle":  # it packs bytes, and knows of no bits stored and no sign
            described |= {"bits_stored": how.allocated, "pixel_representation": 0}
        encoder = get_encoder(SYNTAXES[syntax])
        return bytes(encoder.encode(np.ascontiguousarray(pixels), index=None, **described, **options))

    return encode


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

    def encode(ds: Dataset, words: npt.NDArray[Any], native: bytes, how: Coding) -> bytes:
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

    return encode


_ENCODERS: dict[str, Any] = {
    "rle": _by_pydicom("rle"),
    "jpegls": _by_pydicom("jpegls"),
    "jpegls_near": _by_pydicom("jpegls_near", jls_error=2),
    "j2k": _by_pydicom("j2k"),
    "j2k_lossy": _by_pydicom("j2k_lossy", j2k_cr=[8]),
    "jpeg_baseline": _by_jpeg(level=97),
    "jpeg_extended": _by_jpeg(level=97),
    "jpeg_lossless": _by_jpeg(predictor=1),
    "jpeg_lossless_p14": _by_jpeg(predictor=4),
}


# --- everything but the picture


def _new_file(sop_class: str, three: tuple[str, str, str], how: Coding) -> FileDataset:
    meta = Dataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, three[2]
    meta.TransferSyntaxUID = SYNTAXES[how.syntax]
    meta.ImplementationClassUID = "2.25.337799"
    ds = FileDataset("", {}, file_meta=FileMetaDataset(meta), preamble=b"\0" * 128)
    ds.set_original_encoding(how.syntax == "implicit", how.syntax != "big_endian")
    ds.SOPClassUID = sop_class
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = three
    return ds


def _uids_of(picture: npt.NDArray[np.float32], kind: str, view: str) -> tuple[str, str, str]:
    digest = hashlib.sha256(picture.tobytes()).hexdigest()

    def derived(*causes: str) -> str:
        return f"2.25.{int(hashlib.sha256(' '.join(causes).encode()).hexdigest()[:30], 16)}"

    return derived(digest), derived(digest, kind), derived(digest, kind, view)


def _patient_and_study(ds: Dataset, kind: str, body_part: str) -> None:
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName, ds.PatientID = "Phantom^Chest", "PHANTOM-1"
    ds.PatientBirthDate, ds.PatientSex = "19600229", "O"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20240102", "030405", "1", "ACC1"
    ds.ReferringPhysicianName, ds.StudyDescription = "Ref^Phys", "Chest"
    ds.Modality = kind[:2] if kind != "SC" else "OT"
    ds.SeriesNumber, ds.InstanceNumber = 1, 1
    ds.Manufacturer, ds.ManufacturerModelName = "Phantom Works", "P1"
    ds.BodyPartExamined = body_part
    ds.AcquisitionDate = ds.ContentDate = ds.SeriesDate = "20240102"
    ds.AcquisitionTime = ds.ContentTime = ds.SeriesTime = "030406"


def _cr(ds: Dataset, view: str) -> None:
    ds.ViewPosition, ds.PatientOrientation = view, ["L", "F"]
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.ImagerPixelSpacing = ["0.2", "0.2"]


def _dx(ds: Dataset, view: str) -> None:
    ds.ViewPosition, ds.PatientOrientation, ds.ImageLaterality = view, ["L", "F"], "U"
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    processing = ds.SOPClassUID == uids.DigitalXRayImageStorageForProcessing
    ds.PresentationIntentType = "FOR PROCESSING" if processing else "FOR PRESENTATION"
    ds.AnatomicRegionSequence = [code("816094009", "SCT", "Chest")]
    ds.ViewCodeSequence = [code(*_VIEWS.get(view, _VIEWS["PA"]))]
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = []
    ds.PatientOrientationCodeSequence = [code("10904000", "SCT", "erect")]
    ds.AcquisitionContextSequence = []
    ds.DetectorType, ds.ImagerPixelSpacing = "DIRECT", ["0.2", "0.2"]
    ds.PositionerType = ""


_VIEWS = {
    "PA": ("272479007", "SCT", "postero-anterior"),
    "AP": ("399348003", "SCT", "antero-posterior"),
    "LL": ("399173006", "SCT", "left lateral"),
    "RL": ("399198007", "SCT", "right lateral"),
}


def _dx_pixel_attributes(ds: Dataset, how: Coding) -> None:
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = 1 if how.photometric == "MONOCHROME1" else -1
    if how.modality == "none":  # DX has an identity rescale (PS3.3 C.8.11.3.1.2)
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    if ds.PresentationIntentType == "FOR PROCESSING":  # no VOI LUT module there
        for keyword in ("WindowCenter", "WindowWidth"):
            ds.pop(keyword, None)
    if not how.shape_inverse:
        ds.PresentationLUTShape = "INVERSE" if how.photometric == "MONOCHROME1" else "IDENTITY"
    ds.BurnedInAnnotation = "NO"
    ds.LossyImageCompression = "01" if how.syntax in LOSSY else "00"


def _sc(ds: Dataset, view: str) -> None:
    ds.ConversionType, ds.PatientOrientation = "DF", ["L", "F"]
    ds.ViewPosition = view
    ds.ImageType = ["DERIVED", "SECONDARY"]


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """One item of a code sequence (PS3.3 section 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def with_coding(how: Coding, **changes: Any) -> Coding:
    return replace(how, **changes)


if __name__ == "__main__":  # python -m tests.support.make_dicom FOLDER: one file a transfer syntax
    for name in SYNTAXES:
        bits = 8 if name == "jpeg_baseline" else 12
        write(chest(syntax=name, bits_stored=bits), Path(sys.argv[1]) / f"{name}.dcm")
