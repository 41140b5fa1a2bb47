"""The header that the store keeps: it survives the round trip, whatever the source's character set."""

from __future__ import annotations

import pytest
from pydicom import Dataset

from cxrnode.dicom.header import header_from_bytes, header_to_bytes, report_header
from tests.support.make_dicom import chest


def test_round_trip_without_pixels_and_private_elements() -> None:
    ds = chest(128, 100)
    ds.add_new(0x00091001, "LO", "private")
    header = report_header(ds)
    again = header_from_bytes(header_to_bytes(header))
    assert again == header
    assert "PixelData" not in again
    assert (0x0009, 0x1001) not in again


@pytest.mark.parametrize("charset", ["ISO_IR 192", "ISO_IR 144", "ISO_IR 999", ["", "ISO 2022 IR 87"]])
def test_any_character_set(charset: str | list[str]) -> None:
    header = Dataset()
    header.SpecificCharacterSet = charset
    header.PatientID = "1"
    assert header_from_bytes(header_to_bytes(header)).PatientID == "1"
