"""The ledger as a chain: whoever forges a record and hashes it again is found by the next one, or by an anchor.

Each forgery is made in the database, past its triggers, and its own hash is right: no record is wrong by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import MetaData, text

from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.schema import LEDGER_KEYS
from cxrnode.store.schema import ledger as table
from tests.unit.store.test_ledger import WITHOUT_TRIGGERS

COLUMNS = list(table.c.keys())
HASHED = [c for c in COLUMNS if c != "hash"]
RECORDS = 6
Rows = list[list[Any]]


@pytest.fixture
def database(database: Database) -> Database:
    """On each kind of database, with six records that have something in every column, and one that has as little as
    possible.
    """
    with database.begin() as c:
        for n in range(RECORDS):
            ledger.append(
                c, "received", actor="intake", study_instance_uid=f"1.2.{n}", sop_instance_uid=f"1.2.{n}.1",
                ae_title=f"PACS{n}", patient_id=f"P{n}", accession_number=f"A{n}", outcome="new", size_bytes=n,
            )  # fmt: skip
        ledger.append(c, "stage_started", actor="intake")
    return database


@contextmanager
def forged(database: Database, forge: Callable[[Rows], Sequence[Sequence[Any]]]) -> Iterator[Callable[..., Any]]:
    """The ledger's rows are what `forge` makes of them; gives `verify(known)`. Undone at the end."""
    with database.begin() as c:
        rows: Rows = [list(row) for row in ledger.records(c)]
        for statement in WITHOUT_TRIGGERS[c.dialect.name]:
            c.execute(text(statement))
        c.execute(text("DELETE FROM ledger"))
        marks = ", ".join(f":{name}" for name in COLUMNS)
        for row in forge(rows):
            c.execute(text(f"INSERT INTO ledger VALUES ({marks})"), dict(zip(COLUMNS, row, strict=True)))
        yield lambda known=None: ledger.verify(c, known)
        c.rollback()


def anchors(database: Database) -> dict[int, str]:
    with database.begin() as c:
        return {e.seq: e.hash for e in ledger.events(c)}


def sealed(row: list[Any]) -> list[Any]:
    """With the hash that fits its content."""
    row[COLUMNS.index("hash")] = ledger.hash_of(row)
    return row


def relinked(rows: Rows, first: int) -> Rows:
    """Everything from record `first` on is numbered, linked and hashed anew."""
    for n in range(first - 1, len(rows)):
        rows[n][0] = n + 1
        rows[n][COLUMNS.index("prev_hash")] = rows[n - 1][COLUMNS.index("hash")] if n else ledger.GENESIS
        sealed(rows[n])
    return rows


def changed(rows: Rows, seq: int, column: str, value: Any) -> Rows:
    """One value, and the record's own hash with it."""
    rows[seq - 1][COLUMNS.index(column)] = value
    sealed(rows[seq - 1])
    return rows


# --- what the hash covers


def test_the_columns_are_those_that_the_database_has(database: Database) -> None:
    with database.begin() as c:
        real = MetaData()
        real.reflect(c, only=["ledger"])
    assert list(real.tables["ledger"].c.keys()) == COLUMNS
    assert set(LEDGER_KEYS) <= set(COLUMNS)


@pytest.mark.parametrize("column", HASHED)
def test_every_column_is_in_the_hash(column: str) -> None:
    full = [7, *(f"{name} 1" for name in COLUMNS[1:])]
    place = COLUMNS.index(column)
    hashes = {ledger.hash_of(full)}
    others: list[Any] = [8, 70] if column == "seq" else ["", " ", f"{column} 2", f"{column} 1 ", f"{column}\0 1"]
    others += [None] if table.c[column].nullable else []
    for other in others:
        row = [*full]
        row[place] = other
        hashes.add(ledger.hash_of(row))
    assert len(hashes) == 1 + len(others), "two contents have one hash"


@pytest.mark.parametrize("column", [c for c in HASHED if table.c[c].nullable])
def test_a_value_in_one_column_is_not_that_value_in_another(column: str) -> None:
    """Text cannot be moved from one column to the next under the same hash."""
    hashes = set()
    for name in (c for c in HASHED if table.c[c].nullable):
        row: list[Any] = [7, *(None if table.c[c].nullable else "x" for c in COLUMNS[1:])]
        row[COLUMNS.index(name)] = f'","{column}":"'
        hashes.add(ledger.hash_of(row))
    assert len(hashes) == sum(bool(table.c[c].nullable) for c in HASHED)


@pytest.mark.parametrize("column", [c for c in COLUMNS if c != "seq"])
@pytest.mark.parametrize("seq", [1, 4, RECORDS + 1])
def test_a_changed_value_is_found_at_its_record(database: Database, column: str, seq: int) -> None:
    def forge(rows: Rows) -> Rows:
        rows[seq - 1][COLUMNS.index(column)] = "forged"
        return rows

    with forged(database, forge) as verify:
        assert verify().broken == seq


@pytest.mark.parametrize("column", [c for c in COLUMNS if table.c[c].nullable])
def test_nothing_and_empty_are_not_the_same(database: Database, column: str) -> None:
    def forge(rows: Rows) -> Rows:
        rows[RECORDS][COLUMNS.index(column)] = ""  # this record has nothing there
        return rows

    with forged(database, forge) as verify:
        assert verify().broken == RECORDS + 1


