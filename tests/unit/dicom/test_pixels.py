"""What a viewer would show: each LUT module's corner, each implausible picture, each broken pixel element."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate, get_frame

from cxrnode.dicom import codecs
from cxrnode.dicom.codestream import describe
from cxrnode.dicom.pixels import load_grey, require_pixels
from cxrnode.dicom.read import tolerant
from cxrnode.dicom.runlength import decode_planes
from cxrnode.errors import Rejected
from cxrnode.types import FloatArray, Reason
from tests.support.make_dicom import SYNTAXES, Coding, chest, code, phantom, store_picture

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
    with tolerant():
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
    assert reason_of(of(PICTURE, overrides={"Rows": 60000, "Columns": 60000})) == Reason.IMPLAUSIBLE_PIXELS


COMPRESSED = ["rle", "jpeg_baseline", "jpeg_extended", "jpeg_lossless", "jpegls", "j2k", "j2k_lossy"]


def compressed(syntax: str) -> tuple[Dataset, bytes]:
    ds = of(PICTURE, syntax=syntax, bits_stored=8 if syntax == "jpeg_baseline" else 12)
    return ds, get_frame(ds.PixelData, 0, number_of_frames=1)


def with_frame(ds: Dataset, frame: bytes) -> Dataset:
    ds.PixelData = encapsulate([frame])
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


@pytest.mark.parametrize("syntax", COMPRESSED)
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
    assert stream.precision == (8 if syntax == "jpeg_baseline" else 12)
    assert describe(frame[:6]) is None
