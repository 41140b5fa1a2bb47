"""What a codestream says of itself, read from its markers: the decoder is chosen by it, and nothing is decoded that
is larger than the header declares (the answer to decompression bombs)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom import uid as uids

_JP2 = b"\x00\x00\x00\x0cjP  "
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # JPEG markers without a segment (ITU-T T.81 table B.1)
_DCT = (0xC0, 0xC1, 0xC2)
_SOF = {
    0xC0: uids.JPEGBaseline8Bit,
    0xC1: uids.JPEGExtended12Bit,
    0xC2: uids.JPEGExtended12Bit,  # progressive: retired in DICOM, and decoded by the same codec
    0xC3: uids.JPEGLossless,
    0xF7: uids.JPEGLSLossless,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Codestream:
    """syntax: the transfer syntax family that decodes it."""

    syntax: uids.UID
    rows: int
    columns: int
    components: int
    precision: int  # bits a sample
    signed: bool = False  # JPEG 2000 only, like `levels`
    tiles: int = 1  # JPEG 2000 only
    levels: int = 0  # of the wavelet: so often can both sides be halved while decoding
    complete: bool = True  # ends with its end marker, and is no shorter than its pixels can be coded
    lossy: bool = False
    transformed: bool | None = None  # JPEG only: whether an Adobe segment says that RGB was made YCbCr; None: none does


def describe(data: bytes) -> Codestream | None:
    """None for what is neither JPEG, JPEG-LS nor JPEG 2000 (RLE has no marker), or has a damaged header."""
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg(data)
        if data[:4] == b"\xff\x4f\xff\x51":
            return _jpeg2000(data, 0)
        if data[:8] == _JP2 and (at := data.find(b"\xff\x4f\xff\x51", 0, 4096)) > 0:
            return _jpeg2000(data, at)
    except (struct.error, IndexError):
        return None
    return None


def _complete(data: bytes) -> bool:
    """Padding may follow the end marker, whose bytes occur in no compressed data."""
    return b"\xff\xd9" in data[-1024:]


def _least_bits(sof: int, rows: int, columns: int, components: int) -> int:
    """Of one grey scan: decoders make up what a shorter one does not hold. Huffman codes have at least a bit, and a
    block of 64 samples at least two of them; progressive scans and JPEG-LS know runs without a bound."""
    if components != 1:
        return 0
    if sof == 0xC3:
        return rows * columns
    return 2 * -(-rows // 8) * -(-columns // 8) if sof in (0xC0, 0xC1) else 0


def _jpeg(data: bytes) -> Codestream | None:
    """ITU-T T.81 section B.2 (and T.87 for JPEG-LS): walk the segments to the first scan."""
    at, found, transformed = 2, None, None
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker in _STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in _SOF:
            found = marker, *struct.unpack_from(">BHHB", data, at + 4)
        elif marker == 0xEE and data[at + 4 : at + 9] == b"Adobe" and length >= 14:
            transformed = data[at + 15] != 0
        elif marker == 0xDA and found is not None:
            sof, precision, rows, columns, components = found
            near = data[at + 5 + 2 * data[at + 4]] if sof == 0xF7 else 0  # T.87 section C.2.3
            return Codestream(
                syntax=_SOF[sof], rows=rows, columns=columns, components=components, precision=precision,
                complete=_complete(data) and 8 * (len(data) - at) >= _least_bits(sof, rows, columns, components),
                lossy=sof in _DCT or near > 0, transformed=transformed,
            )  # fmt: skip
        at += 2 + length
    return None


def _jpeg2000(data: bytes, at: int) -> Codestream:
    """ITU-T T.800 sections A.5.1 and A.6.1: SIZ stands first, COD before the first tile. Of HTJ2K, bit 14 of Rsiz is
    set (ITU-T T.814 section A.2)."""
    (capabilities,) = struct.unpack_from(">H", data, at + 6)
    levels, reversible = _wavelet(data, at + 2)
    right, bottom, left, top = struct.unpack_from(">LLLL", data, at + 8)
    width, height = struct.unpack_from(">LL", data, at + 24)  # of a tile
    components, depth = struct.unpack_from(">HB", data, at + 40)
    return Codestream(
        syntax=uids.HTJ2K if capabilities & 0x4000 else uids.JPEG2000,
        rows=bottom - top, columns=right - left, components=components,
        precision=(depth & 0x7F) + 1, signed=bool(depth & 0x80), complete=_complete(data),
        tiles=-(-right // max(width, 1)) * -(-bottom // max(height, 1)),
        levels=levels if left == top == 0 else 0,  # an offset moves the halved grid
        lossy=not reversible,
    )  # fmt: skip


def _wavelet(data: bytes, at: int) -> tuple[int, bool]:
    """(decomposition levels, whether it is the reversible one)"""
    while data[at] == 0xFF and data[at + 1] != 0x90:  # SOT: a tile begins
        if data[at + 1] == 0x52:  # COD
            return data[at + 9], data[at + 13] == 1
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, True
