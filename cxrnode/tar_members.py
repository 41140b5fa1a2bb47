"""The members of a tar: v7, ustar, GNU and pax, sparse files in each of their four formats.

The standard library's tarfile ends without a word at a damaged header, follows a chain of extended headers by recursion
and reads an extended header of any length; here each is bounded, and every member is told.

Sources: POSIX.1-2017, pax; the GNU tar manual, "Basic Tar Format" and "Storing Sparse Files".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from cxrnode.errors import Damaged

_BLOCK = 512
_MAX_HEADER = 2**20  # bytes of an extended header: a name, a few numbers
_MAX_EXTENDED = 8  # of them before one member: a name, a link's target, pax
_MAX_PIECES = 16384  # of a sparse file: a film of 96 MiB whose every other 4 KiB is a hole has 12,288
_MAX_ZEROS = 2**26  # bytes of zeros after which nothing more is looked for
_ZERO = bytes(_BLOCK)
_RECORD = re.compile(rb"(\d{1,9}) ([^=\n]+)=")

Piece = tuple[int, int]  # (start in the file, length): data, and holes between


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What a tar holds. type: as in the header, "0" for every regular file."""

    name: str
    type: str
    offset: int  # of the data
    size: int  # of the file, holes included
    pieces: tuple[Piece, ...] | None = None  # of a sparse file; its data follow each other from `offset` on
    target: str = ""  # of a link


def is_tar(head: bytes) -> bool:
    """True where the first block is a tar's header. Those of v7 say so by nothing but their checksum."""
    return head[257:262] == b"ustar" or (len(head) >= _BLOCK and head[:1] != b"\0" and _sums_up(head[:_BLOCK]))


def members(f: BinaryIO) -> Iterator[Member]:
    """The members that are not folders, in order. Raises Damaged where what follows cannot be read."""
    end = f.seek(0, 2)
    at = 0
    common: dict[str, bytes] = {}
    while (at := _after_zeros(f, at, end)) < end:
        entry = _Entry(f, at, end, common)
        at = entry.next
        if entry.member:
            yield entry.member
        if at > end:
            raise Damaged("it ends inside its last member")


def _after_zeros(f: BinaryIO, at: int, end: int) -> int:
    """Where the next header is: zeros mark a tar's end, and another may follow that was appended to it."""
    start = at
    while at < end:
        f.seek(at)
        block = f.read(_BLOCK if at == start else 2**16)
        if stripped := block.lstrip(b"\0"):
            return at + (len(block) - len(stripped)) // _BLOCK * _BLOCK
        at += len(block)
        if at - start > _MAX_ZEROS:
            raise Damaged(f"more than {_MAX_ZEROS} bytes of zeros: what may follow them was not read")
    return end


class _Entry:
    """One member with the extended headers before it. `next` is where the header of the next one is."""

    def __init__(self, f: BinaryIO, at: int, end: int, common: dict[str, bytes]) -> None:
        self._f, self._at, self._end = f, at, end
        self._common = common
        self._pax: dict[str, bytes] = {}
        self._map: list[Piece] = []  # of pax's sparse format 0.0, whose keywords come again and again
        self._name = self._target = b""
        self.member: Member | None = None
        for _ in range(_MAX_EXTENDED + 1):
            header = self._block()
            if not _sums_up(header):
                raise Damaged(f"no valid header at byte {at}")
            if not self._extended(header):
                break
            if self._at >= end:
                raise Damaged("it ends after an extended header")
        else:
            raise Damaged(f"more than {_MAX_EXTENDED} extended headers before one member")
        self._finish(header)

    def _block(self) -> bytes:
        self._f.seek(self._at)
        block = self._f.read(_BLOCK)
        if len(block) < _BLOCK:
            raise Damaged("it ends inside a header")
        self._at += _BLOCK
        return block

    def _extended(self, header: bytes) -> bool:
        """True where the header only describes the one after it."""
        kind = header[156:157]
        if kind not in (b"L", b"K", b"x", b"g", b"X"):
            return False
        size = _number(header[124:136])
        if size > _MAX_HEADER:
            raise Damaged(f"an extended header of {size} bytes: more than {_MAX_HEADER}")
        content = self._f.read(size)
        if len(content) < size:
            raise Damaged("it ends inside an extended header")
        self._at += _padded(size)
        if kind == b"L":
            self._name = content.partition(b"\0")[0]
        elif kind == b"K":
            self._target = content.partition(b"\0")[0]
        elif kind == b"g":
            self._common.update(_records(content))
        else:
            records = _records(content)
            self._pax |= dict(records)
            self._map += _map_00(records)
        return True

    def _finish(self, header: bytes) -> None:
        pax = {**self._common, **self._pax}
        kind = header[156:157]
        stored = _decimal(pax["size"]) if "size" in pax else _number(header[124:136])
        name = pax.get("GNU.sparse.name") or pax.get("path") or self._name or _name_in(header)
        target = pax.get("linkpath") or self._target or header[157:257].partition(b"\0")[0]
        folder = kind in (b"5", b"D") or (kind in (b"0", b"\0") and name.endswith(b"/"))
        holds_data = kind not in (b"1", b"2", b"3", b"4", b"5", b"6", b"V")
        size, pieces = stored, None
        sparse_at = self._at
        if kind == b"S":
            size, pieces = self._old_sparse(header)
            sparse_at = self._at
        elif any(k.startswith("GNU.sparse.") for k in self._pax):
            size, pieces = self._pax_sparse(pax, stored)
            sparse_at = self._at
            self._at = self._data_at
        data = _padded(stored) if holds_data else 0
        self.next = self._at + data
        if pieces is not None:
            _check_map(pieces, size)
        if folder or kind == b"V":  # V: the volume's label
            return
        regular = holds_data and kind != b"M"
        self.member = Member(
            name=_text(name), type="0" if regular else kind.decode("latin-1"), offset=sparse_at,
            size=size if regular else 0, pieces=tuple(pieces) if pieces is not None else None, target=_text(target),
        )  # fmt: skip

    def _old_sparse(self, header: bytes) -> tuple[int, list[Piece]]:
        """The map begins in the header and goes on in blocks after it."""
        pieces = _map_in(header[386:482])
        more = header[482]
        while more:
            block = self._block()
            pieces += _map_in(block[:504])
            more = block[504]
            if len(pieces) > _MAX_PIECES:
                raise Damaged(f"a sparse member of more than {_MAX_PIECES} pieces")
        return _number(header[483:495]), pieces

    def _pax_sparse(self, pax: dict[str, bytes], stored: int) -> tuple[int, list[Piece]]:
        """Formats 0.0, 0.1 (the map is in the extended header) and 1.0 (it stands before the data)."""
        self._data_at = self._at
        size = _decimal(pax.get("GNU.sparse.realsize") or pax.get("GNU.sparse.size") or b"%d" % stored)
        if "GNU.sparse.map" in pax:
            numbers = pax["GNU.sparse.map"].split(b",")
            return size, _pairs([_decimal(n) for n in numbers])
        if pax.get("GNU.sparse.major") != b"1":
            return size, self._map
        return size, self._map_10(stored)

    def _map_10(self, stored: int) -> list[Piece]:
        numbers: list[int] = []
        line, begin = b"", self._at
        while not numbers or len(numbers) < 1 + 2 * numbers[0]:
            if self._at - begin >= stored:
                raise Damaged("the map of a sparse member is longer than the member")
            lines = (line + self._block()).split(b"\n")
            line = lines.pop()
            numbers += [_decimal(n) for n in lines if n.strip(b"\0")]
            if len(line) > _BLOCK or (numbers and numbers[0] > _MAX_PIECES):
                raise Damaged(f"a sparse member of more than {_MAX_PIECES} pieces")
        return _pairs(numbers[1 : 1 + 2 * numbers[0]])


