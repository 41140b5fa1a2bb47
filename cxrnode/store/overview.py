"""What an operator and the machines that watch the node see of the queue: without patient data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, exists, func, or_, select, true

from cxrnode.store.ledger import identifier
from cxrnode.store.outbox import MANY_TRIES, PENDING, REFUSED, SENT
from cxrnode.store.queue import ANALYSED, CLAIMED, RECEIVED, ROUTINE, STAT
from cxrnode.store.schema import delivery, instance, job, ledger, result
from cxrnode.types import Outcome

_JOB_COLUMNS = (
    job.c.id, job.c.state, job.c.priority, job.c.attempts, job.c.outcome, job.c.reason, job.c.detail,
    job.c.study_instance_uid, instance.c.sop_instance_uid, instance.c.calling_aet, instance.c.host,
    instance.c.received_at, instance.c.path, job.c.not_before, job.c.last_error,
)  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which images: those that pass all of it. `delivery`: what became of a result of theirs, at `destination` if one
    is named, else anywhere. A patient's studies are those that the ledger knows."""

    states: Sequence[str] = ()
    study: str | None = None
    patient: str | None = None
    destination: str | None = None
    deliveries: Sequence[str] = ()


def jobs(c: Connection, wanted: Wanted, *, limit: int) -> list[Row]:
    """The newest of them, newest first."""
    query = select(*_JOB_COLUMNS).join(instance, instance.c.id == job.c.id).order_by(job.c.id.desc()).limit(limit)
    return [dict(row) for row in c.execute(query.where(*_conditions(wanted))).mappings()]


def _conditions(wanted: Wanted) -> Iterator[ColumnElement[bool]]:
    if wanted.states:
        yield job.c.state.in_(wanted.states)
    if wanted.study is not None:
        yield job.c.study_instance_uid == wanted.study
    if wanted.patient is not None:
        yield job.c.study_instance_uid.in_(
            select(ledger.c.study_instance_uid).where(ledger.c.patient_id == identifier(wanted.patient))
        )
    there = true() if wanted.destination is None else delivery.c.destination == wanted.destination
    ours = delivery.c.result_uid == result.c.sop_instance_uid
    if wanted.deliveries:  # few of many: found by their state
        in_state = there & delivery.c.state.in_(wanted.deliveries)
        yield job.c.study_instance_uid.in_(select(result.c.study_instance_uid).join(delivery, ours).where(in_state))
    elif wanted.destination is not None:  # most of them: looked up for each image, result by result
        sent = exists().where(ours & there).correlate(result)
        yield exists().where((result.c.study_instance_uid == job.c.study_instance_uid) & sent).correlate(job)


def job_row(c: Connection, job_id: int) -> Row | None:
    query = select(*_JOB_COLUMNS).join(instance, instance.c.id == job.c.id).where(job.c.id == job_id)
    row = c.execute(query).mappings().one_or_none()
    return dict(row) if row else None


def deliveries_of(c: Connection, row: Row) -> list[Row]:
    """What became of the results of this job: its capture, and its study's SRs."""
    mine = or_(
        result.c.instance_id == row["id"],
        (result.c.instance_id.is_(None)) & (result.c.study_instance_uid == row["study_instance_uid"]),
    )
    query = (
        select(
            result.c.kind, result.c.sop_instance_uid, delivery.c.destination, delivery.c.state, delivery.c.attempts,
            delivery.c.status, delivery.c.not_before,
        )
        .outerjoin(delivery, delivery.c.result_uid == result.c.sop_instance_uid)
        .where(mine)
        .order_by(result.c.id, delivery.c.destination)
    )  # fmt: skip
    return [dict(r) for r in c.execute(query).mappings()]


def totals(c: Connection) -> dict[tuple[str, ...], int]:
    """How many jobs are in each state, and how many deliveries for each destination: ("job", state), ("delivery",
    destination, state)."""
    found: dict[tuple[str, ...], int] = {}
    for state, n in c.execute(select(job.c.state, func.count()).group_by(job.c.state)):
        found["job", state] = n
    per = (delivery.c.destination, delivery.c.state)
    for destination, state, n in c.execute(select(*per, func.count()).group_by(*per)):
        found["delivery", destination, state] = n
    return found


# --- for the machines that watch: asked every few seconds, so that nothing here grows with what is done ---------------

MOST = 10_000  # to which is counted, in a few milliseconds: SQLite lets nobody write meanwhile
_PAGE = 5_000
_OUTCOMES = frozenset(outcome.value for outcome in Outcome)
_DELIVERIES = {
    "delivered": "delivered",
    "delivery_postponed": "postponed",
    "delivery_failed": "refused",
    "committed": "committed",
    "commitment_failed": "not_committed",
}  # kind of ledger record -> what became of a delivery


def _up_to_most(condition: ColumnElement[bool]) -> Any:
    return select(func.count()).select_from(select(1).where(condition).limit(MOST).subquery())


