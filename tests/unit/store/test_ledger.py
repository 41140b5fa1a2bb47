"""The ledger: append-only by triggers, and a chain that shows what was changed, removed or slipped in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, insert, text

from cxrnode.errors import StoreError
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.schema import ledger as table
from cxrnode.store.triggers import missing_triggers

COLUMNS = tuple(k for k in table.c.keys() if k != "seq")  # noqa: SIM118 (columns, not keys)
# somebody who can write to the database can drop its triggers too
WITHOUT_TRIGGERS = {
    "sqlite": ("DROP TRIGGER ledger_no_update", "DROP TRIGGER ledger_no_delete", "DROP TRIGGER ledger_no_replace"),
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
        "INSERT OR REPLACE INTO ledger SELECT * FROM ledger WHERE seq = 1",
        "REPLACE INTO ledger SELECT 7, at, kind, actor, NULL, detail, prev_hash, hash, '', '', '', '', '' FROM ledger "
        "WHERE seq = 3",
        "TRUNCATE ledger",
    ],
)
def test_the_ledger_refuses_changes(database: Database, statement: str) -> None:
    foreign = "TRUNCATE" in statement if "sqlite" in database.name else "REPLACE" in statement
    refusal = "syntax error" if foreign else "append-only"
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


# --- whatever is done to it, at the first record that it is done to


@dataclass(frozen=True, kw_only=True)
class Changed:
    """Rows after somebody was at them, and the first seq that is no longer as it was."""

    rows: list[ledger.Record]
    first: int


TEXT = st.text(st.characters(exclude_categories=[]), max_size=12)  # lone surrogates too
ANYTHING = st.one_of(st.none(), TEXT, st.integers(), st.binary(max_size=4), st.floats(allow_nan=False))


def chain_of(length: int, texts: Sequence[str | None]) -> list[ledger.Record]:
    rows: list[ledger.Record] = []
    for n in range(length):
        said = [texts[(n + k) % len(texts)] for k in range(6)]
        prev = rows[-1][7] if rows else ledger.GENESIS
        row = [n + 1, "2026-11-22T12:00:00.000+00:00", f"kind{n}", "test", said[0], "{}", prev, "", *said[1:]]
        row[7] = sha256(ledger.content(row).encode()).hexdigest()
        rows.append(tuple(row))
    return rows


@st.composite
def changed(draw: st.DrawFn) -> Changed:
    rows = chain_of(draw(st.integers(2, 8)), draw(st.lists(st.one_of(st.none(), TEXT), min_size=1, max_size=6)))
    at = draw(st.integers(0, len(rows) - 1))
    match draw(st.sampled_from(["field", "remove", "insert", "swap", "repeat"])):
        case "field":
            column = draw(st.integers(0, len(rows[0]) - 1))
            value = draw(ANYTHING.filter(lambda v: v != rows[at][column] or type(v) is not type(rows[at][column])))
            rows[at] = tuple(value if k == column else v for k, v in enumerate(rows[at]))
        case "remove":
            at = min(at, len(rows) - 2)
            del rows[at]
        case "insert":
            forged = (at + 1, *rows[at][1:3], "somebody else", *rows[at][4:])
            rows.insert(at, forged)
        case "swap":
            at = min(at, len(rows) - 2)
            rows[at], rows[at + 1] = rows[at + 1], rows[at]
        case "repeat":
            rows.insert(at, rows[at])
            at += 1
    return Changed(rows=rows, first=at + 1)


@given(changed())
def test_any_change_is_found_where_it_begins(found: Changed) -> None:
    verdict = ledger.check_chain(found.rows, {})
    assert verdict.broken == found.first
    assert verdict.why
    assert verdict.records == found.first - 1


@given(length=st.integers(1, 8), cut=st.integers(0, 7), texts=st.lists(TEXT, min_size=1, max_size=6))
def test_a_cut_end_is_found_by_an_anchor(length: int, cut: int, texts: list[str]) -> None:
    rows = chain_of(length, texts)
    anchors = {row[0]: row[7] for row in rows}
    assert ledger.check_chain(rows, anchors) == ledger.check_chain(rows, {})
    assert ledger.check_chain(rows[:cut], anchors).broken == (cut + 1 if cut < length else None)


@given(length=st.integers(2, 8), at=st.integers(0, 7), texts=st.lists(TEXT, min_size=1, max_size=6))
def test_a_forged_chain_is_found_by_an_anchor(length: int, at: int, texts: list[str]) -> None:
    """Made anew from a record on, with hashes that fit: only the anchors after it know."""
    at = min(at, length - 1)
    rows = chain_of(length, texts)
    anchors = {row[0]: row[7] for row in rows}
    for k in range(at, length):
        row = [*rows[k]]
        row[3], row[6] = "forger", rows[k - 1][7] if k else ledger.GENESIS
        row[7] = sha256(ledger.content(row).encode()).hexdigest()
        rows[k] = tuple(row)
    assert ledger.check_chain(rows, {}).broken is None
    assert ledger.check_chain(rows, anchors).broken == at + 1
    assert ledger.check_chain(rows, {length: anchors[length]}).broken == length


@given(st.lists(st.one_of(st.none(), TEXT), min_size=9, max_size=9), st.integers(1, 2**40))
def test_what_is_hashed_is_the_canonical_json(texts: list[str | None], seq: int) -> None:
    must = [t or "" for t in texts[:5]]
    record = (seq, *must[:3], texts[5], must[3], must[4], "", *texts[4:9])
    named = dict(zip(table.c.keys(), record, strict=True))
    new = ("sop_instance_uid", "ae_title", "patient_id", "accession_number", "outcome")
    hashed = {k: v for k, v in named.items() if k != "hash" and (v is not None or k not in new)}
    assert ledger.content(record) == json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def test_text_that_no_database_takes_is_made_fit(database: Database) -> None:
    with database.begin() as c:
        ledger.append(c, "received", actor="test", patient_id="a\0b\ud800 ", ae_title="   ", accession_number="x" * 64)
        *_, e = ledger.events(c)
        assert ledger.first_broken(c) is None
    assert (e.patient_id, e.ae_title, e.accession_number) == ("ab?", None, "x" * 64)


def test_identifiers_that_share_their_beginning_are_not_one() -> None:
    one, other = "x" * 64 + "1", "x" * 64 + "2"
    held = {ledger.identifier(text) for text in (one, other, one + " ", "x" * 64, "x" * 65_000)}
    assert len(held) == 4
    assert {len(text or "") for text in held} == {64}
    assert ledger.identifier(ledger.identifier(one)) == ledger.identifier(one)  # as it is shown, it is found


def test_bytes_that_are_no_text_are_a_broken_record_and_no_crash(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.sqlite")
    with database.begin() as c:
        append(c, 3)
    with tampering(database) as c:
        c.execute(text("UPDATE ledger SET detail = CAST(x'ff7b' AS TEXT) WHERE seq = 2"))
        assert ledger.verify(c) == ledger.Verdict(
            records=1, last_hash=next(ledger.events(c)).hash, broken=2, why="it cannot be read"
        )
    database.close()


def test_triggers_that_are_gone_or_toothless_are_named(database: Database) -> None:
    with database.begin() as c:
        assert missing_triggers(c) == []
    with tampering(database) as c:
        assert missing_triggers(c) == [name.split()[2] for name in WITHOUT_TRIGGERS[c.dialect.name]]
    toothless = {
        "sqlite": ["DROP TRIGGER ledger_no_delete",
                   "CREATE TRIGGER ledger_no_delete BEFORE DELETE ON ledger BEGIN SELECT 1; END"],
        "postgresql": ["ALTER TABLE ledger DISABLE TRIGGER ledger_append_only"],
    }  # fmt: skip
    with database.begin() as c:
        for statement in toothless[c.dialect.name]:
            c.execute(text(statement))
        assert len(missing_triggers(c)) == 1
        c.rollback()
