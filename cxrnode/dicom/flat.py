"""The flat pass over an encoded data set (PS3.5 sections 7 and A): what is needed is kept, all else is passed over.

It reads a stream once and forward, counts what it meets against `budget` before anything is built of it, and builds
only what is wanted. So whatever the bytes, it takes a fraction of a second and a few megabytes.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Collection
from io import BytesIO
from typing import Protocol

from pydicom import DataElement, Dataset, Sequence
from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

from cxrnode.dicom import budget
from cxrnode.dicom.needed import TABLE_TAGS
from cxrnode.errors import Rejected
from cxrnode.types import Reason

UNDEFINED = 0xFFFFFFFF  # length of what ends with a delimiter
SHORT_VRS = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
     b"ST", b"TM", b"UI", b"UL", b"US"}
)  # fmt: skip
LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_BINARY = frozenset({"AT", "FD", "FL", "OB", "OD", "OF", "OL", "OV", "OW", "SL", "SS", "SV", "UL", "UN", "US", "UV"})
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_CHARACTER_SET = 0x00080005
_DEFAULT_CHARACTERS = ["iso8859"]  # pydicom's
_CHUNK = 1 << 16  # bytes: holds nearly every header


class _Readable(Protocol):
    def read(self, count: int, /) -> bytes: ...

    def seek(self, offset: int, whence: int, /) -> int: ...


class Inflated:
    """The inflated bytes of a deflated data set (PS3.5 section A.5), from where `deflated` stands, read forward."""

    def __init__(self, deflated: Stream) -> None:
        self._deflated = deflated
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)

    def read(self, count: int) -> bytes:
        """Raises Rejected: UNREADABLE_FILE, or TRUNCATED where the deflated stream has no end."""
        parts = []
        while count > 0 and not self._inflater.eof:
            deflated = self._inflater.unconsumed_tail or self._deflated.read(_CHUNK)
            try:
                part = self._inflater.decompress(deflated, count)
            except zlib.error:
                raise Rejected(Reason.UNREADABLE_FILE, "the deflated data set is damaged") from None
            if not deflated and not part:
                raise Rejected(Reason.TRUNCATED, "the deflated data set ends early")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def seek(self, offset: int, _whence: int) -> int:
        while offset > 0 and (part := self.read(min(offset, _CHUNK))):
            offset -= len(part)
        return 0


class Stream:
    """Bytes read once and forward, no further than an object may be long. Raises Rejected: TRUNCATED, TOO_LARGE."""

    def __init__(self, f: _Readable) -> None:
        self._f = f
        self._buffer = b""
        self._at = 0
        self._before = 0  # bytes before the buffer

    @property
    def position(self) -> int:
        return self._before + self._at

    def window(self, count: int) -> tuple[bytes, int]:
        """A buffer and an offset in it: the next `count` bytes are there, or all that are left."""
        if len(self._buffer) - self._at < count:
            rest = self._buffer[self._at :]
            self._before += self._at
            self._buffer, self._at = rest + self._f.read(_CHUNK), 0
        return self._buffer, self._at

    def forward(self, count: int) -> None:
        """Past bytes that a window showed, or back to them."""
        self._at += count

    def skip(self, count: int) -> None:
        allowed = min(count, budget.OBJECT_BYTES + 1 - self.position)
        beyond = allowed - (len(self._buffer) - self._at)
        if beyond <= 0:
            self._at += allowed
        else:
            if beyond > 1:  # to the last of them, for a seek does not say whether it is there
                self._f.seek(beyond - 1, os.SEEK_CUR)
            self._before += len(self._buffer) + beyond - 1
            self._buffer, self._at = self._f.read(_CHUNK), 1
            if not self._buffer:
                raise _cut_short()
        if self.position > budget.OBJECT_BYTES:
            raise _too_large()

    def take(self, count: int) -> bytes:
        if self.position + count > budget.OBJECT_BYTES:
            self.skip(count)
        value = self._buffer[self._at : self._at + count]
        self._at += len(value)
        if missing := count - len(value):
            more = self._f.read(missing)
            self._before += len(more)
            if len(more) < missing:
                raise _cut_short()
            value = value + more if value else more
        return value

    def read(self, count: int) -> bytes:
        """The next bytes, at most `count`; none at the end."""
        data, at = self.window(1)
        value = data[at : at + count]
        self._at += len(value)
        if self.position > budget.OBJECT_BYTES:
            raise _too_large()
        return value

    def rest(self) -> bytes:
        """All that is left."""
        left = budget.OBJECT_BYTES - self.position
        value = self._buffer[self._at :]
        value += self._f.read(max(0, left + 1 - len(value)))
        if len(value) > left:
            raise _too_large()
        return value


Head = tuple[int, bytes, int]  # tag, VR (b"" where it is implicit), length


class FlatReader:
    """Reads one data set, with one budget. Raises Rejected: TRUNCATED, TOO_LARGE, UNREADABLE_FILE (damaged)."""

    def __init__(self, stream: Stream, *, implicit: bool, little: bool, most: budget.Budget = budget.HEADER) -> None:
        self.stream = stream
        self.implicit = implicit
        self.little = little
        order = "<" if little else ">"
        self._tag_length, self._short = struct.Struct(f"{order}HHL"), struct.Struct(f"{order}H")
        self._elements, self._kept = most.elements, most.kept
        self._kept_bytes, self._table_bytes = most.kept_bytes, most.table_bytes

    def header(self, wanted: Collection[int], *, stop: int) -> tuple[Dataset, Head | None]:
        """The wanted elements before the first with a tag of at least `stop`, and that one's head; None at the end."""
        found: dict[BaseTag, DataElement | RawDataElement] = {}
        characters = _DEFAULT_CHARACTERS
        while head := self.next():
            tag, vr, length = head
            if tag >= stop:
                break
            if tag not in wanted:
                self.pass_over(vr, length)
                continue
            element = self._element(self.stream, head, self.implicit, characters, 0)
            if element is not None and found.setdefault(element.tag, element) != element:  # which one counts?
                raise Rejected(Reason.UNREADABLE_FILE, f"{keyword_for_tag(tag)} stands there twice, with two values")
            if tag == _CHARACTER_SET:
                characters = _characters(element)
        return self._data_set(found, self.implicit, characters), head

    def pass_to_end(self, head: Head | None) -> None:
        """From an element whose head was read on: raises Rejected(TRUNCATED) where one is shorter than it says."""
        while head:
            self.pass_over(*head[1:])
            head = self.next()

    def next(self, *, within: Stream | None = None, implicit: bool | None = None) -> Head | None:
        """The next element's head; None at the end, where fewer than eight bytes are left."""
        stream = self.stream if within is None else within
        if implicit is None:
            implicit = self.implicit
        self._elements -= 1
        if self._elements < 0:
            raise _too_large("too many elements")
        data, at = stream.window(12)
        left = len(data) - at
        if left < 8:
            return None
        group, number, length = self._tag_length.unpack_from(data, at)
        if implicit or group == 0xFFFE:
            vr, size = b"", 8
        else:
            vr, size = data[at + 4 : at + 6], 8
            if vr in LONG_VRS:
                if left < 12:
                    raise _cut_short()
                length, size = int.from_bytes(data[at + 8 : at + 12], "little" if self.little else "big"), 12
            elif vr in SHORT_VRS or _is_vr(vr):
                (length,) = self._short.unpack_from(data, at + 6)
            else:
                vr = b""  # some writers switch to implicit VR
        stream.forward(size)
        return group << 16 | number, vr, length

    def pass_over(self, vr: bytes, length: int) -> None:
        """Past the value whose head was read. What has no length is entered: one loop sees every level."""
        if length != UNDEFINED:
            self.stream.skip(length)
            return
        depth, unknown_at = 1, 0 if vr == b"UN" else -1  # UN of no length holds implicit VR (PS3.5 section 6.2.2)
        while depth:
            head = self.next(implicit=self.implicit or unknown_at >= 0)
            if head is None:
                raise _cut_short()
            tag, vr, length = head
            if tag in (ITEM_END, SEQUENCE_END):
                depth -= 1
                unknown_at = -1 if depth <= unknown_at else unknown_at
            elif length == UNDEFINED:
                if vr == b"UN" and unknown_at < 0:
                    unknown_at = depth
                depth += 1
            else:
                self.stream.skip(length)

    def _element(
        self, stream: Stream, head: Head, implicit: bool, characters: list[str], depth: int
    ) -> DataElement | RawDataElement | None:
        """What is kept: raw, or a sequence with its items. None for what has no length and is no sequence."""
        tag, vr, length = head
        known = _known_vr(tag, vr)
        if length == UNDEFINED:
            items = self._items(stream, implicit or vr == b"UN", characters, depth, delimited=True)
            return DataElement(BaseTag(tag), "SQ", Sequence(items)) if known == "SQ" else None
        self._spend(tag, length)
        value = stream.take(length)
        if known == "SQ":
            try:
                items = self._items(Stream(BytesIO(value)), implicit or vr == b"UN", characters, depth, delimited=False)
            except Rejected as rejected:
                if rejected.rejection.reason is Reason.TOO_LARGE:
                    raise
                return RawDataElement(BaseTag(tag), "OB", length, value, 0, False, self.little)  # damaged, and it alone
            return DataElement(BaseTag(tag), "SQ", Sequence(items))
        self._keep(1 if known in _BINARY else 1 + value.count(b"\\") + value.count(b"\x1b"))
        return RawDataElement(
            BaseTag(tag), vr.decode("ascii") if vr else None, length, value, 0, not vr or implicit, self.little
        )

    def _items(
        self, stream: Stream, implicit: bool, characters: list[str], depth: int, *, delimited: bool
    ) -> list[Dataset]:
        if depth >= budget.DEPTH:
            raise _too_large(f"sequences {depth} deep")
        items: list[Dataset] = []
        while True:
            head = self.next(within=stream, implicit=True)
            if head is None and delimited:
                raise _cut_short()
            if head is None or head[0] == SEQUENCE_END:
                return items
            tag, _, length = head
            if tag != ITEM:
                raise Rejected(Reason.UNREADABLE_FILE, "the data set is damaged: a sequence holds no items")
            self._keep(1)
            inner, open_ended = stream, length == UNDEFINED
            if not open_ended:
                inner = Stream(BytesIO(stream.take(length)))
            items.append(self._item(inner, implicit, characters, depth + 1, delimited=open_ended))

    def _item(self, stream: Stream, implicit: bool, characters: list[str], depth: int, *, delimited: bool) -> Dataset:
        data, at = stream.window(8)
        implicit = implicit or not is_explicit(data[at : at + 6])
        found: dict[BaseTag, DataElement | RawDataElement] = {}
        while head := self.next(within=stream, implicit=implicit):
            tag = head[0]
            if tag == ITEM_END:
                break
            element = self._element(stream, head, implicit, characters, depth)
            if element is None or tag >> 16 & 1:  # private
                continue
            found[element.tag] = element
            if tag == _CHARACTER_SET:
                characters = _characters(element)
        if delimited and head is None:
            raise _cut_short()
        return self._data_set(found, implicit, characters)

    def _data_set(
        self, found: dict[BaseTag, DataElement | RawDataElement], implicit: bool, characters: list[str]
    ) -> Dataset:
        """Built at once: element by element, pydicom would convert what is looked at meanwhile."""
        ds = Dataset(found)
        ds.set_original_encoding(implicit, self.little, characters)
        return ds

    def _keep(self, count: int) -> None:
        self._kept -= count
        if self._kept < 0:
            raise _too_large("too many values")

    def _spend(self, tag: int, count: int) -> None:
        """Of top-level elements and what is in them."""
        if count > budget.OBJECT_BYTES:
            return  # the stream says so, or that it is cut short
        if tag in TABLE_TAGS or tag == 0x00283006:  # LUT Data
            self._table_bytes -= count
        else:
            self._kept_bytes -= count
        if min(self._table_bytes, self._kept_bytes) < 0:
            raise _too_large(f"{keyword_for_tag(tag) or 'an element'} has {count} bytes")


def is_explicit(first: bytes) -> bool:
    """By an element's first six bytes; implicit VR has a length there, and none is so long as to look like a VR."""
    return _is_vr(first[4:6])


def _is_vr(two: bytes) -> bool:
    return len(two) == 2 and two.isalpha() and two.isupper()


def _known_vr(tag: int, vr: bytes) -> str:
    if vr and vr != b"UN":
        return vr.decode("ascii")
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


def _characters(element: DataElement | RawDataElement | None) -> list[str]:
    """pydicom's names for Specific Character Set (PS3.3 section C.12.1.1.2); unknown terms are the default."""
    value = element.value if isinstance(element, RawDataElement) else b""
    terms = [term.strip(" \0") for term in (value or b"").decode("latin-1").split("\\")]
    try:
        return list(convert_encodings(terms))
    except (LookupError, ValueError, AttributeError):
        return _DEFAULT_CHARACTERS


def _cut_short() -> Rejected:
    return Rejected(Reason.TRUNCATED, "the data set ends inside an element")


def _too_large(detail: str = f"more than {budget.OBJECT_BYTES // 2**20} MiB") -> Rejected:
    return Rejected(Reason.TOO_LARGE, detail)
