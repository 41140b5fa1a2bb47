"""The queue: what was received and what came of it.

States only move forward (received -> claimed -> analysed -> reported), each step in one transaction with its ledger
record, so that work that was killed at any moment goes on from what is committed here. A claim is a lease: it ends when
its owner has not renewed it for long, and whoever lost it can no longer write.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam, case, func, insert, select, update

from cxrnode.store import ledger
from cxrnode.store.chunks import chunks
from cxrnode.store.objects import add_result
from cxrnode.store.schema import instance, job, settings, study
from cxrnode.store.stillness import Stillness
from cxrnode.store.upsert import upsert
from cxrnode.types import (
    JobState,
    NewItem,
    Outcome,
    Prediction,
    Reason,
    Receipt,
    ReceivedInstance,
    Rejection,
    ResultObject,
)

RECEIVED, CLAIMED, ANALYSED, REPORTED = (state.value for state in JobState)
STAT, ROUTINE = 0, 1
ENGINE = "engine"  # setting: what the analyse stage verified last
FALLBACK = "engine_fallback"  # setting: why the CPU works in the GPU's place; None where it does not
# setting: how many starts of this host with its GPU were not ended by themselves, in a row; the key has 64 letters
GPU_STARTS = f"gpu_starts {socket.gethostname()}"[:64]
_SUSPECT = 3  # deaths of a process that had it in hand, after which it is analysed alone
MAX_ATTEMPTS = _SUSPECT + 5  # only deaths with it alone in hand speak against an image, and one may be anybody's kill
_ROUTINE_SHARE = 4  # one in so many of a claim is routine, however many STAT images wait

# What runs once an image is built once: composing a statement costs more than running it.
_INSERT_INSTANCE = insert(instance)
_INSERT_JOB = insert(job)
_INSERT_STUDY = upsert(study)
_TOUCH_STUDY = _INSERT_STUDY.on_conflict_do_update(
    index_elements=["study_instance_uid"], set_={"last_received_at": _INSERT_STUDY.excluded.last_received_at}
)
_SEEN = (
    select(
        instance.c.id, instance.c.path, instance.c.pixel_digest, instance.c.study_instance_uid, instance.c.header,
        job.c.outcome, job.c.reason,
    )
    .join(job, job.c.id == instance.c.id)
    .where(
        instance.c.sop_instance_uid == bindparam("uid"),
        instance.c.pixel_digest.is_not(None),
        job.c.outcome != Outcome.DUPLICATE.value,
    )
    .order_by(instance.c.id)
)  # fmt: skip
_SAME_UID = select(instance.c.path, instance.c.sha256).where(instance.c.sop_instance_uid == bindparam("uid"))
_DIGEST = update(instance).where(instance.c.id == bindparam("job_id")).values(pixel_digest=bindparam("pixel_digest"))
_PREDICTED = ("class_index", "probabilities", "cam_max", "engine")
_WRITTEN = ("state", "outcome", "reason", "detail", *_PREDICTED)
_FINISH = (
    update(job)
    .where(job.c.id == bindparam("job_id"), job.c.lease_owner == bindparam("owner"), job.c.state == CLAIMED)
    .values({k: bindparam(k) for k in _WRITTEN} | {"lease_owner": None, "lease_until": None})
)


def _touched(study_instance_uid: str, at: float) -> dict[str, Any]:
    return {"study_instance_uid": study_instance_uid, "last_received_at": at, "first_received_at": at}


def _jobs(condition: ColumnElement[bool]) -> Select[Any]:
    """The first `limit` of these, in the order in which they came, but for what another claim holds just now."""
    query = select(job.c.id).where(condition).order_by(job.c.id).limit(bindparam("limit"))
    return query.with_for_update(skip_locked=True)


# claims are asked for all day
_HELD = select(job.c.id, job.c.lease_owner, job.c.lease_until).where(job.c.state == CLAIMED)
_LOST = (job.c.state == CLAIMED) & job.c.id.in_(bindparam("ended", expanding=True))
_SUSPECTS = _jobs(_LOST & job.c.attempts.between(_SUSPECT, MAX_ATTEMPTS - 1))
_LOST_CLAIMS = _jobs(_LOST & (job.c.attempts < _SUSPECT) & (job.c.priority <= bindparam("least_urgent")))
_IS_DEAD = _LOST & (job.c.attempts >= MAX_ATTEMPTS)
_DEAD = _jobs(_IS_DEAD)
_READY = _jobs((job.c.state == RECEIVED) & (job.c.priority == bindparam("priority")))
# whether there are any at all, without a lock on what is found
_URGENT_ENOUGH = job.c.priority <= bindparam("least_urgent")
_LOST_LOOK = select(job.c.id).where(_LOST, _URGENT_ENOUGH | (job.c.attempts >= _SUSPECT)).limit(bindparam("limit"))
_READY_LOOK = select(job.c.id).where(job.c.state == RECEIVED, _URGENT_ENOUGH).limit(bindparam("limit"))
_DEAD_LOOK = select(job.c.id).where(_IS_DEAD).limit(bindparam("limit"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A claimed image: where it lies, what its header says, and how urgent it is."""

    id: int
    path: str
    location: dict[str, Any]
    study_instance_uid: str
    sop_instance_uid: str
    header: bytes
    received_at: float | None
    study_since: float | None  # when the first image of its study came
    priority: int
    attempts: int  # this one, and those before of which nobody came back: a process that was killed, a power cut

    @property
    def alone(self) -> bool:
        return self.attempts > _SUSPECT

    @property
    def stat(self) -> bool:
        return self.priority == STAT


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What came of one job: a prediction with its capture, or a rejection; `note` flags an analysed image."""

    job: Job
    pixel_digest: str | None = None
    prediction: Prediction | None = None
    rejection: Rejection | None = None
    capture: ResultObject | None = None
    note: Rejection | None = None

    @property
    def outcome(self) -> Outcome:
        return self.rejection.reason.outcome if self.rejection else Outcome.ANALYSED


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenImage:
    """An image that was let in before another with its SOP Instance UID, and what came of it."""

    job_id: int
    path: str
    pixel_digest: str
    study_instance_uid: str
    header: bytes
    rejected: Reason | None  # None: analysed, or about to be


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who claims, and for how long it lives without a beat. now: seconds of the claimer's own monotonic clock.

    The store keeps `until`, which only has to change with each beat: whether a lease has ended, `Stillness` tells.
    """

    owner: str
    now: float
    seconds: float

    @property
    def until(self) -> float:
        return self.now + self.seconds


