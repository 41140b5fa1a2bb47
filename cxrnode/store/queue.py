"""The queue: what was received, what came of it, and which studies are ready to be reported.

States only move forward (received -> analysed -> reported), each step in one transaction with its ledger record, so
a run that was killed at any moment goes on from what is committed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from cxrnode.dicom.header import header_from_bytes
from cxrnode.store import ledger
from cxrnode.store.schema import delivery, instance, job, result, settings
from cxrnode.types import ImageResult, Kind, NewItem, Outcome, Prediction, Reason, Rejection, ResultObject

RECEIVED, ANALYSED, REPORTED = "received", "analysed", "reported"
PENDING, SENT, COMMITTED, REFUSED = "pending", "sent", "committed", "refused"  # deliveries

# What runs once an image is built once: composing a statement costs more than running it.
_INSERT_INSTANCE = insert(instance)
_INSERT_JOB = insert(job)
_TWINS = (
    select(instance.c.pixel_digest, instance.c.path)
    .join(job, job.c.id == instance.c.id)
    .where(instance.c.sop_instance_uid == bindparam("uid"), job.c.outcome != Outcome.DUPLICATE.value)
)
_IDENTIFY = (
    update(instance)
    .where(instance.c.id == bindparam("job_id"))
    .values({k: bindparam(k) for k in ("series_instance_uid", "sop_instance_uid", "pixel_digest", "header")})
)
_FINISH = (
    update(job)
    .where(job.c.id == bindparam("job_id"))
    .values(
        {
            k: bindparam(k)
            for k in ("state", "outcome", "reason", "detail", "class_index", "probabilities", "cam_max", "engine")
        }
    )
)
_STUDY_IMAGES = (
    select(instance, job)
    .join(job, job.c.id == instance.c.id)
    .where(job.c.study_instance_uid == bindparam("study"), instance.c.header.is_not(None))
    .order_by(job.c.id)
)
_CLOSE_STUDY = (
    update(job).where(job.c.study_instance_uid == bindparam("study"), job.c.state == ANALYSED).values(state=REPORTED)
)
_INSERT_RESULT = upsert(result)
_ADD_RESULT = _INSERT_RESULT.on_conflict_do_update(
    index_elements=["sop_instance_uid"],
    set_={
        k: _INSERT_RESULT.excluded[k]
        for k in ("kind", "study_instance_uid", "instance_id", "sop_class_uid", "path", "sha256")
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingJob:
    id: int
    path: str
    location: dict[str, Any]
    study_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What came of one job: a prediction with its capture, or a rejection; `note` flags an analysed image."""

    job: WaitingJob
    header: bytes | None
    series_instance_uid: str | None
    sop_instance_uid: str | None
    pixel_digest: str | None
    prediction: Prediction | None = None
    capture: ResultObject | None = None
    rejection: Rejection | None = None
    note: Rejection | None = None

    @property
    def outcome(self) -> Outcome:
        return self.rejection.reason.outcome if self.rejection else Outcome.ANALYSED


