"""The analyse stage: decode -> batch -> infer -> capture -> report, over whatever waits in the queue.

One loop owns the queue and what is in hand (see `in_hand`); workers decode and write, and the engine has a thread of
its own. Everything in flight is bounded, so memory does not grow with the archive, and everything that counts is
committed, so a kill costs what was in flight.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from sqlalchemy import Connection

from cxrnode import metrics
from cxrnode.duplicates import compare_with_seen
from cxrnode.errors import DataDirAwayError, ResultError, StorageFullError, StoreError
from cxrnode.in_hand import (
    Arrivals,
    Committing,
    Decoding,
    Inferring,
    InHand,
    JobStep,
    Making,
    Ready,
    Reported,
    Reporting,
    StudyStep,
    Waiting,
    jobs_in_hand,
    seen_as,
    studies_in_hand,
)
from cxrnode.inference import Inference, Said
from cxrnode.loops import lives
from cxrnode.outcomes import Outcomes, of_unexpected
from cxrnode.pool import NoWorkerError, Pool, Task, WorkerCrashedError
from cxrnode.report.context import ReportContext
from cxrnode.store.database import Database
from cxrnode.store.outbox import Outbox
from cxrnode.store.queue import Finding, Job, Lease, Queue
from cxrnode.store.studies import Studies
from cxrnode.types import FloatArray, Kind, Reason, Rejection, StoredImage, Study
from cxrnode.words import counted
from cxrnode.workers import DECODE_CPU_S, Decoded, Output, decode, make_capture, make_sr
from engines.base import EngineError

log = logging.getLogger(__name__)

T = TypeVar("T")

_TOGETHER_S = 0.05  # what is done within this time of each other shares a commit
_POLL_S = 0.05
_IDLE_POLL_S = 0.1  # each is two readings, all day
_LEASE_S = 10.0  # what a killed process had in hand waits so long
_BEAT_S = _LEASE_S / 4
_HANGS_S = 300.0  # a round of the loop waits for the database and the disk alone
_CLAIM = 4  # images that are worth a claim: each is a commit
_BATCH_S = 0.1  # a node's batch takes about so long, for a STAT image that comes meanwhile waits for its end
_SMALL = 4  # images of a batch that loses no speed to larger ones, on a CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyseOptions:
    """How the stage works, and what becomes of what it made."""

    batch_size: int
    max_wait_s: float = 0.0  # of the first image of a batch for the others
    window: int  # images in the workers' hands at once
    quiet_s: float = 0.0  # a study is reported when nothing was added to it for so long
    report_not_analysed: bool = True  # a study without a single analysed image gets its SR too
    destinations: tuple[str, ...] = ()
    until_dry: bool = True  # run-batch ends, a node waits for more


@dataclass(slots=True, kw_only=True)
class Analyser:
    """Works on the queue. `on_done(n)` is called with the number of jobs whose outcome was committed."""

    database: Database
    queue: Queue
    studies: Studies
    outbox: Outbox
    pool: Pool
    inference: Inference
    context: ReportContext
    output: Output
    options: AnalyseOptions
    on_done: Callable[[int], None]
    on_reported: Callable[[Sequence[str]], None]
    owner: str = field(default_factory=lambda: uuid4().hex)
    stopping: threading.Event = field(default_factory=threading.Event)
    _jobs: InHand[int, JobStep] = field(default_factory=jobs_in_hand)
    _reports: InHand[str, StudyStep] = field(default_factory=studies_in_hand)
    _arrivals: Arrivals = field(default_factory=Arrivals)
    _alone: bool = False  # an image that may kill this process is in hand: nothing joins it
    _beaten: float = 0.0  # monotonic seconds of the last heartbeat

    def run(self) -> None:
        """Work until the queue is dry, or until `stopping` is set: what is in hand is brought to its end."""
        while True:
            self.output.check()
            self._beat()
            self._alone = self._alone and self._busy
            claimed = self._claim() + self._claim_studies()
            self.pool.hurry(self._stat_in_hand)
            if not (self._busy or claimed) and (self.options.until_dry or self.stopping.is_set()):
                # asked after claiming: what was in hand may all have been rejected at once
                if self._holds_what_it_claimed():
                    return
                continue
            self._take_decoded()
            if self._batch_is_due():
                self._infer()
            self._commit()
            self._commit_reports()
            self._wait()

    def hand_back(self) -> None:
        """After `run` raised: what was in hand is anybody's again, and counts no attempt."""
        with self.database.begin() as c:
            self.queue.release(c, self.owner, also=self.job_ids)
            self.studies.release(c, self.owner)

    @property
    def job_ids(self) -> set[int]:
        """The jobs in hand."""
        return self._jobs.keys

    @property
    def _busy(self) -> bool:
        return bool(len(self._jobs) or len(self._reports))

    @property
    def _stat_in_hand(self) -> bool:
        return any(step.job.stat for step in self._jobs.steps) or any(r.study.stat for r in self._reports.steps)

    # -- leases

    def _lease(self) -> Lease:
        return Lease(owner=self.owner, now=time.monotonic(), seconds=_LEASE_S)

    def _beat(self) -> None:
        if time.monotonic() - self._beaten > _BEAT_S:
            self._beaten = time.monotonic()
            lives("analyse", _HANGS_S)
            with self.database.read() as c:
                if not (self._busy or self._has_claims(c) or self.queue.has_dead(c, self._lease())):
                    return
            with self.database.begin() as c:
                self.queue.heartbeat(c, self._lease())
                self.studies.heartbeat(c, self._lease())
                self.queue.give_up(c, self._lease())
                self._reconcile(c)

    def _has_claims(self, c: Connection) -> bool:
        return bool(self.queue.claimed_by(c, self.owner) or self.studies.claimed_by(c, self.owner))

    def _holds_what_it_claimed(self) -> bool:
        with self.database.read() as c:
            if not (self._busy or self._has_claims(c)):
                return True
        with self.database.begin() as c:
            return self._reconcile(c)

    def _reconcile(self, c: Connection) -> bool:
        """Whether what is claimed in the store is what is in hand, which it is but for a fault of ours or a lost lease.

        A claim that is not in hand would be kept alive for ever: it is handed back, loudly. What was taken from us is
        dropped.
        """
        jobs, studies = self.queue.claimed_by(c, self.owner), self.studies.claimed_by(c, self.owner)
        forgotten, forgotten_studies = jobs - self._jobs.keys, studies - self._reports.keys
        if forgotten or forgotten_studies:
            log.critical(
                "%s and %s claimed and not in hand, which is a fault of cxrnode: please report it. Analysed again",
                counted(len(forgotten), "image"), counted(len(forgotten_studies), "study"),
            )  # fmt: skip
            self.queue.hand_back(c, self.owner, forgotten)
            self.studies.hand_back(c, self.owner, forgotten_studies)
        lost = self._jobs.keys - jobs
        self.queue.acquit(c, lost)
        self._drop_lost(lost, self._reports.keys - studies)
        return not (forgotten or forgotten_studies)

    def _drop_lost(self, jobs: set[int], studies: set[str]) -> None:
        if jobs or studies:
            images, reports = counted(len(jobs), "image"), counted(len(studies), "study")
            log.warning("lost the lease of %s and %s: another process has them", images, reports)
            self._jobs.drop(jobs)
            self._reports.drop(studies)

    # -- claims

    def _claim(self) -> int:
        ahead = self._ahead
        room = self.options.window - len(ahead)
        full = room < min(_CLAIM, self.options.window)
        if full and not self.options.until_dry:  # but not of STAT images: those pass what waits
            room = _CLAIM - sum(step.job.stat for step in ahead)
        elif full:
            return 0
        if self.stopping.is_set() or self._alone or room <= 0:
            return 0
        with self.database.read() as c:  # all day: whoever begins to write keeps others from it
            if not self.queue.due(c, self._lease(), stat_only=full):
                return 0
        with self.database.begin() as c:  # alone: it is recorded
            jobs = self.queue.claim(c, self._lease(), limit=room, idle=not self._busy, stat_only=full)
            self.queue.record_claims(c, jobs)
        self._alone = any(job.alone for job in jobs)
        self._drop_lost(self._jobs.keys & {job.id for job in jobs}, set())  # what one of these was before
        for job in jobs:
            self._decode(job)
        return len(jobs)

    def _decode(self, job: Job) -> None:
        where, shape = self._where(job), self.context.bundle.manifest.input
        task = self.pool.submit(decode, where, shape, job.header, first=job.stat, cpu_s=DECODE_CPU_S)
        step = Decoding(job=job, task=task)
        self._jobs.take(step)
        self._arrivals.expect(task.future, partial(self._move, step, partial(self._decoded, step)))

    def _where(self, job: Job) -> dict[str, Any]:
        if job.received_at is None:  # of an archive, where its user said
            return job.location
        return {**job.location, "container": str(self.output.root / job.location["container"])}

    def _claim_studies(self) -> int:
        most = self.options.window if self.options.until_dry else min(_CLAIM, self.options.window)
        room = most - len(self._reports)  # in a node few: a STAT study waits until one of them is done
        if self.stopping.is_set() or room <= 0:
            return 0
        with self.database.read() as c:
            if not self.studies.due(c, self._lease(), quiet_s=self.options.quiet_s):
                return 0
        with self.database.begin(shared=True) as c:
            studies = self.studies.claim(c, self._lease(), quiet_s=self.options.quiet_s, limit=room)
        self._drop_lost(set(), self._reports.keys & {study.study_instance_uid for study in studies})
        for study in studies:
            if self._gets_report(study):
                self._report(study)
        if silent := [s for s in studies if not self._gets_report(s)]:
            with self.database.begin() as c:
                for study in silent:
                    self.studies.reported(c, study, (), owner=self.owner)
            self.on_reported([s.study_instance_uid for s in silent])
        return len(studies)

    def _gets_report(self, study: Study) -> bool:
        return any(i.prediction for i in study.images) or (bool(study.images) and self.options.report_not_analysed)

    def _report(self, study: Study) -> None:
        context = replace(self.context, analysed_at=study.received, series_at=_moment(study.first_received_at))
        task = self.pool.submit(make_sr, self.output, context, study, first=study.stat)
        step = Reporting(study=study, task=task)
        self._reports.take(step)
        self._arrivals.expect(task.future, partial(self._report_made, step))

    # -- from one state to the next

    def _wait(self) -> None:
        if self._arrivals:
            self._arrivals.take(
                wait_s=_LEASE_S / 8 if self.options.until_dry else _POLL_S,
                together_s=0.0 if self._stat_in_hand else _TOGETHER_S,
            )
        elif not self.options.until_dry:
            self.stopping.wait(_IDLE_POLL_S)

    def _move(self, step: JobStep, on: Callable[[], JobStep]) -> None:
        """`step` to the state that `on` comes to; what nobody expects there is the outcome of this job alone.

        What is the store's, the disk's, the engine's or the workers' trouble is no job's, and ends `run`.
        """
        if not self._jobs.holds(step):  # its lease was lost meanwhile
            return
        try:
            to = on()
        except (StoreError, StorageFullError, EngineError, NoWorkerError):
            raise
        except Exception as e:  # noqa: BLE001 (it costs its own job)
            to = Committing(finding=Finding(job=step.job, rejection=of_unexpected(e)))
        self._jobs.move(step, to)

    def _decoded(self, step: Decoding) -> JobStep:
        try:
            decoded = self.pool.result(step.task)
            metrics.decoded(step.task.seconds)
        except WorkerCrashedError as e:
            decoded = Decoded(rejection=Rejection(reason=Reason.DECODER_CRASHED, detail=str(e)))
        if decoded.rejection and step.job.received_at is not None:
            self._check_lost(decoded, decoded.rejection)
        return Waiting(job=step.job, decoded=decoded)

    def _check_lost(self, decoded: Decoded, rejection: Rejection) -> None:
        """A received file that cannot be read is an outcome only where the data folder is there."""
        if rejection.reason is Reason.UNREADABLE_FILE:
            self.output.check()
        if decoded.away:
            raise DataDirAwayError(f"a received file cannot be read just now: {rejection.detail}")

    def _take_decoded(self) -> None:
        """In archive order, so that of two equal files it is always the first that is analysed; STAT images first."""
        while isinstance(step := self._next(), Waiting) and self._has_room_for(step.job):
            self._move(step, partial(self._let_in, step))

    @property
    def _ahead(self) -> list[Decoding | Waiting]:
        return [step for step in self._jobs.steps if isinstance(step, Decoding | Waiting)]

    def _next(self) -> Decoding | Waiting | None:
        ahead = self._ahead
        return next((step for step in ahead if step.job.stat), ahead[0] if ahead else None)

    def _has_room_for(self, job: Job) -> bool:
        return len(self._jobs.of(Ready)) < self.options.batch_size or job.stat

    def _let_in(self, step: Waiting) -> JobStep:
        rejection, note = self._compare_with_seen(step.job, step.decoded)
        if rejection:
            digest = step.decoded.pixel_digest
            return Committing(finding=Finding(job=step.job, pixel_digest=digest, rejection=rejection))
        return Ready(job=step.job, decoded=step.decoded, note=note, since=time.monotonic())

    def _compare_with_seen(self, job: Job, decoded: Decoded) -> tuple[Rejection | None, Rejection | None]:
        """(rejection, note): see `compare_with_seen`."""
        if decoded.pixel_digest is None:
            return decoded.rejection, None
        with self.database.read() as c:
            seen = self.queue.seen(c, job.sop_instance_uid)
        in_hand = (seen_as(step) for step in self._jobs.steps if step.job.sop_instance_uid == job.sop_instance_uid)
        others = [*seen, *(image for image in in_hand if image)]
        return compare_with_seen(job, decoded, [image for image in others if image.job_id != job.id])

    def _batch_is_due(self) -> bool:
        """A full batch, or one that waits for no more: nothing is being decoded, it waited long enough, or STAT."""
        ready = self._jobs.of(Ready)
        if not ready or self._jobs.of(Inferring):
            return False
        return (
            len(ready) >= self._most_in_batch
            or not self._ahead
            or any(step.job.stat for step in ready)
            or (not self.options.until_dry and time.monotonic() - ready[0].since >= self.options.max_wait_s)
        )

    @property
    def _most_in_batch(self) -> int:
        if self.options.until_dry:
            return self.options.batch_size
        return min(self.options.batch_size, max(_SMALL, int(min(self.inference.within(_BATCH_S), 1 << 16))))

    def _infer(self) -> None:
        """STAT images with one routine one, which they must not starve; or routine images in their order."""
        most, ready = self._most_in_batch, self._jobs.of(Ready)
        stat = [step for step in ready if step.job.stat][: max(1, most - 1)]
        routine = [step for step in ready if not step.job.stat][: 1 if stat else most]
        batch = []
        for step in stat + routine:
            inferring = Inferring(job=step.job, decoded=step.decoded, note=step.note)
            self._jobs.move(step, inferring)
            batch.append(inferring)
        answers = self.inference.submit([_pixels(step) for step in batch])
        self._arrivals.expect(answers, partial(self._take_answers, batch, answers))

    def _take_answers(self, batch: Sequence[Inferring], answers: Future[list[Said]]) -> None:
        for step, said in zip(batch, answers.result(), strict=True):
            self._move(step, partial(self._make, step, said))

    def _make(self, step: Inferring, said: Said) -> JobStep:
        image, digest = step.decoded.image, step.decoded.pixel_digest
        if said.prediction is None or said.cam is None or image is None or digest is None:
            rejection = Rejection(reason=Reason.INFERENCE_FAILED, detail=said.error)
            return Committing(finding=Finding(job=step.job, pixel_digest=digest, rejection=rejection))
        labels = (label.name for label in self.context.bundle.manifest.labels)
        metrics.scored(step.decoded.device, labels, said.prediction.probabilities)
        shown = StoredImage(kept_header=step.job.header, pixel_digest=digest, prediction=said.prediction)
        context = replace(
            self.context, analysed_at=_moment(step.job.received_at) or self.context.analysed_at,
            series_at=_moment(step.job.study_since),
        )  # fmt: skip
        task = self.pool.submit(
            make_capture, self.output, context, shown, image.preview, said.cam, first=step.job.stat
        )  # fmt: skip
        making = Making(job=step.job, digest=digest, note=step.note, prediction=said.prediction, task=task)
        self._arrivals.expect(task.future, partial(self._move, making, partial(self._captured, making)))
        return making

    def _captured(self, step: Making) -> JobStep:
        made = self._made(step.task, Kind.CAPTURE)
        if isinstance(made, Rejection):
            return Committing(finding=Finding(job=step.job, pixel_digest=step.digest, rejection=made))
        finding = Finding(
            job=step.job, pixel_digest=step.digest, prediction=step.prediction, capture=made, note=step.note
        )
        return Committing(finding=finding)

    def _report_made(self, step: Reporting) -> None:
        if self._reports.holds(step):
            made = self._made(step.task, Kind.SR)
            self._reports.move(step, Reported(study=step.study, made=made))

    def _made(self, task: Task[T], kind: Kind) -> T | Rejection:
        try:
            result = self.pool.result(task)
            metrics.made(kind.value, task.seconds)
            return result
        except ResultError as e:
            log.error("a result failed the node's own checks and is in quarantine: %s", e)  # noqa: TRY400 (its text says all)
            return Rejection(reason=Reason.RESULT_INVALID, detail=str(e))
        except WorkerCrashedError:
            return Rejection(reason=Reason.RESULT_INVALID, detail="the worker that made it crashed")
        except (StorageFullError, NoWorkerError, StoreError):
            raise
        except Exception as e:  # noqa: BLE001 (it costs its own job, or study)
            return of_unexpected(e)

    # -- commits

    def _commit(self) -> None:
        steps = self._jobs.of(Committing)
        if not steps:
            return
        kept = self._outcomes.finish([step.finding for step in steps])
        for step in steps:
            self._jobs.leave(step)
        if lost := len(steps) - kept:
            log.warning("lost the lease of %s before the commit: another process has them", counted(lost, "image"))
        self.on_done(kept)

    def _commit_reports(self) -> None:
        steps = self._reports.of(Reported)
        if not steps:
            return
        reported = self._outcomes.close(steps)
        for step in steps:
            self._reports.leave(step)
        self.on_reported(reported)

    @property
    def _outcomes(self) -> Outcomes:
        return Outcomes(
            database=self.database, queue=self.queue, studies=self.studies, outbox=self.outbox, owner=self.owner,
            destinations=self.options.destinations,
        )  # fmt: skip


def _moment(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at).astimezone()


def _pixels(step: Inferring) -> FloatArray:
    assert step.decoded.image is not None  # noqa: S101 (only images become ready)
    return step.decoded.image.pixels
