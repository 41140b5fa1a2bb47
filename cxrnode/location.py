"""Where an item lies, and how it is read again: by any worker, at any time, within bounds.

What a location says comes from an archive, and the file may have changed since: nothing here waits (a pipe in the
file's place), follows a link, or reads more than an object may have.
"""

from __future__ import annotations

import io
import lzma
import os
import stat
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from zipfile import BadZipFile, ZipExtFile, ZipInfo

from cxrnode.dicom.budget import OBJECT_BYTES
from cxrnode.errors import AWAY, Damaged, Rejected
from cxrnode.inflate import blocks
from cxrnode.types import Reason

_LOCAL_HEADER = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A file of its own, a member of a zip or a tar, or what one compressed file holds."""

    container: str  # the file itself, or the zip or tar that holds it
    kind: str = "file"  # "file", "zip", "tar", or how it is compressed (container.COMPRESSED)
    offset: int = 0  # of the data in a tar, of the local header in a zip
    size: int = 0  # of the item
    pieces: tuple[tuple[int, int], ...] | None = None  # of a sparse file, see tar_members
    packed: int = 0  # of a member of a zip, as its directory says
    method: int = 0
    crc: int = 0

    def as_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v not in (None, 0)}


def too_large(size: int) -> Rejected:
    return Rejected(Reason.TOO_LARGE, f"{size} bytes; {OBJECT_BYTES} are the most for one object")


def open_regular(path: Path) -> BinaryIO:
    """A regular file; nothing else, for what is no regular file may never answer. Raises Rejected, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Rejected(Reason.UNREADABLE_FILE, "not a regular file")
    return open(fd, "rb")  # noqa: PTH123 (of a descriptor)


def read_item(location: dict[str, Any]) -> bytes:
    """The bytes of the item at `location` (see Location.as_json). Raises Rejected where they cannot be had."""
    with open_item(location) as f:
        return f.read()


@contextmanager
def open_item(location: dict[str, Any]) -> Iterator[BinaryIO]:
    """The item as a seekable stream: a header can be read without the pixels behind it.

    Raises Rejected where it cannot be opened or is too large, and for what goes wrong while the caller reads.
    """
    try:
        at = Location(**location)
        with open_regular(Path(at.container)) as container, _stream(at, container) as stream:
            yield stream
    except Damaged as e:
        raise Rejected(Reason.UNREADABLE_FILE, str(e)) from e
    except (OSError, EOFError, BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError) as e:
        raise Rejected(Reason.UNREADABLE_FILE, f"{type(e).__name__}: {getattr(e, 'strerror', None) or e}") from e


def is_away(rejected: Rejected) -> bool:
    """Whether the share that it lies on is to blame, and not the item."""
    return isinstance(rejected.__cause__, OSError) and rejected.__cause__.errno in AWAY


def _stream(at: Location, container: BinaryIO) -> BinaryIO:
    if at.kind == "file":
        size = os.fstat(container.fileno()).st_size  # what a file of /proc gives beyond its size is not read
        return _Pieces.of(container, 0, size, None)
    if at.kind == "tar":
        return _Pieces.of(container, at.offset, at.size, at.pieces)
    if at.kind == "zip":
        return _zip_member(at, container)
    content = bytearray()
    for block in blocks(at.kind, container):
        content += block
        if len(content) > OBJECT_BYTES:
            raise too_large(len(content))
    return io.BytesIO(content)


def _zip_member(at: Location, container: BinaryIO) -> BinaryIO:
    container.seek(at.offset)
    header = container.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise Rejected(Reason.UNREADABLE_FILE, "the zip's directory points at no member")
    if at.size > OBJECT_BYTES:
        raise too_large(at.size)
    begin = at.offset + _LOCAL_HEADER + sum(struct.unpack_from("<2H", header, 26))  # its name and extra field
    info = ZipInfo()
    info.compress_type, info.compress_size, info.file_size, info.CRC = at.method, at.packed, at.size, at.crc
    packed = _Pieces.of(container, begin, at.packed, None, most=None)
    return cast(BinaryIO, ZipExtFile(packed, "r", info, close_fileobj=True))


class _Pieces(io.RawIOBase):
    """A file that lies in another, as one piece or as several with zeros between them."""

    @classmethod
    def of(
        cls, container: BinaryIO, offset: int, size: int, pieces: tuple[tuple[int, int], ...] | None,
        *, most: int | None = OBJECT_BYTES,
    ) -> BinaryIO:  # fmt: skip
        if most is not None and size > most:
            raise too_large(size)
        return io.BufferedReader(cls(container, offset, size, ((0, size),) if pieces is None else pieces))

    def __init__(self, container: BinaryIO, offset: int, size: int, pieces: tuple[tuple[int, int], ...]) -> None:
        self._fd = container.fileno()
        self._size, self._at = size, 0
        self._starts = [start for start, _ in pieces]
        self._pieces = []  # (start, length, offset in the container)
        for start, length in pieces:
            self._pieces.append((start, length, offset))
            offset += length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = min(max(base + offset, 0), self._size)
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        parts = []
        while part := self._next(self._size):
            parts.append(part)
        return b"".join(parts)

    def _next(self, most: int) -> bytes:
        """What is there at the position without a seam, and the position moved past it."""
        wanted = min(most, self._size - self._at)
        nth = bisect_right(self._starts, self._at) - 1
        start, length, offset = self._pieces[nth] if nth >= 0 else (0, 0, 0)
        into = self._at - start
        if into < length:
            data = os.pread(self._fd, min(wanted, length - into), offset + into)
        else:
            following = self._starts[nth + 1] if nth + 1 < len(self._starts) else self._size
            data = bytes(min(wanted, following - self._at))
        self._at += len(data)
        return data
