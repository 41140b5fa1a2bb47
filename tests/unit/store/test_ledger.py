"""The ledger: append-only by triggers, and a chain that shows what was changed, removed or slipped in."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from cxrnode.errors import StoreError
from cxrnode.store import ledger
from cxrnode.store.database import Database


def filled(path: Path, records: int) -> Database:
    database = Database(path)
    with database.begin() as c:
        for n in range(records):
            ledger.append(c, "analysed", actor="test", study_instance_uid=f"1.2.{n}", path=f"{n}.dcm", p=[0.1, 0.9])
    return database


@pytest.mark.parametrize("statement", ["UPDATE ledger SET kind = 'x' WHERE seq = 2", "DELETE FROM ledger"])
def test_the_ledger_refuses_changes(tmp_path: Path, statement: str) -> None:
    database = filled(tmp_path / "ledger.sqlite", 3)
    with pytest.raises(StoreError, match="append-only"), database.begin() as c:
        c.execute(text(statement))
    database.close()


def test_an_untouched_ledger_verifies_and_reads_back(tmp_path: Path) -> None:
    database = filled(tmp_path / "ledger.sqlite", 5)
    with database.begin() as c:
        assert ledger.first_broken(c) is None
        events = list(ledger.events(c))
    assert [e.seq for e in events] == [1, 2, 3, 4, 5]
    assert events[0].prev_hash == ledger.GENESIS
    assert events[2].detail == {"path": "2.dcm", "p": [0.1, 0.9]}
    database.close()


@settings(max_examples=25, deadline=None)
@given(
    seq=st.integers(1, 6),
    column=st.sampled_from(["at", "kind", "actor", "study_instance_uid", "detail", "prev_hash", "hash"]),
)
def test_whatever_is_tampered_with_is_named(tmp_path_factory: pytest.TempPathFactory, seq: int, column: str) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    filled(path, 6).close()
    with sqlite3.connect(path) as raw:  # somebody who can write the file can drop the triggers too
        raw.execute("DROP TRIGGER ledger_no_update")
        raw.execute(f"UPDATE ledger SET {column} = 'tampered' WHERE seq = ?", (seq,))
    raw.close()
    database = Database(path)
    with database.begin() as c:
        assert ledger.first_broken(c) == seq
    database.close()


@pytest.mark.parametrize("seq", [1, 3])
def test_a_removed_record_is_noticed(tmp_path: Path, seq: int) -> None:
    path = tmp_path / "ledger.sqlite"
    filled(path, 4).close()
    with sqlite3.connect(path) as raw:
        raw.execute("DROP TRIGGER ledger_no_delete")
        raw.execute("DELETE FROM ledger WHERE seq = ?", (seq,))
    raw.close()
    database = Database(path)
    with database.begin() as c:
        assert ledger.first_broken(c) == seq
    database.close()


def test_a_database_of_another_version_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    filled(path, 1).close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(StoreError, match="schema version 99"):
        Database(path)


def test_a_file_that_is_no_database_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="cannot use the database"):
        Database(path)
