"""A process pool that outlives its workers: a file that kills its worker costs itself alone.

Processes, because decoding and report writing are Python-bound; forkserver, because the engine's threads do not
survive a fork and the workers share what the server imported once.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class WorkerCrashedError(Exception):
    """The task killed its worker process, twice: the second time with nothing else in the process."""


@dataclass(slots=True, eq=False)
class Task(Generic[T]):
    """A call that runs in a worker, and what it takes to run it once more."""

    future: Future[T]
    call: tuple[Callable[..., T], tuple[Any, ...]]
    first: bool
    seconds: float = 0.0  # that it took in its worker, once it is done


def default_workers() -> int:
    """One more than the cores: a worker also waits, for the disk that must have its results."""
    return len(os.sched_getaffinity(0)) + 1


def inference_threads(workers: int) -> int:
    """A quarter of an image's CPU time is inference, the rest is the workers'; more threads would only wait."""
    return max(1, round(workers / 4))


def start_server(preload: str) -> None:
    """Start the process that workers are forked from: it imports `preload` while the caller goes on."""
    forkserver.set_forkserver_preload([preload])
    forkserver.ensure_running()


class Pool:
    """Hands its workers one task each and one in reserve, so that what is urgent waits for no more than those.

    While its user is in a `hurry`, all but one of the workers are kept for tasks that are to be `first`. Each worker
    calls `begin` before anything else.
    """

    def __init__(self, workers: int, *, preload: str, begin: Callable[[], None] | None = None) -> None:
        start_server(preload)
        self._workers = workers
        self._begin = begin or _nothing  # it is pickled
        self._context = multiprocessing.get_context("forkserver")
        self._lock = threading.RLock()
        self._waiting: deque[Task[Any]] = deque()
        self._running = self._running_first = 0
        self._hurry = False
        self._executor = self._start(workers)
        self._executor.submit(_nothing)  # the workers start while the caller loads its engine

    def submit(self, call: Callable[..., T], *args: Any, first: bool = False) -> Task[T]:
        """Run `call(*args)` in a worker, before all that waits where it is to be `first`."""
        task: Task[T] = Task(future=Future(), call=(call, args), first=first)
        with self._lock:
            if first:
                self._waiting.appendleft(task)
            else:
                self._waiting.append(task)
            self._hand_over()
        return task

    def hurry(self, yes: bool) -> None:
        """Something urgent is in hand, here or between two of its tasks; or no longer."""
        if yes != self._hurry:
            with self._lock:
                self._hurry = yes
                self._hand_over()

    def _hand_over(self) -> None:
        while self._waiting and self._running <= self._workers:
            if self._hurry and not self._waiting[0].first and self._running > self._running_first:
                return
            task = self._waiting.popleft()
            self._running += 1
            self._running_first += task.first
            call, args = task.call
            try:
                inner = self._executor.submit(_timed, call, args)
            except BrokenProcessPool:
                self._restart()
                inner = self._executor.submit(_timed, call, args)
            inner.add_done_callback(partial(self._done, task))

    def _done(self, task: Task[Any], inner: Future[Any]) -> None:
        """On the executor's own thread."""
        with self._lock:
            self._running -= 1
            self._running_first -= task.first
            if not inner.cancelled():
                self._hand_over()
        if inner.cancelled():
            task.future.cancel()
        elif error := inner.exception():
            task.future.set_exception(error)
        else:
            result, task.seconds = inner.result()
            task.future.set_result(result)

    def result(self, task: Task[T]) -> T:
        """The task's result, or its exception. Raises WorkerCrashedError where the task itself kills workers.

        When a worker dies, every task in flight fails with it: each is run again alone, which finds the culprit.
        """
        try:
            return task.future.result()
        except BrokenProcessPool:
            return self._run_alone(task)

    def close(self) -> None:
        """Forget what waits and let the workers finish what they do."""
        with self._lock:
            self._waiting.clear()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _run_alone(self, task: Task[T]) -> T:
        call, args = task.call
        with self._start(1) as alone:
            try:
                result, task.seconds = alone.submit(_timed, call, args).result()
                return result
            except BrokenProcessPool:
                raise WorkerCrashedError from None

    def _start(self, workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, mp_context=self._context, initializer=_initialise, initargs=(self._begin,))

    def _restart(self) -> None:
        self._executor.shutdown(wait=False)
        self._executor = self._start(self._workers)


def _nothing() -> None:
    pass


def _timed(call: Callable[..., T], args: tuple[Any, ...]) -> tuple[T, float]:
    began = time.perf_counter()
    return call(*args), time.perf_counter() - began


def _initialise(begin: Callable[[], None]) -> None:
    """In each worker: the parent decides about Ctrl-C; a worker whose parent was killed must not stay behind."""
    begin()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _keep_freed_memory()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _keep_freed_memory() -> None:
    """A film's arrays have ten megabytes each: given back to the system and taken anew, a fifth of the time goes there.

    Source: mallopt(3); a C library that is not glibc has no such function, or ignores it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_M_TRIM_THRESHOLD, 256 * 2**20)


def _exit_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
