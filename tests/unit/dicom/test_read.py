"""Reading by content: what is DICOM, what is damaged, and what a damaged file is called."""

from __future__ import annotations

import hashlib
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from cxrnode.dicom.needed import TAGS
from cxrnode.dicom.read import pixel_digest, read_header, read_instance
from cxrnode.errors import Rejected
from cxrnode.types import Reason
from tests.support.make_dicom import SYNTAXES, chest, recode, to_bytes, write

BITS = {"jpeg_baseline": 8}


def small(syntax: str = "explicit", **more: object) -> Dataset:
    return chest(96, 80, syntax=syntax, bits_stored=BITS.get(syntax, 12), **more)  # type: ignore[arg-type]


def reason_of(raw: bytes) -> Reason:
    with pytest.raises(Rejected) as caught:
        read_instance(raw)
    return caught.value.rejection.reason


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_transfer_syntax_is_read_as_pydicom_reads_it(syntax: str, tmp_path: Path) -> None:
    path = write(small(syntax), tmp_path / "a.dcm")
    theirs = dcmread(path)
    for ours in (read_instance(path), read_instance(path.read_bytes()), read_instance(BytesIO(path.read_bytes()))):
        assert ours.PixelData == theirs.PixelData
        needed = [tag for tag in theirs.keys() if tag in TAGS]  # noqa: SIM118
        assert {0x00100020, 0x00280100, 0x00281050} <= set(needed)
        assert all(ours[tag] == theirs[tag] for tag in needed)
        assert len(ours) == len(needed) + 1
        assert ours.file_meta == theirs.file_meta


@pytest.mark.parametrize(("vr", "read"), [("OB", "OB"), ("OW", "OW")])
def test_pixel_data_are_bytes_or_words_as_the_file_says(vr: str, read: str) -> None:
    ds = chest(96, 80, bits_stored=8)
    ds["PixelData"].VR = vr
    ours = read_instance(to_bytes(ds))
    assert (ours["PixelData"].VR, ours["PixelData"].is_undefined_length) == (read, False)
    assert read_instance(to_bytes(small("rle")))["PixelData"].VR == "OB"


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_header_stops_before_the_pixels(syntax: str) -> None:
    header = read_header(BytesIO(to_bytes(small(syntax))))
    assert "PixelData" not in header
    assert header.Rows == 96


def test_header_larger_than_the_first_prefix() -> None:
    ds = small()
    ds.add_new(0x00091001, "OB", b"x" * 3_000_000)
    header = read_header(BytesIO(to_bytes(ds)))
    assert header.Columns == 80


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", Reason.NOT_DICOM),
        (b"Hello, this is a text of a certain length. " * 20, Reason.NOT_DICOM),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), Reason.NOT_DICOM),
        (b"PK\x03\x04" + bytes(500), Reason.NOT_DICOM),
        (bytes(1000), Reason.NOT_DICOM),
        (bytes(128) + b"DICM", Reason.TRUNCATED),
    ],
)
def test_what_is_no_dicom(raw: bytes, expected: Reason) -> None:
    assert reason_of(raw) == expected


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big_endian"])
def test_bare_data_set_without_preamble_is_recognised(syntax: str) -> None:
    raw = to_bytes(small(syntax))
    body = raw.index(b"\x08\x00\x05\x00" if syntax != "big_endian" else b"\x00\x08\x00\x05")
    ds = read_instance(raw[body:])
    assert ds.file_meta.TransferSyntaxUID == SYNTAXES[syntax]
    assert ds.PixelData == read_instance(raw).PixelData


