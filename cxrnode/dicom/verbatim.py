"""Elements as their source encoded them: text is carried as bytes, never decoded and encoded again (design rule 13).

Values of text have the same bytes in every transfer syntax (PS3.5 section 7.3), so they can be copied as they are,
together with the Specific Character Set that says how to read them. What pydicom decodes loses what it cannot decode.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection

from pydicom import DataElement, Dataset, Sequence
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.errors import BytesLengthException, InvalidDicomError

# what pydicom's parser and converters raise on damaged bytes; a failing read of the file itself is not among them,
# because they only ever see memory
DAMAGE = (
    ArithmeticError, AssertionError, AttributeError, BytesLengthException, EOFError, InvalidDicomError, LookupError,
    MemoryError, NotImplementedError, OSError, RecursionError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
TEXT_VRS = frozenset(
    {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
)
LONG_TEXT_VRS = frozenset({"UC", "UR", "UT"})  # those with a length of 32 bits (PS3.5 section 7.1.2)
CHARACTER_SET = 0x00080005
_UNREADABLE = b"??"


class Encoded(DataElement):
    """An element with its encoded value, text or not: pydicom's writer copies it, and nobody decodes it."""

    is_raw = True

    def __init__(self, tag: int, vr: str, value: bytes) -> None:
        padding = b"\0" if vr == "UI" else b" "
        value += padding * (len(value) % 2)
        super().__init__(tag, vr, _Terms(value) if tag == CHARACTER_SET else value, already_converted=True)

    @property
    def length(self) -> int:
        return len(self.value)


class _Terms(bytes):
    """A Specific Character Set that pydicom's writer takes for none: what it encodes itself is our own ASCII."""

    def __bool__(self) -> bool:
        return False


def verbatim(ds: Dataset, tags: Collection[int] | None = None) -> Dataset:
    """The elements of `ds`, a parsed data set that nobody has touched, that the standard knows; `tags`: only those.

    Text comes as Encoded with the VR of the dictionary. An element that is something else than it must be (a
    number, no sequence) keeps its bytes as VR OB, so that whoever needs it sees that it is there and cannot be copied.
    """
    copy = Dataset()
    for tag in ds.keys():  # noqa: SIM118 (iterating the data set itself would convert its elements)
        if (tag in tags if tags is not None else dictionary_has_tag(tag)) and tag.element:
            element = _verbatim(ds.get_item(tag), dictionary_VR(tag))
            if element is not None:
                copy[tag] = element
    return copy


def _verbatim(element: DataElement | RawDataElement, vr: str) -> DataElement | None:
    value = element.value
    if vr == "SQ":
        items = items_of(element)
        return _unreadable(element) if items is None else DataElement(element.tag, vr, [verbatim(i) for i in items])
    if vr not in TEXT_VRS:
        return _converted(element)
    if value is None or len(value) == 0:
        return Encoded(element.tag, vr, b"")
    if isinstance(value, bytes) and element.VR in {*TEXT_VRS, "UN", None}:
        return Encoded(element.tag, vr, value)
    return _unreadable(element)


def _unreadable(element: DataElement | RawDataElement) -> DataElement:
    value = element.value
    return Encoded(element.tag, "OB", value if isinstance(value, bytes) and value else _UNREADABLE)


def _converted(element: DataElement | RawDataElement) -> DataElement | None:
    if not isinstance(element, RawDataElement):
        return element
    try:
        converted = convert_raw_data_element(element)
        return converted if len(converted.VR) == 2 else None  # "US or SS": nobody can say which
    except DAMAGE:
        return None


def items_of(element: DataElement | RawDataElement) -> list[Dataset] | None:
    """The items of a sequence, parsed where it is still encoded; None where it is none."""
    value = element.value
    if value is None or (isinstance(value, bytes) and not value):
        return []
    if isinstance(element, RawDataElement) and element.VR in {"SQ", "UN", None} and isinstance(value, bytes | None):
        if element.VR == "UN":  # PS3.5 section 6.2.2, note 2: implicit VR little endian inside
            element = element._replace(is_implicit_VR=True, is_little_endian=True)
        try:
            value = convert_raw_data_element(element._replace(VR="SQ", value=value or b"")).value
        except DAMAGE:
            return None
    return list(value) if isinstance(value, Sequence) else None
