"""Encapsulated pixel data: a sequence of items (PS3.5 section A.4); the first is the offset table."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pydicom import Dataset
from pydicom import uid as uids

from cxrnode.dicom import budget
from cxrnode.errors import Rejected
from cxrnode.types import Reason

_ITEM = 0xE000FFFE  # the tag (FFFE,E000) as one little-endian word
_DELIMITER = 0xE0DDFFFE
# native frames in fragments (PS3.5 section A.4), which pydicom 3.0 does not know as transfer syntaxes
ENCAPSULATED_UNCOMPRESSED = uids.UID("1.2.840.10008.1.2.1.98")
DEFLATED_FRAME = uids.UID("1.2.840.10008.1.2.8.1")
_ENCAPSULATED = frozenset(
    {ENCAPSULATED_UNCOMPRESSED, DEFLATED_FRAME, *(uid for uid in uids.AllTransferSyntaxes if uid.is_encapsulated)}
)


def walk(value: bytes) -> int:
    """The offset of the sequence delimitation item. Raises Rejected: TRUNCATED, UNDECODABLE
    at a foreign tag, TOO_LARGE."""
    at = 0
    for _start, end in _items(value):
        at = end
    return at


def is_encapsulated(ds: Dataset) -> bool:
    """By the element's undefined length, or, in a data set that was made in memory, by the transfer syntax."""
    meta = getattr(ds, "file_meta", None)
    syntax = "" if meta is None else str(meta.get("TransferSyntaxUID"))
    return bool(ds["PixelData"].is_undefined_length) or syntax in _ENCAPSULATED


def fragments(value: bytes) -> Iterator[memoryview]:
    """The fragments without the offset table. `value` ends before its delimiter, as pydicom holds it."""
    view = memoryview(value)
    spans = _items(value, delimited=False)
    next(spans, None)
    for start, end in spans:
        yield view[start:end]


def _items(value: bytes, *, delimited: bool = True) -> Iterator[tuple[int, int]]:
    at, size, left = 0, len(value), budget.HEADER.elements
    while delimited or at + 8 <= size:
        left -= 1
        if left < 0:
            raise Rejected(Reason.TOO_LARGE, "too many fragments of pixel data")
        if at + 8 > size:
            raise Rejected(Reason.TRUNCATED, "the encapsulated pixel data have no end")
        tag, length = struct.unpack_from("<LL", value, at)
        at += 8
        if tag == _DELIMITER:
            return
        if tag != _ITEM:
            raise Rejected(Reason.UNDECODABLE, "the encapsulated pixel data are no sequence of items")
        if length > size - at:
            raise Rejected(Reason.TRUNCATED, "the encapsulated pixel data end inside a fragment")
        yield at, at + length
        at += length
