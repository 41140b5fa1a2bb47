"""The Image Pixel module at its limits (PS3.3 section C.7.6.3), and stored bits cut out of allocated ones."""

from __future__ import annotations

from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom import Dataset
from pydicom import uid as uids
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate

from cxrnode.dicom import budget
from cxrnode.dicom.codecs import Codes, _check_stream, decode, layout
from cxrnode.dicom.codestream import Codestream
from cxrnode.errors import Rejected
from cxrnode.types import Reason


def film(pixels: Any = None, *, little: bool = True, **said: Any) -> Dataset:
    """A native image of four rows and six columns, 12 of 16 bits."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uids.ExplicitVRLittleEndian if little else uids.ExplicitVRBigEndian
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 4, 6, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    words = np.arange(24, dtype="<u2") if pixels is None else np.asarray(pixels)
    ds.PixelData = words.tobytes()
    ds["PixelData"].VR = "OW"
    for keyword, value in said.items():
        setattr(ds, keyword, value)
    ds.set_original_encoding(False, little)
    return ds


def codes(ds: Dataset, *, fast: bool = True) -> Codes:
    return decode(ds, layout(ds), least=1, fast=fast)


def reason(ds: Dataset) -> Reason | None:
    try:
        codes(ds)
    except Rejected as e:
        return e.rejection.reason
    return None


@pytest.mark.parametrize(
    ("said", "why"),
    [({}, None), ({"BitsStored": 16, "HighBit": 15}, None), ({"BitsStored": 2, "HighBit": 1}, None),
     ({"BitsStored": 1, "HighBit": 0}, Reason.UNDECODABLE),
     ({"BitsStored": 12, "HighBit": 15}, None), ({"BitsStored": 17, "HighBit": 16}, Reason.UNDECODABLE),
     ({"BitsStored": 0, "HighBit": 0}, Reason.UNDECODABLE), ({"BitsStored": 12, "HighBit": 16}, Reason.UNDECODABLE),
     ({"BitsStored": 12, "HighBit": 10}, Reason.UNDECODABLE), ({"BitsAllocated": 12}, Reason.UNDECODABLE),
     ({"BitsAllocated": 32}, Reason.UNDECODABLE), ({"Rows": None}, Reason.UNDECODABLE)],
    ids=str,
)  # fmt: skip
def test_which_bits_may_be_stored_where(said: dict[str, Any], why: Reason | None) -> None:
    assert reason(film(**said)) == why


@pytest.mark.parametrize(("fewer", "why"), [(0, None), (1, Reason.TRUNCATED), (2, Reason.TRUNCATED)])
@pytest.mark.parametrize("little", [True, False])
def test_every_byte_that_is_declared_must_be_there(fewer: int, why: Reason | None, little: bool) -> None:
    ds = film(little=little)
    ds.PixelData = ds.PixelData[: 48 - fewer]
    assert reason(ds) == why


@pytest.mark.parametrize(("most", "why"), [(24, None), (23, Reason.TOO_LARGE)])
def test_an_image_may_have_so_many_pixels(most: int, why: Reason | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "PIXELS", most)
    assert reason(film()) == why


@pytest.mark.parametrize("fast", [True, False])
def test_what_lies_above_and_below_the_stored_bits_is_cut_off(fast: bool) -> None:
    values = np.arange(24, dtype="<u2") * 170
    high = film(values << 4 | 0xF, HighBit=15)
    low = film(values | 0x8000)
    for ds in (high, low):
        found = codes(ds, fast=fast)
        assert (found.codes.tolist(), found.bits, found.offset) == (values.reshape(4, 6).tolist(), 12, 0)


@pytest.mark.parametrize("fast", [True, False])
def test_a_signed_value_is_its_code_less_the_offset(fast: bool) -> None:
    values = np.array([-2048, -1, 0, 1, 2047, *[5] * 19], "<i2")
    found = codes(film(values, PixelRepresentation=1), fast=fast)
    assert (found.bits, found.offset) == (12, 2048)
    assert (found.codes.astype(int) - found.offset).ravel().tolist() == values.tolist()
    as_written = codes(film(values & 0x0FFF, PixelRepresentation=1), fast=fast)  # without the sign in the high bits
    assert as_written.codes.tolist() == found.codes.tolist()


def test_bytes_are_read_in_the_order_that_the_transfer_syntax_says() -> None:
    assert codes(film(np.arange(24, dtype=">u2"), little=False)).codes.tolist() == codes(film()).codes.tolist()


def test_colour_is_its_luminance() -> None:
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[0, 0], rgb[0, 1], rgb[0, 2], rgb[0, 3] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    said: dict[str, Any] = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0,
                            "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}  # fmt: skip
    found = codes(film(rgb, **said))
    assert found.codes[0, :4].tolist() == [76, 150, 29, 255]  # ITU-R BT.601
    assert (found.bits, found.colour) == (8, True)
    planes = codes(film(rgb.transpose(2, 0, 1), **said | {"PlanarConfiguration": 1}))
    assert planes.codes.tolist() == found.codes.tolist()


@pytest.mark.parametrize(
    ("photometric", "samples", "allocated", "length"),
    [("MONOCHROME2", 1, 8, 24), ("MONOCHROME2", 1, 16, 48), ("RGB", 3, 8, 72), ("YBR_FULL_422", 3, 8, 48)],
)
def test_the_length_of_a_native_frame(photometric: str, samples: int, allocated: int, length: int) -> None:
    ds = film(np.zeros(200, "u1"), SamplesPerPixel=samples, PhotometricInterpretation=photometric,
              BitsAllocated=allocated, BitsStored=8, HighBit=7, PlanarConfiguration=0)  # fmt: skip
    found = layout(ds)
    assert found.length == length
    assert found.dtype.itemsize * 8 == allocated
    assert found.grey is (samples == 1)


@pytest.mark.parametrize(
    ("said", "why"),
    [({}, None), ({"tiles": 8192}, None), ({"tiles": 8193}, "8193 tiles"), ({"rows": 5}, "6 x 5 pixels"),
     ({"columns": 5}, "5 x 4 pixels"), ({"components": 3}, "3 components"), ({"complete": False}, "no end marker")],
    ids=str,
)  # fmt: skip
def test_a_codestream_that_is_larger_than_declared_is_not_decoded(said: dict[str, Any], why: str | None) -> None:
    fields: dict[str, Any] = {"syntax": uids.JPEG2000, "rows": 4, "columns": 6, "components": 1, "precision": 12}
    stream = Codestream(**fields | said)
    if why is None:
        _check_stream(stream, layout(film()))
        return
    with pytest.raises(Rejected, match=why):
        _check_stream(stream, layout(film()))


def test_a_data_set_without_a_transfer_syntax_is_explicit_little_endian() -> None:
    ds = film()
    del ds.file_meta.TransferSyntaxUID
    assert codes(ds).codes.tolist() == codes(film()).codes.tolist()
    del ds.file_meta
    assert codes(ds).codes.tolist() == codes(film()).codes.tolist()


def test_run_lengths_are_decoded_by_both_ways() -> None:
    from tests.unit.dicom.test_flat_bounds import packed, rle

    values = np.arange(24, dtype="<u2") * 170
    high, low = (values >> 8).astype("u1").tobytes(), (values & 0xFF).astype("u1").tobytes()
    frame = rle(packed(high), packed(low))
    ds = film(PixelData=encapsulate([frame]))
    ds.file_meta.TransferSyntaxUID = uids.RLELossless
    ds["PixelData"].is_undefined_length = True
    for fast in (True, False):
        assert codes(ds, fast=fast).codes.tolist() == values.reshape(4, 6).tolist()


def test_a_palette_is_read_under_a_transfer_syntax_that_the_codestream_belies() -> None:
    """Its table is of words, in the byte order of the file."""
    values = np.arange(24, dtype="u1").reshape(4, 6)
    table = np.arange(256, dtype="<u2") * 256
    said: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR", "BitsAllocated": 8, "BitsStored": 8,
                            "HighBit": 7}  # fmt: skip
    for colour in ("Red", "Green", "Blue"):
        said[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        said[f"{colour}PaletteColorLookupTableData"] = table.tobytes()
    ds = film(values, **said)
    native = codes(ds)
    assert native.codes.ravel().tolist() == table[:24].tolist()
    ds.PixelData = encapsulate([bytes(imagecodecs.jpegls_encode(values))])
    ds["PixelData"].is_undefined_length = True
    for declared in (uids.JPEGLSLossless, uids.JPEG2000Lossless):
        ds.file_meta.TransferSyntaxUID = declared
        assert codes(ds).codes.tolist() == native.codes.tolist(), declared.name
