"""The ledger: append-only by triggers, and a chain that shows what was changed, removed or slipped in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, insert, text

from cxrnode.errors import StoreError
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.schema import ledger as table

COLUMNS = ("at", "kind", "actor", "study_instance_uid", "detail", "prev_hash", "hash")
# somebody who can write to the database can drop its triggers too
WITHOUT_TRIGGERS = {
    "sqlite": ("DROP TRIGGER ledger_no_update", "DROP TRIGGER ledger_no_delete"),
    "postgresql": ("DROP TRIGGER ledger_append_only ON ledger",),
}


@pytest.fixture
def database(database: Database) -> Database:
    """On each kind of database, with a ledger of six records."""
    with database.begin() as c:
        append(c, 6)
    return database


def append(c: Connection, records: int) -> None:
    for n in range(records):
        ledger.append(c, "analysed", actor="test", study_instance_uid=f"1.2.{n}", path=f"{n}.dcm", p=[0.1, 0.9])


@contextmanager
def tampering(database: Database) -> Iterator[Connection]:
    """A transaction without the triggers, undone at the end."""
    with database.begin() as c:
        for statement in WITHOUT_TRIGGERS[c.dialect.name]:
            c.execute(text(statement))
        yield c
        c.rollback()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger SET kind = 'x' WHERE seq = 2",
        "DELETE FROM ledger WHERE seq = 6",
        "INSERT INTO ledger SELECT * FROM ledger WHERE seq = 1 ON CONFLICT (seq) DO UPDATE SET kind = 'x'",
        "TRUNCATE ledger",
    ],
)
def test_the_ledger_refuses_changes(database: Database, statement: str) -> None:
    refusal = "syntax error" if statement == "TRUNCATE ledger" and "sqlite" in database.name else "append-only"
    with pytest.raises(StoreError, match=refusal), database.begin() as c:
        c.execute(text(statement))
    with database.begin() as c:
        assert ledger.first_broken(c) is None


def test_an_untouched_ledger_verifies_and_reads_back(database: Database) -> None:
    with database.begin() as c:
        assert ledger.first_broken(c) is None
        events = list(ledger.events(c))
    assert [e.seq for e in events] == [1, 2, 3, 4, 5, 6]
    assert events[0].prev_hash == ledger.GENESIS
    assert events[2].detail == {"path": "2.dcm", "p": [0.1, 0.9]}
    assert events[0].at.isoformat().endswith("+00:00")


def test_whatever_is_tampered_with_is_named(database: Database) -> None:
    for seq in range(1, 7):
        for column in COLUMNS:
            with tampering(database) as c:
                c.execute(text(f"UPDATE ledger SET {column} = 'tampered' WHERE seq = {seq}"))
                assert ledger.first_broken(c) == seq, column


@pytest.mark.parametrize("seq", [1, 3, 5])
def test_a_removed_record_is_noticed(database: Database, seq: int) -> None:
    with tampering(database) as c:
        c.execute(text(f"DELETE FROM ledger WHERE seq = {seq}"))
        assert ledger.first_broken(c) == seq


def test_a_record_slipped_in_is_noticed(database: Database) -> None:
    with tampering(database) as c:
        last = [e.hash for e in ledger.events(c)][-1]
        forged = {"at": "2026-01-01T00:00:00+00:00", "kind": "x", "actor": "x", "detail": "{}"}
        c.execute(insert(table).values(seq=7, prev_hash=last, hash="f" * 64, **forged))
        assert ledger.first_broken(c) == 7


def test_a_cut_end_shows_against_a_record_known_from_elsewhere(database: Database) -> None:
    """The beginning of a chain is a chain: by itself it looks whole."""
    with database.begin() as c:
        known = [(e.seq, e.hash) for e in ledger.events(c)]
        assert [ledger.first_broken(c, k) for k in known] == [None] * 6
    with tampering(database) as c:
        c.execute(text("DELETE FROM ledger WHERE seq > 4"))
        assert ledger.first_broken(c) is None
        assert ledger.first_broken(c, known[3]) is None
        assert ledger.first_broken(c, known[4]) == 5
        assert ledger.first_broken(c, known[5]) == 5


def test_a_chain_made_anew_shows_against_a_record_known_from_elsewhere(database: Database) -> None:
    with database.begin() as c:
        known = [(e.seq, e.hash) for e in ledger.events(c)]
    with tampering(database) as c:
        c.execute(text("DELETE FROM ledger WHERE seq > 2"))
        append(c, 4)  # the same records, later
        assert ledger.first_broken(c) is None
        assert ledger.first_broken(c, known[1]) is None
        assert ledger.first_broken(c, known[4]) == 5
