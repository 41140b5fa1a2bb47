"""Reading a source's header without trusting it: wrong VRs, odd character sets and over-long values never raise.

pydicom converts a value when it is touched, and warns or raises where the value breaks its VR. Sources do that all
the time, so the values are taken as bytes and cleaned here: what comes out always fits the VR it is written with.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Callable, Iterable
from datetime import datetime

from pydicom import DataElement, Dataset, Sequence
from pydicom.charset import custom_encoders, decode_bytes, encode_string, python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

from cxrnode.dicom.uids import is_valid_uid

UTF8 = "ISO_IR 192"
LATIN1 = "ISO_IR 100"
_CHARACTER_SET = re.compile(  # PS3.3 C.12.1.1.2: the defined terms
    r"ISO_IR (13|100|101|109|110|126|127|138|144|148|166|192)|GB18030|GBK"
    r"|ISO 2022 IR (6|13|58|87|100|101|109|110|126|127|138|144|148|149|159|166)"
)
_MISSPELT = re.compile(r"ISO[-_ ]?IR[-_ ]?(\d+)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\\]+")
_DELIMITERS = {0x0D, 0x0A, 0x09, 0x0C, ord("\\"), ord("^"), ord("=")}
# what pydicom raises on a sequence that is no sequence
_BROKEN = (
    AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OSError, OverflowError, TypeError, ValueError,
    struct.error,
)  # fmt: skip
_LENGTH = {"SH": 16, "LO": 64, "ST": 1024, "LT": 10240, "UT": 10240, "UC": 10240}  # characters, PS3.5 table 6.2-1


class Header:
    """A read-only view on a source's header that yields clean text."""

    __slots__ = ("_ds", "character_set", "encodings")

    def __init__(self, ds: Dataset, inherited: Header | None = None) -> None:
        self._ds = ds
        terms = _terms(_first_bytes_or_text(ds, "SpecificCharacterSet"))
        if inherited is not None and not any(terms):
            terms = inherited.character_set
        self.character_set: tuple[str, ...] = terms
        self.encodings: list[str] = _encodings(terms)

    def values(self, keyword: str) -> list[str]:
        """All values as text, unchecked; [] where the element is absent or holds no text."""
        element = _element(self._ds, keyword)
        return [] if element is None else _texts(element.value, self.encodings)

    def get(self, keyword: str) -> str:
        """The first value, cleaned to fit the dictionary's VR for `keyword`; "" where nothing usable is there."""
        vr = dictionary_VR(keyword)
        values = self.values(keyword)
        if not values:
            return ""
        text = "\\".join(values) if vr in {"ST", "LT", "UT"} else values[0]
        return clean(text, vr)

    def can_encode(self, text: str) -> bool:
        """Whether `text` survives being written under this header's character set and read again."""
        return text.isascii() or _survives(text, self.character_set)

    def items(self, keyword: str) -> list[Header]:
        """The items of a sequence; [] where the element is absent or no sequence."""
        return [Header(item, self) for item in _items(_element(self._ds, keyword))]


def clean(text: str, vr: str) -> str:
    """`text` as a valid value of `vr` (PS3.5 section 6.2), or "" where it can be none."""
    text = _CONTROL.sub(" ", text).strip()
    if vr in _LENGTH:
        return text[: _LENGTH[vr]].strip()
    return _CLEANERS[vr](text)


def ascii_text(text: str) -> str:
    """Our own words in every character set: what is not ASCII becomes '?', a backslash too."""
    return text.encode("ascii", "replace").decode().replace("\\", "/")


def choose_character_set(source: tuple[str, ...], texts: Iterable[str]) -> str | list[str] | None:
    """The source's own character set where it holds every text; else Latin 1 for a source that names none; else UTF-8.

    None: the default repertoire (no element). Keeping the source's bytes keeps its names as the PACS knows them.
    """
    wide = [t for t in texts if not t.isascii()]
    known = all(_CHARACTER_SET.fullmatch(t) for t in source if t) and (not source or any(source))
    if known and (source or not wide):
        if all(_survives(t, source) for t in wide):
            return list(source) if len(source) > 1 else (source[0] if source else None)
        return UTF8
    if not any(source) and all(_survives(t, (LATIN1,)) for t in wide):
        return LATIN1 if wide else None
    return UTF8 if wide else None


