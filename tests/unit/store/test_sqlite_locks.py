"""A process that opens its SQLite file once more keeps its locks: else another that leaves takes the log away under it,
and what is committed from then on is in no file that anybody finds again."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.peek import is_foreign

VISIT = """
import sqlite3, sys
print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM ledger').fetchone()[0])
"""


def visit(path: Path) -> int:
    """Another process comes, looks and leaves; how many records it found."""
    said = subprocess.run([sys.executable, "-c", VISIT, path], check=True, capture_output=True)
    return int(said.stdout)


def once_more(path: Path) -> None:
    other = Database(path)
    with other.begin() as c:
        ledger.append(c, "received", actor="test")
    other.close()


def to_read(path: Path) -> None:
    reader = Database(path, read_only=True)
    with reader.read() as c:
        list(ledger.events(c))
    reader.close()


def refused(path: Path) -> None:
    copy = path.with_name("other.sqlite")
    sqlite3.connect(copy).execute("CREATE TABLE theirs (x)").connection.close()
    assert is_foreign(copy)
    assert not is_foreign(path)


@pytest.mark.parametrize("looks", [once_more, to_read, refused])
@pytest.mark.parametrize("log", ["full", "empty"])
def test_a_second_look_keeps_the_locks(tmp_path: Path, looks: Callable[[Path], None], log: str) -> None:
    path = tmp_path / "x.sqlite"
    Database(path).close()
    database = Database(path)
    if log == "full":
        with database.begin() as c:
            ledger.append(c, "received", actor="test")
    looks(path)
    before = visit(path)
    with database.begin() as c:
        ledger.append(c, "received", actor="test")
    assert path.with_name("x.sqlite-wal").exists()
    assert visit(path) == before + 1
    database.close()
