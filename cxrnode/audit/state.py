"""Do the tables say what the records say that made them? Whoever can write to the database can change a row alone.

The ledger's records are played again (see `replay`), and what they come to is compared with every row. The caller's
transaction must see both as they were at one moment: a read-only one of `Database` does.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

from sqlalchemy import JSON, Connection, Table, and_, or_, select

from cxrnode.audit.replay import Replay
from cxrnode.audit.tables import DONE, KEYS, TOLD, UNTOLD, WAITING
from cxrnode.errors import StorageFullError
from cxrnode.store import ledger
from cxrnode.store.chunks import chunks
from cxrnode.store.queue import ANALYSED, CLAIMED, RECEIVED, REPORTED
from cxrnode.store.schema import metadata, settings
from cxrnode.store.triggers import missing_triggers
from cxrnode.words import counted

_LEASE = "a lease: whose it is, and until when"
_TRIES = "counts tries; the ledger has each that came to its end"
_WAIT = "when it is tried next: whoever changes it delays or hastens it, and changes no result"
_AGE = "since when retention waits; what it deletes is on record"
# Columns that are compared with nothing, each with why. A new column must be here or in tables.TOLD.
FREE = {
    "instance": {},
    "job": {
        "attempts": _TRIES, "not_before": _WAIT, "lease_owner": _LEASE, "lease_until": _LEASE,
        "last_error": "words about a try that is repeated",
    },
    "study": {
        "last_received_at": "when its report is due; the report's own record stays",
        "attempts": _TRIES, "not_before": _WAIT, "lease_owner": _LEASE, "lease_until": _LEASE,
        "last_error": "words about a try that is repeated", "over_at": _AGE, "over_step": _AGE,
        "first_received_at": "the date of the series of later results; those that were made hold theirs",
    },
    "result": {"id": "a number that nothing refers to"},
    "delivery": {
        "id": "a number that nothing refers to", "attempts": _TRIES, "not_before": _WAIT, "wait_s": _WAIT,
        "lease_owner": _LEASE, "lease_until": _LEASE,
        "updated_at": "when its state changed: the record that changed it says so",
    },
}  # fmt: skip
_STATES = {WAITING: (RECEIVED, CLAIMED), DONE: (ANALYSED, REPORTED)}
_SHOWN = 80  # characters of a value


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One row, or one value of it, that is not what its records say."""

    where: str  # table and row
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(slots=True, kw_only=True)
class Compared:
    """What came of it."""

    rows: Counter[str] = field(default_factory=Counter)  # table -> rows that were looked at
    untold: int = 0  # values, and rows, of which no record says anything: an older cxrnode recorded less
    different: int = 0
    first: list[Difference] = field(default_factory=list)

    def in_words(self) -> str:
        """Where nothing differs."""
        images, results, deliveries = (self.rows[k] for k in ("instance", "result", "delivery"))
        said = f"{counted(images, 'image')}, {counted(results, 'result')} and {deliveries} "
        said += f"{'delivery' if deliveries == 1 else 'deliveries'} are as their records say"
        return said + (f"; {counted(self.untold, 'value')} the records of an older cxrnode do not tell"
                       if self.untold else "")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    verdict: ledger.Verdict
    missing_triggers: list[str]
    compared: Compared | None  # None where the chain is broken: its records prove nothing


def verify_store(c: Connection, known: Mapping[int, str], *, most: int) -> Verified:
    """The chain, and the tables that it made, in one pass over it. most: differences that are kept; all are counted.

    Raises StoreError, StorageFullError.
    """
    try:
        return _verify_store(c, known, most)
    except sqlite3.OperationalError as e:  # of the temporary tables: the store's own come as errors of ours
        raise StorageFullError(
            f"the ledger cannot be compared with its tables, which takes a temporary file of up to its size ({e}): "
            "free some space, or set TMPDIR to a folder that has it"
        ) from e


def _verify_store(c: Connection, known: Mapping[int, str], most: int) -> Verified:
    with closing(Replay(c)) as replay:
        verdict = ledger.check_chain(replay.heard(ledger.records(c)), known)
        missing = missing_triggers(c)
        if verdict.broken is not None:
            return Verified(verdict=verdict, missing_triggers=missing, compared=None)
        compared = Compared()
        for difference in differences(c, replay, compared):
            compared.different += 1
            if len(compared.first) < most:
                compared.first.append(difference)
        return Verified(verdict=verdict, missing_triggers=missing, compared=compared)


def differences(c: Connection, replay: Replay, compared: Compared) -> Iterator[Difference]:
    """Of every table; never all in memory. `replay` has heard the whole ledger."""
    for name in KEYS:
        yield from _Comparison(c, replay, compared, metadata.tables[name]).differences()
    yield from _of_settings(c, replay)


