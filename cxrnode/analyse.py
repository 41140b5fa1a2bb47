"""The analyse stage: decode -> batch -> infer -> capture -> report, over whatever waits in the queue.

One loop owns the queue; workers decode and write, and the engine has a thread of its own. Everything in flight is
bounded, so memory does not grow with the archive, and everything that counts is committed, so a kill costs what was in
flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from cxrnode.errors import ResultError
from cxrnode.inference import Inference, Said
from cxrnode.pool import Pool, Task, WorkerCrashedError
from cxrnode.report.context import ReportContext
from cxrnode.store.database import Database
from cxrnode.store.queue import Finding, Queue, WaitingJob
from cxrnode.types import FloatArray, Outcome, Prediction, Reason, Rejection, ResultObject
from cxrnode.workers import Decoded, Output, decode, make_capture, make_sr

_TOGETHER_S = 0.05  # what is done within this time of each other shares a commit


@dataclass(slots=True, kw_only=True)
class Ready:
    """A decoded image that waits for its batch."""

    job: WaitingJob
    decoded: Decoded
    note: Rejection | None


@dataclass(slots=True, kw_only=True)
class _Capturing:
    ready: Ready
    said: Prediction
    task: Task[ResultObject]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inferring:
    batch: list[Ready]
    answers: Future[list[Said]]


@dataclass(slots=True, kw_only=True)
class Analyser:
    """Runs the queue dry. `on_done(n)` is called with the number of jobs that were finished."""

    database: Database
    queue: Queue
    pool: Pool
    inference: Inference
    context: ReportContext
    output: Output
    batch_size: int
    window: int  # items in the workers' hands at once
    on_done: Callable[[int], None]
    on_reported: Callable[[Sequence[str]], None]
    _decoding: deque[tuple[WaitingJob, Task[Decoded]]] = field(default_factory=deque)
    _ready: list[Ready] = field(default_factory=list)
    _inferring: _Inferring | None = None
    _capturing: list[_Capturing] = field(default_factory=list)
    _reporting: dict[str, Task[ResultObject]] = field(default_factory=dict)
    _in_flight: dict[tuple[str, str], str] = field(default_factory=dict)  # (SOP UID, pixel digest) -> path
    _findings: list[Finding] = field(default_factory=list)

    def run(self) -> None:
        waiting = self._waiting()
        self._start_reports()  # of studies that an interrupted run left analysed
        while True:
            self._fill(waiting)
            if not (self._decoding or self._ready or self._inferring or self._capturing or self._reporting):
                return  # asked after filling: what was in hand may all have been rejected at once
            self._take_decoded()
            self._take_answers()
            if self._ready and not self._inferring and (len(self._ready) >= self.batch_size or not self._decoding):
                self._infer()
            self._take_captures()
            self._commit()
            self._take_reports()
            self._wait()

    def _waiting(self) -> Iterator[WaitingJob]:
        after = 0
        while True:
            with self.database.begin() as c:
                page = self.queue.waiting(c, after=after, limit=256)
            if not page:
                return
            yield from page
            after = page[-1].id

    def _fill(self, waiting: Iterator[WaitingJob]) -> None:
        shape = self.context.bundle.manifest.input
        while len(self._decoding) < self.window and (job := next(waiting, None)):
            self._decoding.append((job, self.pool.submit(decode, job.location, shape)))

    def _wait(self) -> None:
        futures: list[Future[Any]] = [c.task.future for c in self._capturing]
        futures += [task.future for task in self._reporting.values()]
        if len(self._ready) < self.batch_size:
            futures += [task.future for _, task in islice(self._decoding, 1)]
        if self._inferring:
            futures.append(self._inferring.answers)
        if futures:
            wait(futures, return_when=FIRST_COMPLETED)
            wait(futures, timeout=_TOGETHER_S)

    def _take_decoded(self) -> None:
        """In archive order, so that of two equal files it is always the first that is analysed."""
        while self._decoding and len(self._ready) < self.batch_size and self._decoding[0][1].future.done():
            job, task = self._decoding.popleft()
            try:
                decoded = self.pool.result(task)
            except WorkerCrashedError:
                decoded = Decoded(rejection=Rejection(reason=Reason.DECODER_CRASHED))
            rejection, note = self._compare_with_seen(job, decoded)
            if rejection:
                self._findings.append(_finding(job, decoded, rejection=rejection))
            else:
                self._ready.append(Ready(job=job, decoded=decoded, note=note))

    def _compare_with_seen(self, job: WaitingJob, decoded: Decoded) -> tuple[Rejection | None, Rejection | None]:
        """(rejection, note): a duplicate, what the decoder said, or a flag on two objects that share a UID."""
        if decoded.sop_instance_uid is None or decoded.pixel_digest is None:
            return decoded.rejection, None
        uid, digest = decoded.sop_instance_uid, decoded.pixel_digest
        with self.database.begin() as c:
            seen = self.queue.twins(c, uid)
        seen |= {d: path for (u, d), path in self._in_flight.items() if u == uid}
        self._in_flight.setdefault((uid, digest), job.path)
        if digest in seen:
            return Rejection(reason=Reason.DUPLICATE, detail=f"of {seen[digest]}"), None
        if decoded.rejection or not seen:
            return decoded.rejection, None
        return None, Rejection(reason=Reason.UID_CONFLICT, detail=f"with {', '.join(sorted(seen.values()))}")

    def _infer(self) -> None:
        batch, self._ready = self._ready, []
        self._inferring = _Inferring(batch=batch, answers=self.inference.submit([_pixels(r) for r in batch]))

    def _take_answers(self) -> None:
        if not self._inferring or not self._inferring.answers.done():
            return
        batch, answers, self._inferring = self._inferring.batch, self._inferring.answers.result(), None
        for ready, said in zip(batch, answers, strict=True):
            image = ready.decoded.image
            if said.prediction is None or said.cam is None or image is None:
                rejection = Rejection(reason=Reason.INFERENCE_FAILED, detail=said.error)
                self._findings.append(_finding(ready.job, ready.decoded, rejection=rejection))
                continue
            ready.decoded = replace(ready.decoded, image=None)
            task = self.pool.submit(
                make_capture, self.output, self.context, ready.decoded, image.preview, said.cam, said.prediction
            )
            self._capturing.append(_Capturing(ready=ready, said=said.prediction, task=task))

    def _take_captures(self) -> None:
        done = [c for c in self._capturing if c.task.future.done()]
        self._capturing = [c for c in self._capturing if not c.task.future.done()]
        for c in done:
            job, decoded = c.ready.job, c.ready.decoded
            made = self._made(c.task)
            if isinstance(made, Rejection):
                self._findings.append(_finding(job, decoded, rejection=made))
            else:
                self._findings.append(_finding(job, decoded, prediction=c.said, capture=made, note=c.ready.note))

    def _commit(self) -> None:
        if not self._findings:
            return
        findings, self._findings = self._findings, []
        with self.database.begin() as c:
            for finding in findings:
                self.queue.finish(c, finding)
        for f in findings:
            if f.sop_instance_uid and f.pixel_digest and f.outcome is not Outcome.DUPLICATE:
                self._in_flight.pop((f.sop_instance_uid, f.pixel_digest), None)  # the store knows it from here on
        self._start_reports()
        self.on_done(len(findings))

    def _start_reports(self) -> None:
        with self.database.begin() as c:
            studies = [s for s in self.queue.reportable_studies(c) if s not in self._reporting]
            images = {study: self.queue.study_images(c, study) for study in studies}
            for study in (s for s in studies if not images[s]):  # nothing but duplicates, own results ...
                self.queue.study_reported(c, study, None)
        for study in (s for s in studies if images[s]):
            self._reporting[study] = self.pool.submit(make_sr, self.output, self.context, images[study])
        if silent := [s for s in studies if not images[s]]:
            self.on_reported(silent)

    def _take_reports(self) -> None:
        done = [study for study, task in self._reporting.items() if task.future.done()]
        if not done:
            return
        made = {study: self._made(self._reporting.pop(study)) for study in done}
        with self.database.begin() as c:
            for study, result in made.items():
                if isinstance(result, Rejection):
                    self.queue.study_failed(c, study, result)
                else:
                    self.queue.study_reported(c, study, result)
        self.on_reported(done)

    def _made(self, task: Task[ResultObject]) -> ResultObject | Rejection:
        try:
            return self.pool.result(task)
        except ResultError as e:
            return Rejection(reason=Reason.RESULT_INVALID, detail=str(e))
        except WorkerCrashedError:
            return Rejection(reason=Reason.RESULT_INVALID, detail="the worker that made it crashed")


def _pixels(ready: Ready) -> FloatArray:
    assert ready.decoded.image is not None  # noqa: S101 (only images become ready)
    return ready.decoded.image.pixels


def _finding(job: WaitingJob, decoded: Decoded, **what: Any) -> Finding:
    return Finding(
        job=job,
        header=decoded.header,
        series_instance_uid=decoded.series_instance_uid,
        sop_instance_uid=decoded.sop_instance_uid,
        pixel_digest=decoded.pixel_digest,
        **what,
    )
