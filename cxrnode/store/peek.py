"""What a SQLite file of any schema says, before anything opens it to write: not a byte of it, or beside it, changes."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

_BESIDE = ("-wal", "-journal")  # where a killed writer left what is not yet in the file itself
_OURS = {"alembic_version", "ledger"}


def is_foreign(path: Path) -> bool:
    """Whether it holds tables and none of ours: opening it would bring it to our journal mode.

    The file is opened by SQLite alone. Any other way to open it would, when it is closed, end the locks of all
    connections that this process has to it (POSIX); a process that leaves then takes the log away under them.
    """
    if not path.is_file() or _has_log(path):  # one that has a log is in our mode as it is
        return False
    try:
        with _unchanged(path) as file, closing(sqlite3.connect(file, uri=True)) as c:
            tables = {name for (name,) in c.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except (sqlite3.Error, OSError):  # whoever opens it next says why
        return False
    return bool(tables) and not tables & _OURS and not _has_log(path)


def _has_log(path: Path) -> bool:
    log = path.with_name(path.name + "-wal")
    return log.is_file() and log.stat().st_size > 0


def peek_setting(path: Path, key: str) -> Any:
    """The value of a setting; None where there is no such file, no such setting, or no reading it."""
    if not path.is_file():
        return None
    try:
        with _unchanged(path) as file, closing(sqlite3.connect(file, uri=True)) as c:
            row = c.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
    except (sqlite3.Error, OSError):  # whoever opens it next says why
        return None
    return json.loads(row[0]) if row else None


@contextmanager
def _unchanged(path: Path) -> Iterator[str]:
    """A URI to read it by. SQLite writes beside a file of which a part is elsewhere: then it reads a copy."""
    beside = [p for p in (path.with_name(path.name + end) for end in _BESIDE) if p.is_file() and p.stat().st_size]
    if not beside:
        yield f"file:{quote(str(path.absolute()))}?immutable=1"
        return
    with TemporaryDirectory() as folder:
        for each in (path, *beside):
            shutil.copyfile(each, Path(folder, each.name))
        yield f"file:{quote(str(Path(folder, path.name)))}"
