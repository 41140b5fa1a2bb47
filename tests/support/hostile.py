"""Objects made to cost their reader minutes or gigabytes, each around the same small radiograph.

python -m tests.support.hostile FOLDER      # one file a kind
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom import uid as uids
from pydicom.datadict import tag_for_keyword

from tests.support.make_dicom import SYNTAXES, chest, to_bytes

UNDEFINED = 0xFFFFFFFF
PRIVATE = 0x00091010
Pieces = tuple[bytes, bytes, bytes]  # preamble and file meta; the data set before group 0009; from there on


@cache
def pieces(syntax: str) -> Pieces:
    """Of a film whose data set comes as explicit or implicit VR little endian, or explicit VR big endian."""
    raw = to_bytes(chest(96, 80, seed=11, syntax=syntax))
    at = 144 + int.from_bytes(raw[140:144], "little")
    order = _order(syntax)
    cut = raw.index(struct.pack(f"{order}HH", 0x0010, 0x0010), at)
    return raw[:at], raw[at:cut], raw[cut:]


def _order(syntax: str) -> str:
    return ">" if syntax == "big_endian" else "<"


def head(tag: int, vr: str, length: int, syntax: str = "explicit") -> bytes:
    order, group, number = _order(syntax), tag >> 16, tag & 0xFFFF
    if syntax == "implicit" or group == 0xFFFE:
        return struct.pack(f"{order}HHL", group, number, length)
    if vr in ("SQ", "UN", "OB", "OW", "UT"):
        return struct.pack(f"{order}HH2sHL", group, number, vr.encode(), 0, length)
    return struct.pack(f"{order}HH2sH", group, number, vr.encode(), length)


def item(syntax: str = "explicit", length: int = 0) -> bytes:
    return head(0xFFFEE000, "", length, syntax)


def within(extra: bytes, syntax: str = "explicit", *, after: bool = False) -> bytes:
    """The film with `extra` elements in group 0009, or after its own last."""
    meta, low, high = pieces(syntax)
    return meta + low + high + extra if after else meta + low + extra + high


def deflated(parts: Iterator[bytes]) -> bytes:
    meta, low, high = pieces("explicit")
    meta = meta.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    shift = 2  # the longer UID
    at = meta.index(b"1.2.840.10008.1.2.1.99") - 2
    meta = meta[:at] + struct.pack("<H", 22) + meta[at + 2 :]
    meta = meta[:140] + struct.pack("<L", int.from_bytes(meta[140:144], "little") + shift) + meta[144:]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = packer.compress(low) + b"".join(map(packer.compress, parts)) + packer.compress(high) + packer.flush()
    return meta + body


def sequence(tag: int, value: bytes, syntax: str = "explicit", vr: str = "SQ") -> bytes:
    return head(tag, vr, len(value), syntax) + value


def nested(levels: int, tag: int = PRIVATE, syntax: str = "explicit", vr: str = "SQ") -> bytes:
    """Sequences in sequences, of undefined length, which end."""
    inner = "implicit" if vr == "UN" else syntax
    down = head(tag, vr, UNDEFINED, syntax) + item(inner, UNDEFINED)
    down += (head(tag, vr, UNDEFINED, inner) + item(inner, UNDEFINED)) * (levels - 1)
    return down + (head(0xFFFEE00D, "", 0, inner) + head(0xFFFEE0DD, "", 0, inner)) * levels


def nested_lengths(levels: int, tag: int, syntax: str = "explicit") -> bytes:
    """The same of defined lengths."""
    value = b""
    for _ in range(levels):
        value = sequence(tag, item(syntax, len(value)) + value, syntax)
    return value


def replaced(keyword: str, vr: str, value: bytes) -> bytes:
    """The film with another value of an element with a length of two bytes."""
    meta, low, high = pieces("explicit")
    tag = tag_for_keyword(keyword) or 0
    start = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    body = low + high
    if (at := body.find(start)) < 0:
        raise ValueError(keyword)
    (length,) = struct.unpack_from("<H", body, at + 6)
    new = head(tag, vr, len(value)) + value
    return meta + body[:at] + new + body[at + 8 + length :]


def encapsulated(value: bytes, syntax: str, *, rows: int = 96, columns: int = 80, bits: int = 16) -> bytes:
    """A film whose pixel data are `value`, whatever that is."""
    ds = chest(96, 80, seed=11, syntax="explicit", bits_stored=12 if bits == 16 else 8)
    ds.Rows, ds.Columns = rows, columns
    ds.file_meta.TransferSyntaxUID = SYNTAXES[syntax] if syntax in SYNTAXES else uids.UID(syntax)
    ds.PixelData = item(length=0) + value
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return to_bytes(ds)


def fragment(value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return item(length=len(value)) + value


def j2k(rows: int, columns: int, tile: tuple[int, int] | None = None, components: int = 1) -> bytes:
    """A codestream of 64 x 64 that says it is another size, or has more components."""
    raw = bytearray(imagecodecs.jpeg2k_encode(np.zeros((64, 64), np.uint8), codecformat="J2K", level=0))
    at = raw.index(b"\xff\x51")
    raw[at + 6 : at + 14] = struct.pack(">LL", columns, rows)
    raw[at + 22 : at + 30] = struct.pack(">LL", *(tile or (columns, rows)))
    if components > 1:
        raw[at + 2 : at + 4] = struct.pack(">H", 38 + 3 * components)
        raw[at + 38 : at + 40] = struct.pack(">H", components)
        raw[at + 40 : at + 40] = raw[at + 40 : at + 43] * (components - 1)
    return bytes(raw)


def jpeg(rows: int, columns: int) -> bytes:
    raw = bytearray(imagecodecs.jpeg8_encode(np.zeros((64, 64), np.uint8)))
    at = raw.index(b"\xff\xc0")
    raw[at + 5 : at + 9] = struct.pack(">HH", rows, columns)
    return bytes(raw)


def rle(rows: int, columns: int) -> bytes:
    """Runs that unpack to `rows` x `columns` bytes, twice."""
    plane = b"\x81\0" * (rows * columns // 128)
    return struct.pack("<16L", 2, 64, 64 + len(plane), *[0] * 13) + plane * 2


LUT = tag_for_keyword("VOILUTSequence") or 0
REQUEST = tag_for_keyword("RequestAttributesSequence") or 0
MILLION = 1 << 20

KINDS: dict[str, Callable[[], bytes]] = {
    "items": lambda: within(sequence(PRIVATE, item() * MILLION)),
    "items-undefined": lambda: within(head(PRIVATE, "SQ", UNDEFINED) + item() * MILLION + head(0xFFFEE0DD, "", 0)),
    "items-implicit": lambda: within(
        head(PRIVATE, "SQ", UNDEFINED, "implicit") + item("implicit") * MILLION + head(0xFFFEE0DD, "", 0, "implicit"),
        "implicit",
    ),
    "items-big-endian": lambda: within(sequence(PRIVATE, item("big_endian") * MILLION, "big_endian"), "big_endian"),
    "items-kept": lambda: within(sequence(REQUEST, item() * 30_000)),
    "items-kept-many": lambda: within(sequence(REQUEST, item() * MILLION)),
    "items-kept-open": lambda: within(head(REQUEST, "SQ", UNDEFINED) + item() * MILLION + head(0xFFFEE0DD, "", 0)),
    "items-un": lambda: within(sequence(REQUEST, item() * 30_000, vr="UN")),
    "zeros-kept": lambda: within(sequence(REQUEST, bytes(200_000))),
    "deflated-items": lambda: deflated(iter([head(PRIVATE, "SQ", 8 * (1 << 24)), *[item() * (1 << 17)] * (1 << 7)])),
    "deflated-zeros": lambda: deflated(iter([head(PRIVATE, "UN", 1 << 28), *[bytes(1 << 20)] * (1 << 8)])),
    "elements": lambda: within(head(PRIVATE, "LO", 0) * MILLION),
    "elements-after": lambda: within(head(0x7FE10010, "LO", 0) * MILLION, after=True),
    "nested": lambda: within(nested(10_000)),
    "nested-implicit": lambda: within(nested(10_000, syntax="implicit"), "implicit"),
    "nested-un": lambda: within(nested(10_000, vr="UN")),
    "nested-kept": lambda: within(nested(10_000, REQUEST)),
    "nested-kept-lengths": lambda: within(nested_lengths(2_500, REQUEST)),
    "nested-kept-un": lambda: within(nested(10_000, REQUEST, vr="UN")),
    "nested-without-end": lambda: within((head(PRIVATE, "SQ", UNDEFINED) + item(length=UNDEFINED)) * 10_000),
    "length-4g": lambda: within(head(PRIVATE, "UN", 0xFFFFFFFE)),
    "length-4g-kept": lambda: within(head(0x00104000, "UT", 0xFFFFFFFE)),
    "text-60m": lambda: within(sequence(0x00104000, b"x" * 60_000_000, vr="UT")),
    "text-backslashes": lambda: replaced("PatientName", "PN", b"\\" * 60_000),
    "text-escapes": lambda: replaced("PatientName", "PN", b"\x1b$B" * 20_000),
    "lut-items": lambda: within(sequence(LUT, item() * 400_000)),
    "lut-numbers": lambda: within(
        sequence(LUT, item(length=8 + 60_000) + head(0x00283006, "US", 60_000) + bytes(60_000)) * 80
    ),
    "fragments": lambda: encapsulated(item() * MILLION, "j2k"),
    "fragments-rle": lambda: encapsulated(fragment(b"\0") * MILLION, "rle"),
    "j2k-16384": lambda: encapsulated(fragment(j2k(16384, 16384)), "j2k", rows=16384, columns=16384, bits=8),
    "j2k-5000": lambda: encapsulated(fragment(j2k(5000, 5000)), "j2k", rows=5000, columns=5000, bits=8),
    "j2k-tiles": lambda: encapsulated(fragment(j2k(5000, 5000, (1, 1))), "j2k", rows=5000, columns=5000, bits=8),
    "j2k-many-tiles": lambda: encapsulated(fragment(j2k(5000, 5000, (20, 20))), "j2k", rows=5000, columns=5000, bits=8),
    "j2k-components": lambda: encapsulated(fragment(j2k(64, 64, components=16384)), "j2k", rows=64, columns=64, bits=8),
    "jpeg-5000": lambda: encapsulated(fragment(jpeg(5000, 5000)), "jpeg_baseline", rows=5000, columns=5000, bits=8),
    "jpeg-65500": lambda: encapsulated(
        fragment(jpeg(65500, 65500)), "jpeg_baseline", rows=65500, columns=65500, bits=8
    ),
    "rle-5000": lambda: encapsulated(fragment(rle(5000, 5000)), "rle", rows=5000, columns=5000),
    "rle-bomb": lambda: encapsulated(fragment(rle(40_000, 40_000)), "rle", rows=5000, columns=5000),
    "rows-65535": lambda: replaced("Rows", "US", b"\xff\xff"),
    "bits-allocated-1": lambda: replaced("BitsAllocated", "US", b"\1\0"),
    "bits-allocated-64": lambda: replaced("BitsAllocated", "US", b"\x40\0"),
    "characters-odd": lambda: replaced("SpecificCharacterSet", "CS", b"\\ISO 2022 IR 87\\" * 100),
}


if __name__ == "__main__":
    for name, make in KINDS.items():
        path = Path(sys.argv[1]) / f"{name}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make())
