"""Files on disk: written whole or not at all, durable before anyone is told."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cxrnode.errors import StorageFullError, StoreError
from engines.files import whole

_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole and durably (see open_atomic)."""
    with open_atomic(path) as f:
        f.write(data)


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """A file that is there, and durable, once it is closed without an error (see engines.files.whole).

    Raises StorageFullError; leaves no partial file.
    """
    with storage_errors(path), whole(path) as part, part.open("wb") as f:
        yield f


def sweep_partial(folder: Path) -> None:
    """Delete what a killed writer left behind."""
    for leftover in folder.rglob(".*.part"):
        leftover.unlink(missing_ok=True)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Say what is wrong with the disk in words; other OSErrors pass."""
    try:
        yield
    except OSError as e:
        if e.errno in _STORAGE:
            raise StorageFullError(f"cannot write {path}: {e.strerror}. Make room or give write permission") from e
        raise


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file `path` alone. Raises StoreError with the words of `busy` where another process has it."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(busy) from None
        yield
