"""Encoded text as a person reads it, for look-ups and for the eye: lenient, never an error, never copied anywhere.

What cannot be decoded shows as \\xff, so that two texts stay two.
"""

from __future__ import annotations

import re

from pydicom import Dataset

# PS3.3 tables C.12-2 to C.12-5: Specific Character Set, by what tells one term from another -> codec
_CODECS = {
    "100": "latin_1", "101": "iso8859_2", "109": "iso8859_3", "110": "iso8859_4", "144": "iso8859_5",
    "127": "iso8859_6", "126": "iso8859_7", "138": "iso8859_8", "148": "iso8859_9", "203": "iso8859_15",
    "13": "shift_jis", "166": "tis_620", "149": "euc_kr", "58": "gb2312", "192": "utf_8",
    "GB18030": "gb18030", "GBK": "gbk", "UTF8": "utf_8", "UTF-8": "utf_8",
}  # fmt: skip
_TERM = re.compile(r"ISO[-_ ]?(?:2022[-_ ]?)?IR[-_ ]?(\d+)")  # however it is spelt
# the escape sequences of tables C.12-3 and C.12-4
_TO_G1 = {
    b"\x1b-A": "100", b"\x1b-B": "101", b"\x1b-C": "109", b"\x1b-D": "110", b"\x1b-L": "144", b"\x1b-G": "127",
    b"\x1b-F": "126", b"\x1b-H": "138", b"\x1b-M": "148", b"\x1b-b": "203", b"\x1b)I": "13", b"\x1b-T": "166",
    b"\x1b$)C": "149", b"\x1b$)A": "58",
}  # fmt: skip
_TO_G0 = {b"\x1b(B": b"", b"\x1b(J": b"", b"\x1b$@": b"\x1b$B", b"\x1b$B": b"\x1b$B", b"\x1b$(D": b"\x1b$(D"}
_CHANGES = re.compile(rb"(\x1b[\x20-\x2f]+[\x30-\x7e]|[\t\n\f\r]+)")  # a new line begins as the value did


def text_of(ds: Dataset, keyword: str) -> str:
    """An element of `verbatim` as text, several values with their backslash; "" where it holds none."""
    value = encoded(ds, keyword)
    terms = encoded(ds, "SpecificCharacterSet").decode("latin-1").strip("\0 ").upper().split("\\")
    return _decode(value, terms[0].strip()).replace("\0", "").strip()


def encoded(ds: Dataset, keyword: str) -> bytes:
    """The bytes of an element as they came; none where it is absent or a sequence."""
    if keyword not in ds:
        return b""
    value = ds.get_item(keyword).value
    return value if isinstance(value, bytes) else b""


def _decode(value: bytes, term: str) -> str:
    """term: the first, which holds until an escape sequence; the others only say which of those may come."""
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    first = _codec(term)
    if not term and b"\x1b" not in value:  # undeclared UTF-8 is what it looks like
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            pass
    found, high, kanji = "", first, b""
    for part in _CHANGES.split(value):
        if part in _TO_G0:
            kanji = _TO_G0[part]
        elif part in _TO_G1:
            high = _CODECS[_TO_G1[part]]
        elif part[:1] in (b"\t", b"\n", b"\f", b"\r"):
            found, high, kanji = found + part.decode("ascii"), first, b""
        else:
            found += (kanji + part).decode("iso2022_jp_2" if kanji else high, "backslashreplace")
    return found


def _codec(term: str) -> str:
    spelt = _TERM.fullmatch(term)
    return _CODECS.get(spelt[1] if spelt else term, "latin_1")