_OPEN_JOBS = _up_to_most(job.c.state == bindparam("state"))
_AT = delivery.c.destination == bindparam("where")
_OPEN_DELIVERIES = _up_to_most(_AT & (delivery.c.state == bindparam("state")))
_FAILING = _up_to_most(_AT & (delivery.c.state == PENDING) & (delivery.c.attempts >= MANY_TRIES))
_NEW = (
    select(delivery.c.updated_at)
    .where(_AT & (delivery.c.state == PENDING) & (delivery.c.attempts == 0))
    .order_by(delivery.c.not_before)
    .limit(MOST)
    .subquery()
)
_OLDEST_NEW = select(func.min(_NEW.c.updated_at))
# of two ends of the index: what was asked for waits as long again as it took, so that the oldest is at the far one
_SENT = select(delivery.c.updated_at).where(_AT & (delivery.c.state == SENT))
_ENDS = [_SENT.order_by(end).limit(MOST).subquery() for end in (delivery.c.not_before, delivery.c.not_before.desc())]
_OLDEST_SENT = [select(func.min(end.c.updated_at)) for end in _ENDS]
_OLDEST = (
    select(instance.c.received_at)
    .join(job, job.c.id == instance.c.id)
    .where(job.c.state == bindparam("state"), job.c.priority == bindparam("priority"))
    .order_by(job.c.id)
    .limit(1)
)
_NEWEST = select(func.max(ledger.c.seq))
_SINCE = (
    select(ledger.c.seq, ledger.c.kind, ledger.c.detail)
    .where(ledger.c.seq > bindparam("seq"))
    .order_by(ledger.c.seq)
    .limit(_PAGE)
)


def open_jobs(c: Connection) -> dict[str, int]:
    """How many images are in each state that is not their last, up to MOST."""
    return {s: c.execute(_OPEN_JOBS, {"state": s}).scalar_one() for s in (RECEIVED, CLAIMED, ANALYSED)}


def open_deliveries(c: Connection, destinations: Iterable[str]) -> dict[tuple[str, str], int]:
    """(destination, state) -> how many results wait to be sent or were refused, up to MOST."""
    pairs = [(d, state) for d in destinations for state in (PENDING, REFUSED)]
    return {(d, s): c.execute(_OPEN_DELIVERIES, {"where": d, "state": s}).scalar_one() for d, s in pairs}


def failing_deliveries(c: Connection, destinations: Iterable[str]) -> dict[str, int]:
    """Destination -> how many results were tried there in vain many times, and are tried again, up to MOST."""
    return {d: c.execute(_FAILING, {"where": d}).scalar_one() for d in destinations}


def oldest_undelivered(c: Connection, destinations: Iterable[str]) -> dict[str, float]:
    """Destination -> when the oldest result was queued for it that was never tried, seconds since 1970; none where
    none waits."""
    found = {d: c.execute(_OLDEST_NEW, {"where": d}).scalar_one() for d in destinations}
    return {d: float(since) for d, since in found.items() if since is not None}


def uncommitted(c: Connection, destinations: Iterable[str]) -> dict[str, tuple[int, float]]:
    """Of destinations that do storage commitment: how many results they took and did not commit to yet, up to MOST, and
    when they took the oldest, seconds since 1970; (0, 0.0) where there is none."""
    found = {}
    for d in destinations:
        number = c.execute(_OPEN_DELIVERIES, {"where": d, "state": SENT}).scalar_one()
        oldest = [c.execute(query, {"where": d}).scalar_one() for query in _OLDEST_SENT] if number else [0.0]
        found[d] = int(number), float(min(oldest))
    return found


def oldest_waiting(c: Connection) -> dict[int, float]:
    """Priority -> when the first image came that is not analysed yet, seconds since 1970; none where none waits."""
    found = {}
    for priority in (STAT, ROUTINE):
        asked = [{"state": state, "priority": priority} for state in (RECEIVED, CLAIMED)]
        times = [t for values in asked if (t := c.execute(_OLDEST, values).scalar_one_or_none()) is not None]
        if times:
            found[priority] = min(times)
    return found


@dataclass(slots=True, kw_only=True)
class Tally:
    """What happened since it was begun, by the ledger: every record counts once, whichever process wrote it."""

    seq: int  # of the last record that was counted
    events: Counter[str] = field(default_factory=Counter)  # by kind
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)  # (outcome, reason)
    deliveries: Counter[tuple[str, str]] = field(default_factory=Counter)  # (destination, what became of it)

    @classmethod
    def begin(cls, c: Connection) -> Tally:
        return cls(seq=c.execute(_NEWEST).scalar_one() or 0)

    def go_on(self, c: Connection) -> bool:
        """Count a page of what came since. False: that was all."""
        rows = c.execute(_SINCE, {"seq": self.seq}).all()
        for seq, kind, detail in rows:
            self.seq = seq
            self.events[kind] += 1
            if kind in _OUTCOMES:
                self.outcomes[kind, json.loads(detail).get("reason", "")] += 1
            elif kind in _DELIVERIES:
                self.deliveries[json.loads(detail)["destination"], _DELIVERIES[kind]] += 1
        return len(rows) == _PAGE
