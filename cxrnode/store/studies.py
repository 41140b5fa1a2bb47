"""Studies: which one is ready for its report, who is making it, and what came of it.

A study has one SR at a time. It is ready when none of its images is left to analyse and nothing was added to it for a
while; an image that comes later makes it ready again, and the next SR names the one before.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, func, or_, select, update

from cxrnode.store import ledger
from cxrnode.store.objects import add_result, result_object
from cxrnode.store.queue import ANALYSED, CLAIMED, RECEIVED, REPORTED, STAT, Lease, lease_ended, rejection_columns
from cxrnode.store.schema import instance, job, result, study
from cxrnode.types import Kind, Outcome, Prediction, Reason, Rejection, ResultObject, StoredImage, Study

_IMAGES = (
    select(instance, job)
    .join(job, job.c.id == instance.c.id)
    .where(job.c.study_instance_uid == bindparam("study"), instance.c.header.is_not(None), job.c.outcome.is_not(None))
    .order_by(job.c.id)
)
_FREE = {"lease_owner": None, "lease_until": None}
_RELEASE = (
    update(study)
    .where(study.c.study_instance_uid == bindparam("study"), study.c.lease_owner == bindparam("owner"))
    .values(**_FREE)
)
_SRS = (
    select(result)
    .where(result.c.study_instance_uid == bindparam("study"), result.c.kind == Kind.SR.value)
    .order_by(result.c.id)
)
_CAPTURES = (
    select(result.c.sop_instance_uid)
    .join(job, job.c.id == result.c.instance_id)
    .where(job.c.study_instance_uid == bindparam("study"), result.c.kind == Kind.CAPTURE.value)
    .order_by(result.c.id)
)


def _claimable() -> Select[Any]:
    """Studies that are ready for their report, STAT first, but for what another claim holds just now.

    A time of receipt in the future was written before the clock was set back.
    """
    other = job.alias()
    of_study = other.c.study_instance_uid == study.c.study_instance_uid
    still_open = select(other.c.id).where(of_study, other.c.state.in_((RECEIVED, CLAIMED)))
    urgency = select(func.min(other.c.priority)).where(of_study).scalar_subquery()
    received, until = study.c.last_received_at, study.c.lease_until
    return (
        select(study.c.study_instance_uid, received)
        .where(
            study.c.study_instance_uid.in_(select(job.c.study_instance_uid).where(job.c.state == ANALYSED)),
            ~still_open.exists(),
            or_(received <= bindparam("quiet_since"), received > bindparam("now")),
            or_(until.is_(None), lease_ended(until)),
        )
        .order_by(urgency, study.c.study_instance_uid)
        .limit(bindparam("limit"))
        .with_for_update(skip_locked=True)
    )


_CLAIMABLE = _claimable()  # asked for all day, so built once


class Studies:
    """All methods take the connection of the caller's transaction."""

    def __init__(self, actor: str) -> None:
        self._actor = actor

    def claim(self, c: Connection, lease: Lease, *, quiet_s: float, limit: int) -> list[Study]:
        """The next studies to report, the caller's until the lease ends; STAT first.

        One that holds nothing to report (duplicates, own results) comes with no images: close it without an SR.
        """
        rows = c.execute(_CLAIMABLE, {**lease.times, "quiet_since": lease.now - quiet_s, "limit": limit}).all()
        if rows:
            mine = {"lease_owner": lease.owner, "lease_until": lease.until}
            uids = [row.study_instance_uid for row in rows]
            c.execute(update(study).where(study.c.study_instance_uid.in_(uids)).values(**mine))
        return [self._study(c, row) for row in rows]

    def _study(self, c: Connection, row: Any) -> Study:
        uid = row.study_instance_uid
        rows = c.execute(_IMAGES, {"study": uid}).all()
        images = [(_stored_image(r), (r.sop_instance_uid, r.pixel_digest)) for r in rows]
        told = [(i, source) for i, source in images if i.rejection is None or i.rejection.reason.in_report]
        return Study(
            study_instance_uid=uid,
            job_ids=tuple(r.id for r in rows if r.state == ANALYSED),
            images=tuple(i for i, _ in told),
            sources=tuple(source for _, source in told),
            last_received_at=row.last_received_at,
            stat=any(r.priority == STAT for r in rows),
            earlier=tuple(result_object(r) for r in c.execute(_SRS, {"study": uid})),
        )

    def heartbeat(self, c: Connection, lease: Lease) -> None:
        c.execute(update(study).where(study.c.lease_owner == lease.owner).values(lease_until=lease.until))

    def release(self, c: Connection, owner: str) -> None:
        """Hand back what the owner claimed."""
        c.execute(update(study).where(study.c.lease_owner == owner).values(**_FREE))

    def release_all(self, c: Connection) -> None:
        """Free every claim. Only where the caller knows that nobody else works on this store."""
        c.execute(update(study).where(study.c.lease_owner.is_not(None)).values(**_FREE))

    def reported(self, c: Connection, reported: Study, sr: ResultObject | None, *, owner: str) -> list[str] | None:
        """analysed -> reported for every job of the study, with its SR (None where nothing was to be reported).

        Returns the UIDs of what is to be sent: the SR, then the captures. None: the lease was lost, nothing changed.
        """
        uid = reported.study_instance_uid
        if not self._release(c, uid, owner):
            return None
        if sr:
            before = reported.predecessor_of(sr.sop_instance_uid)
            add_result(
                c, sr, actor=self._actor, predecessor_uid=before.sop_instance_uid if before else None,
                sources=reported.sources,
            )  # fmt: skip
        _close(c, reported)
        return [*([sr.sop_instance_uid] if sr else []), *c.execute(_CAPTURES, {"study": uid}).scalars()]

    def failed(self, c: Connection, failed: Study, rejection: Rejection, *, owner: str) -> bool:
        """The study's SR could not be made: what was to be in it has failed. False: the lease was lost."""
        uid = failed.study_instance_uid
        if not self._release(c, uid, owner):
            return False
        in_report = job.c.id.in_(failed.job_ids) & (job.c.outcome == Outcome.ANALYSED.value)
        c.execute(update(job).where(in_report).values(**rejection_columns(rejection)))
        ledger.append(
            c, "report_failed", actor=self._actor, study_instance_uid=uid, outcome=Outcome.FAILED.value,
            why=rejection.text,
        )  # fmt: skip
        _close(c, failed)
        return True

    def _release(self, c: Connection, uid: str, owner: str) -> bool:
        return c.execute(_RELEASE, {"study": uid, "owner": owner}).rowcount == 1


def _close(c: Connection, reported: Study) -> None:
    mine = job.c.id.in_(reported.job_ids) & (job.c.state == ANALYSED)
    c.execute(update(job).where(mine).values(state=REPORTED))


def _stored_image(row: Row[Any]) -> StoredImage:
    rejection = prediction = None
    if row.outcome == Outcome.ANALYSED:
        prediction = Prediction(
            probabilities=tuple(row.probabilities),
            class_index=row.class_index,
            cam_max=row.cam_max,
            engine=row.engine,
        )
    else:
        rejection = Rejection(reason=Reason(row.reason), detail=row.detail or "")
    digest = row.pixel_digest or sha256(row.header).hexdigest()  # nothing was decoded: the header stands for it
    return StoredImage(kept_header=row.header, pixel_digest=digest, prediction=prediction, rejection=rejection)
