"""The files that a DICOMDIR lists (PS3.3 section F, PS3.10 section 8), by one flat pass over its bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from pydicom.uid import ImplicitVRLittleEndian, MediaStorageDirectoryStorage

from cxrnode.dicom.budget import OBJECT_BYTES
from cxrnode.dicom.flat import LONG_VRS, UNDEFINED
from cxrnode.errors import Damaged, Rejected
from cxrnode.location import open_regular, too_large

MAX_ELEMENTS = 4 * 10**6  # some twenty a record: a disc of 200,000 images
_META = 4096  # bytes in which the file meta information says what the file is
_SOP_CLASS, _TRANSFER_SYNTAX = 0x00020002, 0x00020010
_RECORDS, _FILE_ID = 0x00041220, 0x00041500


def is_dicomdir(path: Path) -> bool:
    try:
        with open_regular(path) as f:
            return _meta(f.read(_META)).get(_SOP_CLASS) == MediaStorageDirectoryStorage
    except (OSError, Rejected):
        return False


def file_ids(path: Path) -> Iterator[list[str]]:
    """The components of each Referenced File ID, in order. Raises Rejected, OSError, Damaged after what was found."""
    with open_regular(path) as f:
        data = f.read(OBJECT_BYTES + 1)
    if len(data) > OBJECT_BYTES:
        raise too_large(len(data))
    implicit = _meta(data[:_META]).get(_TRANSFER_SYNTAX) == ImplicitVRLittleEndian
    for count, (tag, value) in enumerate(_elements(data, 132, implicit=implicit)):
        if count == MAX_ELEMENTS:
            raise Damaged(f"more than {MAX_ELEMENTS} elements")
        if tag == _FILE_ID and (parts := value.decode("utf-8", "surrogateescape").strip(" \0")):
            yield [part.strip() for part in parts.split("\\")]


def _meta(head: bytes) -> dict[int, str]:
    if head[128:132] != b"DICM":
        return {}
    found: dict[int, str] = {}
    try:
        for tag, value in _elements(head, 132, implicit=False):
            if tag >> 16 != 2:
                break
            found[tag] = value.decode("latin-1").strip(" \0")
    except Damaged:
        pass  # it goes on where `head` ends
    return found


def _elements(data: bytes, at: int, *, implicit: bool) -> Iterator[tuple[int, bytes]]:
    """(tag, value) of every element, those of the directory's records among them. Raises Damaged."""
    while at + 8 <= len(data):
        group, element, length = struct.unpack_from("<HHL", data, at)
        tag, vr = group << 16 | element, data[at + 4 : at + 6]
        at += 8
        if group != 0xFFFE and not (implicit and group > 2):
            if vr in LONG_VRS and at + 4 <= len(data):
                (length,) = struct.unpack_from("<L", data, at)
                at += 4
            else:
                length >>= 16  # the VR stands in its lower half
        if group == 0xFFFE or tag == _RECORDS or length == UNDEFINED:
            continue  # what is inside comes next
        if at + length > len(data):
            raise Damaged("it ends inside an element")
        yield tag, data[at : at + length]
        at += length
