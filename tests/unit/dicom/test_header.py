"""The header that the store keeps: every byte of text as it came, whatever the character set and transfer syntax."""

from __future__ import annotations

from io import BytesIO

import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from cxrnode.dicom.header import header_from_bytes, header_to_bytes, instance_header, report_header
from cxrnode.dicom.read import read_header, read_instance
from cxrnode.dicom.text import encoded, text_of
from tests.support.dirty import Element, dirty_file, item, sequence
from tests.support.make_dicom import chest

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
ELEMENTS: dict[str, Element] = {
    "SpecificCharacterSet": ("CS", b"\\ISO 2022 IR 87 "),
    "PatientName": ("PN", b"Deguchi^Haruko=\x1b$B=P8}\x1b(B^\x1b$B=U;R\x1b(B"),
    "PatientID": ("LO", b"WARD\\4711"),
    "AccessionNumber": ("SH", b"  A-2024-000012345678-\\\x00 "),
    "StudyDescription": ("LO", b"\x1b$B=U5(8!?G\x1b(B" + b" long" * 40),
    "PatientBirthDate": ("DA", b"19.3.1940 "),
}


def test_round_trip_without_pixels_and_private_elements() -> None:
    ds = chest(128, 100)
    ds.add_new(0x00091001, "LO", "private")
    header = report_header(ds)
    again = header_from_bytes(header_to_bytes(header))
    assert again == header
    assert "PixelData" not in again
    assert (0x0009, 0x1001) not in again


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
def test_text_is_kept_byte_for_byte(syntax: str) -> None:
    request = {"RequestedProcedureDescription": ("LO", b"\x1b$B=P8}\x1b(B"), "RequestedProcedureID": ("SH", b"R" * 20)}
    nested = sequence(syntax, item(syntax, {"SpecificCharacterSet": ("CS", b"ISO 2022 IR 58")} | request))
    raw = dirty_file(ELEMENTS | {"RequestAttributesSequence": ("SQ", nested)}, syntax=syntax)
    for ds in (read_header(BytesIO(raw)), read_instance(raw)):
        kept = header_from_bytes(instance_header(ds).kept)
        for keyword, (_, value) in ELEMENTS.items():
            assert encoded(kept, keyword) == value + b" " * (len(value) % 2), keyword
        (found,) = kept.get_item("RequestAttributesSequence").value
        for keyword, (_, value) in request.items():
            assert encoded(found, keyword) == value + b" " * (len(value) % 2), keyword
        assert encoded(found, "SpecificCharacterSet") == b"ISO 2022 IR 58"
        assert (kept.Rows, kept.Columns) == (ds.Rows, ds.Columns)


@pytest.mark.parametrize(
    ("character_set", "value", "expected"),
    [
        (b"", b"Doe^John ", "Doe^John"),
        (b"", "Müller".encode(), "Müller"),  # undeclared UTF-8
        (b"", "Müller".encode("latin-1"), "Müller"),
        (b"ISO IR 100", "Müller".encode("latin-1"), "Müller"),
        (b"UTF-8", "王".encode(), "王"),
        (b"GB18030 ", "李".encode("gb18030"), "李"),
        (b"ISO 2022 IR 87", b"CHEST\\\\\x1b$B", "CHEST\\\\"),
        (b"rot13 ", b"\xc4", "Ä"),
    ],
)  # fmt: skip
def test_text_for_the_eye_is_never_an_error(character_set: bytes, value: bytes, expected: str) -> None:
    raw = dirty_file({"SpecificCharacterSet": ("CS", character_set), "PatientID": ("LO", value)})
    assert text_of(read_header(BytesIO(raw)).encoded, "PatientID") == expected


def test_an_element_of_another_kind_is_there_and_no_text() -> None:
    nested = sequence(ExplicitVRLittleEndian, b"")
    raw = dirty_file({"PatientID": ("US", b"\x01\x00"), "StudyID": ("SQ", nested), "AccessionNumber": ("UN", b"47")})
    kept = header_from_bytes(instance_header(read_header(BytesIO(raw))).kept)
    assert [kept.get_item(k).VR for k in ("PatientID", "StudyID", "AccessionNumber")] == ["OB", "OB", "SH"]