class Queue:
    """All methods take the connection of the caller's transaction."""

    def __init__(self, actor: str) -> None:
        self._actor = actor

    def known_paths(self, c: Connection, paths: Sequence[str]) -> set[str]:
        return set(c.execute(select(instance.c.path).where(instance.c.path.in_(paths))).scalars())

    def add(self, c: Connection, items: Iterable[NewItem]) -> None:
        """Take items in, in archive order. One with a rejection is at its end state at once: no study to report to."""
        for item in items:
            study = {"study_instance_uid": item.study_instance_uid}
            added = c.execute(_INSERT_INSTANCE, {"path": item.path, "location": item.location, **study})
            state = {"state": REPORTED if item.rejection else RECEIVED, **_rejection_columns(item.rejection)}
            c.execute(_INSERT_JOB, {"id": added.inserted_primary_key[0], **study, **state})  # type: ignore[index]
            if item.rejection:
                self._audit_outcome(c, item.path, None, item.rejection.reason.outcome, item.rejection)

    def waiting(self, c: Connection, *, after: int, limit: int) -> list[WaitingJob]:
        """The next jobs in archive order."""
        query = (
            select(instance.c.id, instance.c.path, instance.c.location, instance.c.study_instance_uid)
            .join(job, job.c.id == instance.c.id)
            .where(job.c.state == RECEIVED, job.c.id > after)
            .order_by(job.c.id)
            .limit(limit)
        )
        return [WaitingJob(**row) for row in c.execute(query).mappings()]

    def count_waiting(self, c: Connection) -> int:
        return int(c.execute(select(func.count()).where(job.c.state == RECEIVED)).scalar_one())

    def twins(self, c: Connection, sop_instance_uid: str) -> dict[str, str]:
        """Pixel digest -> path of every finished file with this SOP Instance UID that is no duplicate itself."""
        return {row.pixel_digest: row.path for row in c.execute(_TWINS, {"uid": sop_instance_uid})}

    def finish(self, c: Connection, finding: Finding) -> None:
        """received -> analysed, with the identity, the outcome, the capture and the ledger record."""
        p = finding.prediction
        identity = {
            "series_instance_uid": finding.series_instance_uid,
            "sop_instance_uid": finding.sop_instance_uid,
            "pixel_digest": finding.pixel_digest,
            "header": finding.header,
        }
        c.execute(_IDENTIFY, {"job_id": finding.job.id, **identity})
        columns = {
            "reason": None,
            "detail": None,
            **_rejection_columns(finding.rejection or finding.note),
            "outcome": finding.outcome.value,
            "class_index": p.class_index if p else None,
            "probabilities": list(p.probabilities) if p else None,
            "cam_max": p.cam_max if p else None,
            "engine": p.engine if p else None,
        }
        c.execute(_FINISH, {"job_id": finding.job.id, "state": ANALYSED, **columns})
        if finding.capture:
            self._add_result(c, finding.capture, finding.job.id)
        self._audit_outcome(
            c, finding.job.path, finding.job.study_instance_uid, finding.outcome, finding.rejection or finding.note,
            sop_instance_uid=finding.sop_instance_uid, pixel_digest=finding.pixel_digest,
            probabilities=list(p.probabilities) if p else None, engine=p.engine if p else None,
        )  # fmt: skip

    def reportable_studies(self, c: Connection) -> list[str]:
        """Studies with something to report and nothing left to analyse."""
        other = job.alias()
        still_open = select(other.c.id).where(
            other.c.study_instance_uid == job.c.study_instance_uid, other.c.state == RECEIVED
        )
        query = select(job.c.study_instance_uid).distinct().where(job.c.state == ANALYSED, ~still_open.exists())
        return list(c.execute(query.order_by(job.c.study_instance_uid)).scalars())

    def study_images(self, c: Connection, study_instance_uid: str) -> list[ImageResult]:
        """What the study's report speaks of, in archive order: analysed, or not with a reason."""
        images = (_image_result(row) for row in c.execute(_STUDY_IMAGES, {"study": study_instance_uid}))
        return [i for i in images if i.rejection is None or i.rejection.reason.in_report]

    def study_reported(self, c: Connection, study_instance_uid: str, sr: ResultObject | None) -> None:
        """analysed -> reported for every job of the study, with its SR (None where nothing was to be reported)."""
        if sr:
            self._add_result(c, sr, None)
        self._close_study(c, study_instance_uid)

    def study_failed(self, c: Connection, study_instance_uid: str, rejection: Rejection) -> None:
        """The study's SR could not be made: what was to be in it has failed."""
        values = {"outcome": Outcome.FAILED.value, **_rejection_columns(rejection)}
        c.execute(
            update(job)
            .where(job.c.study_instance_uid == study_instance_uid, job.c.outcome == Outcome.ANALYSED.value)
            .values(**values)
        )
        ledger.append(c, "report_failed", actor=self._actor, study_instance_uid=study_instance_uid, why=rejection.text)
        self._close_study(c, study_instance_uid)

    def _close_study(self, c: Connection, study_instance_uid: str) -> None:
        c.execute(_CLOSE_STUDY, {"study": study_instance_uid})

    def _add_result(self, c: Connection, made: ResultObject, instance_id: int | None) -> None:
        values = {
            "kind": made.kind.value,
            "study_instance_uid": made.study_instance_uid,
            "instance_id": instance_id,
            "sop_class_uid": made.sop_class_uid,
            "path": made.path.as_posix(),
            "sha256": made.sha256,
        }
        c.execute(_ADD_RESULT, {"sop_instance_uid": made.sop_instance_uid, **values})
        ledger.append(
            c, "report_made", actor=self._actor, study_instance_uid=made.study_instance_uid,
            sop_instance_uid=made.sop_instance_uid, object=made.kind.value, sha256=made.sha256,
        )  # fmt: skip

    def _audit_outcome(
        self,
        c: Connection,
        path: str,
        study_uid: str | None,
        outcome: Outcome,
        why: Rejection | None,
        **detail: Any,
    ) -> None:
        reason = {"reason": why.reason.value, "why": why.detail} if why else {}
        known = {k: v for k, v in detail.items() if v is not None}
        ledger.append(c, outcome.value, actor=self._actor, study_instance_uid=study_uid, path=path, **reason, **known)

    def undelivered(self, c: Connection, destination: str, *, after: int, limit: int) -> list[tuple[int, ResultObject]]:
        """The next results, each with its place in the order, that this destination has not acknowledged."""
        done = delivery.alias()
        acknowledged = select(done.c.result_uid).where(
            done.c.result_uid == result.c.sop_instance_uid,
            done.c.destination == destination,
            done.c.state == SENT,
        )
        query = select(result).where(result.c.id > after, ~acknowledged.exists()).order_by(result.c.id).limit(limit)
        return [(row.id, _result_object(row)) for row in c.execute(query)]

    def delivered(self, c: Connection, sent: ResultObject, destination: str, status: str, *, ok: bool) -> None:
        values = {"status": status, "state": SENT if ok else REFUSED}
        statement = upsert(delivery).values(result_uid=sent.sop_instance_uid, destination=destination, **values)
        c.execute(statement.on_conflict_do_update(index_elements=["result_uid", "destination"], set_=values))
        ledger.append(
            c, "delivered" if ok else "delivery_failed", actor=self._actor, destination=destination, status=status,
            study_instance_uid=sent.study_instance_uid, sop_instance_uid=sent.sop_instance_uid,
        )  # fmt: skip

    def get_setting(self, c: Connection, key: str) -> Any:
        return c.execute(select(settings.c.value).where(settings.c.key == key)).scalar_one_or_none()

    def set_setting(self, c: Connection, key: str, value: Any) -> None:
        statement = upsert(settings).values(key=key, value=value)
        c.execute(statement.on_conflict_do_update(index_elements=["key"], set_={"value": value}))


def _rejection_columns(rejection: Rejection | None) -> dict[str, Any]:
    if rejection is None:
        return {}
    return {
        "outcome": rejection.reason.outcome.value,
        "reason": rejection.reason.value,
        "detail": rejection.detail,
    }


def _result_object(row: Row[Any]) -> ResultObject:
    return ResultObject(
        kind=Kind(row.kind),
        sop_class_uid=row.sop_class_uid,
        sop_instance_uid=row.sop_instance_uid,
        study_instance_uid=row.study_instance_uid,
        path=Path(row.path),
        sha256=row.sha256,
    )


def _image_result(row: Row[Any]) -> ImageResult:
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
    return ImageResult(
        source=header_from_bytes(row.header),
        pixel_digest=row.pixel_digest,
        prediction=prediction,
        rejection=rejection,
    )
