"""The encoded elements of a DICOM file, read by the rules of PS3.5 section 7 and PS3.10 section 7.1 alone.

Neither pydicom nor cxrnode: what compares a result with its source must not share the eyes of what made it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

IMPLICIT, EXPLICIT, BIG, DEFLATED = (
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99",
)  # fmt: skip
_LONG = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}  # PS3.5 table 7.1-1
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_PIXELS = 0x7FE00010


@dataclass(frozen=True, slots=True)
class Element:
    """vr: "" where the VR is implicit. value: the bytes of the value field, padding and all; items: of a sequence."""

    vr: str
    value: bytes
    items: tuple[Elements, ...] = ()


Elements = dict[int, Element]


def parse(file: bytes, sequences: frozenset[int] = frozenset()) -> Elements:
    """The data set of a Part 10 file, without its pixel data. `sequences`: what is one, where the VR is implicit."""
    assert file[128:132] == b"DICM"
    meta, at = _data_set(file, 132, "<", False, frozenset(), end=len(file), group=0x0002)
    syntax = meta[0x00020010].value.rstrip(b"\0").decode()
    body = file[at:]
    if syntax == DEFLATED:
        body = zlib.decompress(body, -zlib.MAX_WBITS)
    found, _ = _data_set(body, 0, ">" if syntax == BIG else "<", syntax == IMPLICIT, sequences, end=len(body))
    return found


def flat(elements: Elements, above: str = "") -> Iterator[tuple[str, str, bytes]]:
    """(path, VR, value) of every element that is no sequence, in order; a path reads 0040A370[0].00080050."""
    for tag, element in elements.items():
        path = f"{above}{tag:08X}"
        if not element.items and element.vr != "SQ":
            yield path, element.vr, element.value
        for number, item in enumerate(element.items):
            yield from flat(item, f"{path}[{number}].")


def _data_set(
    data: bytes, at: int, order: str, implicit: bool, sequences: frozenset[int], *, end: int, group: int | None = None
) -> tuple[Elements, int]:
    found: Elements = {}
    while at + 8 <= end:
        high, low = struct.unpack_from(f"{order}HH", data, at)
        tag = high << 16 | low
        if tag == _ITEM_END or (group is not None and high != group):
            return found, at
        vr = "" if implicit else data[at + 4 : at + 6].decode("ascii")
        if vr in _LONG or implicit:
            head = 8 if implicit else 12
            (length,) = struct.unpack_from(f"{order}L", data, at + head - 4)
        else:
            head = 8
            (length,) = struct.unpack_from(f"{order}H", data, at + 6)
        at += head
        if tag == _PIXELS:
            break
        if vr == "SQ" or tag in sequences:
            items, at = _items(data, at, order, implicit, sequences, length)
            found[tag] = Element(vr, b"", items)
        else:
            assert length != _UNDEFINED, f"{tag:08X} has no length"
            assert at + length <= end, f"{tag:08X} is cut short"
            found[tag] = Element(vr, data[at : at + length])
            at += length
    return found, at


def _items(
    data: bytes, at: int, order: str, implicit: bool, sequences: frozenset[int], length: int
) -> tuple[tuple[Elements, ...], int]:
    items: list[Elements] = []
    end = len(data) if length == _UNDEFINED else at + length
    while at < end:
        high, low, size = struct.unpack_from(f"{order}HHL", data, at)
        at += 8
        if high << 16 | low == _SEQUENCE_END:
            break
        assert high << 16 | low == _ITEM
        stop = end if size == _UNDEFINED else at + size
        item, at = _data_set(data, at, order, implicit, sequences, end=stop)
        items.append(item)
        if size == _UNDEFINED:
            at += 8  # past the Item Delimitation Item
    return tuple(items), at
