"""The capture's picture: where everything stands, in which colours, and what the words say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import pytest

from cxrnode.report import overlay
from cxrnode.report.context import map_reference
from cxrnode.report.overlay import Layout, draw_overlay
from cxrnode.types import ByteArray, FloatArray, Prediction
from tests.support.bundles import make_bundle
from tests.support.results import NORMAL, POSITIVE, UNDETERMINED, analysed, context

GREY = 100
WHITE, PALE, AMBER, BAND = (245, 245, 245), (175, 175, 175), (255, 196, 64), (18, 18, 18)
INFERNO = {0: (0, 0, 4), 76: (101, 21, 110), 127: (187, 55, 84), 153: (221, 81, 58), 255: (252, 255, 164)}
REFERENCE = 2.0  # of the bundle


@dataclass
class Text:
    said: str
    at: tuple[int, int]
    scale: float
    colour: tuple[int, int, int]
    thickness: int

    @property
    def right(self) -> int:
        return self.at[0] + cv2.getTextSize(self.said, cv2.FONT_HERSHEY_SIMPLEX, self.scale, self.thickness)[0][0]


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """What is written while a test draws."""
    found: list[Text] = []
    draw: Callable[..., Any] = cv2.putText

    def put(canvas: Any, said: str, at: Any, font: int, scale: float, colour: Any, thickness: int, line: int) -> None:
        assert (font, line) == (cv2.FONT_HERSHEY_SIMPLEX, cv2.LINE_AA)
        found.append(Text(said, at, scale, colour, thickness))
        draw(canvas, said, at, font, scale, colour, thickness, line)

    monkeypatch.setattr(cv2, "putText", put)
    return found


def predicted(probabilities: tuple[float, ...] = POSITIVE, engine: str = "cpu") -> Prediction:
    made = analysed(probabilities=probabilities).prediction
    assert made is not None
    return replace(made, engine=engine)


def draw(
    strength: float, rows: int = 512, columns: int = 420, *, long_side: int = 1024, said: Prediction | None = None
) -> ByteArray:
    """A grey film under a map that is the same everywhere."""
    film, heat = np.full((rows, columns), GREY, np.uint8), np.full((5, 5), strength, np.float32)
    return draw_overlay(film, heat, said or predicted(), context(), long_side=long_side)


# --- where things are


@pytest.mark.parametrize(
    ("rows", "columns", "long_side", "expected"),
    [
        (512, 420, 1024, Layout(width=668, height=1024, top=118, left=0, image_width=668, image_height=814, unit=1.0)),
        (1024, 300, 1024, Layout(width=640, height=1024, top=118, left=201, image_width=238, image_height=814,
                                 unit=1.0)),
        (300, 1024, 1024, Layout(width=1024, height=510, top=118, left=0, image_width=1024, image_height=300,
                                 unit=1.0)),
        (1024, 300, 512, Layout(width=320, height=512, top=59, left=100, image_width=119, image_height=407, unit=0.5)),
        (5000, 1, 512, Layout(width=320, height=512, top=59, left=159, image_width=1, image_height=407, unit=0.5)),
        (1, 5000, 512, Layout(width=512, height=106, top=59, left=0, image_width=512, image_height=1, unit=0.5)),
    ],
)  # fmt: skip
def test_the_layout(rows: int, columns: int, long_side: int, expected: Layout) -> None:
    assert Layout.of(rows, columns, long_side) == expected
    assert Layout.of(rows, columns) == Layout.of(rows, columns, 1024)


def test_the_film_stands_between_two_bands_and_black_sides(texts: list[Text]) -> None:
    picture = draw(0.0, 1024, 300)
    assert texts
    assert (picture[117, [0, 639]] == BAND).all()
    assert (picture[118:932, 201:439] == GREY).all()
    assert (picture[118:932, :201] == 0).all()
    assert (picture[118:932, 439:] == 0).all()
    assert (picture[[0, 1, 2, 932, 933, 934, 1023]] == BAND).all()


def test_every_word_has_its_place(texts: list[Text]) -> None:
    draw(1.0)
    digest = make_bundle().digest[:12]
    assert [(t.said, t.at, t.colour, t.thickness) for t in texts] == [
        ("NOT FOR DIAGNOSTIC USE - research use only", (16, 30), AMBER, 1),
        ("COVID   probability 0.930   (present at 0.5)", (16, 70), WHITE, 2),
        ("covid 0.930 present   |   viral 0.050 absent   |   normal 0.020 absent", (16, 102), PALE, 1),
        ("0", (16, 982), PALE, 1),
        ("2", (208, 982), PALE, 1),
        ("Grad-CAM of 'covid': brighter raised its score more", (236, 960), WHITE, 1),
        ("raw scale 0 to 2, this image's maximum 1", (236, 982), WHITE, 1),
        (f"Model cxr3-test 1.0.0   bundle {digest}   cxrnode 0.1.0", (16, 1012), PALE, 1),
    ]
    assert [t.scale for t in texts] == pytest.approx([0.62, 0.95, 0.55, 0.42, 0.42, 0.5, 0.5, 0.5])
    assert texts[4].right == 216  # the bar's end


def test_it_all_shrinks_with_the_picture(texts: list[Text]) -> None:
    draw(1.0)
    large = list(texts)
    texts.clear()
    draw(1.0, long_side=512)
    assert [t.said for t in texts] == [t.said for t in large]
    for small, big in zip(texts, large, strict=True):
        assert small.at == pytest.approx([v / 2 for v in big.at], abs=1)
        assert small.scale == pytest.approx(big.scale / 2, rel=0.03)


def test_without_a_map_there_is_no_scale(texts: list[Text]) -> None:
    draw(0.0)
    assert [(t.said, t.at, t.scale) for t in texts[3:-1]] == [
        ("Grad-CAM of 'covid': NO MAP (it is zero everywhere)", (16, 966), 0.55)
    ]


@pytest.mark.parametrize("long_side", [512, 1024, 1500])
def test_no_word_leaves_the_picture(texts: list[Text], long_side: int) -> None:
    labels = tuple(x.model_copy(update={"name": x.name * 12}) for x in make_bundle().labels)
    film, heat = np.full((1024, 300), GREY, np.uint8), np.ones((5, 5), np.float32)
    draw_overlay(film, heat, predicted(), context(make_bundle(labels=labels)), long_side=long_side)
    unit = long_side / 1024
    for t in texts:
        assert t.right <= (640 - 16) * unit + 1
    shrunk = [t for t in texts if t.said.startswith(("COVIDCOVID", "covidcovid"))]
    assert len(shrunk) == 2
    assert all(t.right >= 0.6 * 640 * unit for t in shrunk)  # no smaller than it must be; glyphs have whole pixels


# --- what the words say


@pytest.mark.parametrize(
    ("probabilities", "finding", "labels", "mapped"),
    [
        (NORMAL, "NORMAL   probability 0.970   (present at 0.5)",
         "covid 0.010 absent   |   viral 0.020 absent   |   normal 0.970 present", "normal"),
        (UNDETERMINED, "UNDETERMINED",
         "covid 0.400 undetermined   |   viral 0.300 undetermined   |   normal 0.300 undetermined", "covid"),
        ((0.2, 0.6004, 0.1996), "VIRAL   probability 0.600   (present at 0.5)",
         "covid 0.200 undetermined   |   viral 0.600 present   |   normal 0.200 absent", "viral"),
    ],
)  # fmt: skip
def test_the_finding_in_words(probabilities: tuple[float, ...], finding: str, labels: str, mapped: str) -> None:
    words = overlay._words(predicted(probabilities), context(), 1.0, 2.0)
    assert (words.finding, words.labels) == (finding, labels)
    assert words.map_of.startswith(f"Grad-CAM of '{mapped}': ")


@pytest.mark.parametrize(
    ("strength", "top", "scale", "shows"),
    [
        (0.0, 2.0, "", "NO MAP (it is zero everywhere)"),
        (0.199, 2.0, "raw scale 0 to 2, this image's maximum 0.199",
         "TOO WEAK TO SHOW (no place raised its score much)"),
        (0.2, 2.0, "raw scale 0 to 2, this image's maximum 0.2", "brighter raised its score more"),
        (1234.5, 1234.5, "raw scale 0 to 1.23e+03, this image's maximum 1.23e+03", "brighter raised its score more"),
        (0.5, 0.5, "raw scale 0 to 0.5, this image's maximum 0.5", "brighter raised its score more"),
    ],
)  # fmt: skip
def test_the_scale_in_words(strength: float, top: float, scale: str, shows: str) -> None:
    words = overlay._words(predicted(), context(), strength, top)
    assert (words.scale, words.map_of) == (scale, f"Grad-CAM of 'covid': {shows}")


# --- colours


def blended(share: float, grey: int) -> list[float]:
    """Grey and colour in the shares that the module promises: nothing up to a tenth of the scale, 0.6 from six on."""
    step = min(max((share - 0.1) / 0.5, 0), 1)
    opacity = 0.6 * step * step * (3 - 2 * step)
    return [opacity * c + (1 - opacity) * grey for c in INFERNO[int(share * 255)]]


@pytest.mark.parametrize(
    ("strength", "share"), [(0.6, 0.3), (1.0, 0.5), (1.2, 0.6001), (2.0, 1.0), (3.0, 1.0), (7.0, 1.0)]
)
def test_the_colour_goes_from_dark_to_bright_with_the_map(strength: float, share: float) -> None:
    """By the bundle's reference, or where the map is stronger by its own maximum."""
    film = draw(strength)[118:932]
    assert np.ptp(film, axis=(0, 1)).max() <= 2
    assert film[0, 0] == pytest.approx(blended(share, GREY), abs=2)


