"""Compressed files as blocks of bytes: gzip, bzip2, xz and zstd, each with a bound on the memory that it takes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from cxrnode.errors import Damaged
from cxrnode.store.spool import open_atomic, storage_errors, write_atomic

_BLOCK = 2**20
_WINDOW = 2**27  # bytes that a stream may have its decoder keep: what xz -9 and zstd --ultra -22 need


def blocks(kind: str, f: BinaryIO) -> Iterator[bytes]:
    """The content of the compressed stream `f`, a megabyte at a time.

    kind: as container.COMPRESSED names it. Raises Damaged after what could be had where the rest cannot.
    """
    try:
        if kind == "xz":
            yield from _xz(f)
            return
        with _reader(kind, f) as reader:
            while block := reader.read(_BLOCK):
                yield block
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, MemoryError) as e:
        raise Damaged(f"damaged {kind} data: {e}") from e


def head(kind: str, f: BinaryIO, most: int) -> bytes:
    """The first `most` bytes of the content, or all where it is shorter. Raises Damaged where there is none."""
    found = b""
    try:
        for block in blocks(kind, f):
            found += block
            if len(found) >= most:
                break
    except Damaged:
        if not found:
            raise
    return found[:most]


def unpack(kind: str, f: BinaryIO, plain: Path, *, most: int) -> str:
    """Write the content to `plain`, `most` bytes at most, if it is not there yet.

    Returns what is wrong with the rest, or an empty text; it is kept beside `plain`. Raises StorageFullError.
    """
    told = plain.with_suffix(".txt")
    with storage_errors(plain):
        if not plain.exists():
            with open_atomic(plain) as out:
                write_atomic(told, _copy(kind, f, out, plain, most=most).encode())
        return told.read_text(encoding="utf-8")


def _copy(kind: str, f: BinaryIO, out: BinaryIO, plain: Path, *, most: int) -> str:
    room = shutil.disk_usage(plain.parent).free // 2
    written = 0
    try:
        for block in blocks(kind, f):  # errors of the source are the source's, not the disk's
            written += len(block)
            if written > most:
                return f"more than {most} bytes in {f.seek(0, 2)}: a bomb, or far from any archive of images"
            if written > room:
                return f"half of the free disk space ({room} bytes) is not enough to unpack it: make room, or unpack it"
            out.write(block)
    except Damaged as e:
        return str(e)
    return ""


def _reader(kind: str, f: BinaryIO) -> BinaryIO:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=f)  # type: ignore[return-value]  # reads as one
    if kind == "bzip2":
        return bz2.BZ2File(f)  # type: ignore[return-value]
    decoder = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    return decoder.stream_reader(f, read_across_frames=True, closefd=False)


def _xz(f: BinaryIO) -> Iterator[bytes]:
    """The library's own file object takes as much memory as the file demands, 4 GiB if it wants."""
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2 * _WINDOW)
    data = f.read(_BLOCK)
    while data or not decoder.needs_input:
        block = decoder.decompress(data, _BLOCK)
        if block:
            yield block
        data = b""
        if decoder.eof:
            data = decoder.unused_data.lstrip(b"\0") or f.read(_BLOCK).lstrip(b"\0")  # padding, then another stream
            if data:
                decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2 * _WINDOW)
        elif decoder.needs_input:
            data = f.read(_BLOCK)
            if not data:
                raise EOFError("it ends early")
        if decoder.eof and not data:
            return
