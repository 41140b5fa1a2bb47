"""Files that are there whole or not at all, whatever ends the process or the power, or fills the disk."""

from __future__ import annotations

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
    (.NAME.*.part) that no other writer has, on whatever host. Raises OSError, and what the caller's writing raises;
    what stood at `path` before then still stands, and nothing is left over.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
        yield part
        _fsync(part)  # of the file, not of the descriptor that wrote it: whatever closed that one has left it to write
        part.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error says more
            part.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
