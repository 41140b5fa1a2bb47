"""The audit ledger: append-only (triggers), hash-chained, in the transaction of the step that it records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, func, insert, select

from cxrnode.store.schema import ledger
from cxrnode.types import AuditEvent

GENESIS = "0" * 64
_LAST = select(ledger.c.seq, ledger.c.hash).order_by(ledger.c.seq.desc()).limit(1)
_INSERT = insert(ledger)
_LOCK = select(func.pg_advisory_xact_lock(int.from_bytes(b"cxrnode", "big")))


def lock(c: Connection) -> None:
    """Keep others from appending until this transaction ends. SQLite has but one writer as it is."""
    if c.dialect.name == "postgresql":
        c.execute(_LOCK)


def append(
    c: Connection, kind: str, *, actor: str, study_instance_uid: str | None = None, **detail: object
) -> AuditEvent:
    """Add one record. `detail` holds JSON values; the chain goes on from the last record in the table."""
    lock(c)
    last = c.execute(_LAST).one_or_none()
    record: dict[str, Any] = {
        "seq": last.seq + 1 if last else 1,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "kind": kind,
        "actor": actor,
        "study_instance_uid": study_instance_uid,
        "detail": _canonical(detail),
        "prev_hash": last.hash if last else GENESIS,
    }
    record["hash"] = _hash(record)
    c.execute(_INSERT, record)
    return _event(record)


def events(c: Connection) -> Iterator[AuditEvent]:
    for record in _records(c):
        yield _event(record)


def first_broken(c: Connection, known: tuple[int, str] | None = None) -> int | None:
    """The sequence number of the first record that was changed, removed or inserted; None where the chain holds.

    The beginning of a chain is a chain, and so is one that was made anew as a whole: only a record that is known from
    elsewhere (its seq and hash) shows that the end was cut off before it, or that it was forged.
    """
    prev, seq = GENESIS, 1
    for record in _records(c):
        if record["seq"] != seq or record["prev_hash"] != prev or record["hash"] != _hash(record):
            return seq
        prev, seq = record["hash"], seq + 1
        if known and known[0] == record["seq"] and known[1] != record["hash"]:
            return known[0]
    return seq if known and known[0] >= seq else None


def _records(c: Connection) -> Iterator[dict[str, Any]]:
    """From the first to the last, never all in memory."""
    query = select(ledger).order_by(ledger.c.seq).execution_options(yield_per=1000)
    with c.execute(query) as rows:  # PostgreSQL's cursor is closed where the reader stops early
        for row in rows.mappings():
            yield dict(row)


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)


def _hash(record: dict[str, Any]) -> str:
    content = {k: v for k, v in record.items() if k != "hash"}
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _event(record: dict[str, Any]) -> AuditEvent:
    return AuditEvent(**{**record, "at": datetime.fromisoformat(record["at"]), "detail": json.loads(record["detail"])})
