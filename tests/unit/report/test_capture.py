"""The capture's picture and object."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread

from cxrnode.errors import ResultError
from cxrnode.report import overlay
from cxrnode.report.capture import build_capture
from cxrnode.report.context import map_reference
from cxrnode.report.encode import decode, encode
from cxrnode.report.overlay import Layout, draw_overlay
from cxrnode.types import ByteArray, FloatArray
from tests.support.bundles import make_bundle
from tests.support.results import LATE_AT, SCENARIOS, analysed, cam, check, context, header, preview, rejected

NO_MAP = np.zeros((5, 5), np.float32)


def draw(picture: ByteArray, heat: FloatArray, long_side: int = 1024) -> ByteArray:
    prediction = analysed().prediction
    assert prediction is not None
    return draw_overlay(picture, heat, prediction, context(), long_side=long_side)


def film(picture: ByteArray, shape: tuple[int, int], long_side: int = 1024) -> ByteArray:
    """The radiograph's part of the picture."""
    at = Layout.of(shape[0], shape[1], long_side)
    return picture[at.top : at.top + at.image_height, at.left : at.left + at.image_width]


@pytest.mark.parametrize(
    ("rows", "columns"), [(1024, 850), (850, 1024), (1024, 1024), (1024, 300), (300, 1024), (64, 56)]
)
@pytest.mark.parametrize("long_side", [512, 1024, 2048])
def test_the_long_side_is_kept_and_so_is_the_aspect_ratio(rows: int, columns: int, long_side: int) -> None:
    picture = draw(preview(rows, columns), cam(), long_side)
    assert max(picture.shape) == long_side
    at = Layout.of(rows, columns, long_side)
    assert at.image_width / at.image_height == pytest.approx(columns / rows, rel=0.01)


def test_without_a_map_the_radiograph_stays_as_it_is() -> None:
    shown = film(draw(preview(), NO_MAP), (512, 420))
    assert (shown == shown[..., :1]).all()


def test_a_weak_map_stays_faint() -> None:
    """Scaled by the bundle's reference (2.0), never stretched to the image's own maximum."""
    clean = film(draw(preview(), NO_MAP), (512, 420)).astype(int)
    change = [np.abs(film(draw(preview(), cam(top)), (512, 420)) - clean).max() for top in (0.1, 0.6, 2.0)]
    assert change[0] == 0
    assert 0 < change[1] < change[2] / 2


@pytest.mark.parametrize(
    ("strength", "says"), [(0.0, "NO MAP"), (0.19, "TOO WEAK TO SHOW"), (0.21, "brighter raised its score more")]
)
def test_a_picture_without_colour_says_why(strength: float, says: str) -> None:
    prediction = analysed().prediction
    assert prediction is not None
    assert says in overlay._words(prediction, context(), strength, 2.0).map_of


def test_the_colour_is_strongest_where_the_map_is() -> None:
    heat = np.zeros((5, 5), np.float32)
    heat[1, 3] = 3.0
    shown = film(draw(preview(), heat), (512, 420)).astype(int)
    colour = np.abs(shown[..., 0] - shown[..., 2])
    row, column = np.unravel_index(int(colour.argmax()), colour.shape)
    assert (int(row * 5 / shown.shape[0]), int(column * 5 / shown.shape[1])) == (1, 3)


def test_words_stand_outside_the_radiograph() -> None:
    at = Layout.of(512, 420)
    picture = draw(preview(), cam())
    assert picture[: at.top].max() > 200
    assert picture[at.top + at.image_height :].max() > 150


def test_a_bundle_that_states_no_reference_scales_by_the_image() -> None:
    manifest = make_bundle().manifest.model_copy(update={"calibration": {}})
    assert map_reference(replace(make_bundle(), manifest=manifest, digest="none")) is None


