"""The tone code by code: the formulas of PS3.3 C.11.1 and C.11.2 at their ends, each limit at its edge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom import uid as uids

from cxrnode.dicom.codecs import Codes
from cxrnode.dicom.tone import Padding, Ramp, Table, is_inverted, padding_of, tone_of

# every code of twelve bits once, in a picture with neighbours that differ
ALL = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def codes(picture: Any = ALL, *, bits: int = 12, offset: int = 0, colour: bool = False) -> Codes:
    return Codes(codes=np.asarray(picture, np.uint16), bits=bits, offset=offset, colour=colour)


def header(**said: Any) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID = uids.DigitalXRayImageStorageForPresentation
    ds.PhotometricInterpretation = "MONOCHROME2"
    for keyword, value in said.items():
        setattr(ds, keyword, value)
    return ds


def shown(ds: Dataset, *values: float, of: Codes | None = None, padding: Padding | None = None) -> list[float]:
    """What the codes of these values are shown as."""
    tone = tone_of(ds, of or codes(), padding)
    return [round(float(v), 4) for v in tone(np.array(values))]


def window(center: float, width: float, function: str = "LINEAR", **more: Any) -> Dataset:
    return header(WindowCenter=str(center), WindowWidth=str(width), VOILUTFunction=function, **more)


# -- windows (C.11.2.1.2 and C.11.2.1.3)


def test_a_linear_window_ends_at_center_minus_half_of_width_minus_one() -> None:
    """y = (x - (c - 0.5)) / (w - 1) + 0.5: for c = 2048 and w = 4096 from 0 to 4095."""
    assert shown(window(2048, 4096), 0, 4095, 2047.5) == [0.0, 1.0, 0.5]
    assert shown(window(1000, 201), 899, 900, 899.5, 999.5, 1099, 1099.5) == [0.0, 0.0025, 0.0, 0.5, 0.9975, 1.0]


def test_a_linear_exact_window_ends_at_center_minus_half_of_width() -> None:
    assert shown(window(1000, 200, "LINEAR_EXACT"), 900, 901, 1000, 1100) == [0.0, 0.005, 0.5, 1.0]


def test_a_sigmoid_window_is_the_standard_s() -> None:
    expected = [round(1 / (1 + np.exp(-4 * (x - 2000) / 1000)), 4) for x in (1000, 2000, 2500)]
    assert shown_table(window(2000, 1000, "SIGMOID"), 1000, 2000, 2500) == expected


def shown_table(ds: Dataset, *values: int, of: Codes | None = None) -> list[float]:
    tone = tone_of(ds, of or codes(), None)
    assert isinstance(tone, Table)
    return [round(float(v), 4) for v in tone(np.array(values))]


@pytest.mark.parametrize(("function", "width"), [("LINEAR", 1), ("LINEAR", 0.5), ("LINEAR_EXACT", 0), ("SIGMOID", -5)])
def test_a_width_that_the_standard_forbids_is_left_out(function: str, width: float) -> None:
    assert shown(window(2000, width, function), 0, 4095) == shown(header(), 0, 4095)


def test_a_window_is_of_the_values_after_the_rescale() -> None:
    ds = window(0, 1001, RescaleSlope="2", RescaleIntercept="-4000")  # values -500.5 to 499.5
    assert shown(ds, 1749, 1750, 2250) == [0.0, 0.0005, 1.0]
    signed = codes(offset=2048)
    assert shown(window(0, 1001), 2048 - 501, 2048, 2048 + 500, of=signed) == [0.0, 0.5005, 1.0]


def test_a_rescale_wants_both_and_no_slope_of_zero() -> None:
    plain = shown(window(2000, 1001), 1500, 2000, 2500)
    for half in ({"RescaleSlope": "2"}, {"RescaleIntercept": "9"}, {"RescaleSlope": "0", "RescaleIntercept": "9"}):
        assert shown(window(2000, 1001, **half), 1500, 2000, 2500) == plain


@pytest.mark.parametrize(("inside", "is_used"), [(82, True), (81, False)])
def test_a_window_that_shows_a_fiftieth_of_the_picture_is_used(inside: int, is_used: bool) -> None:
    """82 of 4096 pixels are 2 %, 81 are less; the others lie on both sides of the window."""
    picture = np.where(np.arange(4096) % 2, 4000, 100)
    picture[1000 : 1000 + inside] = 2000
    tone = tone_of(window(2000, 1001), codes(picture.reshape(64, 64)), None)
    assert (tone == Ramp(black=1499.5, white=2499.5)) is is_used


@pytest.mark.parametrize(("spread", "is_used"), [(61, True), (59, False)])
def test_a_window_that_leaves_three_hundredths_of_contrast_is_used(spread: int, is_used: bool) -> None:
    """Half of the pixels lie `spread` above the others: of a window of 1000, the deviation is spread / 2000."""
    picture = np.where(np.arange(4096) % 2, 2000 + spread, 2000).reshape(64, 64)
    tone = tone_of(window(2000, 1000, "LINEAR_EXACT"), codes(picture), None)
    assert (tone == Ramp(black=1500.0, white=2500.0)) is is_used


def test_without_a_window_all_but_the_outermost_two_thousandth_of_the_pixels_sets_the_range() -> None:
    tone = tone_of(header(), codes(), None)  # 0.0005 of 4095 is 2.05
    assert tone == Ramp(black=2.0, white=4093.0)
    assert tone_of(header(), codes(np.full((64, 64), 7)), None) == Ramp(black=7.0, white=8.0)


def test_padding_sets_no_range() -> None:
    picture = ALL.copy()
    picture[:32] = 9
    ramp = tone_of(header(), codes(picture), Padding(low=9, high=9))
    assert isinstance(ramp, Ramp)
    assert (ramp.black, ramp.white) == (2049.0, 4094.0)


def test_colour_is_shown_as_it_is() -> None:
    assert tone_of(window(10, 10), codes(bits=8, colour=True), None) == Ramp(black=0.0, white=255.0)


# -- what is dark


@pytest.mark.parametrize(
    ("said", "inverted"),
    [({}, False), ({"PhotometricInterpretation": "MONOCHROME1"}, True), ({"PresentationLUTShape": "INVERSE"}, True),
     ({"PresentationLUTShape": "IDENTITY"}, False),
     ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"}, True)],
    ids=str,
)  # fmt: skip
def test_what_shows_small_values_white(said: dict[str, Any], inverted: bool) -> None:
    ds = header(**{"WindowCenter": "2048", "WindowWidth": "4096"} | said)
    assert is_inverted(ds) is inverted
    assert shown(ds, 0, 4095) == ([1.0, 0.0] if inverted else [0.0, 1.0])
    # the sign speaks of detector data alone
    ds.PixelIntensityRelationshipSign = 1
    assert is_inverted(ds) is inverted


@pytest.mark.parametrize(
    ("sign", "photometric", "inverted"),
    [(1, "MONOCHROME2", True), (-1, "MONOCHROME1", False), (0, "MONOCHROME1", True), (2, "MONOCHROME2", False)],
)
def test_of_detector_data_the_sign_decides(sign: int, photometric: str, inverted: bool) -> None:
    ds = header(PhotometricInterpretation=photometric, PixelIntensityRelationshipSign=sign)
    ds.SOPClassUID = uids.DigitalXRayImageStorageForProcessing
    assert is_inverted(ds) is inverted


def test_linear_detector_data_are_made_logarithmic() -> None:
    ds = header(PixelIntensityRelationshipSign=1, PixelIntensityRelationship="LIN")
    ds.SOPClassUID = uids.DigitalXRayImageStorageForProcessing
    low, high = np.log1p(2.0), np.log1p(4093.0)  # the ends of the range that is shown
    (middle,) = shown_table(ds, 100)
    assert middle == pytest.approx(1 - (np.log1p(100.0) - low) / (high - low), abs=2e-4)


# -- look-up tables (C.11.1.1 and C.11.2.1.1)


def lut(descriptor: list[int], data: Any, keyword: str = "VOILUTSequence", **said: Any) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", descriptor)
    item.add_new("LUTData", "US", data)
    return header(**{keyword: [item]} | said)


def test_a_table_begins_at_its_first_value_and_holds_its_ends_beyond() -> None:
    ds = lut([3, 1000, 8], [0, 128, 255], WindowCenter="10", WindowWidth="10")
    picture = np.where(np.arange(4096) % 2, 1001, 1002).reshape(64, 64)
    assert shown_table(ds, 0, 1000, 1001, 1002, 4095, of=codes(picture)) == [0.0, 0.0, 0.502, 1.0, 1.0]


def test_a_table_goes_before_a_window_and_a_modality_table_before_a_rescale() -> None:
    squares = [min(4095, n * n // 4096) for n in range(4096)]
    ds = lut([4096, 0, 12], squares, "ModalityLUTSequence", RescaleSlope="9", RescaleIntercept="9")
    ds.WindowCenter, ds.WindowWidth = "2048", "4096"
    assert shown_table(ds, 0, 2048, 4095) == [0.0, round(1024 / 4095, 4), round(squares[-1] / 4095, 4)]


@pytest.mark.parametrize(
    ("bits", "top", "shown_as"), [(12, 4095, 1.0), (12, 2048, 0.5001), (12, 2047, 1.0), (8, 256, 1.0)]
)
def test_a_depth_that_the_entries_contradict_gives_way_to_them(bits: int, top: int, shown_as: float) -> None:
    """Entries above what the bits hold, or all below half of it."""
    ds = lut([4096, 0, bits], [n * top // 4095 for n in range(4096)])
    assert shown_table(ds, 0, 4095) == [0.0, shown_as]


@pytest.mark.parametrize(("first", "offset", "begins"), [(63488, 2048, 0), (32767, 0, None), (100, 2048, 2148)])
def test_a_first_value_is_signed_where_the_values_are(first: int, offset: int, begins: int | None) -> None:
    ramp = list(range(0, 4096, 16))
    ds = lut([256, first, 12], ramp)
    tone = tone_of(ds, codes(offset=offset), None)
    if begins is None:  # begins beyond all values: blank, so the range is shown
        assert isinstance(tone, Ramp)
    else:
        assert [round(float(v) * 4095) for v in tone(np.array([begins, begins + 1, begins + 255]))] == [0, 16, 4080]


# -- padding (C.7.5.1.1.2)


def padded(first: int, last: int | None = None, *, covered: int = 0, **how: Any) -> Padding | None:
    """Of an 80 x 80 picture; `covered` of the hundred pixels that are looked at in its middle have the value 100."""
    picture = np.full((80, 80), 2000, np.uint16)
    middle = np.full(100, 2000, np.uint16)
    middle[:covered] = 100
    picture[20:60:4, 20:60:4] = middle.reshape(10, 10)
    ds = header(PixelPaddingValue=first, **({} if last is None else {"PixelPaddingRangeLimit": last}))
    return padding_of(ds, codes(picture, **how))


@pytest.mark.parametrize(("covered", "is_padding"), [(0, True), (5, True), (6, False)])
def test_padding_may_cover_a_twentieth_of_the_middle(covered: int, is_padding: bool) -> None:
    assert (padded(100, covered=covered) is not None) is is_padding
    assert (padded(90, 110, covered=covered) is not None) is is_padding
    assert (padded(100, 110, covered=covered) is not None) is is_padding
    assert (padded(90, 100, covered=covered) is not None) is is_padding


@pytest.mark.parametrize(
    ("first", "last", "offset", "expected"),
    [
        (0, None, 0, (0, 0)), (4095, None, 0, (4095, 4095)), (4096, None, 0, None), (-1, None, 0, None),
        (-5, 3, 0, (0, 3)), (10, 5, 0, (5, 10)), (4000, 9000, 0, (4000, 4095)), (-2000, None, 2048, (48, 48)),
        (63536, None, 2048, (48, 48)), (65535, None, 2048, (2047, 2047)), (65536, None, 2048, None),
        (63488, None, 2048, (0, 0)), (63487, None, 2048, None),
    ],
)  # fmt: skip
def test_padding_is_what_the_stored_bits_can_hold(
    first: int, last: int | None, offset: int, expected: tuple[int, int] | None
) -> None:
    found = padded_dataset(first, last, offset)
    assert (None if found is None else (found.low, found.high)) == expected


def padded_dataset(first: int, last: int | None, offset: int) -> Padding | None:
    ds = header()
    ds.add_new("PixelPaddingValue", "SL", first)  # whatever the VR, the value counts
    if last is not None:
        ds.add_new("PixelPaddingRangeLimit", "SL", last)
    return padding_of(ds, codes(np.full((80, 80), 2500), offset=offset))


def test_colour_has_no_padding() -> None:
    assert padding_of(header(PixelPaddingValue=100), codes(np.full((80, 80), 7), bits=8, colour=True)) is None
