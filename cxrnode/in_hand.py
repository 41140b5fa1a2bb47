"""What the analyse stage holds: each claimed job in exactly one state, which it leaves exactly once.

    Decoding -> Waiting -> Ready -> Inferring -> Making -> Committing -> committed, no longer in hand
        |          |                       |                    ^
        +----------+-----------------------+--------------------+  rejected, or failed

Nothing asks a future twice whether it is done and acts on both answers: what ends between the two would be in neither.
A future tells its end once, to `Arrivals`, and the one thread that owns the stage takes it from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from cxrnode.pool import Task
from cxrnode.store.queue import Finding, Job, SeenImage
from cxrnode.types import Outcome, Prediction, Rejection, Report, ResultObject, Study
from cxrnode.workers import Decoded

K = TypeVar("K")
S = TypeVar("S")
T = TypeVar("T")


# --- the states of a job --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoding:
    """In the hands of a worker."""

    job: Job
    task: Task[Decoded]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Waiting:
    """Decoded; those that come before it in the archive go on first."""

    job: Job
    decoded: Decoded


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ready:
    """An image that waits for its batch."""

    job: Job
    decoded: Decoded
    note: Rejection | None
    since: float  # monotonic seconds


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inferring:
    """In the batch that the engine works on."""

    job: Job
    decoded: Decoded
    note: Rejection | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Making:
    """Analysed; a worker makes its capture."""

    job: Job
    digest: str
    note: Rejection | None
    prediction: Prediction
    task: Task[ResultObject]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Committing:
    """What came of it is known, and goes into the store with the next commit."""

    finding: Finding

    @property
    def job(self) -> Job:
        return self.finding.job


JobStep = Decoding | Waiting | Ready | Inferring | Making | Committing
_JOB_STEPS: Mapping[type, tuple[type, ...]] = {
    Decoding: (Waiting, Committing),
    Waiting: (Ready, Committing),
    Ready: (Inferring,),
    Inferring: (Making, Committing),
    Making: (Committing,),
}


def seen_as(step: JobStep) -> SeenImage | None:
    """What was let in, for the further copies of it; None before that, and for one that cannot be told from others."""
    rejected = None
    if isinstance(step, Ready | Inferring):
        digest = step.decoded.pixel_digest
    elif isinstance(step, Making):
        digest = step.digest
    elif isinstance(step, Committing) and step.finding.outcome is not Outcome.DUPLICATE:
        digest = step.finding.pixel_digest
        rejected = step.finding.rejection.reason if step.finding.rejection else None
    else:
        return None
    job = step.job
    if not digest:
        return None
    return SeenImage(
        job_id=job.id, path=job.path, pixel_digest=digest, study_instance_uid=job.study_instance_uid,
        header=job.header, rejected=rejected,
    )  # fmt: skip


# --- the states of a study ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reporting:
    """A worker makes its report."""

    study: Study
    task: Task[tuple[Report, ...]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reported:
    """The reports were made, or why none was."""

    study: Study
    made: tuple[Report, ...] | Rejection


StudyStep = Reporting | Reported
_STUDY_STEPS: Mapping[type, tuple[type, ...]] = {Reporting: (Reported,)}


# --- what is held ---------------------------------------------------------------------------------------------------


class InHand(Generic[K, S]):
    """Everything that is claimed, by its key in the store, in the order in which it was taken. Of one thread."""

    def __init__(self, key: Callable[[S], K], steps: Mapping[type, tuple[type, ...]]) -> None:
        self._key = key
        self._steps = steps
        self._held: dict[K, S] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def keys(self) -> set[K]:
        return set(self._held)

    @property
    def steps(self) -> Iterable[S]:
        return self._held.values()

    def of(self, kind: type[T]) -> list[T]:
        """What is in this state, in the order in which it was taken."""
        return [step for step in self._held.values() if isinstance(step, kind)]

    def holds(self, step: S) -> bool:
        """False once it was dropped: whoever comes with news of it is not heard."""
        return self._held.get(self._key(step)) is step

    def take(self, step: S) -> None:
        """Raises RuntimeError where it is in hand already."""
        key = self._key(step)
        if key in self._held:
            raise RuntimeError(f"{key} was claimed while it was in hand")
        self._held[key] = step

    def move(self, step: S, to: S) -> None:
        """From one state to the next. Raises RuntimeError where it has left that state, or may not go there."""
        key = self._key(step)
        if self._held.get(key) is not step or self._key(to) != key:
            raise RuntimeError(f"{key} has left {type(step).__name__} before")
        if type(to) not in self._steps[type(step)]:
            raise RuntimeError(f"{key} may not go from {type(step).__name__} to {type(to).__name__}")
        self._held[key] = to

    def leave(self, step: S) -> None:
        """Its last step is committed. Raises RuntimeError where it has left before."""
        if not self.holds(step):
            raise RuntimeError(f"{self._key(step)} has left {type(step).__name__} before")
        del self._held[self._key(step)]

    def drop(self, keys: Iterable[K]) -> None:
        """These are no longer ours: what their workers still bring is not heard."""
        for key in keys:
            self._held.pop(key, None)


def jobs_in_hand() -> InHand[int, JobStep]:
    return InHand(_job_id, _JOB_STEPS)


def studies_in_hand() -> InHand[str, StudyStep]:
    return InHand(_study_uid, _STUDY_STEPS)


def _job_id(step: JobStep) -> int:
    return step.job.id


def _study_uid(step: StudyStep) -> str:
    return step.study.study_instance_uid


# --- what the futures tell ------------------------------------------------------------------------------------------


class Arrivals:
    """The ends of futures, each told once. `expect` and `take` belong to one thread; futures end on any."""

    def __init__(self) -> None:
        self._ended: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._expected = 0

    def __bool__(self) -> bool:
        return self._expected > 0

    def expect(self, future: Future[Any], then: Callable[[], None]) -> None:
        """Have `take` call `then` once `future` has ended, however it ended."""
        self._expected += 1
        future.add_done_callback(lambda _: self._ended.put(then))

    def take(self, *, wait_s: float, together_s: float) -> None:
        """Wait up to `wait_s` for one to end, `together_s` more for others, and call their `then`."""
        calls: list[Callable[[], None]] = []
        until = time.monotonic() + wait_s
        while len(calls) < self._expected:
            try:
                calls.append(self._ended.get(timeout=max(0.0, until - time.monotonic())))
            except Empty:
                break
            if len(calls) == 1:
                until = time.monotonic() + together_s
        self._expected -= len(calls)
        for call in calls:
            call()