@pytest.mark.parametrize("name", [n for n in SCENARIOS if any(i.prediction for i in SCENARIOS[n]())])
def test_every_capture_passes_the_checker_and_survives_its_file(name: str) -> None:
    image = next(i for i in SCENARIOS[name]() if i.prediction is not None)
    ds = build_capture(image, preview(), cam(), context())
    check(ds, [image])
    data = encode(ds)
    check(decode(data), [image])
    again = dcmread(BytesIO(data))
    assert encode(build_capture(image, preview(), cam(), context())) == data
    assert again.pixel_array.shape == (ds.Rows, ds.Columns, 3)


@pytest.mark.parametrize("long_side", [256, 512])
def test_the_picture_has_the_size_that_was_asked_for(long_side: int) -> None:
    ds = build_capture(analysed(), preview(), cam(), context(), long_side=long_side)
    assert max(ds.Rows, ds.Columns) == long_side
    assert ds.Rows > ds.Columns


def test_the_file_meta_is_complete() -> None:
    meta = dcmread(BytesIO(encode(build_capture(analysed(), preview(), cam(), context())))).file_meta
    assert meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert meta.ImplementationClassUID.startswith("2.25.")
    assert meta.ImplementationVersionName == "CXRNODE"


def test_an_odd_number_of_pixel_bytes_is_padded() -> None:
    ds = build_capture(analysed(), preview(), cam(), context(), long_side=1023)
    assert len(ds.PixelData) % 2 == 0
    check(ds, [analysed()])


@pytest.mark.parametrize("lie", [["L", "F"], ["R", "H"], ["FR", "L"]])
def test_the_orientation_is_that_of_the_upright_picture_where_the_source_states_one(lie: list[str]) -> None:
    image = analysed(header(overrides={"PatientOrientation": lie}))
    ds = build_capture(image, preview(), cam(), context())
    assert list(ds.PatientOrientation) == ["L", "F"]
    turned = {"L": "", "R": "turned upright from R, H", "FR": "turned upright from F, L"}[lie[0]]
    assert turned in ds.DerivationDescription
    assert ("turned" in ds.DerivationDescription) == bool(turned)
    check(ds, [image])


def test_no_orientation_is_stated_that_the_source_does_not_state() -> None:
    dirty = build_capture(SCENARIOS["dirty"]()[0], preview(), cam(), context())
    assert dirty.PatientOrientation is None or dirty.PatientOrientation == ""


@pytest.mark.parametrize(("number", "expected"), [(0, 0), (7, 7), (None, 1), (-3, -3)])
def test_the_instance_number_is_the_source_s(number: int | None, expected: int) -> None:
    image = analysed(header(overrides={"InstanceNumber": number}))
    ds = build_capture(image, preview(), cam(), context())
    check(ds, [image])
    assert ds.InstanceNumber == expected


def test_once_lossy_always_lossy() -> None:
    """PS3.3 C.7.6.1.1.5; with the ratio and the method where the source says them."""
    lossy = {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": "12.5",
        "LossyImageCompressionMethod": "ISO_10918_1",
    }

    def told(**overrides: str) -> list[str | None]:
        ds = build_capture(analysed(header(overrides=overrides)), preview(64, 56), cam(), context(), long_side=256)
        return [None if ds.get(k) is None else str(ds.get(k)) for k in lossy]

    assert told(**lossy) == list(lossy.values())
    assert told(LossyImageCompression="01") == ["01", None, None]
    assert told(LossyImageCompressionRatio="12.5") == told(**{**lossy, "LossyImageCompression": "00"}) == [None] * 3


def test_only_the_causes_shape_the_uid() -> None:
    image, here = analysed(), context()
    uid = build_capture(image, preview(), cam(), here).SOPInstanceUID
    assert build_capture(image, preview(), cam(), context(at=LATE_AT)).SOPInstanceUID == uid
    others = {
        build_capture(image, preview(), cam(), here, long_side=512).SOPInstanceUID,
        build_capture(replace(image, pixel_digest="0"), preview(), cam(), here).SOPInstanceUID,
        build_capture(image, preview(), cam(), context(make_bundle(version="2"))).SOPInstanceUID,
    }
    assert len(others | {uid}) == 4


def test_no_capture_of_what_was_not_analysed() -> None:
    with pytest.raises(ResultError, match="not analysed"):
        build_capture(rejected(), preview(), cam(), context())
