"""What a viewer would show: each LUT module's corner, each implausible picture, each broken pixel element."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom import uid as uids
from pydicom.encaps import encapsulate, get_frame
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info

import cxrnode
from cxrnode.dicom import codecs
from cxrnode.dicom.budget import PIXELS
from cxrnode.dicom.codestream import describe
from cxrnode.dicom.fragments import DEFLATED_FRAME, ENCAPSULATED_UNCOMPRESSED
from cxrnode.dicom.pixels import load_grey, require_pixels
from cxrnode.dicom.read import read_instance
from cxrnode.dicom.runlength import decode_planes
from cxrnode.errors import Rejected
from cxrnode.types import FloatArray, Reason
from tests.support.make_dicom import SYNTAXES, Coding, chest, code, phantom, store_picture, write

PICTURE = phantom(160, 130, 3)


def shown(ds: Dataset, **how: Any) -> FloatArray:
    return load_grey(ds, **how).pixels


def reason_of(ds: Dataset) -> Reason:
    with pytest.raises(Rejected) as caught:
        load_grey(ds)
    return caught.value.rejection.reason


def of(picture: FloatArray, **coding: Any) -> Dataset:
    return chest(image=picture.astype(np.float32), **coding)


def close(one: FloatArray, other: FloatArray, most: float = 0.01) -> bool:
    return bool(np.abs(one - other).max() <= most)


# --- size


def test_small_images_keep_their_size_and_large_ones_their_aspect() -> None:
    assert shown(of(PICTURE)).shape == (160, 130)
    grey = load_grey(chest(700, 500), long_side=350)
    assert grey.pixels.shape == (350, 250)
    assert grey.pixels.dtype == np.float32
    assert (grey.rows, grey.columns, grey.photometric_interpretation) == (700, 500, "MONOCHROME2")


@pytest.mark.parametrize("odd", [(701, 499), (699, 503), (702, 501)])
@pytest.mark.parametrize("syntax", ["explicit", "j2k"])
def test_reduced_decoding_is_not_shifted(odd: tuple[int, int], syntax: str) -> None:
    """A ramp shows where each pixel lies: half a source pixel would be seen."""
    ramp = np.linspace(0, 1, odd[1], dtype=np.float32)[None, :] * np.linspace(0.2, 1, odd[0], dtype=np.float32)[:, None]
    small = shown(of(ramp, syntax=syntax, bits_stored=16), long_side=180)
    expected = shown(of(ramp, bits_stored=16), long_side=max(small.shape), fast=False)
    assert small.shape == expected.shape
    inner = (slice(2, -2), slice(2, -2))
    assert np.abs(small[inner] - expected[inner]).max() < 0.25 / odd[1]


@pytest.mark.parametrize("least", [88, 150, 175, 300])
def test_least_bounds_the_reduction(least: int) -> None:
    picture = phantom(701, 497, 4)
    assert max(shown(of(picture, syntax="j2k"), long_side=1024, least=least).shape) >= least


# --- tone


def test_without_a_window_the_range_is_shown_whatever_a_dead_pixel_says() -> None:
    ds = of(PICTURE * 0.2 + 0.4, voi="none", bits_stored=16)
    values = np.frombuffer(ds.PixelData, "<u2").copy()
    values[7] = 65535
    ds.PixelData = values.tobytes()
    assert close(shown(ds), PICTURE, 0.03) or np.abs(shown(ds) - PICTURE).mean() < 0.01


@pytest.mark.parametrize(
    ("center", "width"),
    [
        ("2048", "0"),
        ("2048", "-5"),
        ("2048", "1"),
        ("40", "1"),
        ("60000", "100"),
        ("-9000", "400"),
        ("", ""),
        ("2048", "99999"),
    ],
)
def test_window_that_shows_nothing_is_ignored(center: str, width: str) -> None:
    ds = of(PICTURE, overrides={"WindowCenter": center, "WindowWidth": width})
    assert np.abs(shown(ds) - PICTURE).mean() < 0.01


def test_first_of_several_windows_counts() -> None:
    assert close(shown(of(PICTURE, voi="windows")), PICTURE)


def test_window_cuts_both_ends() -> None:
    ds = of(PICTURE, overrides={"WindowCenter": "2048", "WindowWidth": "2048"})
    assert close(shown(ds), np.clip(2 * PICTURE - 0.5, 0, 1))


def test_unusable_lut_falls_back_to_the_window() -> None:
    ds = of(PICTURE, voi="lut", overrides={"WindowCenter": "2048", "WindowWidth": "4096"})
    ds.VOILUTSequence[0].LUTData = b"\x00\x01"
    assert close(shown(ds), PICTURE)


def test_lut_that_declares_too_many_bits_is_not_dark() -> None:
    ds = of(PICTURE, voi="lut")
    ds.VOILUTSequence[0].LUTDescriptor = [4096, 0, 16]
    assert close(shown(ds), PICTURE)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_presentation_lut_shape_never_inverts_twice(photometric: str) -> None:
    assert close(shown(of(PICTURE, photometric=photometric, shape_inverse=True)), PICTURE)
    assert close(shown(of(PICTURE, kind="DX", photometric=photometric)), PICTURE)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("fast", [True, False])
def test_padding_is_black_and_sets_no_range(photometric: str, fast: bool) -> None:
    ds = of(PICTURE * 0.5 + 0.2, photometric=photometric, voi="none", padding=4095)
    pixels = shown(ds, fast=fast)
    inner = (slice(13, -13), slice(13, -13))
    assert pixels[:12].max() == 0
    assert pixels[inner].max() > 0.95
    assert np.corrcoef(pixels[inner].ravel(), PICTURE[inner].ravel())[0, 1] > 0.99


def test_padding_range() -> None:
    ds = of(PICTURE, padding=4000, overrides={"PixelPaddingRangeLimit": 4095})
    assert shown(ds)[:12].max() == 0
    assert shown(ds)[100, 65] > 0


def padded(first: Any, last: Any = None, *, vr: str = "SS", **coding: Any) -> Dataset:
    ds = of(PICTURE, **coding)
    ds.add_new("PixelPaddingValue", vr, first)
    if last is not None:
        ds.add_new("PixelPaddingRangeLimit", vr, last)
    return ds


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("voi", ["window", "none"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("first", "last", "vr", "coding"),
    [
        (-2000, None, "SS", {}),
        (-2000, -1, "SS", {}),
        (-1, -2000, "SS", {}),
        (4096, None, "US", {}),
        (65535, 4096, "US", {}),
        (-2000, -1, "SS", {"bits_stored": 16}),
        (-3000, None, "SS", {"signed": True}),
        (2048, None, "SS", {"signed": True}),
        (40000, None, "US", {"signed": True}),
        (300, 900, "US", {"bits_stored": 8}),
        (10**9, None, "SL", {}),
    ],
)
def test_padding_that_the_stored_bits_cannot_hold_is_ignored(
    first: int, last: int | None, vr: str, coding: dict[str, Any], photometric: str, voi: str, fast: bool
) -> None:
    coding |= {"photometric": photometric, "voi": voi}
    assert np.array_equal(
        shown(padded(first, last, vr=vr, **coding), fast=fast), shown(of(PICTURE, **coding), fast=fast)
    )


@pytest.mark.parametrize(("first", "last"), [(0, 3000), (0, 4095), (3000, 100), (-2000, 2000), (0, 1200), (300, 700)])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_that_would_cover_the_picture_is_ignored(first: int, last: int, photometric: str) -> None:
    """PS3.3 C.7.5.1.1.2: no pixel of the picture itself has the value of padding."""
    plain = of(PICTURE, photometric=photometric)
    assert np.array_equal(shown(padded(first, last, photometric=photometric)), shown(plain))


@pytest.mark.parametrize(
    ("value", "first", "vr", "coding"),
    [
        (-2000, -2000, "SS", {"signed": True}),
        (-2000, 63536, "US", {"signed": True}),  # the same word, written as unsigned
        (-2048, -2048, "SS", {"signed": True, "high_bit": 15}),
        (2047, 2047, "SS", {"signed": True}),
        (0, 0, "US", {}),
        (4095, 4095, "US", {"high_bit": 15}),
        (65535, 65535, "US", {"bits_stored": 16}),
        (-32768, -32768, "SS", {"bits_stored": 16, "signed": True}),
    ],
)
def test_padding_of_either_sign(value: int, first: int, vr: str, coding: dict[str, Any]) -> None:
    ds = of(PICTURE, padding=value, **coding)
    ds.add_new("PixelPaddingValue", vr, first)
    pixels = shown(ds)
    assert pixels[:12].max() == 0
    assert close(pixels[20:-20, 20:-20], PICTURE[20:-20, 20:-20])


def test_a_padding_range_that_is_partly_out_of_range_is_cut_to_it() -> None:
    """What lies between its ends is padding, whether the bits reach the ends or not."""
    ds = of(PICTURE * 0.9 + 0.05, padding=0, voi="none")
    ds.add_new("PixelPaddingValue", "SS", -2000)
    ds.add_new("PixelPaddingRangeLimit", "SS", 10)
    pixels = shown(ds)
    assert pixels[:12].max() == 0
    assert np.corrcoef(pixels[20:-20, 20:-20].ravel(), PICTURE[20:-20, 20:-20].ravel())[0, 1] > 0.999


@pytest.mark.parametrize("syntax", ["j2k", "j2k_lossy", "htj2k"])
@pytest.mark.parametrize("voi", ["window", "none"])
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("signed", [True, False])
def test_a_codestream_whose_sign_the_header_contradicts(signed: bool, bits: int, voi: str, syntax: str) -> None:
    """The codestream is right."""
    ds = of(PICTURE, syntax=syntax, signed=signed, bits_stored=bits, voi=voi)
    expected = shown(ds)
    ds.PixelRepresentation = int(not signed)
    assert close(shown(ds), expected)


@pytest.mark.parametrize("signed", [True, False])
def test_a_codestream_that_holds_words_of_the_other_sign(signed: bool) -> None:
    """The header is right: the encoder took the words for what they are not (pydicom's J2K_pixelrep_mismatch)."""
    plain = of(PICTURE, signed=signed, bits_stored=16)
    words = np.frombuffer(plain.PixelData, "<i2" if not signed else "<u2").reshape(PICTURE.shape)
    ds = of(PICTURE, signed=signed, bits_stored=16, syntax="htj2k")
    assert close(shown(with_frame(ds, imagecodecs.htj2k_encode(words))), shown(plain))


# --- LUTs and windows of odd headers


@pytest.mark.parametrize(
    ("slope", "intercept"),
    [("0", "0"), ("0", "-1024"), ("NaN", "0"), ("inf", "0"), ("1", "NaN"), ("1e300", "0"), ("1e-300", "0"), ("", ""),
     ("-inf", "inf")],
)  # fmt: skip
@pytest.mark.parametrize("voi", ["window", "none", "lut", "sigmoid"])
def test_a_rescale_that_is_none_leaves_a_picture(slope: str, intercept: str, voi: str) -> None:
    ds = of(PICTURE, voi=voi)
    ds.add_new("RescaleSlope", "LO", slope)
    ds.add_new("RescaleIntercept", "LO", intercept)
    assert np.corrcoef(shown(ds).ravel(), PICTURE.ravel())[0, 1] > (0.9 if voi == "sigmoid" else 0.99)


@pytest.mark.parametrize("voi", ["window", "none", "exact"])
@pytest.mark.parametrize("signed", [True, False])
def test_a_falling_rescale_falls(voi: str, signed: bool) -> None:
    """Values are negated, and so is the slope: the same picture."""
    plain = of(PICTURE, voi=voi, signed=signed)
    ds = of(1 - PICTURE, voi="none", signed=signed)
    ds.RescaleSlope, ds.RescaleIntercept = "-1", "-1" if signed else "4095"
    if voi != "none":
        ds.WindowCenter, ds.WindowWidth = plain.WindowCenter, plain.WindowWidth
        ds.VOILUTFunction = plain.get("VOILUTFunction", "LINEAR")
    assert close(shown(ds), shown(plain), 0.02)


@pytest.mark.parametrize("first", [["2048", ""], ["2048", "0"], ["90000", "10"], ["", "4096"], ["NaN", "4096"]])
def test_the_first_window_that_shows_something_counts(first: list[str]) -> None:
    ds = of(PICTURE)
    ds.add_new("WindowCenter", "LO", [first[0], "2048.5"])
    ds.add_new("WindowWidth", "LO", [first[1], "2048"])
    assert close(shown(ds), np.clip(2 * PICTURE - 0.5, 0, 1))


@pytest.mark.parametrize("vr", ["SS", "US"])
@pytest.mark.parametrize("how", ["signed", "rescaled"])
def test_a_lut_whose_first_value_is_negative(how: str, vr: str) -> None:
    """First Value Mapped has the sign of what is looked up (PS3.3 C.11.2.1.1), and is at times written as unsigned."""
    ds = of(PICTURE, voi="lut", signed=how == "signed")
    first = -2048
    if how == "rescaled":
        ds.RescaleSlope, ds.RescaleIntercept = "1", "-2048"
    item = ds.VOILUTSequence[0]
    item.add_new("LUTDescriptor", vr, [4096, first if vr == "SS" else first + 65536, 12])
    assert close(shown(ds), PICTURE)


@pytest.mark.parametrize("descriptor", [[4096, 0, 8], [4096, 0, 0], [4096, 0, 32], [5000, 0, 12], [1, 0, 12],
                                        [4096, 5000, 12], [4096, -9000, 12], [4096, 0], []])  # fmt: skip
def test_a_lut_that_its_descriptor_contradicts(descriptor: list[int]) -> None:
    """Its entries tell the depth; where nothing can be read of it, the window is shown."""
    ds = of(PICTURE, voi="lut", overrides={"WindowCenter": "2048", "WindowWidth": "4096"})
    ds.VOILUTSequence[0].add_new("LUTDescriptor", "SS", descriptor)
    assert close(shown(ds), PICTURE, 0.02)


def test_the_first_usable_lut_counts() -> None:
    ds = of(PICTURE, voi="lut")
    broken = Dataset()
    broken.add_new("LUTDescriptor", "US", [4096, 0, 12])
    broken.add_new("LUTData", "OW", b"\x00\x01")
    ds.VOILUTSequence.insert(0, broken)
    assert close(shown(ds), PICTURE)


@pytest.mark.parametrize("bits", [9, 10, 13, 15])
@pytest.mark.parametrize("shift", [0, 1])
def test_signed_bits_wherever_the_high_bit_is(bits: int, shift: int) -> None:
    for overlay in (False, True):
        ds = of(PICTURE, bits_stored=bits, signed=True, high_bit=bits - 1 + shift, overlay_bits=overlay)
        ds.add_new("SmallestImagePixelValue", "US", 3)
        ds.add_new("LargestImagePixelValue", "SS", -7)
        assert close(shown(ds), PICTURE)


@pytest.mark.parametrize("relationship", ["LIN", "LOG"])
@pytest.mark.parametrize(("photometric", "sign"), [("MONOCHROME2", 1), ("MONOCHROME1", 1), ("MONOCHROME2", -1)])
def test_raw_detector_data_show_dense_bone_white(relationship: str, photometric: str, sign: int) -> None:
    detector = np.exp(-3 * PICTURE) if relationship == "LIN" else 1 - PICTURE  # dense bone: few X-rays
    detector = detector if sign == 1 else 1 - detector
    ds = chest(160, 130, kind="DX_PROCESSING")
    store_picture(ds, detector.astype(np.float32), Coding(bits_stored=14, voi="none"))
    ds.PhotometricInterpretation = photometric
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = relationship, sign
    assert np.corrcoef(shown(ds).ravel(), PICTURE.ravel())[0, 1] > (0.98 if sign == 1 else 0.9)


NONSENSE = [("OB", b"\x01"), ("LO", "text"), ("FD", float("nan")), ("SQ", []), ("SQ", [code("1", "2", "3")]),
            ("UN", b""), ("FD", [1e300, 0.0])]  # fmt: skip


@pytest.mark.parametrize("keyword", ["WindowCenter", "RescaleSlope", "RescaleIntercept", "PixelPaddingValue",
                                     "VOILUTFunction", "VOILUTSequence", "ModalityLUTSequence"])  # fmt: skip
@pytest.mark.parametrize(("vr", "value"), NONSENSE)
def test_nonsense_in_the_lut_modules_never_crashes(keyword: str, vr: str, value: Any) -> None:
    ds = of(PICTURE)
    ds.add_new(keyword, vr, value)
    try:
        pixels = shown(ds)
    except Rejected as rejected:
        pixels = np.zeros(1, np.float32) if rejected.rejection.reason == Reason.IMPLAUSIBLE_PIXELS else PICTURE * np.nan
    assert np.isfinite(pixels).all()


# --- plausibility


@pytest.mark.parametrize(
    "picture",
    [np.zeros((160, 130)), np.full((160, 130), 0.4), np.ones((160, 130)), np.eye(160)[:, :130],
     np.random.default_rng(0).random((160, 130))],
    ids=["black", "grey", "white", "nearly black", "noise"],
)  # fmt: skip
@pytest.mark.parametrize("voi", ["window", "none"])
def test_implausible_pictures(picture: FloatArray, voi: str) -> None:
    assert reason_of(of(picture, voi=voi)) == Reason.IMPLAUSIBLE_PIXELS


@pytest.mark.parametrize("shape", [(63, 500), (500, 63), (100, 501), (1, 1)])
def test_implausible_shapes(shape: tuple[int, int]) -> None:
    assert reason_of(of(np.resize(PICTURE, shape))) == Reason.IMPLAUSIBLE_PIXELS


@pytest.mark.parametrize("voi", ["window", "none"])
def test_a_collimated_radiograph_is_plausible(voi: str) -> None:
    """Two thirds of the detector lie under the collimator."""
    wide = np.zeros((320, 260), np.float32)
    wide[60:240, 50:200] = phantom(180, 150, 2)
    assert shown(of(wide, voi=voi)).std() > 0.05


# --- broken pixel data


def test_no_pixels() -> None:
    ds = of(PICTURE)
    del ds.PixelData
    assert reason_of(ds) == Reason.NO_PIXELS
    with pytest.raises(Rejected):
        require_pixels(ds)


def test_several_frames() -> None:
    assert reason_of(of(PICTURE, overrides={"NumberOfFrames": 3})) == Reason.MULTI_FRAME


def test_one_frame_of_a_multi_frame_class() -> None:
    assert close(shown(of(PICTURE, overrides={"NumberOfFrames": 1})), PICTURE)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "RGB"])
