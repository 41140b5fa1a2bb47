"""Reading beside a writer, and where nothing can be written; what cannot be read is said in words."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from cxrnode.errors import StoreError
from cxrnode.store import ledger
from cxrnode.store.database import Database

NOBODY = 65534


def put(database: Database, records: int = 1) -> None:
    with database.begin() as c:
        for _ in range(records):
            ledger.append(c, "received", actor="test")


def count(where: Path | str) -> int:
    database = Database(where, read_only=True)
    try:
        with database.begin() as c:
            return ledger.verify(c).records
    finally:
        database.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where an unprivileged user may go."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def unprivileged(what: Callable[[], object]) -> str:
    """What happened, as another user who may not write: root may do all."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            said = str(what())
        except StoreError as e:
            said = str(e)
        except BaseException as e:  # noqa: BLE001 (the child must not run on into pytest)
            said = repr(e)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as f:
        return f.read()


def without_writing(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)


def test_it_reads_what_was_committed_and_writes_nothing(where: Path | str) -> None:
    writer = Database(where)
    put(writer)
    reader = Database(where, read_only=True)
    with reader.begin() as c:
        assert ledger.verify(c).records == 1
        with pytest.raises(StoreError, match=r"read-?only"), reader.begin() as other:
            other.execute(text("DELETE FROM settings"))
    with reader.begin(), writer.begin():  # neither waits for the other
        pass
    put(writer)
    with reader.begin() as c:
        assert ledger.verify(c).records == 2
    reader.close()
    writer.close()


def test_a_transaction_sees_the_store_as_it_was(tmp_path: Path) -> None:
    writer = Database(tmp_path / "x.sqlite")
    put(writer)
    reader = Database(tmp_path / "x.sqlite", read_only=True)
    with reader.begin() as c:
        assert ledger.verify(c).records == 1
        put(writer)
        assert ledger.verify(c).records == 1
    reader.close()
    writer.close()


def test_a_folder_that_cannot_be_written_is_read(folder: Path) -> None:
    database = Database(folder / "odd ?%name.sqlite")
    put(database, 3)
    database.close()
    without_writing(folder)
    assert unprivileged(lambda: count(folder / "odd ?%name.sqlite")) == "3"


def test_beside_a_node_whose_folder_is_not_ours(folder: Path) -> None:
    database = Database(folder / "x.sqlite")
    put(database, 3)
    without_writing(folder)
    assert unprivileged(lambda: count(folder / "x.sqlite")) == "3"
    database.close()


def test_what_a_killed_node_left_in_its_log_is_not_passed_over(folder: Path) -> None:
    (folder / "copy").mkdir()
    database = Database(folder / "x.sqlite")
    put(database, 3)
    for name in ("x.sqlite", "x.sqlite-wal"):
        shutil.copy(folder / name, folder / "copy" / name)
    database.close()
    without_writing(folder / "copy")
    said = unprivileged(lambda: count(folder / "copy" / "x.sqlite"))
    assert "newest records are in x.sqlite-wal" in said
    assert "Copy both files" in said


def test_what_is_no_ledger_is_said(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database" * 100)
    sqlite3.connect(tmp_path / "theirs").execute("CREATE TABLE x (y)").connection.close()
    for name, said in {
        "none": "there is no database", "text": "not a database", "theirs": "is no database of cxrnode"
    }.items():  # fmt: skip
        with pytest.raises(StoreError, match=said):
            Database(tmp_path / name, read_only=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text", "theirs"]


@pytest.mark.parametrize("revision", ["0002", "0099"])
def test_another_schema_is_neither_read_nor_migrated(where: Path | str, revision: str) -> None:
    database = Database(where)
    with database.begin() as c:
        c.execute(text(f"UPDATE alembic_version SET version_num = '{revision}'"))
    with pytest.raises(StoreError, match=f"schema revision {revision}.*older one.*newer one"):
        Database(where, read_only=True)
    with database.begin() as c:
        assert c.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == revision
    database.close()


def test_a_locked_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Database(tmp_path / "x.sqlite").close()
    monkeypatch.setattr("cxrnode.store.database._READ_WAIT_S", 0.1)
    holder = sqlite3.connect(tmp_path / "x.sqlite", isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match=r"locked.*does nobody hold it"):
        Database(tmp_path / "x.sqlite", read_only=True)
    holder.close()
