"""Studies: which one is ready for its report, who is making it, and what came of it.

A study has one SR at a time, or one for each patient whose images it holds. It is ready when none of its images is left
to analyse and nothing was added to it for a while; an image that comes later makes it ready again, and the next SR
names the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, bindparam, func, select, true, update

from cxrnode.store import ledger
from cxrnode.store.chunks import chunks
from cxrnode.store.objects import add_result, result_object
from cxrnode.store.queue import ANALYSED, CLAIMED, RECEIVED, REPORTED, STAT, Lease, rejection_columns
from cxrnode.store.schema import instance, job, result, study
from cxrnode.store.stillness import Stillness
from cxrnode.types import Kind, Outcome, Prediction, Reason, Rejection, Report, StoredImage, Study

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
    select(result)
    .join(job, job.c.id == result.c.instance_id)
    .where(job.c.study_instance_uid == bindparam("study"), result.c.kind == Kind.CAPTURE.value)
    .order_by(result.c.id)
)


_CLAIM = (
    study.c.study_instance_uid,
    study.c.last_received_at,
    study.c.first_received_at,
    study.c.lease_owner,
    study.c.lease_until,
)


def _in_work() -> Select[Any]:
    """Studies of which something is claimed or analysed, STAT first; `open`: something of it is still to be analysed.

    Not those that only wait: they may be a thousand.
    """
    other = job.alias()
    of_study = other.c.study_instance_uid == study.c.study_instance_uid
    still_open = select(other.c.id).where(of_study, other.c.state.in_((RECEIVED, CLAIMED)))
    urgency = select(func.min(other.c.priority)).where(of_study).scalar_subquery()
    begun = select(job.c.study_instance_uid).where(job.c.state.in_((CLAIMED, ANALYSED)))
    return (
        select(*_CLAIM, still_open.exists().label("open"))
        .where(study.c.study_instance_uid.in_(begun))
        .order_by(urgency, study.c.study_instance_uid)
    )


_IN_WORK = _in_work()  # asked for all day, so built once
_TAKE = (
    select(*_CLAIM)
    .where(study.c.study_instance_uid.in_(bindparam("uids", expanding=True)))
    .with_for_update(skip_locked=True)
)


class Studies:
    """All methods take the connection of the caller's transaction."""

    def __init__(self, actor: str) -> None:
        self._actor = actor
        self._receipts = Stillness[str, float]()
        self._leases = Stillness[str, tuple[str, float]]()

    def claim(self, c: Connection, lease: Lease, *, quiet_s: float, limit: int) -> list[Study]:
        """The next studies to report, the caller's until the lease ends; STAT first.

        One that holds nothing to report (duplicates, own results) comes with no images: close it without an SR.
        """
        ready = dict([(row[0], row) for row in self._ready(c, lease, quiet_s)][:limit])
        if not ready:
            return []
        there = {row[0]: row for row in c.execute(_TAKE, {"uids": list(ready)})}
        rows = [row for uid, row in ready.items() if uid in there and tuple(there[uid]) == tuple(row[: len(_CLAIM)])]
        mine = {"lease_owner": lease.owner, "lease_until": lease.until}
        uids = [row.study_instance_uid for row in rows]
        c.execute(update(study).where(study.c.study_instance_uid.in_(uids)).values(**mine))
        return [self._study(c, row) for row in rows]

    def due(self, c: Connection, lease: Lease, *, quiet_s: float) -> bool:
        """Whether a claim may give any; asked in a transaction that only reads."""
        return bool(self._ready(c, lease, quiet_s))

    def _ready(self, c: Connection, lease: Lease, quiet_s: float) -> list[Row[Any]]:
        """Those that nobody holds, to which nothing was added for so long, by the clock of whoever looks."""
        rows = c.execute(_IN_WORK).all()
        received = {row.study_instance_uid: row.last_received_at for row in rows}
        held = {r.study_instance_uid: (r.lease_owner, r.lease_until) for r in rows if r.lease_owner is not None}
        quiet = self._receipts.still(received, now=lease.now, seconds=quiet_s)
        ended = self._leases.still(held, now=lease.now, seconds=lease.seconds)
        taken = held.keys() - ended
        return [r for r in rows if not r.open and r.study_instance_uid in quiet and r.study_instance_uid not in taken]

    def _study(self, c: Connection, row: Any) -> Study:
        uid = row.study_instance_uid
        rows = c.execute(_IMAGES, {"study": uid}).all()
        images = [(r.id, _stored_image(r), (r.sop_instance_uid, r.pixel_digest)) for r in rows]
        told = [i for i in images if i[1].rejection is None or i[1].rejection.reason.in_report]
        return Study(
            study_instance_uid=uid,
            job_ids=tuple(r.id for r in rows if r.state == ANALYSED),
            images=tuple(image for _, image, _ in told),
            image_ids=tuple(image_id for image_id, _, _ in told),
            sources=tuple(source for _, _, source in told),
            last_received_at=row.last_received_at,
            first_received_at=row.first_received_at,
            stat=any(r.priority == STAT for r in rows),
            earlier=tuple(result_object(r) for r in c.execute(_SRS, {"study": uid})),
            captures=tuple(result_object(r) for r in c.execute(_CAPTURES, {"study": uid})),
        )

    def heartbeat(self, c: Connection, lease: Lease) -> None:
        c.execute(update(study).where(study.c.lease_owner == lease.owner).values(lease_until=lease.until))

    def claimed_by(self, c: Connection, owner: str) -> set[str]:
        """The studies that this owner holds."""
        return set(c.execute(select(study.c.study_instance_uid).where(study.c.lease_owner == owner)).scalars())

    def hand_back(self, c: Connection, owner: str, uids: Iterable[str]) -> None:
        """Anybody's again, and on record: their owner claimed these and forgot them."""
        for uid in sorted(uids):
            if self._release(c, uid, owner):
                ledger.append(c, "forgotten", actor=self._actor, study_instance_uid=uid)

    def release(self, c: Connection, owner: str) -> None:
        """Hand back what the owner claimed."""
        c.execute(update(study).where(study.c.lease_owner == owner).values(**_FREE))

    def release_all(self, c: Connection) -> None:
        """Free every claim. Only where the caller knows that nobody else works on this store."""
        c.execute(update(study).where(study.c.lease_owner.is_not(None)).values(**_FREE))

    def reported(self, c: Connection, study: Study, reports: Sequence[Report], *, owner: str) -> list[str] | None:
        """analysed -> reported for every job of the study, with the report of each patient (none: nothing to report).

        Returns the UIDs of what is to be sent: the SRs, then the captures of the images that are in one. None: the
        lease was lost, nothing changed.
        """
        uid = study.study_instance_uid
        if not self._release(c, uid, owner):
            return None
        held_back: set[int] = set()
        for report in reports:
            ids = [study.image_ids[place] for place in report.images]
            if report.sr:
                sources = [study.sources[place] for place in report.images]
                add_result(
                    c, report.sr, actor=self._actor, predecessor_uid=report.predecessor_uid, sources=sources, jobs=ids
                )  # fmt: skip
                _set(c, ids, true(), {"report_uid": report.sr.sop_instance_uid})
            elif report.held_back:
                held_back.update(ids)
                self._fail(c, uid, ids, report.held_back)
        if len(reports) > 1:
            self._flag_patients(c, study, len(reports))
        self._close(c, study)
        captures = c.execute(_CAPTURES, {"study": uid})
        return [
            *(r.sr.sop_instance_uid for r in reports if r.sr),
            *(row.sop_instance_uid for row in captures if row.instance_id not in held_back),
        ]

    def failed(self, c: Connection, study: Study, rejection: Rejection, *, owner: str) -> bool:
        """No report of the study could be made: what was to be in one has failed. False: the lease was lost."""
        everybody = Report(images=tuple(range(len(study.images))), held_back=rejection)
        return self.reported(c, study, [everybody], owner=owner) is not None

    def _fail(self, c: Connection, uid: str, ids: Sequence[int], why: Rejection) -> None:
        open_ = (job.c.state == ANALYSED) & (job.c.outcome != Outcome.FAILED.value)  # no report has told of it yet
        columns = rejection_columns(why)
        failed = _set(c, ids, open_, columns)
        ledger.append(
            c, "report_failed", actor=self._actor, study_instance_uid=uid, outcome=Outcome.FAILED.value, why=why.text,
            jobs=failed, reason=columns["reason"], detail=columns["detail"],
        )  # fmt: skip

    def _flag_patients(self, c: Connection, study: Study, patients: int) -> None:
        """The rows and the ledger say that the study holds several patients, for somebody has to put it right."""
        why = Rejection(reason=Reason.SEVERAL_PATIENTS, detail=f"{patients} patients, a report each")
        unflagged = (job.c.outcome == Outcome.ANALYSED.value) & job.c.reason.is_(None)
        flagged = _set(c, study.image_ids, unflagged, {"reason": why.reason.value, "detail": why.detail})
        ledger.append(
            c, why.reason.value, actor=self._actor, study_instance_uid=study.study_instance_uid, patients=patients,
            jobs=flagged, detail=why.detail,
        )  # fmt: skip

    def _close(self, c: Connection, study: Study) -> None:
        """On record, for a study without a report is closed too."""
        if closed := _set(c, study.job_ids, job.c.state == ANALYSED, {"state": REPORTED}):
            ledger.append(
                c, "study_reported", actor=self._actor, study_instance_uid=study.study_instance_uid, jobs=closed
            )

    def _release(self, c: Connection, uid: str, owner: str) -> bool:
        return c.execute(_RELEASE, {"study": uid, "owner": owner}).rowcount == 1


def _set(c: Connection, ids: Sequence[int], condition: ColumnElement[bool], values: dict[str, Any]) -> list[int]:
    """Returns the jobs that it was true of, and that were changed."""
    changed: list[int] = []
    for some in chunks(ids):
        these = update(job).where(job.c.id.in_(some) & condition).values(**values)
        changed += c.execute(these.returning(job.c.id)).scalars()
    return sorted(changed)


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
