"""The outline of an encoded data set: where its elements are, and whether it was cut short (PS3.5 sections 7 and A.4).

`read.read_header` stops at the pixel data; this looks whether what follows is as long as it says.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from mmap import mmap

_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_UNDEFINED = 0xFFFFFFFF
_DELIMITERS = 0xFFFE  # group of items and their ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """spans: offsets (first, after the last byte) of the top-level elements of defined length, by tag."""

    cut_short: bool  # it ends inside an element, or before a sequence has its end
    spans: dict[int, tuple[int, int]]


def outline(data: bytes | mmap, at: int, *, implicit: bool, little: bool) -> Outline:
    """Of the data set in `data` from `at` on. Items of undefined length are entered: one flat pass sees every level."""
    order = "<" if little else ">"
    head, short = struct.Struct(f"{order}HH"), struct.Struct(f"{order}H")
    long = struct.Struct(f"{order}L")
    spans: dict[int, tuple[int, int]] = {}
    depth, unknown_at = 0, -1  # unknown_at: depth of an element of VR UN, which holds implicit VR (PS3.5 6.2.2)
    end = len(data)
    while at + 8 <= end:
        start = at
        group, element = head.unpack_from(data, at)
        vr = data[at + 4 : at + 6]
        if group == _DELIMITERS and element != 0xE000:
            depth = max(depth - 1, 0)
            unknown_at = -1 if depth <= unknown_at else unknown_at
            at += 8
            continue
        if group == _DELIMITERS or implicit or unknown_at >= 0:
            (length,) = long.unpack_from(data, at + 4)
            at += 8
        elif vr in _LONG_VRS:
            if at + 12 > end:
                return Outline(cut_short=True, spans=spans)
            (length,) = long.unpack_from(data, at + 8)
            at += 12
        else:
            (length,) = short.unpack_from(data, at + 6)
            at += 8
        if length != _UNDEFINED:
            at += length
            if depth == 0:
                spans[group << 16 | element] = start, at
            continue
        if vr == b"UN" and not implicit and unknown_at < 0 and group != _DELIMITERS:
            unknown_at = depth
        depth += 1
    return Outline(cut_short=at > end or depth > 0, spans=spans)
