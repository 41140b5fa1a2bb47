"""A process pool that outlives its workers: a file that kills its worker costs itself alone.

Processes, because decoding and report writing are Python-bound; forkserver, because the engine's threads do not
survive a fork and the workers share what the server imported once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class WorkerCrashedError(Exception):
    """The task killed its worker process, twice: the second time with nothing else in the process."""


@dataclass(slots=True, eq=False)
class Task(Generic[T]):
    """A call that runs in a worker, and what it takes to run it once more."""

    future: Future[T]
    call: tuple[Callable[..., T], tuple[Any, ...]]


def default_workers() -> int:
    """One more than the cores: a worker also waits, for the disk that must have its results."""
    return len(os.sched_getaffinity(0)) + 1


def start_server(preload: str) -> None:
    """Start the process that workers are forked from: it imports `preload` while the caller goes on."""
    forkserver.set_forkserver_preload([preload])
    forkserver.ensure_running()


class Pool:
    def __init__(self, workers: int, *, preload: str) -> None:
        start_server(preload)
        self._workers = workers
        self._context = multiprocessing.get_context("forkserver")
        self._executor = self._start(workers)
        self._executor.submit(_nothing)  # the workers start while the caller loads its engine

    def submit(self, call: Callable[..., T], *args: Any) -> Task[T]:
        try:
            future = self._executor.submit(call, *args)
        except BrokenProcessPool:
            self._restart()
            future = self._executor.submit(call, *args)
        return Task(future=future, call=(call, args))

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
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _run_alone(self, task: Task[T]) -> T:
        call, args = task.call
        with self._start(1) as alone:
            try:
                return alone.submit(call, *args).result()
            except BrokenProcessPool:
                raise WorkerCrashedError from None

    def _start(self, workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, mp_context=self._context, initializer=_initialise)

    def _restart(self) -> None:
        self._executor.shutdown(wait=False)
        self._executor = self._start(self._workers)


def _nothing() -> None:
    pass


def _initialise() -> None:
    """In each worker: the parent decides about Ctrl-C; a worker whose parent was killed must not stay behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
