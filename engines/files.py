"""Files that are there whole or not at all, whatever ends the process or the power, or fills the disk."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PRIVATE_UMASK = 0o077  # what the group and others may: nothing


@contextmanager
def whole(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """A path to write to, which becomes `path`, durably, when all went well: fsync, rename, fsync of the folder.

    The folder is made if it is not there. What is written to is an empty file with `mode` (less the umask), of a name
    (.NAME.*.part) that no other writer has, on whatever host, and that is locked meanwhile: `remove_abandoned` leaves
    it. Raises OSError, and what the caller's writing raises; what stood at `path` before then still stands, and
    nothing is left over.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _held(part, mode):
            yield part
            _fsync(
                part
            )  # of the file, not of the descriptor that wrote it: whatever closed that one has left it to write
            part.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error says more
            part.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def remove_abandoned(part: Path) -> None:
    """Delete what a writer left that is no more: its lock went with it. Where a lock cannot be had, it stays."""
    with suppress(OSError):
        fd = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)  # NFS locks what is open for writing alone
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink(missing_ok=True)
        finally:
            os.close(fd)


@contextmanager
def _held(part: Path, mode: int) -> Iterator[None]:
    """`part`, new and empty, under a lock that ends with this process at the latest."""
    while True:
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with suppress(OSError):  # a file system without locks: then nobody can take it for abandoned either
                fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                yield
                return
        finally:  # else it was taken for abandoned before it was locked
            os.close(fd)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
