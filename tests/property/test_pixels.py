"""The same picture, encoded in every way, gives the same tensor: against the picture itself, and against the plain
way of a user's loop (pydicom's decoder and LUTs at full size, then the shared preprocessing)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from cxrnode.dicom.pixels import MAX_ERROR, MEAN_ERROR, REDUCED_MAX_ERROR, load_grey
from cxrnode.dicom.read import read_instance
from cxrnode.types import FloatArray
from engines.preprocess import prepare
from tests.support.make_dicom import LOSSY, SYNTAXES, chest, phantom, to_bytes

ROWS, COLUMNS = 700, 572  # 2500 x 2048 -> 1024 -> 224, all divided by 3.57
LONG_SIDE, SIDE = 287, 63
PICTURES = {(seed, odd): phantom(ROWS + odd, COLUMNS - odd, seed) for seed in (1, 2) for odd in (0, 1)}
# not the node's doing: the rounding of the picture to 8 bits and more, and what a lossy encoder loses
CODING_MEAN = MEAN_ERROR + 0.002
LOSSY_MEAN, LOSSY_MAX = 0.01, 0.1
NATIVE = ["implicit", "explicit", "deflated", "big_endian", "rle"]


def tensor(ds: Dataset, *, fast: bool = True) -> FloatArray:
    return prepare(load_grey(ds, long_side=LONG_SIDE, fast=fast).pixels, SIDE, SIDE)


def assert_same(one: FloatArray, other: FloatArray, *, mean: float = MEAN_ERROR, most: float = MAX_ERROR) -> None:
    error = np.abs(one - other)
    assert error.mean() <= mean
    assert error.max() <= most


@st.composite
def codings(draw: st.DrawFn) -> dict[str, Any]:
    """Every combination of the above that DICOM and the encoders allow."""
    syntax = draw(st.sampled_from(sorted(SYNTAXES)))
    dct = syntax in ("jpeg_baseline", "jpeg_extended")
    most = 8 if syntax == "jpeg_baseline" else 12 if dct else 16
    least = 9 if syntax == "jpeg_extended" else 8
    coding: dict[str, Any] = {
        "syntax": syntax,
        "bits_stored": draw(st.integers(least, most)),
        "signed": not dct and syntax != "jpegls_near" and draw(st.booleans()),
        "photometric": draw(st.sampled_from(["MONOCHROME1", "MONOCHROME2"])),
        "voi": draw(st.sampled_from(["none", "window", "windows", "exact", "sigmoid", "lut"])),
        "modality": draw(st.sampled_from(["none", "rescale", "lut"])),
        "kind": draw(st.sampled_from(["CR", "DX", "SC"])),
    }
    if coding["voi"] == "lut" and coding["modality"] == "rescale":
        coding["voi"] = "window"  # a LUT's index cannot be a half
    if syntax == "jpegls_near":
        coding["bits_stored"] = max(10, coding["bits_stored"])
    if syntax in NATIVE and coding["bits_stored"] < 16 and coding["bits_stored"] > 8:
        coding["high_bit"] = draw(st.sampled_from([None, 15, coding["bits_stored"] - 1]))
        coding["overlay_bits"] = coding["high_bit"] != 15 and draw(st.booleans())
    return coding


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(coding=codings(), which=st.sampled_from(sorted(PICTURES)))
def test_every_encoding_gives_the_picture(coding: dict[str, Any], which: tuple[int, int]) -> None:
    picture = PICTURES[which]
    ds = read_instance(to_bytes(chest(image=picture, **coding)))
    fast = tensor(ds)
    assert_same(fast, tensor(ds, fast=False), most=most_of(coding))
    if coding["syntax"] in LOSSY:
        assert_same(fast, prepare(picture, SIDE, SIDE), mean=LOSSY_MEAN, most=LOSSY_MAX)
    else:
        assert_same(fast, prepare(picture, SIDE, SIDE), mean=CODING_MEAN, most=most_of(coding))


def most_of(coding: dict[str, Any]) -> float:
    return REDUCED_MAX_ERROR if "j2k" in coding["syntax"] else MAX_ERROR


def users_way(ds: Dataset) -> FloatArray:
    """Shares no code with the node but `prepare`."""
    values = apply_voi_lut(apply_modality_lut(ds.pixel_array, ds), ds).astype(np.float64)
    if "VOILUTSequence" in ds:
        low, high = 0.0, 2.0 ** ds.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif "WindowCenter" not in ds:
        low, high = values.min(), values.max()
    elif "ModalityLUTSequence" in ds:
        low, high = 0.0, 2.0 ** ds.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    else:
        first = -(2 ** (ds.BitsStored - 1)) if ds.PixelRepresentation else 0
        ends = np.array([first, first + 2**ds.BitsStored - 1])
        low, high = ends * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
    shown = (values - low) / (high - low)
    shown = 1 - shown if ds.PhotometricInterpretation == "MONOCHROME1" else shown
    return prepare(shown.astype(np.float32), SIDE, SIDE)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(coding=codings(), width=st.floats(0.3, 1.6), shift=st.floats(-0.25, 0.25))
def test_any_window_agrees_with_pydicom(coding: dict[str, Any], width: float, shift: float) -> None:
    """Windows that cut off both ends of the picture, where resizing first would show."""
    coding |= {"high_bit": None, "overlay_bits": False}  # pydicom leaves those to its users
    if coding["syntax"].startswith(("big_endian", "jpeg_extended", "jpeg_lossless")):
        coding["syntax"] = "explicit"  # pydicom fails, or wants a plugin that is no dependency of this project
    if coding["modality"] == "lut":
        coding["signed"] = False  # pydicom's index overflows
    ds = chest(image=PICTURES[1, 0], **coding)
    if "WindowCenter" in ds and coding["voi"] != "windows":
        span = float(ds.WindowWidth)
        ds.WindowCenter, ds.WindowWidth = f"{float(ds.WindowCenter) + shift * span:.9g}", f"{width * span:.9g}"
    raw = to_bytes(ds)
    expected = users_way(dcmread_bytes(raw))
    assert_same(tensor(read_instance(raw)), expected, mean=CODING_MEAN, most=most_of(coding))


def dcmread_bytes(raw: bytes) -> Dataset:
    from io import BytesIO

    return dcmread(BytesIO(raw))


IMPOSSIBLE = {
    ("PALETTE COLOR", "jpeg_baseline"),  # not defined
    ("PALETTE COLOR", "big_endian"),  # read wrongly by pydicom
    ("YBR_FULL", "jpeg_lossless"),  # the tests' encoder cannot
}


@pytest.mark.parametrize(
    "syntax", ["explicit", "big_endian", "rle", "jpeg_baseline", "jpeg_lossless", "j2k", "jpegls", "htj2k"]
)
@pytest.mark.parametrize(("photometric", "planar"), [("RGB", 0), ("RGB", 1), ("YBR_FULL", 0), ("PALETTE COLOR", 0)])
def test_scanned_films_in_colour(syntax: str, photometric: str, planar: int) -> None:
    if (photometric, syntax) in IMPOSSIBLE:
        return
    picture = PICTURES[1, 0][::3, ::3]
    ds = chest(image=picture, kind="SC", bits_stored=8, syntax=syntax, photometric=photometric, planar=planar)
    assert_same(tensor(read_instance(to_bytes(ds))), prepare(picture, SIDE, SIDE), most=LOSSY_MAX)


RADIOGRAPHS = ["RG1_UNCI", "RG1_UNCR", "RG1_J2KR", "RG1_J2KI"]


@pytest.fixture(scope="module")
def real() -> dict[str, FloatArray]:
    """The four encodings of one real radiograph, the fast way, as the network gets them."""
    from pathlib import Path

    paths = {name: Path(str(get_testdata_file(f"{name}.dcm"))) for name in RADIOGRAPHS}
    return {name: prepare(load_grey(read_instance(path)).pixels, 224, 224) for name, path in paths.items()}


@pytest.mark.parametrize("name", RADIOGRAPHS)
def test_real_radiograph_in_four_encodings(real: dict[str, FloatArray], name: str) -> None:
    assert_same(real[name], real["RG1_UNCR"])


def test_real_radiograph_against_the_users_way(real: dict[str, FloatArray]) -> None:
    ds = dcmread(str(get_testdata_file("RG1_UNCR.dcm")))
    shown = apply_voi_lut(ds.pixel_array, ds) / (2**ds.BitsStored - 1)
    assert_same(real["RG1_UNCR"], prepare((1 - shown).astype(np.float32), 224, 224))


@pytest.mark.parametrize("syntax", ["explicit", "j2k", "j2k_lossy"])
def test_full_size(syntax: str) -> None:
    picture = phantom(2500, 2048, 5)
    grey = load_grey(chest(image=picture, syntax=syntax))
    assert grey.pixels.shape == (1024, 839)
    assert_same(prepare(grey.pixels, 224, 224), prepare(picture, 224, 224))
