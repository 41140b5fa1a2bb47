"""The audit ledger: append-only (triggers), hash-chained, in the transaction of the step that it records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from cxrnode.store.schema import ledger
from cxrnode.types import AuditEvent

GENESIS = "0" * 64
_LAST = select(ledger.c.seq, ledger.c.hash).order_by(ledger.c.seq.desc()).limit(1)
_INSERT = insert(ledger)


def append(
    c: Connection, kind: str, *, actor: str, study_instance_uid: str | None = None, **detail: object
) -> AuditEvent:
    """Add one record. `detail` holds JSON values; the chain goes on from the last record in the table."""
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
    for row in c.execute(select(ledger).order_by(ledger.c.seq)).mappings():
        yield _event(dict(row))


def first_broken(c: Connection) -> int | None:
    """The sequence number of the first record that was changed, removed or inserted; None where the chain holds."""
    prev, seq = GENESIS, 1
    for row in c.execute(select(ledger).order_by(ledger.c.seq)).mappings():
        if row["seq"] != seq or row["prev_hash"] != prev or row["hash"] != _hash(dict(row)):
            return seq
        prev, seq = row["hash"], seq + 1
    return None


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)


def _hash(record: dict[str, Any]) -> str:
    content = {k: v for k, v in record.items() if k != "hash"}
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _event(record: dict[str, Any]) -> AuditEvent:
    return AuditEvent(**{**record, "at": datetime.fromisoformat(record["at"]), "detail": json.loads(record["detail"])})
