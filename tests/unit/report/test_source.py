"""Dirty headers: nothing raises, nothing warns, and what comes out fits its VR."""

from __future__ import annotations

import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_charset_files

from cxrnode.dicom.header import header_from_bytes, header_to_bytes, report_header
from cxrnode.report.source import Header, ascii_text, choose_character_set, clean
from tests.support.results import header


@pytest.mark.parametrize(
    ("text", "vr", "expected"),
    [
        ("19.03.1940", "DA", ""),
        ("1940.03.19", "DA", "19400319"),
        ("2026-11-21", "DA", "20261121"),
        ("20260230", "DA", ""),
        ("10:15:59", "TM", "101559"),
        ("101560.123456", "TM", "101560.123456"),
        ("25", "TM", ""),
        ("m", "CS", "M"),
        ("a\tlong code string", "CS", ""),
        ("057Y", "AS", "057Y"),
        ("57", "AS", ""),
        ("1.80", "DS", "1.80"),
        ("1,80", "DS", ""),
        ("12345678901234567", "DS", ""),
        ("7", "IS", "7"),
        ("1.5", "IS", ""),
        ("1.2.840", "UI", "1.2.840"),
        ("1.02.840", "UI", ""),
        ("x" * 80, "LO", "x" * 64),
        (" a\x00\x1b\\b ", "LO", "a b"),
        ("x" * 20, "SH", "x" * 16),
        ("a^b^c^d^e^f=i=p=q", "PN", "a^b^c^d^e=i=p"),
        ("a" * 70 + "=" + "b" * 70, "PN", "a" * 64 + "=" + "b" * 64),
    ],
)
def test_a_value_is_made_to_fit_its_vr_or_dropped(text: str, vr: str, expected: str) -> None:
    assert clean(text, vr) == expected


def test_what_is_absent_or_of_the_wrong_kind_reads_as_nothing() -> None:
    view = Header(header({"ProcedureCodeSequence": ("LO", b"no sequence"), "StudyDate": ("UN", b"\xff\xfe")}))
    assert view.get("StudyDate") == view.get("PatientComments") == ""
    assert view.items("ProcedureCodeSequence") == view.items("RequestAttributesSequence") == []


def test_an_item_inherits_the_character_set() -> None:
    item = Dataset()
    item.RequestedProcedureDescription = "胸部"
    view = Header(header(overrides={"SpecificCharacterSet": "ISO_IR 192", "RequestAttributesSequence": [item]}))
    assert view.items("RequestAttributesSequence")[0].get("RequestedProcedureDescription") == "胸部"


@pytest.mark.parametrize("path", get_charset_files("chr[!S]*.dcm"), ids=lambda p: str(p)[-20:-4])
def test_names_read_as_pydicom_reads_them(path: str) -> None:
    expected = str(dcmread(path).PatientName).rstrip("=")
    fresh = report_header(dcmread(path))
    stored = header_from_bytes(header_to_bytes(fresh))
    view = Header(dcmread(path))
    assert {Header(ds).get("PatientName") for ds in (dcmread(path), fresh, stored)} == {expected}
    chosen = choose_character_set(view.character_set, [view.get("PatientName")])
    written = Dataset()
    if chosen is not None:
        written.SpecificCharacterSet = chosen
    assert Header(written).can_encode(view.get("PatientName"))


@pytest.mark.parametrize(
    ("source", "texts", "expected"),
    [
        ((), ["Doe"], None),
        ((), ["Müller"], "ISO_IR 100"),
        ((), ["王"], "ISO_IR 192"),
        (("ISO_IR 100",), ["Doe"], "ISO_IR 100"),
        (("ISO_IR 100",), ["Müller"], "ISO_IR 100"),
        (("ISO_IR 100",), ["王"], "ISO_IR 192"),
        (("", "ISO 2022 IR 87"), ["山田"], ["", "ISO 2022 IR 87"]),
        (("", "ISO 2022 IR 87"), ["홍"], "ISO_IR 192"),
        (("ISO_IR 999",), ["Doe"], None),
        (("ISO_IR 999",), ["Müller"], "ISO_IR 192"),
    ],
)
def test_the_sources_character_set_is_kept_where_it_can_be(
    source: tuple[str, ...], texts: list[str], expected: str | list[str] | None
) -> None:
    assert choose_character_set(source, texts) == expected


def test_our_own_words_fit_every_character_set() -> None:
    assert ascii_text("1.0\\β") == "1.0/?"
