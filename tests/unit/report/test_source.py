"""Dirty headers: what is read of one is valid for its VR or nothing; what is copied is whole, or refused."""

from __future__ import annotations

import pytest
from pydicom import Dataset
from pydicom.tag import Tag

from cxrnode.dicom.verbatim import Encoded
from cxrnode.errors import ResultError
from cxrnode.report.source import Header, ascii_text
from tests.support.results import header

PATIENT_ID = Tag(0x00100020)


@pytest.mark.parametrize(
    ("keyword", "vr", "value", "expected"),
    [
        ("SeriesNumber", "IS", b"7 ", "7"),
        ("SeriesNumber", "IS", b"1.5", ""),
        ("SeriesNumber", "UN", b"7\\8", "7"),
        ("LossyImageCompressionRatio", "DS", b"1.80\\2", "1.80"),
        ("LossyImageCompressionRatio", "DS", b"1,80", ""),
        ("LossyImageCompressionRatio", "DS", b"12345678901234567", ""),
        ("LossyImageCompression", "CS", b"01\0\0", "01"),
        ("LossyImageCompressionMethod", "CS", b"a long code string", ""),
        ("FrameOfReferenceUID", "UI", b"1.2.840\0", "1.2.840"),
        ("FrameOfReferenceUID", "UI", b"1.2.840\\1.2.841", ""),
        ("FrameOfReferenceUID", "UI", b"1.2.x", ""),
        ("TimezoneOffsetFromUTC", "SH", b"+0100 ", "+0100"),
        ("SeriesNumber", "US", b"\7\0", ""),
        ("SeriesNumber", "IS", b"7\xff", ""),
        ("LossyImageCompressionMethod", "CS", b"X_RAY_X ", "X_RAY_X"),
        ("LossyImageCompressionMethod", "CS", b"X\\Y", "X"),
    ],
)
def test_what_is_read_is_valid_for_its_vr(keyword: str, vr: str, value: bytes, expected: str) -> None:
    assert Header(header({keyword: (vr, value)})).get(keyword) == expected


def test_what_is_absent_or_of_the_wrong_kind_reads_as_nothing() -> None:
    view = Header(header({"ProcedureCodeSequence": ("LO", b"no sequence")}))
    assert view.items("ProcedureCodeSequence") == view.items("RequestAttributesSequence") == []
    assert view.get("PatientComments") == ""


@pytest.mark.parametrize("vr", ["LO", "UN", "ST"])
def test_text_is_copied_whole_whatever_its_vr(vr: str) -> None:
    value = b"WARD\\4711\x1b$B=\xff" + b"7" * 70 + b"\0 "
    copied = Header(header({"PatientID": (vr, value)})).copy("PatientID")
    assert copied is not None
    assert (copied.VR, copied.value) == ("LO", value + b" " * (len(value) % 2))


@pytest.mark.parametrize(
    ("keyword", "vr", "value", "fault"),
    [
        ("PatientID", "US", b"\1\0", "PatientID of the source is no text"),
        ("PatientID", "OB", b"4711", "PatientID of the source is no text"),
        ("PatientID", "LO", b"7" * 65536, "PatientID of the source is longer than 64 KiB"),
        ("IssuerOfAccessionNumberSequence", "LO", b"RIS ", "IssuerOfAccessionNumberSequence of the source is no seq"),
    ],
)
def test_what_cannot_be_copied_whole_is_refused(keyword: str, vr: str, value: bytes, fault: str) -> None:
    with pytest.raises(ResultError, match=fault) as refused:
        Header(header({keyword: (vr, value)})).copy(keyword)
    assert "4711" not in str(refused.value)


def test_our_own_words_fit_every_character_set() -> None:
    assert ascii_text("1.0\\β~ Röntgen Façade") == "1.0/?- Rontgen Facade"
    assert ascii_text("Ä\u0301 a\\b~c X") == "A a/b-c X"


@pytest.mark.parametrize(
    ("vr", "value", "fault"),
    [
        ("OB", b"4711", "OtherPatientIDsSequence > PatientID of the source is no text"),
        ("LO", b"7" * 65535, "OtherPatientIDsSequence > PatientID of the source is longer than 64 KiB"),
        ("LO", b"7" * 65534, None),
    ],
)
def test_an_item_of_a_sequence_is_copied_whole_or_refused(vr: str, value: bytes, fault: str | None) -> None:
    source, first, second = Dataset(), Dataset(), Dataset()
    first[PATIENT_ID] = Encoded(PATIENT_ID, "LO", b"1 ")
    second[PATIENT_ID] = Encoded(PATIENT_ID, vr, value)
    source.OtherPatientIDsSequence = [first, second]
    if fault is None:
        assert Header(source).copy("OtherPatientIDsSequence") is source["OtherPatientIDsSequence"]
        return
    with pytest.raises(ResultError, match=f"^{fault}, so it cannot be copied whole: correct it in the source"):
        Header(source).copy("OtherPatientIDsSequence")