class _Comparison:
    """One table."""

    def __init__(self, c: Connection, replay: Replay, compared: Compared, table: Table) -> None:
        self._c, self._replay, self._compared, self._table = c, replay, compared, table
        self._key, self._told = KEYS[table.name], TOLD[table.name]
        self._unnamed = Counter(replay.unnamed)

    def differences(self) -> Iterator[Difference]:
        found = 0
        for row in _rows(self._c, self._table, (*self._key, *self._told)):
            self._compared.rows[self._table.name] += 1
            want = self._replay.tables.row(self._table.name, tuple(row[k] for k in self._key))
            if want is not None:
                found += 1
                yield from self._changed(row, want)
            elif self._is_older(row):
                self._compared.untold += 1
            else:
                yield Difference(where=self._name(row), what="no record tells of this row")
        if found < self._replay.tables.count(self._table.name):
            yield from self._gone()

    def _changed(self, row: dict[str, Any], want: dict[str, Any]) -> Iterator[Difference]:
        for column in self._told:
            told, got = want[column], row[column]
            if told == UNTOLD:
                self._compared.untold += 1
            elif not _agree(self._table, column, told, got):
                says = "another" if column == "header" else _shown(told)
                held = "not the one that was recorded" if column == "header" else _shown(got)
                yield Difference(
                    where=self._name(row),
                    what=f"{column} is {held}, its records (the last is {want['seq']}) say {says}",
                )

    def _gone(self) -> Iterator[Difference]:
        """Rows that the records tell of and the table does not hold."""
        columns = [self._table.c[k] for k in self._key]
        for some in chunks(self._replay.tables.keys(self._table.name)):
            here = or_(*(and_(*(c == k for c, k in zip(columns, key, strict=True))) for _, key in some))
            there = {tuple(row) for row in self._c.execute(select(*columns).where(here))}
            for seq, key in some:
                if key not in there:
                    row = dict(zip(self._key, key, strict=True))
                    yield Difference(where=self._name(row), what=f"the row is gone; record {seq} tells of it")

    def _is_older(self, row: dict[str, Any]) -> bool:
        """Whether an older cxrnode may have made this row without a record that names it."""
        if not self._replay.older:
            return False
        if self._table.name == "delivery":
            self._unnamed[row["destination"]] -= 1
            return self._unnamed[row["destination"]] >= 0 or row["result_uid"] in self._replay.passed
        if self._table.name == "result":
            return row["sop_instance_uid"] in self._replay.passed
        if self._table.name == "instance":
            return row["received_at"] is None and row["pixel_digest"] is None  # seen in an archive, and no more
        return self._table.name == "study" or (row["state"] in _STATES[WAITING] and row["outcome"] is None)

    def _name(self, row: dict[str, Any]) -> str:
        key = " for ".join(_shown(row[k]) if isinstance(row[k], int) else str(row[k]) for k in self._key)
        return f"{self._table.name} {key}"


def _of_settings(c: Connection, replay: Replay) -> Iterator[Difference]:
    """What decides of later results: the run that is gone on with, and the engine that works."""
    values = {row["key"]: row["value"] for row in _rows(c, settings, ("key", "value"))}
    for key, told in replay.settings.items():
        held = json.loads(_json(values.get(key)))
        held = held if isinstance(held, dict) else {}
        for name, value in told.items():
            if held.get(name) != value:
                what = f"{name} is {_shown(held.get(name))}, its records say {_shown(value)}"
                yield Difference(where=f"setting {key}", what=what)


def _agree(table: Table, column: str, told: Any, got: Any) -> bool:
    if table.name == "job" and column == "state":
        return got in _STATES.get(told, (told,))
    if isinstance(table.c[column].type, JSON):
        return _json(told) == _json(got)
    if (read := _READ.get(column)) is not None:
        got = read(got)
    return (type(told) is type(got) and bool(told == got)) or _same_number(told, got)


def _same_number(told: Any, got: Any) -> bool:
    """1 and 1.0 are: JSON and the columns may tell them apart."""
    return isinstance(told, int | float) and isinstance(got, int | float) and told == got


def _json(value: Any) -> str:
    """As one text, whether it was text or not."""
    try:
        return json.dumps(json.loads(value) if isinstance(value, str) else value, sort_keys=True)
    except (TypeError, ValueError):
        return json.dumps(f"no JSON: {value!r}")


# how a value reads in the ledger, where that is not as it stands in the table
_READ: dict[str, Callable[[Any], Any]] = {
    "header": lambda v: sha256(v).hexdigest() if isinstance(v, bytes) else v,
    "calling_aet": lambda v: ledger.identifier(v) if isinstance(v, str) else v,
}


def _shown(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _rows(c: Connection, table: Table, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """As the driver gives them, for SQLite holds anything in any column; never all in memory."""
    order = ", ".join(k.name for k in table.primary_key)
    query = f"SELECT {', '.join(columns)} FROM {table.name} ORDER BY {order}"  # noqa: S608 (our own names)
    driver: Any = c.connection.driver_connection
    if c.dialect.name == "sqlite":
        driver.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    try:
        for row in ledger.stream(c, query):
            yield dict(zip(columns, row, strict=True))
    finally:
        if c.dialect.name == "sqlite":
            driver.text_factory = str
