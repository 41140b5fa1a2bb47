"""What an operator sees of the queue: jobs and their deliveries, without patient data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, or_, select

from cxrnode.store.schema import delivery, instance, job, result

_JOB_COLUMNS = (
    job.c.id, job.c.state, job.c.priority, job.c.attempts, job.c.outcome, job.c.reason, job.c.detail,
    job.c.study_instance_uid, instance.c.sop_instance_uid, instance.c.calling_aet, instance.c.received_at,
    instance.c.path,
)  # fmt: skip
Row = dict[str, Any]


def jobs(c: Connection, *, states: Sequence[str], limit: int) -> list[Row]:
    """The newest jobs in these states (all where none is named), newest first."""
    query = select(*_JOB_COLUMNS).join(instance, instance.c.id == job.c.id).order_by(job.c.id.desc()).limit(limit)
    if states:
        query = query.where(job.c.state.in_(states))
    return [dict(row) for row in c.execute(query).mappings()]


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
            delivery.c.status,
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
