"""Encoded text as a person reads it, for look-ups and for the eye: lenient, never an error, never copied anywhere."""

from __future__ import annotations

import re
import warnings

from pydicom import Dataset
from pydicom.charset import decode_bytes, python_encoding

_MISSPELT = re.compile(r"ISO[-_ ]?IR[-_ ]?(\d+)", re.IGNORECASE)
_UTF8 = {"UTF8", "UTF-8", "ISO_IR 192"}
_DELIMITERS = {0x0D, 0x0A, 0x09, 0x0C}  # that end what an escape sequence began, beside those of a name


def text_of(ds: Dataset, keyword: str) -> str:
    """An element of `verbatim` as text, several values with their backslash; "" where it holds none."""
    value = encoded(ds, keyword)
    terms = [t.strip().upper() for t in encoded(ds, "SpecificCharacterSet").decode("latin-1").strip("\0 ").split("\\")]
    return _decode(value, terms).replace("\0", "").strip()


def encoded(ds: Dataset, keyword: str) -> bytes:
    """The bytes of an element as they came; none where it is absent or a sequence."""
    if keyword not in ds:
        return b""
    value = ds.get_item(keyword).value
    return value if isinstance(value, bytes) else b""


def _decode(value: bytes, terms: list[str]) -> str:
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    if b"\x1b" not in value and (not any(terms) or terms[0] in _UTF8):  # undeclared UTF-8 is what it looks like
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            pass
    encodings = [_encoding(t) for t in terms]
    try:
        if b"\x1b" not in value:
            return value.decode(encodings[0], "replace")
        with warnings.catch_warnings():  # code extensions (PS3.5 section 6.1.2.5): pydicom warns on broken ones
            warnings.simplefilter("ignore")
            return decode_bytes(value, encodings, _DELIMITERS)
    except (ArithmeticError, LookupError, ValueError):  # of a codec, or of pydicom's search for an escape sequence
        return value.decode("latin-1")


def _encoding(term: str) -> str:
    if term in _UTF8:
        return "utf-8"
    if (misspelt := _MISSPELT.fullmatch(term)) is not None:
        term = f"ISO_IR {misspelt[1]}"
    return python_encoding.get(term, "latin-1")
