"""The members of a zip, from its central directory, one at a time: a directory of any length costs no memory.

What a member needs to be read again is in its entry, so that no worker reads the directory once more.
Source: PKWARE APPNOTE 6.3, sections 4.3 and 4.4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZIP_LZMA, ZIP_STORED

from cxrnode.errors import Damaged

METHODS = {ZIP_STORED: "stored", ZIP_DEFLATED: "deflate", ZIP_BZIP2: "bzip2", ZIP_LZMA: "lzma"}

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_MAX_COMMENT = 0xFFFF
_UNIX = (3, 19)  # systems whose external attributes hold a Unix mode: Unix, macOS
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # the number is in the zip64 field


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An entry of the central directory. mode: of Unix, 0 where the zip does not say."""

    name: str
    is_folder: bool
    offset: int  # of the local header, in the file
    size: int
    packed: int
    method: int
    crc: int
    mode: int
    encrypted: bool


class _SplitError(Damaged):
    """The directory is there, and members lie in other files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Directory:
    at: int
    size: int
    entries: int
    shift: int  # what stands before the zip in its file: offsets count from the zip's own start


def is_zip(f: BinaryIO) -> bool:
    """True where a zip's directory lies at the end of the file, whatever stands before it."""
    try:
        found = _find_directory(f)
    except _SplitError:
        return True
    except Damaged:
        return False
    f.seek(found.at)
    return found.entries > 0 and f.read(4) == b"PK\x01\x02"


def members(f: BinaryIO) -> Iterator[Member]:
    """Folders among them. Raises Damaged where the directory cannot be read, or cannot be read on."""
    directory = _find_directory(f)
    f.seek(directory.at)
    read = count = 0
    while read < directory.size:
        head = f.read(_ENTRY.size)
        if len(head) < _ENTRY.size or head[:4] != b"PK\x01\x02":
            raise Damaged("its directory is damaged")
        lengths = struct.unpack_from("<3H", head, 28)
        rest = f.read(sum(lengths))
        if len(rest) < sum(lengths):
            raise Damaged("its directory ends inside an entry")
        yield _member(head, rest, directory.shift)
        read += len(head) + len(rest)
        count += 1
    if (count ^ directory.entries) & _FULL16:  # some writers count no further than 16 bits
        raise Damaged(f"its directory has {count} entries, and says {directory.entries}")


def _find_directory(f: BinaryIO) -> _Directory:
    end = f.seek(0, 2)
    begin = max(0, end - _END.size - _MAX_COMMENT)
    f.seek(begin)
    tail = f.read(end - begin)
    at = tail.rfind(b"PK\x05\x06", 0, max(0, len(tail) - _END.size + 4))
    if at < 0:
        raise Damaged("it has no directory: cut short, or one part of a split zip")
    _, disk, first, _, entries, size, offset, comment = _END.unpack_from(tail, at)
    after = begin + at
    if zip64 := _end64(f, after):
        after, disk, first, entries, size, offset = zip64
    if (disk or first) and at + _END.size + comment == len(tail):
        raise _SplitError("it is one part of a split zip: join the parts first (zip -s 0)")
    shift = after - size - offset
    if shift < 0:
        raise Damaged("its directory lies outside the file: cut short, or damaged")
    return _Directory(at=offset + shift, size=size, entries=entries, shift=shift)


def _end64(f: BinaryIO, end_at: int) -> tuple[int, int, int, int, int, int] | None:
    """(where it is, disk, disk of the directory, entries, size, offset) of a zip64's end of the directory."""
    if end_at < _LOCATOR.size + _END64.size:
        return None
    f.seek(end_at - _LOCATOR.size)
    signature, _, offset, _ = _LOCATOR.unpack(f.read(_LOCATOR.size))
    if signature != b"PK\x06\x07":
        return None
    for at in (end_at - _LOCATOR.size - _END64.size, offset):
        f.seek(min(at, end_at))
        raw = f.read(_END64.size)
        if len(raw) == _END64.size and raw[:4] == b"PK\x06\x06":
            _, _, _, _, disk, first, _, entries, size, start = _END64.unpack(raw)
            return at, disk, first, entries, size, start
    raise Damaged("its zip64 directory is missing")


def _member(head: bytes, rest: bytes, shift: int) -> Member:
    (_, made, _, flags, method, _, _, crc, packed, size, name_length, extra_length, _, _, _, attributes, offset) = (
        _ENTRY.unpack(head)
    )
    name = rest[:name_length].decode("utf-8" if flags & 0x800 else "cp437", "surrogateescape")
    extra = rest[name_length : name_length + extra_length]
    size, packed, offset = _zip64(extra, size, packed, offset)
    return Member(
        name=name, is_folder=size == 0 and (name.endswith("/") or bool(attributes & 0x10)), offset=offset + shift,
        size=size, packed=packed, method=method, crc=crc, mode=attributes >> 16 if made >> 8 in _UNIX else 0,
        encrypted=bool(flags & 1),
    )  # fmt: skip


def _zip64(extra: bytes, *numbers: int) -> tuple[int, ...]:
    """size, packed size and offset, in this order: those that do not fit into 32 bits stand in the extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            large = [n for (n,) in struct.iter_unpack("<Q", field[: len(field) // 8 * 8])]
            if len(large) < numbers.count(_FULL32):
                raise Damaged("its directory is damaged: a zip64 field is too short")
            return tuple(large.pop(0) if n == _FULL32 else n for n in numbers)
        at += 4 + length
    return numbers