def test_a_map_of_a_tenth_of_the_scale_leaves_the_film_as_it_is() -> None:
    assert (draw(0.2)[118:932] == GREY).all()
    assert (draw(0.3)[118:932] != GREY).any()


@pytest.mark.filterwarnings("error")
def test_a_map_of_nothing_has_no_scale_where_the_bundle_states_none() -> None:
    manifest = make_bundle().manifest.model_copy(update={"calibration": {}})
    bundle = replace(make_bundle(), manifest=manifest, digest="states nothing")
    film, heat = np.full((512, 420), GREY, np.uint8), np.zeros((5, 5), np.float32)
    assert (draw_overlay(film, heat, predicted(), context(bundle))[118:932] == GREY).all()
    picture = draw_overlay(film, heat + np.float32(0.25), predicted(), context(bundle))  # then by its own maximum
    assert picture[500, 300] == pytest.approx(blended(1.0, GREY), abs=2)


def test_the_opacity_by_the_level_of_the_map() -> None:
    assert overlay._ALPHA[:27].max() == 0
    assert (np.diff(overlay._ALPHA.astype(int)) >= 0).all()
    assert (overlay._ALPHA[152] < 153, set(overlay._ALPHA[154:].tolist())) == (True, {153})  # 0.6 of 255


def test_the_bar_shows_the_colours_on_mid_grey() -> None:
    picture = draw(1.0)
    frame = picture[948:966, 16:216]
    assert (frame[[0, -1]] == PALE).all()
    assert (frame[:, [0, -1]] == PALE).all()
    inside = frame[1:-1, 1:-1]
    assert (inside == inside[:1]).all()
    assert (inside[:, 0] == 96).all()
    assert inside[0, -1] == pytest.approx(blended(1.0, 96), abs=6)  # the frame covers its last column
    middle = 98  # column 99 of 0 to 199
    assert inside[0, middle] == pytest.approx(blended(0.5, 96), abs=3)
    assert (picture[945:947, :230] == BAND).all()
    assert (picture[967:969, :230] == BAND).all()
    assert (picture[948:966, :16] == BAND).all()
    assert (picture[948:966, 216:230] == BAND).all()
    small = draw(1.0, long_side=512)
    assert (small[474:483, [8, 107]] == PALE).all()
    assert (small[474:483, [7, 108]] == BAND).all()


