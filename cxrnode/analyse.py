"""The analyse stage: decode -> batch -> infer -> capture -> report, over whatever waits in the queue.

One loop owns the queue; workers decode and write, and the engine has a thread of its own. Everything in flight is
bounded, so memory does not grow with the archive, and everything that counts is committed, so a kill costs what was in
flight.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import uuid4

from cxrnode import metrics
from cxrnode.errors import ResultError
from cxrnode.inference import Inference, Said
from cxrnode.pool import Pool, Task, WorkerCrashedError
from cxrnode.report.context import ReportContext
from cxrnode.store.database import Database
from cxrnode.store.outbox import Outbox
from cxrnode.store.queue import Finding, Job, Lease, Queue
from cxrnode.store.studies import Studies
from cxrnode.types import FloatArray, Kind, Outcome, Prediction, Reason, Rejection, ResultObject, StoredImage, Study
from cxrnode.workers import Decoded, Output, decode, make_capture, make_sr

log = logging.getLogger(__name__)

_TOGETHER_S = 0.05  # what is done within this time of each other shares a commit
_POLL_S = 0.05
_IDLE_POLL_S = 0.1  # each is two transactions, all day
_LEASE_S = 10.0  # what a killed process had in hand waits so long
_CLAIM = 4  # images that are worth a claim: each is a commit
_BATCH_S = 0.1  # a node's batch takes about so long, for a STAT image that comes meanwhile waits for its end
_SMALL = 4  # images of a batch that loses no speed to larger ones, on a CPU


@dataclass(slots=True, kw_only=True, eq=False)
class _Ready:
    """A decoded image that waits for its batch."""

    job: Job
    decoded: Decoded
    note: Rejection | None
    since: float  # monotonic seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inferring:
    batch: list[_Ready]
    answers: Future[list[Said]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Capturing:
    ready: _Ready
    said: Prediction
    task: Task[ResultObject]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reporting:
    study: Study
    task: Task[ResultObject]


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
    """Works on the queue. `on_done(n)` is called with the number of jobs that were finished."""

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
    _decoding: deque[tuple[Job, Task[Decoded]]] = field(default_factory=deque)
    _ready: list[_Ready] = field(default_factory=list)
    _inferring: _Inferring | None = None
    _capturing: list[_Capturing] = field(default_factory=list)
    _reporting: list[_Reporting] = field(default_factory=list)
    _in_flight: dict[tuple[str, str], str] = field(default_factory=dict)  # (SOP UID, pixel digest) -> path
    _findings: list[Finding] = field(default_factory=list)
    _alone: bool = False  # an image that may kill this process is in hand: nothing joins it
    _beaten: float = 0.0  # monotonic seconds of the last heartbeat

    def run(self) -> None:
        """Work until the queue is dry, or until `stopping` is set: what is in hand is brought to its end."""
        while True:
            self._beat()
            self._alone = self._alone and self._busy
            claimed = self._claim() + self._claim_studies()
            self.pool.hurry(self._stat_in_hand)
            if not (self._busy or claimed) and (self.options.until_dry or self.stopping.is_set()):
                return  # asked after claiming: what was in hand may all have been rejected at once
            self._take_decoded()
            self._take_answers()
            if self._batch_is_due():
                self._infer()
            self._take_captures()
            self._commit()
            self._take_reports()
            self._wait()

    def hand_back(self) -> None:
        """After `run` raised: what was in hand is anybody's again, and counts no attempt."""
        with self.database.begin() as c:
            self.queue.release(c, self.owner)
            self.studies.release(c, self.owner)

    @property
    def _busy(self) -> bool:
        return bool(
            self._decoding or self._ready or self._inferring or self._capturing or self._reporting or self._findings
        )

    @property
    def _stat_in_hand(self) -> bool:
        in_hand = [job for job, _ in self._decoding] + [r.job for r in self._ready]
        in_hand += [r.job for r in self._inferring.batch] if self._inferring else []
        in_hand += [c.ready.job for c in self._capturing]
        return any(job.stat for job in in_hand) or any(r.study.stat for r in self._reporting)

    def _lease(self) -> Lease:
        return Lease(owner=self.owner, now=time.time(), seconds=_LEASE_S)

    def _beat(self) -> None:
        if time.monotonic() - self._beaten > _LEASE_S / 4:
            self._beaten = time.monotonic()
            with self.database.begin() as c:
                self.queue.heartbeat(c, self._lease())
                self.studies.heartbeat(c, self._lease())
                self.queue.give_up(c, self._lease())

    def _claim(self) -> int:
        room = self.options.window - len(self._decoding)
        full = room < min(_CLAIM, self.options.window)
        if full and not self.options.until_dry:  # but not of STAT images: those pass what waits
            room = _CLAIM - sum(job.stat for job, _ in self._decoding)
        elif full:
            return 0
        if self.stopping.is_set() or self._alone or room <= 0:
            return 0
        with self.database.begin() as c:  # alone: it is recorded
            jobs = self.queue.claim(c, self._lease(), limit=room, idle=not self._busy, stat_only=full)
            self.queue.record_claims(c, jobs)
        self._alone = any(job.alone for job in jobs)
        shape = self.context.bundle.manifest.input
        for job in jobs:
            task = self.pool.submit(decode, self._where(job), shape, first=job.stat)
            if job.stat:
                self._decoding.appendleft((job, task))
            else:
                self._decoding.append((job, task))
        return len(jobs)

    def _where(self, job: Job) -> dict[str, Any]:
        if job.received_at is None:  # of an archive, where its user said
            return job.location
        return {**job.location, "container": str(self.output.root / job.location["container"])}

    def _claim_studies(self) -> int:
        most = self.options.window if self.options.until_dry else min(_CLAIM, self.options.window)
        room = most - len(self._reporting)  # in a node few: a STAT study waits until one of them is done
        if self.stopping.is_set() or room <= 0:
            return 0
        with self.database.begin(shared=True) as c:
            studies = self.studies.claim(c, self._lease(), quiet_s=self.options.quiet_s, limit=room)
        for study in studies:
            if self._gets_report(study):
                context = replace(self.context, analysed_at=study.received)
                task = self.pool.submit(make_sr, self.output, context, study, first=study.stat)
                self._reporting.append(_Reporting(study=study, task=task))
        if silent := [s for s in studies if not self._gets_report(s)]:
            with self.database.begin() as c:
                for study in silent:
                    self.studies.reported(c, study, None, owner=self.owner)
            self.on_reported([s.study_instance_uid for s in silent])
        return len(studies)

    def _gets_report(self, study: Study) -> bool:
        return any(i.prediction for i in study.images) or (bool(study.images) and self.options.report_not_analysed)

    def _wait(self) -> None:
        futures: list[Future[Any]] = [c.task.future for c in self._capturing]
        futures += [r.task.future for r in self._reporting]
        if self._takes_next():
            futures.append(self._decoding[0][1].future)
        if self._inferring:
            futures.append(self._inferring.answers)
        if futures:
            timeout = _LEASE_S / 8 if self.options.until_dry else _POLL_S
            wait(futures, return_when=FIRST_COMPLETED, timeout=timeout)
            if not self._stat_in_hand:
                wait(futures, timeout=_TOGETHER_S)
        elif not self.options.until_dry:
            self.stopping.wait(_IDLE_POLL_S)

    def _take_decoded(self) -> None:
        """In archive order, so that of two equal files it is always the first that is analysed."""
        while self._takes_next() and self._decoding[0][1].future.done():
            job, task = self._decoding.popleft()
            try:
                decoded = self.pool.result(task)
                metrics.decoded(task.seconds)
            except WorkerCrashedError:
                decoded = Decoded(rejection=Rejection(reason=Reason.DECODER_CRASHED))
            rejection, note = self._compare_with_seen(job, decoded)
            if rejection:
                self._findings.append(Finding(job=job, pixel_digest=decoded.pixel_digest, rejection=rejection))
            else:
                self._ready.append(_Ready(job=job, decoded=decoded, note=note, since=time.monotonic()))

    def _takes_next(self) -> bool:
        """Whether what is decoded next may join those that are ready."""
        return bool(self._decoding) and (len(self._ready) < self.options.batch_size or self._decoding[0][0].stat)

    def _compare_with_seen(self, job: Job, decoded: Decoded) -> tuple[Rejection | None, Rejection | None]:
        """(rejection, note): a duplicate, what the decoder said, or a flag on two objects that share a UID."""
        if decoded.pixel_digest is None:
            return decoded.rejection, None
        uid, digest = job.sop_instance_uid, decoded.pixel_digest
        with self.database.begin(shared=True) as c:
            seen = self.queue.twins(c, uid)
        seen |= {d: path for (u, d), path in self._in_flight.items() if u == uid}
        seen = {d: path for d, path in seen.items() if path != job.path}  # itself, when it is analysed once more
        self._in_flight.setdefault((uid, digest), job.path)
        if digest in seen:
            return Rejection(reason=Reason.DUPLICATE, detail=f"of {seen[digest]}"), None
        if decoded.rejection or not seen:
            return decoded.rejection, None
        return None, Rejection(reason=Reason.UID_CONFLICT, detail=f"with {', '.join(sorted(seen.values()))}")

    def _batch_is_due(self) -> bool:
        """A full batch, or one that waits for no more: nothing is being decoded, it waited long enough, or STAT."""
        if self._inferring or not self._ready:
            return False
        waited = time.monotonic() - self._ready[0].since
        return (
            len(self._ready) >= self._most_in_batch
            or not self._decoding
            or any(r.job.stat for r in self._ready)
            or (not self.options.until_dry and waited >= self.options.max_wait_s)
        )

    @property
    def _most_in_batch(self) -> int:
        if self.options.until_dry:
            return self.options.batch_size
        return min(self.options.batch_size, max(_SMALL, int(min(self.inference.within(_BATCH_S), 1 << 16))))

    def _infer(self) -> None:
        """STAT images with one routine one, which they must not starve; or routine images in their order."""
        most = self._most_in_batch
        stat = [r for r in self._ready if r.job.stat][: max(1, most - 1)]
        routine = [r for r in self._ready if not r.job.stat][: 1 if stat else most]
        batch = stat + routine
        self._ready = [r for r in self._ready if r not in batch]
        self._inferring = _Inferring(batch=batch, answers=self.inference.submit([_pixels(r) for r in batch]))

    def _take_answers(self) -> None:
        if not self._inferring or not self._inferring.answers.done():
            return
        batch, answers, self._inferring = self._inferring.batch, self._inferring.answers.result(), None
        for ready, said in zip(batch, answers, strict=True):
            image, digest = ready.decoded.image, ready.decoded.pixel_digest
            if said.prediction is None or said.cam is None or image is None or digest is None:
                rejection = Rejection(reason=Reason.INFERENCE_FAILED, detail=said.error)
                self._findings.append(Finding(job=ready.job, pixel_digest=digest, rejection=rejection))
                continue
            labels = (label.name for label in self.context.bundle.manifest.labels)
            metrics.scored(ready.decoded.device, labels, said.prediction.probabilities)
            shown = StoredImage(kept_header=ready.job.header, pixel_digest=digest, prediction=said.prediction)
            context = self.context
            if ready.job.received_at is not None:
                context = replace(context, analysed_at=datetime.fromtimestamp(ready.job.received_at).astimezone())
            task = self.pool.submit(
                make_capture, self.output, context, shown, image.preview, said.cam, first=ready.job.stat
            )
            ready.decoded = replace(ready.decoded, image=None)
            self._capturing.append(_Capturing(ready=ready, said=said.prediction, task=task))

    def _take_captures(self) -> None:
        done = [c for c in self._capturing if c.task.future.done()]
        self._capturing = [c for c in self._capturing if not c.task.future.done()]
        for c in done:
            job, digest = c.ready.job, c.ready.decoded.pixel_digest
            made = self._made(c.task, Kind.CAPTURE)
            if isinstance(made, Rejection):
                self._findings.append(Finding(job=job, pixel_digest=digest, rejection=made))
            else:
                self._findings.append(
                    Finding(job=job, pixel_digest=digest, prediction=c.said, capture=made, note=c.ready.note)
                )

    def _commit(self) -> None:
        if not self._findings:
            return
        findings, self._findings = self._findings, []
        with self.database.begin() as c:
            for finding in findings:
                self.queue.finish(c, finding, owner=self.owner)
        for f in findings:
            if f.pixel_digest and f.outcome is not Outcome.DUPLICATE:
                self._in_flight.pop((f.job.sop_instance_uid, f.pixel_digest), None)  # the store knows it from here on
        self.on_done(len(findings))

    def _take_reports(self) -> None:
        done = [r for r in self._reporting if r.task.future.done()]
        if not done:
            return
        self._reporting = [r for r in self._reporting if not r.task.future.done()]
        made = [(r.study, self._made(r.task, Kind.SR)) for r in done]
        with self.database.begin() as c:
            for study, sr in made:
                if isinstance(sr, Rejection):
                    self.studies.failed(c, study, sr, owner=self.owner)
                elif (uids := self.studies.reported(c, study, sr, owner=self.owner)) is not None:
                    self.outbox.enqueue(
                        c, uids, self.options.destinations, now=time.time(), study_instance_uid=study.study_instance_uid
                    )
        self.on_reported([r.study.study_instance_uid for r in done])

    def _made(self, task: Task[ResultObject], kind: Kind) -> ResultObject | Rejection:
        try:
            result = self.pool.result(task)
            metrics.made(kind.value, task.seconds)
            return result
        except ResultError as e:
            log.error("a result failed the node's own checks and is in quarantine: %s", e)  # noqa: TRY400 (its text says all)
            return Rejection(reason=Reason.RESULT_INVALID, detail=str(e))
        except WorkerCrashedError:
            return Rejection(reason=Reason.RESULT_INVALID, detail="the worker that made it crashed")


def _pixels(ready: _Ready) -> FloatArray:
    assert ready.decoded.image is not None  # noqa: S101 (only images become ready)
    return ready.decoded.image.pixels