def _records(content: bytes) -> list[tuple[str, bytes]]:
    """pax: "LENGTH KEYWORD=VALUE\\n", the length in decimal and of the whole record."""
    found = []
    at = 0
    while match := _RECORD.match(content, at):
        length = int(match[1])
        if length <= match.end() - at:
            raise Damaged("an extended header is damaged")
        found.append((match[2].decode("utf-8", "replace"), content[match.end() : at + length - 1]))
        at += length
    return found


def _map_00(records: list[tuple[str, bytes]]) -> list[Piece]:
    starts = [_decimal(v) for k, v in records if k == "GNU.sparse.offset"]
    lengths = [_decimal(v) for k, v in records if k == "GNU.sparse.numbytes"]
    return list(zip(starts, lengths, strict=False))


def _map_in(area: bytes) -> list[Piece]:
    """Entries of 24 bytes; the first that is empty ends the map."""
    pieces = []
    for at in range(0, len(area) - 23, 24):
        if not area[at + 12]:
            break
        pieces.append((_number(area[at : at + 12]), _number(area[at + 12 : at + 24])))
    return pieces


def _pairs(numbers: list[int]) -> list[Piece]:
    return list(zip(numbers[::2], numbers[1::2], strict=False))


def _check_map(pieces: list[Piece], size: int) -> None:
    """Pieces lie in order, in the file, and do not overlap."""
    at = 0
    if len(pieces) > _MAX_PIECES:
        raise Damaged(f"a sparse member of more than {_MAX_PIECES} pieces")
    for start, length in pieces:
        if start < at or start + length > size:
            raise Damaged("the map of a sparse member is damaged")
        at = start + length


def _name_in(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0]
    posix = header[257:263] == b"ustar\0"  # GNU has other things in the prefix's place
    return prefix + b"/" + name if posix and prefix else name


def _number(field: bytes) -> int:
    """Octal, or GNU's base 256 for what is too large for it."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") - (1 << (8 * len(field) - 1))
        if field[0] == 0xFF or value >= 2**63:
            raise Damaged("a header has an impossible number")
        return value
    text = field.partition(b"\0")[0].strip()
    if not all(0x30 <= c < 0x38 for c in text):
        raise Damaged("a header has an impossible number")
    return int(text or b"0", 8)


def _decimal(text: bytes) -> int:
    if not text.strip().isdigit() or len(text) > 19:
        raise Damaged("an extended header has an impossible number")
    return int(text)


def _sums_up(header: bytes) -> bool:
    """The checksum, with its own field as blanks; some old tars summed signed bytes."""
    try:
        stated = _number(header[148:156])
    except Damaged:
        return False
    rest = header[:148] + b" " * 8 + header[156:]
    return stated in (sum(rest), sum(rest) - 256 * sum(b > 127 for b in rest))


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