# --- forged, and hashed again


@pytest.mark.parametrize("column", [c for c in HASHED if c not in {"seq", "prev_hash"}])
@pytest.mark.parametrize("seq", [1, 3, RECORDS])
def test_a_record_hashed_again_is_found_by_the_next_one_s_link(database: Database, column: str, seq: int) -> None:
    with forged(database, lambda rows: changed(rows, seq, column, "forged")) as verify:
        found = verify()
    assert (found.broken, found.why) == (seq + 1, "it does not follow from the record before it")


def test_the_last_record_hashed_again_is_found_by_its_anchor_alone(database: Database) -> None:
    known = anchors(database)
    with forged(database, lambda rows: changed(rows, RECORDS + 1, "kind", "forged")) as verify:
        assert verify().broken is None
        found = verify(known)
    assert (found.broken, found.why) == (RECORDS + 1, "it is another one than its anchor says")


@pytest.mark.parametrize("seq", [1, 4, RECORDS + 1])
def test_a_chain_rewritten_from_a_point_on_is_found_by_any_anchor_behind_it(database: Database, seq: int) -> None:
    known = anchors(database)

    def forge(rows: Rows) -> Rows:
        rows[seq - 1][COLUMNS.index("actor")] = "forged"
        return relinked(rows, seq)

    with forged(database, forge) as verify:
        assert verify().broken is None
        assert verify({k: v for k, v in known.items() if k < seq}).broken is None
        for k in range(seq, RECORDS + 2):
            assert verify({k: known[k]}).broken == k
        assert verify(known).broken == seq


# --- order, removal, insertion


def _swap(rows: Rows) -> Rows:
    rows[2], rows[3] = rows[3], rows[2]
    return rows


def _numbered(rows: Rows) -> Rows:
    for n, row in enumerate(rows, 1):
        row[0] = n
    return rows


@pytest.mark.parametrize(
    ("forge", "broken"),
    [
        pytest.param(lambda rows: _numbered(_swap(rows)), 3, id="swapped, and numbered again"),
        pytest.param(lambda rows: [sealed(r) for r in _numbered(_swap(rows))], 3, id="swapped, numbered, hashed"),
        pytest.param(lambda rows: rows[:2] + rows[3:], 3, id="one of the middle removed"),
        pytest.param(lambda rows: _numbered(rows[:2] + rows[3:]), 3, id="removed, and numbered again"),
        pytest.param(lambda rows: [sealed(r) for r in _numbered(rows[:2] + rows[3:])], 3, id="removed and hashed"),
        pytest.param(lambda rows: rows[1:], 1, id="the head removed"),
        pytest.param(lambda rows: [sealed(r) for r in _numbered(rows[1:])], 1, id="the head removed, hashed"),
        pytest.param(lambda rows: [], None, id="all removed"),
        pytest.param(lambda rows: rows[:-1], None, id="the tail cut off"),
        pytest.param(
            lambda rows: [sealed(r) for r in _numbered([*rows[:3], [*rows[2][:2], "forged", *rows[2][3:]], *rows[3:]])],
            4, id="one slipped in, numbered, hashed",
        ),
    ],
)  # fmt: skip
def test_order_removal_and_insertion_are_found(
    database: Database, forge: Callable[[Rows], Rows], broken: int | None
) -> None:
    """What only an anchor finds has None, and is found by it."""
    known = anchors(database)
    with forged(database, forge) as verify:
        assert verify().broken == broken
        assert verify(known).broken is not None


@pytest.mark.parametrize(
    ("forge", "first"),
    [
        pytest.param(lambda rows: relinked(_swap(rows), 1), 3, id="swapped"),
        pytest.param(lambda rows: relinked(rows[:2] + rows[3:], 1), 3, id="removed"),
        pytest.param(lambda rows: relinked(rows[1:], 1), 1, id="the head removed"),
        pytest.param(lambda rows: relinked([*rows[:3], [*rows[5]], *rows[3:]], 1), 4, id="one slipped in"),
    ],
)
def test_a_whole_new_chain_is_found_by_the_anchor(
    database: Database, forge: Callable[[Rows], Rows], first: int
) -> None:
    known = anchors(database)
    with forged(database, forge) as verify:
        assert verify().broken is None
        assert verify(known).broken == first
        assert verify({RECORDS + 1: known[RECORDS + 1]}).broken == RECORDS + 1


def test_a_tail_cut_off_is_found_where_an_anchor_names_a_record_behind_it(database: Database) -> None:
    known = anchors(database)
    with forged(database, lambda rows: rows[:4]) as verify:
        assert verify({4: known[4]}).broken is None
        found = verify({5: known[5]})
    assert (found.broken, found.why) == (5, "the end is cut off: an anchor names record 5")


# --- anchors that lie


def test_an_anchor_that_was_forged_is_a_difference_too(database: Database) -> None:
    """Of two that disagree, the ledger or its anchor, one was changed: either is said."""
    known = anchors(database)
    with database.begin() as c:
        assert ledger.verify(c, known).broken is None
        assert ledger.verify(c, known | {3: "0" * 64}).broken == 3
        assert ledger.verify(c, {3: known[4]}).broken == 3
        assert ledger.verify(c, {RECORDS + 9: known[4]}).broken == RECORDS + 2
