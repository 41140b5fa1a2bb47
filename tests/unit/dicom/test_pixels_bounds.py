"""When a picture is no radiograph any more: each limit of `pixels` at its edge."""

from __future__ import annotations

import numpy as np
import pytest

from cxrnode.dicom.pixels import PREVIEW_LONG_SIDE, REDUCED_LEAST, _check_plausible, load_grey
from cxrnode.errors import Rejected
from cxrnode.types import FloatArray, Reason
from tests.support.make_dicom import chest, phantom


def refused(pixels: FloatArray) -> str:
    try:
        _check_plausible(pixels)
    except Rejected as e:
        return e.rejection.detail if e.rejection.reason is Reason.IMPLAUSIBLE_PIXELS else str(e)
    return ""


@pytest.mark.parametrize(
    ("shape", "fits"), [((64, 320), True), ((320, 64), True), ((64, 321), False), ((63, 100), False)]
)
def test_a_film_is_at_least_64_pixels_wide_and_at_most_five_times_as_long(shape: tuple[int, int], fits: bool) -> None:
    ds = chest(image=phantom(*shape, 3))
    if fits:
        grey = load_grey(ds)
        assert (grey.rows, grey.columns) == shape
        return
    with pytest.raises(Rejected, match=f"{shape[1]} x {shape[0]} pixels"):
        load_grey(ds)


def wedge(low: float, high: float) -> FloatArray:
    """A ramp from left to right: its standard deviation is (high - low) / sqrt(12)."""
    return np.tile(np.linspace(low, high, 400, dtype=np.float32), (400, 1))


@pytest.mark.parametrize(("deviation", "fits"), [(0.0101, True), (0.0099, False)])
def test_a_picture_whose_grey_values_differ_by_less_than_a_hundredth_is_constant(deviation: float, fits: bool) -> None:
    spread = deviation * np.sqrt(12)
    said = refused(wedge(0.5 - spread / 2, 0.5 + spread / 2))
    assert said == ("" if fits else "the image is constant, or nearly so")


@pytest.mark.parametrize(("black", "fits"), [(0.975, True), (0.985, False)])
@pytest.mark.parametrize(("dark", "light"), [(0.0, 1.0), (0.004, 0.996)])
def test_collimation_may_black_out_nearly_all(black: float, fits: bool, dark: float, light: float) -> None:
    pixels = wedge(0.1, 0.9)
    rows = round(400 * black)
    pixels[: rows // 2], pixels[rows // 2 : rows] = dark, light
    assert refused(pixels) == ("" if fits else "98 % of the pixels are black or white")


@pytest.mark.parametrize("value", [0.005, 0.995])
def test_nearly_black_and_nearly_white_are_grey_values(value: float) -> None:
    pixels = wedge(0.1, 0.9)
    pixels[:395] = value
    assert refused(pixels) == ""


@pytest.mark.parametrize(("related", "fits"), [(0.55, True), (0.45, False)])
def test_neighbours_are_related_by_half_at_least(related: float, fits: bool) -> None:
    """Each value is partly the one before it (an autoregressive row), so that neighbours correlate by so much."""
    chance = np.random.default_rng(7)
    pixels = np.empty((800, 800))
    pixels[:, 0] = chance.normal(size=800)
    for k in range(1, 800):
        pixels[:, k] = related * pixels[:, k - 1] + np.sqrt(1 - related**2) * chance.normal(size=800)
    grey = np.clip(0.5 + 0.12 * pixels, 0.01, 0.99).astype(np.float32)
    assert refused(grey) == ("" if fits else "neighbouring pixels are unrelated: noise")


@pytest.mark.parametrize(
    ("shape", "long_side", "size"),
    [((200, 100), 200, (200, 100)), ((200, 100), 100, (100, 50)), ((200, 101), 100, (100, 50)),
     ((200, 103), 100, (100, 52)), ((100, 200), 1024, (100, 200))],
)  # fmt: skip
def test_the_long_side_is_what_was_asked_and_the_other_is_rounded(
    shape: tuple[int, int], long_side: int, size: tuple[int, int]
) -> None:
    for fast in (True, False):
        assert load_grey(chest(image=phantom(*shape, 3)), long_side=long_side, fast=fast).pixels.shape == size


def test_what_the_node_asks_for() -> None:
    assert (PREVIEW_LONG_SIDE, REDUCED_LEAST) == (1024, 512)
