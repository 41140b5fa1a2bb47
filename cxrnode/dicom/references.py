"""Referenced and Failed SOP Sequences of storage commitment (PS3.4 tables J.3-1, J.3-2), however long.

A hundred thousand items as data sets of their own would cost hundreds of megabytes and seconds: here each is a tuple.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from cxrnode.dicom.flat import ITEM, ITEM_END, SEQUENCE_END, UNDEFINED, FlatReader
from cxrnode.dicom.uids import is_valid_uid
from cxrnode.errors import Rejected
from cxrnode.types import Reason, Reference

_TRANSACTION_UID, _REFERENCED, _FAILED = 0x00081195, 0x00081199, 0x00081198
_CLASS, _INSTANCE, _FAILURE_REASON = 0x00081150, 0x00081155, 0x00081197
_WANTED = {_CLASS, _INSTANCE, _FAILURE_REASON}
_LONGEST = 66  # bytes of a UID, with what pads it

Failure = tuple[Reference, int]  # with the Failure Reason (PS3.3 section C.14.1.1)


@dataclass(slots=True, kw_only=True)
class References:
    transaction_uid: str = ""
    referenced: list[Reference] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)


def read_references(reader: FlatReader) -> References:
    """All that the data set names. Raises Rejected where it is damaged, or a UID is none."""
    found = References()
    while head := reader.next():
        tag, vr, length = head
        if tag == _TRANSACTION_UID:
            found.transaction_uid = _uid(_take(reader, length))
        elif tag == _REFERENCED:
            found.referenced += [_reference(item) for item in _items(reader, vr, length)]
        elif tag == _FAILED:
            found.failed += [(_reference(item), _reason(item)) for item in _items(reader, vr, length)]
        else:
            reader.pass_over(vr, length)
    if not found.transaction_uid:
        raise _damaged("no Transaction UID")
    return found


def _items(reader: FlatReader, vr: bytes, length: int) -> Iterator[dict[int, bytes]]:
    """Of each item what is wanted. UN holds implicit VR (PS3.5 section 6.2.2)."""
    implicit = reader.implicit or vr == b"UN"
    for tag, _, size in _within(reader, length, SEQUENCE_END, implicit=True):
        if tag != ITEM:
            raise _damaged("a sequence holds no items")
        item: dict[int, bytes] = {}
        for inner, inner_vr, inner_length in _within(reader, size, ITEM_END, implicit=implicit):
            if inner in _WANTED:
                item[inner] = _take(reader, inner_length)
            else:
                reader.pass_over(inner_vr, inner_length)
        yield item


def _within(reader: FlatReader, length: int, end_tag: int, *, implicit: bool) -> Iterator[tuple[int, bytes, int]]:
    """The heads in a value of this length, or up to its delimiter; their values are the caller's to read."""
    end = None if length == UNDEFINED else reader.stream.position + length
    while end is None or reader.stream.position < end:
        head = reader.next(implicit=implicit)
        if head is None:
            raise _damaged("it ends inside a sequence")
        if head[0] == end_tag:
            if end is None:
                return
            raise _damaged("a delimiter where a length was said")
        yield head
    if reader.stream.position > end:
        raise _damaged("an element is longer than what it is in")


def _take(reader: FlatReader, length: int) -> bytes:
    if length > _LONGEST:
        raise _damaged("a value is too long")
    return reader.stream.take(length)


def _reference(item: dict[int, bytes]) -> Reference:
    return _uid(item.get(_CLASS, b"")), _uid(item.get(_INSTANCE, b""))


def _reason(item: dict[int, bytes]) -> int:
    value = item.get(_FAILURE_REASON, b"")
    if len(value) != 2:
        raise _damaged("a failure without a reason")
    return int.from_bytes(value, "little")


def _uid(value: bytes) -> str:
    uid = value.rstrip(b"\0 ").decode("latin-1")
    if not is_valid_uid(uid):
        raise _damaged("a UID is none")
    return uid


def _damaged(what: str) -> Rejected:
    return Rejected(Reason.UNREADABLE_FILE, f"the data set is damaged: {what}")
