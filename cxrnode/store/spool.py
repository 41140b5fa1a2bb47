"""Files on disk: written whole or not at all, durable before anyone is told."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cxrnode.errors import AWAY, DataDirAwayError, StorageFullError, StoreError
from engines.files import PRIVATE_UMASK, remove_abandoned, whole

_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}

_TRY_AGAIN_S = 0.1


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
    """Delete what killed writers left behind. What another process is writing just now stays."""
    for within, _, names in os.walk(folder):
        for name in names:
            if name.startswith(".") and name.endswith(".part"):
                remove_abandoned(Path(within, name))


def keep_private(folder: Path) -> None:
    """From now on what this process and its children make is the owner's alone, and so is `folder` with all below it.

    An older version's files in it are tightened too (SQLite gives a -wal and a -shm the mode of their database); what
    belongs to somebody else stays as it is.
    """
    os.umask(PRIVATE_UMASK)
    for path in (folder, *folder.iterdir()) if folder.is_dir() else ():
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:  # SQLite's own files come and go
            continue
        if mode & PRIVATE_UMASK and not stat.S_ISLNK(mode):
            with suppress(PermissionError):
                path.chmod(stat.S_IMODE(mode) & ~PRIVATE_UMASK)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Say what is wrong with the disk, or with the share that it is, in words; other OSErrors pass."""
    try:
        yield
    except OSError as e:
        if e.errno in AWAY:
            raise DataDirAwayError(f"cannot write {path}: {e.strerror}. Is it mounted?") from e
        if e.errno in _STORAGE:
            raise StorageFullError(f"cannot write {path}: {e.strerror}. Make room or give write permission") from e
        raise


@contextmanager
def locked(path: Path, busy: str, *, wait_s: float = 0.0) -> Iterator[int]:
    """Hold the lock file `path` alone; its descriptor. A process that is given that one holds the lock, too.

    Raises StoreError with the words of `busy` where another process has it, and still after `wait_s` seconds.
    """
    with storage_errors(path):
        lock = path.open("w")
    deadline = time.monotonic() + wait_s
    with lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise StoreError(busy) from None
                time.sleep(_TRY_AGAIN_S)
        yield lock.fileno()
