"""Storage commitment's references, however they are encoded and however many; damaged ones are refused."""

from __future__ import annotations

import struct
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from cxrnode.dicom import budget
from cxrnode.dicom.commitment import references
from cxrnode.dicom.flat import FlatReader, Stream
from cxrnode.dicom.references import References, read_references
from cxrnode.errors import Rejected

CR = "1.2.840.10008.5.1.4.1.1.1"
KEPT = [(CR, f"1.2.3.{n}") for n in range(3)]
LOST = [((CR, "1.2.4.7"), 0x0112)]


def data_set() -> Dataset:
    ds = Dataset()
    ds.TransactionUID, ds.RetrieveAETitle = "2.25.17", "PACS"
    ds.ReferencedSOPSequence = references(KEPT)
    ds.ReferencedSOPSequence[0].StorageMediaFileSetID = "what nobody needs"
    ds.FailedSOPSequence = references(r for r, _ in LOST)
    ds.FailedSOPSequence[0].FailureReason = 0x0112
    return ds


def encoded(ds: Dataset, *, implicit: bool, open_ended: bool) -> bytes:
    for sequence in (ds["ReferencedSOPSequence"], ds["FailedSOPSequence"]):
        sequence.is_undefined_length = open_ended
        for item in sequence.value:
            item.is_undefined_length_sequence_item = open_ended
    f = DicomBytesIO()
    f.is_little_endian, f.is_implicit_VR = True, implicit
    write_dataset(f, ds)
    return f.getvalue()


def read(raw: bytes, *, implicit: bool = True) -> References:
    stream = Stream(BytesIO(raw))
    return read_references(FlatReader(stream, implicit=implicit, little=True, most=budget.COMMITMENT))


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("open_ended", [True, False])
def test_they_are_read_in_every_encoding(implicit: bool, open_ended: bool) -> None:
    found = read(encoded(data_set(), implicit=implicit, open_ended=open_ended), implicit=implicit)
    assert found == References(transaction_uid="2.25.17", referenced=KEPT, failed=LOST)


@pytest.mark.parametrize("implicit", [True, False])
@given(cut=st.integers(1, 400), at=st.integers(0, 600), byte=st.integers(0, 255))
def test_whatever_is_damaged_is_read_or_refused(implicit: bool, cut: int, at: int, byte: int) -> None:
    raw = bytearray(encoded(data_set(), implicit=implicit, open_ended=bool(cut % 2)))
    raw[at % len(raw)] = byte
    for damaged in (bytes(raw), bytes(raw[:-cut])):
        try:
            read(damaged, implicit=implicit)
        except Rejected:
            continue


def test_each_damage_is_refused() -> None:
    raw = encoded(data_set(), implicit=True, open_ended=False)
    for old, new in (
        (b"1.2.4.7", b"1.2.4.x"), (b"2.25.17", b"2.25..7"), (struct.pack("<L", 2) + b"\x12\x01", b"\0\0\0\0"),
        (b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0"), (b"\x08\0\x95\x11", b"\x08\0\x94\x11"),
    ):  # fmt: skip
        assert old in raw
        with pytest.raises(Rejected):
            read(raw.replace(old, new, 1))
    with pytest.raises(Rejected):
        read(b"")


def test_more_than_the_budget_is_refused() -> None:
    uids = b"".join(
        struct.pack("<HHL", 8, number, len(v)) + v for number, v in ((0x1150, b"1.2\0"), (0x1155, b"1.3\0"))
    )
    item = struct.pack("<HHL", 0xFFFE, 0xE000, len(uids)) + uids
    with pytest.raises(Rejected, match="too many elements"):
        read(struct.pack("<HHL", 0x0008, 0x1199, 0xFFFFFFFF) + item * 210_000)