# --- how it is drawn


def square(side: int) -> Layout:
    return Layout(width=side, height=side, top=0, left=0, image_width=side, image_height=side, unit=1.0)


def test_a_map_of_64_times_64_is_shown_as_it_is() -> None:
    heat = np.random.default_rng(5).random((64, 64), np.float32) * 3
    expected = (np.minimum(heat / np.float32(2), 1) * 255).astype(np.uint8)
    assert (overlay._heat(heat, square(64), 2.0) == expected).all()


def test_a_small_map_has_a_smooth_shape() -> None:
    heat = np.zeros((5, 5), np.float32)
    heat[:, 2] = 1.0
    levels = overlay._heat(heat, square(640), 1.0)
    ridge = levels[320].astype(int)
    assert (ridge.max(), ridge.min()) == (pytest.approx(255, abs=1), 0)
    slopes = np.diff(ridge[::10])
    assert abs(np.diff(slopes)).max() < 30  # straight lines from 0 to the ridge and back turn by 40 at once


@pytest.mark.parametrize(
    ("times", "interpolation"), [(1.9, cv2.INTER_LINEAR), (2, cv2.INTER_AREA), (3, cv2.INTER_AREA)]
)
def test_several_pixels_that_become_one_are_averaged(times: float, interpolation: int) -> None:
    film = np.zeros((int(100 * times), 7), np.uint8)
    assert overlay._interpolation(film, square(100)) == interpolation


def test_a_fine_pattern_becomes_grey_and_not_another_pattern() -> None:
    rows, columns = int(814 * 2.5), 1500
    film = np.zeros((rows, columns), np.uint8)
    film[::2] = 200
    picture = draw_overlay(film, np.zeros((5, 5), np.float32), predicted(), context())
    at = Layout.of(rows, columns)
    shown: FloatArray = picture[at.top : at.top + at.image_height, at.left + 5].astype(np.float32)
    assert shown.mean() == pytest.approx(100, abs=2)
    assert shown.std() < 25


def test_a_bundle_s_reference_is_the_scale() -> None:
    assert map_reference(make_bundle()) == REFERENCE
