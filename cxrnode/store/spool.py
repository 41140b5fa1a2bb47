"""Files on disk: written whole or not at all, durable before anyone is told."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cxrnode.errors import StorageFullError, StoreError

_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole and durably (see open_atomic)."""
    with open_atomic(path) as f:
        f.write(data)


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Temporary file, fsync, rename, fsync of the folder. Raises StorageFullError; leaves no partial file."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _fsync_folder(path.parent)


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


def _fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