def test_file_meta_without_preamble_is_recognised() -> None:
    assert read_instance(to_bytes(small("rle"))[132:]).file_meta.TransferSyntaxUID == SYNTAXES["rle"]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_file_that_ends_inside_its_pixels_is_truncated(syntax: str) -> None:
    raw = to_bytes(small(syntax))
    assert reason_of(raw[: len(raw) * 9 // 10]) == Reason.TRUNCATED


@pytest.mark.parametrize("at", [140, 300, 600, 1000])
def test_file_that_ends_inside_its_header_is_truncated(at: int) -> None:
    assert reason_of(to_bytes(small())[:at]) == Reason.TRUNCATED


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
@pytest.mark.parametrize("value", [None, "", "1.2.x", "../../etc/passwd", "1..3", "1." + "2" * 70])
def test_mandatory_uids(keyword: str, value: str | None) -> None:
    ds = small()
    if value is None:
        del ds[keyword]
    else:
        setattr(ds, keyword, value)
    with pytest.raises(Rejected) as caught:
        read_header(BytesIO(to_bytes(ds)))
    assert caught.value.rejection.reason == Reason.MISSING_UID
    assert caught.value.rejection.detail == keyword


def test_data_set_wins_over_the_file_meta() -> None:
    ds = small()
    uid = ds.SOPInstanceUID.encode()
    other = read_instance(to_bytes(ds).replace(uid, uid[:-1] + b"7", 1))
    assert other.SOPInstanceUID == ds.SOPInstanceUID != other.file_meta.MediaStorageSOPInstanceUID


def test_dicomdir_is_named_so() -> None:
    raw = to_bytes(small())
    sop_class = b"1.2.840.10008.5.1.4.1.1.1\0"
    assert reason_of(raw.replace(sop_class, b"1.2.840.10008.1.3.10".ljust(26, b"\0"), 1)) == Reason.DICOMDIR


def test_deflated_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxrnode.dicom.budget.OBJECT_BYTES", 10_000)
    assert reason_of(to_bytes(small("deflated"))) == Reason.TOO_LARGE


def test_damaged_deflate_stream_is_refused() -> None:
    raw = to_bytes(small("deflated"))
    head = raw[: -len(zlib.compress(b""))]
    assert reason_of(head[:500] + b"\xff" * 200 + head[700:]) in (Reason.UNREADABLE_FILE, Reason.TRUNCATED)


def test_values_that_cannot_be_converted_are_left_out() -> None:
    raw = to_bytes(small())
    broken = read_instance(raw.replace(b"IS\x02\x001 ", b"IS\x02\x00x "))
    assert "InstanceNumber" in read_instance(raw)
    assert "InstanceNumber" not in broken
    assert broken.PatientID == "PHANTOM-1"


def test_digest_is_of_the_encoded_pixels_alone() -> None:
    ds, again = read_instance(to_bytes(small())), read_instance(to_bytes(small(kind="DX", body_part="LUNG")))
    assert pixel_digest(ds) == pixel_digest(again) == hashlib.sha256(ds.PixelData).hexdigest()
    assert pixel_digest(recode(small(), "rle")) != pixel_digest(ds)


def test_digest_ignores_how_fragments_are_wrapped() -> None:
    from pydicom.encaps import encapsulate, get_frame

    ds = read_instance(to_bytes(small("j2k")))
    digest = pixel_digest(ds)
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    assert digest == hashlib.sha256(frame).hexdigest()
    ds.PixelData = encapsulate([frame], fragments_per_frame=3, has_bot=False)
    assert pixel_digest(ds) == digest


def test_same_object_in_two_syntaxes_keeps_its_uids() -> None:
    assert recode(small(), "rle").SOPInstanceUID == small().SOPInstanceUID


def test_nothing_of_the_patient_reaches_a_log(caplog: pytest.LogCaptureFixture) -> None:
    """pydicom quotes the values that it finds invalid, in warnings and in its log."""
    raw = to_bytes(small()).replace(b"19600229", b"Jane Doe").replace(b"IS\x02\x001 ", b"IS\x02\x00x ")
    with caplog.at_level("DEBUG"):
        read_instance(raw)
    assert "Jane" not in caplog.text


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5"])
def test_native_pixels_under_a_compressed_syntax_are_a_stated_reason(syntax: str) -> None:
    raw = to_bytes(small())
    declared = b"1.2.840.10008.1.2.1\0"
    at = raw.index(declared)
    length = int.from_bytes(raw[at - 2 : at], "little")
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    raw = raw[: at - 2] + len(value).to_bytes(2, "little") + value + raw[at + length :]
    assert reason_of(raw) == Reason.UNDECODABLE


@pytest.mark.parametrize(("second", "same"), [(b"OTHER ", False), (b"MRN001", True)])
def test_an_element_that_stands_there_twice_must_say_the_same(second: bytes, same: bool) -> None:
    ds = small()
    ds.PatientID = "MRN001"
    raw = to_bytes(ds)
    first = b"\x10\0\x20\0LO\6\0MRN001"
    raw = raw.replace(first, first + first[:8] + second)
    if same:
        assert read_instance(raw).PatientID == "MRN001"
    else:
        assert reason_of(raw) == Reason.UNREADABLE_FILE