def _survives(text: str, terms: tuple[str, ...]) -> bool:
    encodings = _encodings(terms)
    try:
        if len(encodings) == 1 and encodings[0] not in custom_encoders:
            return text.encode(encodings[0]).decode(encodings[0]) == text
        with warnings.catch_warnings():  # pydicom warns instead of raising where a text does not fit
            warnings.simplefilter("error")
            parts = text.split("=")
            return all(decode_bytes(encode_string(p, encodings), encodings, _DELIMITERS) == p for p in parts)
    except (UnicodeError, LookupError, ValueError, UserWarning):
        return False


def _element(ds: Dataset, keyword: str) -> DataElement | RawDataElement | None:
    try:
        return ds.get_item(keyword)  # raw: no conversion, no warning
    except KeyError:
        return None


def _items(element: DataElement | RawDataElement | None) -> Iterable[Dataset]:
    """The items of a sequence, parsed where it is still encoded; the source itself stays as it is."""
    if element is None:
        return []
    value = element.value
    if isinstance(element, RawDataElement) and element.VR in {"SQ", "UN"} and isinstance(value, bytes):
        try:
            value = convert_raw_data_element(element._replace(VR="SQ")).value
        except _BROKEN:
            return []
    return value if isinstance(value, Sequence) else []


def _first_bytes_or_text(ds: Dataset, keyword: str) -> list[str]:
    element = _element(ds, keyword)
    return [] if element is None else _texts(element.value, ["ascii"])


def _texts(value: object, encodings: list[str]) -> list[str]:
    if value is None or isinstance(value, Sequence):
        return []
    if isinstance(value, bytes):
        return _decode(value, encodings).rstrip("\x00 ").split("\\")
    if isinstance(value, PersonName):
        raw = value.original_string
        return [_decode(raw, list(value.encodings or encodings)) if raw else str(value)]
    if isinstance(value, MultiValue | list | tuple):
        return [text for v in value for text in _texts(v, encodings)]
    return [str(value)]


def _decode(raw: bytes, encodings: list[str]) -> str:
    if b"\x1b" not in raw:
        try:
            return raw.decode(encodings[0], errors="replace")
        except (LookupError, UnicodeError):
            return raw.decode("latin_1")
    with warnings.catch_warnings():  # code extensions (PS3.5 section 6.1.2.5): rare, and pydicom warns on broken ones
        warnings.simplefilter("ignore")
        return "=".join(decode_bytes(part, encodings, _DELIMITERS) for part in raw.split(b"="))


def _terms(values: list[str]) -> tuple[str, ...]:
    terms = []
    for value in values:
        term = value.strip().upper()
        if (misspelt := _MISSPELT.fullmatch(term)) is not None:
            term = f"ISO_IR {misspelt[1]}"
        terms.append({"UTF8": UTF8, "UTF-8": UTF8, "ISO_IR 6": ""}.get(term, term))
    return () if terms in ([""], ["ISO 2022 IR 6"]) else tuple(terms)


def _encodings(terms: tuple[str, ...]) -> list[str]:
    return [python_encoding.get(t, "latin_1") for t in terms] or ["latin_1"]


def _person_name(text: str) -> str:
    """PS3.5 section 6.2.1: up to three groups of 64 characters, five components each."""
    groups = [g.strip()[:64].strip() for g in text.split("=")[:3]]
    return "=".join("^".join(g.split("^")[:5]) for g in groups).rstrip("=")


def _date(text: str) -> str:
    digits = text.replace(".", "").replace("-", "")[:8]
    try:
        return datetime.strptime(digits, "%Y%m%d").strftime("%Y%m%d") if len(digits) == 8 else ""
    except ValueError:
        return ""


_TIME = r"([01]\d|2[0-3])([0-5]\d(([0-5]\d|60)(\.\d{1,6})?)?)?"


def _match(pattern: str, fold: Callable[[str], str] = str) -> Callable[[str], str]:
    compiled = re.compile(pattern)
    return lambda text: fold(text) if compiled.fullmatch(fold(text)) else ""


_CLEANERS: dict[str, Callable[[str], str]] = {
    "PN": _person_name,
    "DA": _date,
    "TM": lambda text: _match(_TIME)(text.replace(":", "")),
    "CS": _match(r"[A-Z0-9 _]{1,16}", str.upper),
    "AS": _match(r"\d{3}[DWMY]", str.upper),
    "IS": _match(r"[+-]?\d{1,9}"),
    "DS": _match(r"(?=.{1,16}$)[+-]?\d+(\.\d*)?([eE][+-]?\d+)?"),
    "UI": lambda text: text if is_valid_uid(text) else "",
}