def test_fewer_bytes_than_declared(photometric: str) -> None:
    ds = of(PICTURE, bits_stored=8, photometric=photometric, kind="SC")
    ds.PixelData = ds.PixelData[:-2]
    assert reason_of(ds) == Reason.TRUNCATED


@pytest.mark.parametrize(
    "overrides",
    [{"BitsAllocated": 32}, {"BitsAllocated": 12}, {"BitsStored": 17}, {"HighBit": 3}, {"Rows": None},
     {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, {"PhotometricInterpretation": "RGB"}],
)  # fmt: skip
def test_contradictory_image_pixel_module(overrides: dict[str, Any]) -> None:
    assert reason_of(of(PICTURE, overrides=overrides)) == Reason.UNDECODABLE


def test_bomb_by_header() -> None:
    assert reason_of(of(PICTURE, overrides={"Rows": 60000, "Columns": 60000})) == Reason.TOO_LARGE


COMPRESSED = ["rle", "jpeg_baseline", "jpeg_extended", "jpeg_lossless", "jpegls", "j2k", "j2k_lossy", "htj2k"]


def compressed(syntax: str) -> tuple[Dataset, bytes]:
    ds = of(PICTURE, syntax=syntax, bits_stored=8 if syntax == "jpeg_baseline" else 12)
    return ds, get_frame(ds.PixelData, 0, number_of_frames=1)


def with_frame(ds: Dataset, frame: bytes | bytearray) -> Dataset:
    ds.PixelData = encapsulate([bytes(frame)])
    return ds


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_codestream_cut_short(syntax: str) -> None:
    ds, frame = compressed(syntax)
    assert reason_of(with_frame(ds, frame[: len(frame) // 2])) in (Reason.TRUNCATED, Reason.UNDECODABLE)


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_garbage_in_the_place_of_a_codestream(syntax: str) -> None:
    ds, _frame = compressed(syntax)
    assert reason_of(with_frame(ds, b"\x00\x01garbage" * 400)) == Reason.UNDECODABLE


@pytest.mark.parametrize("syntax", [s for s in COMPRESSED if s != "rle"])
def test_codestream_of_another_size_is_not_decoded(syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ds, _frame = compressed(syntax)
    ds.Rows -= 1
    for name in ("_decode_fast", "_decode_by_pydicom"):
        monkeypatch.setattr(codecs, name, lambda *a: pytest.fail("decoded"))
    assert reason_of(ds) == Reason.UNDECODABLE


@pytest.mark.parametrize("syntax", [s for s in COMPRESSED if not s.startswith(("jpeg_", "rle"))])
def test_the_general_way_stands_in_for_a_failing_codec(syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ds, _frame = compressed(syntax)
    expected = shown(ds)

    def fails(*_arguments: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(codecs, "_decode_fast", fails)
    assert close(shown(ds), expected)
    monkeypatch.setattr(codecs, "_decode_by_pydicom", fails)
    with pytest.raises(Rejected, match="out of order; RuntimeError: out of order"):
        load_grey(ds)


def test_codestream_decides_over_a_wrong_transfer_syntax() -> None:
    ds, _frame = compressed("j2k")
    ds.file_meta.TransferSyntaxUID = SYNTAXES["jpeg_lossless"]
    assert close(shown(ds), PICTURE)


@pytest.mark.parametrize("declared", ["explicit", "jpeg_lossless", "j2k", "rle", "htj2k_rpcl"])
def test_codestream_decides_in_colour_too(declared: str) -> None:
    ds = of(PICTURE, kind="SC", bits_stored=8, syntax="j2k", photometric="RGB")
    ds.file_meta.TransferSyntaxUID = SYNTAXES[declared]
    assert close(shown(ds), PICTURE)


@pytest.mark.parametrize(
    ("photometric", "adobe", "expected"),
    [("RGB", None, 0.299), ("YBR_FULL", None, 1.0), ("YBR_FULL", 0, 0.299), ("RGB", 1, 1.0), ("RGB", 0, 0.299)],
)
@pytest.mark.parametrize("lossless", [True, False])
def test_what_colours_jpeg_holds(lossless: bool, photometric: str, adobe: int | None, expected: float) -> None:
    """The first of three channels is red, or the luminance itself: an Adobe segment says which, else the header."""
    ds = of(PICTURE, kind="SC", bits_stored=8, syntax="jpeg_lossless", photometric="RGB")
    ds.PhotometricInterpretation = photometric
    red = np.zeros((*PICTURE.shape, 3), np.uint8)
    red[..., 0] = np.rint(PICTURE * 255)
    how: dict[str, Any] = {"lossless": True, "predictor": 1} if lossless else {"level": 99, "subsampling": "444"}
    frame = imagecodecs.jpeg8_encode(red, colorspace="RGB", outcolorspace="RGB", **how)
    at = frame.index(b"Adobe") - 4
    segment = b"" if adobe is None else frame[at : at + 15] + bytes([adobe])
    assert close(shown(with_frame(ds, frame[:at] + segment + frame[at + 16 :])), PICTURE * np.float32(expected), 0.03)


def test_colour_of_twelve_bits_is_not_dark() -> None:
    ds = of(PICTURE, kind="SC", bits_stored=8, syntax="explicit", photometric="RGB")
    codes = np.rint(PICTURE * 4095).astype("<u2")
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PixelData = np.dstack([codes] * 3).tobytes()
    ds["PixelData"].VR = "OW"
    assert close(shown(ds), PICTURE)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2", "RGB"])
@pytest.mark.parametrize("syntax", [ENCAPSULATED_UNCOMPRESSED, DEFLATED_FRAME])
def test_native_frames_in_fragments(syntax: uids.UID, photometric: str) -> None:
    ds = of(PICTURE, kind="SC", bits_stored=8, photometric=photometric)
    coder = zlib.compressobj(wbits=-15)
    deflated = coder.compress(ds.PixelData) + coder.flush()
    ds.PixelData = encapsulate([ds.PixelData if syntax == ENCAPSULATED_UNCOMPRESSED else deflated])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    raw = under(ds, syntax)
    assert close(shown(read_instance(raw)), PICTURE)
    ds.Rows += 1
    assert reason_of(read_instance(under(ds, syntax))) == Reason.TRUNCATED


def under(ds: Dataset, syntax: str) -> bytes:
    """The file under a transfer syntax that pydicom does not write."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    ds.file_meta.TransferSyntaxUID = uids.UID(syntax)
    buffer.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(buffer, ds.file_meta, enforce_standard=True)
    write_dataset(buffer, ds)
    return buffer.getvalue()


def test_an_unknown_transfer_syntax_is_said() -> None:
    """JPEG XL: no decoder here that is known to keep twelve bits."""
    ds, _frame = compressed("j2k")
    with_frame(ds, b"\xff\x0a" + bytes(64))
    with pytest.raises(Rejected, match="No pixel data decoders have been implemented for") as caught:
        load_grey(read_instance(under(ds, "1.2.840.10008.1.2.4.110")))
    assert caught.value.rejection.reason == Reason.UNDECODABLE


def test_a_frame_above_one_decoders_own_limit_goes_to_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    ds, _frame = compressed("j2k")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert close(shown(ds), PICTURE)


def test_no_frame_that_the_node_takes_is_above_the_decoders_limit() -> None:
    assert Image.MAX_IMAGE_PIXELS is None or Image.MAX_IMAGE_PIXELS > PIXELS


WITHOUT_PLUGIN = """
import sys
sys.path += sys.argv[3:]
import numpy as np
from cxrnode.dicom.pixels import load_grey
from cxrnode.dicom.read import read_instance
from pathlib import Path
for path in sorted(Path(sys.argv[1]).iterdir()):
    error = np.abs(load_grey(read_instance(path)).pixels - np.load(sys.argv[2])).max()
    print(path.name, "ok" if error < 0.1 else error)
"""


def test_every_transfer_syntax_without_the_gpl_plugin(tmp_path: Path) -> None:
    """In a view of this environment without pylibjpeg-libjpeg (GPL-3.0) and -rle, which a default installation does
    not have. Grey and colour."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(cv2.__file__).parents[1].iterdir():
        if not path.name.startswith(("libjpeg", "_libjpeg", "pylibjpeg_libjpeg", "rle", "pylibjpeg_rle")):
            (packages / path.name).symlink_to(path)
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "picture.npy", PICTURE)
    for syntax in SYNTAXES:
        bits = 8 if syntax == "jpeg_baseline" else 12
        write(of(PICTURE, syntax=syntax, bits_stored=bits), tmp_path / "in" / f"{syntax}-grey")
        if syntax not in ("jpeg_extended", "jpegls_near", "big_endian"):  # the tests' encoders cannot
            colour = of(PICTURE, kind="SC", syntax=syntax, bits_stored=8, photometric="RGB")
            write(colour, tmp_path / "in" / f"{syntax}-colour")
    done = subprocess.run(
        [sys.executable, "-S", "-c", WITHOUT_PLUGIN, tmp_path / "in", tmp_path / "picture.npy", packages,
         Path(cxrnode.__file__).parents[1]],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wrong = [line for line in done.stdout.splitlines() if not line.endswith(" ok")]
    assert not wrong
    assert len(done.stdout.splitlines()) == len(list((tmp_path / "in").iterdir()))


def test_frame_in_several_fragments() -> None:
    ds, frame = compressed("jpeg_lossless")
    ds.PixelData = encapsulate([frame], fragments_per_frame=4)
    assert close(shown(ds), PICTURE)


@pytest.mark.parametrize("damage", [b"", b"\x01", bytes(64), struct.pack("<16L", 2, 64, 9999, *[0] * 13), b"\xff" * 90])
def test_damaged_run_lengths(damage: bytes) -> None:
    with pytest.raises(ValueError, match=r"header|segment"):
        decode_planes(damage, rows=10, columns=10, samples=1, allocated=16)


@pytest.mark.parametrize("syntax", [s for s in COMPRESSED if s != "rle"])
def test_codestreams_describe_themselves(syntax: str) -> None:
    _ds, frame = compressed(syntax)
    stream = describe(frame)
    assert stream is not None
    assert (stream.rows, stream.columns, stream.components) == (160, 130, 1)
    assert stream.complete
    assert stream.precision == {"jpeg_baseline": 8, "htj2k": 16}.get(syntax, 12)
    assert describe(frame[:6]) is None