class Queue:
    """All methods take the connection of the caller's transaction."""

    def __init__(self, actor: str) -> None:
        self._actor = actor
        self._leases = Stillness[int, tuple[str, float]]()

    # -- in

    def known_paths(self, c: Connection, paths: Sequence[str]) -> set[str]:
        known: set[str] = set()
        for some in chunks(paths):
            known.update(c.execute(select(instance.c.path).where(instance.c.path.in_(some))).scalars())
        return known

    def known_images(self, c: Connection, paths: Sequence[str]) -> set[str]:
        """Those of which a header was read: each is one file, and nothing that holds others."""
        known: set[str] = set()
        for some in chunks(paths):
            images = instance.c.path.in_(some) & instance.c.header.is_not(None)
            known.update(c.execute(select(instance.c.path).where(images)).scalars())
        return known

    def add(self, c: Connection, items: Iterable[NewItem], *, now: float) -> None:
        """Take items in, in archive order. One with a rejection is at its end state at once: no study to report to."""
        for item in items:
            row: dict[str, Any] = {"path": item.path, "location": item.location}
            if item.header:
                row |= _header_columns(item.header)
                c.execute(_TOUCH_STUDY, _touched(row["study_instance_uid"], now))
            state = {"state": REPORTED if item.rejection else RECEIVED, **rejection_columns(item.rejection)}
            job_id = self._insert(c, row, state)
            if item.rejection:
                why = item.rejection
                self._audit_outcome(c, job_id, item.path, None, why.reason.outcome, why, location=item.location)
            elif h := item.header:
                ledger.append(
                    c, "scanned", actor=self._actor, study_instance_uid=h.study_instance_uid,
                    sop_instance_uid=h.sop_instance_uid, patient_id=h.patient_id, accession_number=h.accession_number,
                    job=job_id, path=item.path, location=item.location, **_named(h),
                )  # fmt: skip

    def receive(self, c: Connection, received: Sequence[ReceivedInstance]) -> list[Receipt]:
        """Take in instances that lie safe in the spool; committed with this transaction, they may be acknowledged."""
        return [self._receive_one(c, r) for r in received]

    def _receive_one(self, c: Connection, r: ReceivedInstance) -> Receipt:
        same = {row.sha256: row.path for row in c.execute(_SAME_UID, {"uid": r.sop_instance_uid})}
        receipt = Receipt.DUPLICATE if r.sha256 in same else Receipt.CONFLICT if same else Receipt.NEW
        added = {} if receipt is Receipt.DUPLICATE else self._add_received(c, r)
        ledger.append(
            c, "received", actor=self._actor, study_instance_uid=r.study_instance_uid,
            sop_instance_uid=r.sop_instance_uid, ae_title=r.peer.calling_aet, patient_id=r.patient_id,
            accession_number=r.accession_number, outcome=receipt.value, sha256=r.sha256, size_bytes=r.size_bytes,
            called_aet=r.peer.called_aet, host=r.peer.host, path=r.path.as_posix(), **added,
        )  # fmt: skip
        return receipt

    def _add_received(self, c: Connection, r: ReceivedInstance) -> dict[str, Any]:
        """Its row and its job; what the record says of them beside what it says of every receipt."""
        row = {
            "path": r.path.as_posix(),
            "location": {"container": r.path.as_posix(), "kind": "file", "offset": 0},
            **_header_columns(r),
            "transfer_syntax_uid": r.transfer_syntax_uid,
            "sha256": r.sha256,
            "size_bytes": r.size_bytes,
            "calling_aet": r.peer.calling_aet,
            "called_aet": r.peer.called_aet,
            "host": r.peer.host,
            "received_at": r.received_at,
        }
        priority = STAT if r.stat else ROUTINE
        job_id = self._insert(c, row, {"state": RECEIVED, "priority": priority})
        c.execute(_TOUCH_STUDY, _touched(r.study_instance_uid, r.received_at))
        syntax = {"transfer_syntax_uid": r.transfer_syntax_uid}
        return {"job": job_id, "priority": priority, "received_at": r.received_at, **syntax, **_named(r)}

    def _insert(self, c: Connection, row: dict[str, Any], state: dict[str, Any]) -> int:
        job_id: int = c.execute(_INSERT_INSTANCE, row).inserted_primary_key[0]  # type: ignore[index]
        c.execute(_INSERT_JOB, {"id": job_id, "study_instance_uid": row.get("study_instance_uid"), **state})
        return job_id

    # -- claims

    def claim(self, c: Connection, lease: Lease, *, limit: int, idle: bool, stat_only: bool = False) -> list[Job]:
        """The next images, the caller's until the lease ends: what a lost lease left, STAT before routine, in order.

        A quarter is kept for routine images, so that a stream of STAT ones never starves them. An image whose claims
        ended in silence before goes alone, to a caller that is `idle`; one that is not gets nothing until it is.
        `stat_only` is for a caller that has its hands full: STAT images alone.
        """
        ended = self._ended(c, lease)
        if suspect := self._first(c, _SUSPECTS, 1, ended=ended):
            return self._take(c, lease, suspect) if idle else []
        least_urgent = STAT if stat_only else ROUTINE
        ids = self._first(c, _LOST_CLAIMS, limit, ended=ended, least_urgent=least_urgent)
        stat = self._first(c, _READY, limit - len(ids), priority=STAT)
        routine = [] if stat_only else self._first(c, _READY, limit - len(ids), priority=ROUTINE)
        room = limit - len(ids) - min(len(routine), limit // _ROUTINE_SHARE)
        ids = (ids + stat[: max(0, room)] + routine)[:limit]
        return self._take(c, lease, ids)

    def due(self, c: Connection, lease: Lease, *, stat_only: bool = False) -> bool:
        """Whether a claim may give anything; asked in a transaction that only reads."""
        urgent, ended = STAT if stat_only else ROUTINE, self._ended(c, lease)
        ready = self._first(c, _READY_LOOK, 1, least_urgent=urgent)
        return bool(ready or self._first(c, _LOST_LOOK, 1, ended=ended, least_urgent=urgent))

    def has_dead(self, c: Connection, lease: Lease) -> bool:
        """Whether `give_up` would give up any."""
        return bool(self._first(c, _DEAD_LOOK, 1, ended=self._ended(c, lease)))

    def _ended(self, c: Connection, lease: Lease) -> list[int]:
        """The claimed jobs whose lease has ended."""
        held = {row.id: (row.lease_owner, row.lease_until) for row in c.execute(_HELD)}
        return sorted(self._leases.still(held, now=lease.now, seconds=lease.seconds))

    def _first(
        self, c: Connection, query: Select[Any], limit: int, *, ended: Sequence[int] | None = None, **values: int
    ) -> list[int]:  # fmt: skip
        """ended: of a query for what a lost lease left."""
        if ended is None:
            return list(c.execute(query, {"limit": limit, **values}).scalars())
        return list(c.execute(query, {"limit": limit, "ended": ended, **values}).scalars()) if ended else []

    def _take(self, c: Connection, lease: Lease, ids: Sequence[int]) -> list[Job]:
        if not ids:
            return []
        claimed = {"state": CLAIMED, "lease_owner": lease.owner, "lease_until": lease.until}
        lives = job.c.lease_owner == lease.owner  # whose own lease ended has not died of this one
        attempts = job.c.attempts + case((lives, 0), else_=1)
        c.execute(update(job).where(job.c.id.in_(ids)).values(attempts=attempts, **claimed))
        columns = (instance.c[k] for k in ("id", "path", "location", "sop_instance_uid", "header", "received_at"))
        query = (
            select(
                *columns,
                job.c.study_instance_uid,
                job.c.priority,
                job.c.attempts,
                study.c.first_received_at.label("study_since"),
            )
            .join(job, job.c.id == instance.c.id)
            .outerjoin(study, study.c.study_instance_uid == job.c.study_instance_uid)
            .where(instance.c.id.in_(ids))
            .order_by(job.c.priority, job.c.id)
        )
        return [Job(**row) for row in c.execute(query).mappings()]

    def record_claims(self, c: Connection, jobs: Iterable[Job]) -> None:
        """In the transaction of their claim, which must then have begun alone."""
        for claimed in jobs:
            ledger.append(
                c, "claimed", actor=self._actor, study_instance_uid=claimed.study_instance_uid,
                sop_instance_uid=claimed.sop_instance_uid, path=claimed.path, attempt=claimed.attempts,
            )  # fmt: skip

    def give_up(self, c: Connection, lease: Lease) -> None:
        """An image whose analysis never came to its end is a dead letter: failed, and its study's report says so."""
        for job_id in self._first(c, _DEAD, MAX_ATTEMPTS, ended=self._ended(c, lease)):
            self._bury(c, job_id, Rejection(reason=Reason.GAVE_UP, detail=f"{MAX_ATTEMPTS} attempts"))

    def heartbeat(self, c: Connection, lease: Lease) -> None:
        mine = (job.c.state == CLAIMED) & (job.c.lease_owner == lease.owner)
        c.execute(update(job).where(mine).values(lease_until=lease.until))

    def claimed_by(self, c: Connection, owner: str) -> set[int]:
        """The jobs that this owner holds."""
        mine = (job.c.state == CLAIMED) & (job.c.lease_owner == owner)
        return set(c.execute(select(job.c.id).where(mine)).scalars())

    def hand_back(self, c: Connection, owner: str, job_ids: Iterable[int]) -> None:
        """Anybody's again, and on record: its owner claimed these and forgot them. The attempt counts."""
        free = {"state": RECEIVED, "lease_owner": None, "lease_until": None}
        for job_id in sorted(job_ids):
            mine = (job.c.id == job_id) & (job.c.state == CLAIMED) & (job.c.lease_owner == owner)
            c.execute(update(job).where(mine).values(**free))
            named = (instance.c.path, instance.c.study_instance_uid, instance.c.sop_instance_uid)
            row = c.execute(select(*named).where(instance.c.id == job_id)).one()
            ledger.append(
                c, "forgotten", actor=self._actor, study_instance_uid=row.study_instance_uid,
                sop_instance_uid=row.sop_instance_uid, path=row.path,
            )  # fmt: skip

    def release(self, c: Connection, owner: str, *, also: Iterable[int] = ()) -> None:
        """Hand back what the owner claimed and could not finish through no fault of the images.

        also: what it had in hand: of these some may be others' by now, and the attempt is given back all the same.
        """
        mine = (job.c.state == CLAIMED) & (job.c.lease_owner == owner)
        free = {"state": RECEIVED, "lease_owner": None, "lease_until": None}
        held = set(c.execute(update(job).where(mine).values(**free).returning(job.c.id)).scalars())
        self.acquit(c, held | set(also))

    def acquit(self, c: Connection, job_ids: Iterable[int]) -> None:
        """Give back the attempt of these: whoever claimed them has lost the lease, and lives to say so.

        A claim counts from its beginning, so that a death needs nobody who tells of it.
        """
        counts = job.c.state.in_((RECEIVED, CLAIMED)) & (job.c.attempts > 0)
        for some in chunks(sorted(job_ids)):
            c.execute(update(job).where(job.c.id.in_(some) & counts).values(attempts=job.c.attempts - 1))

    def release_all(self, c: Connection) -> None:
        """Free every claim. Only where the caller knows that nobody else works on this store."""
        free = {"state": RECEIVED, "lease_owner": None, "lease_until": None, "attempts": 0}
        c.execute(update(job).where(job.c.state == CLAIMED).values(**free))

    def count_waiting(self, c: Connection) -> int:
        return int(c.execute(select(func.count()).where(job.c.state.in_((RECEIVED, CLAIMED)))).scalar_one())

    def count_all(self, c: Connection) -> int:
        return int(c.execute(select(func.count()).select_from(instance)).scalar_one())

    # -- out

    def seen(self, c: Connection, sop_instance_uid: str) -> list[SeenImage]:
        """Every finished image with this SOP Instance UID that is no duplicate itself, the oldest first."""
        return [
            SeenImage(
                job_id=row.id, path=row.path, pixel_digest=row.pixel_digest, study_instance_uid=row.study_instance_uid,
                header=row.header, rejected=None if row.outcome == Outcome.ANALYSED else Reason(row.reason),
            )
            for row in c.execute(_SEEN, {"uid": sop_instance_uid})
        ]  # fmt: skip

    def finish(self, c: Connection, finding: Finding, *, owner: str) -> bool:
        """claimed -> analysed, with the outcome, the capture and the ledger record. False: the lease was lost."""
        p = finding.prediction
        columns = {
            "state": ANALYSED,
            "reason": None,
            "detail": None,
            **rejection_columns(finding.rejection or finding.note),
            "outcome": finding.outcome.value,
            "class_index": p.class_index if p else None,
            "probabilities": list(p.probabilities) if p else None,
            "cam_max": p.cam_max if p else None,
            "engine": p.engine if p else None,
        }
        if c.execute(_FINISH, {"job_id": finding.job.id, "owner": owner, **columns}).rowcount == 0:
            self.acquit(c, [finding.job.id])
            return False
        c.execute(_DIGEST, {"job_id": finding.job.id, "pixel_digest": finding.pixel_digest})
        if finding.capture:
            source = (finding.job.sop_instance_uid, finding.pixel_digest)
            add_result(c, finding.capture, actor=self._actor, instance_id=finding.job.id, sources=[source])
        said = {k: columns[k] for k in _PREDICTED}
        self._audit_outcome(
            c, finding.job.id, finding.job.path, finding.job.study_instance_uid, finding.outcome,
            finding.rejection or finding.note, sop_instance_uid=finding.job.sop_instance_uid,
            pixel_digest=finding.pixel_digest, **said,
        )  # fmt: skip
        return True

    def _audit_outcome(
        self,
        c: Connection,
        job_id: int,
        path: str,
        study_uid: str | None,
        outcome: Outcome,
        why: Rejection | None,
        **detail: Any,
    ) -> None:
        reason = {"reason": why.reason.value, "why": storable(why.detail)} if why else {}
        known = {k: v for k, v in detail.items() if v is not None}
        ledger.append(
            c, outcome.value, actor=self._actor, study_instance_uid=study_uid, outcome=outcome.value, job=job_id,
            path=path, **reason, **known,
        )  # fmt: skip

    # -- by hand

    def retry(self, c: Connection, job_ids: Sequence[int]) -> list[str]:
        """Analyse these again, whatever came of them; one that waits or is claimed is left alone.

        Returns the Study Instance UID of each that was changed.
        """
        return [uid for ids in chunks(dict.fromkeys(job_ids)) for uid in self._retry(c, ids)]

    def _retry(self, c: Connection, job_ids: Sequence[int]) -> list[str]:
        again = {"state": RECEIVED, "attempts": 0, "not_before": 0.0, "lease_owner": None, "lease_until": None}
        chosen = job.c.id.in_(job_ids) & job.c.state.in_((ANALYSED, REPORTED)) & job.c.study_instance_uid.is_not(None)
        columns = (job.c.id, job.c.study_instance_uid, instance.c.sop_instance_uid)
        rows = c.execute(select(*columns).join(instance, instance.c.id == job.c.id).where(chosen)).all()
        for row in rows:
            ledger.append(
                c, "retried", actor=self._actor, study_instance_uid=row.study_instance_uid,
                sop_instance_uid=row.sop_instance_uid, job=row.id,
            )  # fmt: skip
        c.execute(update(job).where(chosen).values(**again))
        return [row.study_instance_uid for row in rows]

    def bury(self, c: Connection, job_ids: Sequence[int]) -> int:
        """Give these up: no more attempts; their studies' reports say that they were not analysed."""
        waits = job.c.state.in_((RECEIVED, CLAIMED))
        ids = [
            job_id
            for some in chunks(dict.fromkeys(job_ids))
            for job_id in c.execute(select(job.c.id).where(job.c.id.in_(some) & waits)).scalars()
        ]
        for job_id in ids:
            self._bury(c, job_id, Rejection(reason=Reason.GAVE_UP, detail="by hand"))
        return len(ids)

    def _bury(self, c: Connection, job_id: int, why: Rejection) -> None:
        columns = {"state": ANALYSED, "lease_owner": None, "lease_until": None, **rejection_columns(why)}
        of_before = dict.fromkeys(_PREDICTED)  # what an earlier analysis said stands for this image no more
        c.execute(update(job).where(job.c.id == job_id).values(**columns, **of_before))
        named = (instance.c.path, instance.c.study_instance_uid, instance.c.sop_instance_uid, instance.c.pixel_digest)
        row = c.execute(select(*named).where(instance.c.id == job_id)).one()
        self._audit_outcome(
            c, job_id, row.path, row.study_instance_uid, Outcome.FAILED, why, sop_instance_uid=row.sop_instance_uid,
            pixel_digest=row.pixel_digest,
        )  # fmt: skip

    # -- settings

    def get_setting(self, c: Connection, key: str) -> Any:
        return c.execute(select(settings.c.value).where(settings.c.key == key)).scalar_one_or_none()

    def set_setting(self, c: Connection, key: str, value: Any) -> None:
        statement = upsert(settings).values(key=key, value=value)
        c.execute(statement.on_conflict_do_update(index_elements=["key"], set_={"value": value}))


def rejection_columns(rejection: Rejection | None) -> dict[str, Any]:
    if rejection is None:
        return {}
    return {
        "outcome": rejection.reason.outcome.value,
        "reason": rejection.reason.value,
        "detail": storable(rejection.detail),
    }


def storable(text: str) -> str:
    """Text from outside as every database holds it: no NUL, and bytes that are no UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _named(header: Any) -> dict[str, str]:
    """What the ledger says of an instance beside study, UID and patient; the digest is of `instance.header`."""
    return {
        "series_instance_uid": header.series_instance_uid,
        "sop_class_uid": header.sop_class_uid,
        "header_sha256": sha256(header.kept).hexdigest(),
    }


def _header_columns(header: Any) -> dict[str, Any]:
    return {
        "study_instance_uid": header.study_instance_uid,
        "series_instance_uid": header.series_instance_uid,
        "sop_instance_uid": header.sop_instance_uid,
        "sop_class_uid": header.sop_class_uid,
        "header": header.kept,
    }
