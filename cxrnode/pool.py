"""A pool of worker processes: a task that kills its worker, or takes too much, costs itself alone.

Processes, because decoding and report writing are Python-bound; forkserver, because the engine's threads do not
survive a fork and the workers share what the server imported once. Each worker has a thread here that hands it one
task at a time, so that it is known which task a worker died of.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from cxrnode.errors import CxrnodeError
from engines.files import PRIVATE_UMASK

T = TypeVar("T")
CPU_S = 60.0  # of processor time for one task: a report on a thousand images takes a quarter of it
WALL_S = 300.0  # and of time in all, for a file system that does not answer
DATA_BYTES = 512 * 2**20  # that a task may take beyond what its worker has at its start
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_ALONE_WAITS_S = (1.0, 2.0, 4.0, 8.0)  # before a task is tried alone whose worker was killed
_HANGS_S = 60.0  # beyond what a task may take
_POLITE_S = 5.0  # for a worker without a task to end by itself


class WorkerCrashedError(Exception):
    """The task killed its worker process, twice, or was stopped because it took too much time.

    SIGKILL is no crash: it comes from outside, for the most part where the system is out of memory. A task whose worker
    was killed so is tried again with no other beside it, and only where that does not help, time after time, is it to
    blame itself.
    """


class NoWorkerError(CxrnodeError):
    """No worker process could be started: no task is to blame, and each may be tried again."""

    exit_code = 1


@dataclass(slots=True, eq=False)
class Task(Generic[T]):
    """A call that runs in a worker."""

    future: Future[T]
    call: tuple[Callable[..., T], tuple[Any, ...]]
    first: bool
    cpu_s: float = CPU_S
    seconds: float = 0.0  # that it took in its worker, once it is done


def default_workers() -> int:
    """One more than the cores: a worker also waits, for the disk that must have its results."""
    return len(os.sched_getaffinity(0)) + 1


def inference_threads(workers: int) -> int:
    """A quarter of an image's CPU time is inference, the rest is the workers'; more threads would only wait."""
    return max(1, round(workers / 4))


def start_server(preload: str) -> None:
    """Start the process that workers are forked from: it imports `preload` while the caller goes on.

    Raises CxrnodeError where it cannot have its socket.
    """
    forkserver.set_forkserver_preload([preload])
    try:
        forkserver.ensure_running()
    except OSError as e:
        where = os.environ.get("TMPDIR", "/tmp")  # noqa: S108
        raise CxrnodeError(
            f"no process can be started for the work: no socket can be made in {where} ({e}). Set TMPDIR to a folder "
            "that this user may write to, with a path of less than 70 characters"
        ) from e


class Pool:
    """Hands each of its workers one task at a time.

    While its user is in a `hurry`, all but one of the workers are kept for tasks that are to be `first`. Each worker
    calls `begin` before anything else.
    """

    def __init__(self, workers: int, *, preload: str, begin: Callable[[], None] | None = None) -> None:
        start_server(preload)
        self._begin = begin or _nothing  # it is pickled
        self._changed = threading.Condition()
        self._waiting: deque[Task[Any]] = deque()
        self._running = self._running_first = 0
        self._hurry = self._closing = False
        self._solitary = 0  # of those that run: tasks that are to run alone
        self._solitude = threading.Lock()
        self._threads = [threading.Thread(target=self._serve, name=f"worker {n}", daemon=True) for n in range(workers)]
        for thread in self._threads:  # the workers start while the caller loads its engine
            thread.start()

    def submit(self, call: Callable[..., T], *args: Any, first: bool = False, cpu_s: float = CPU_S) -> Task[T]:
        """Run `call(*args)` in a worker, before all that waits where it is to be `first`.

        cpu_s: seconds of processor time that it may take.
        """
        task: Task[T] = Task(future=Future(), call=(call, args), first=first, cpu_s=cpu_s)
        with self._changed:
            if first:
                self._waiting.appendleft(task)
            else:
                self._waiting.append(task)
            self._changed.notify_all()
        return task

    def hurry(self, yes: bool) -> None:
        """Something urgent is in hand, here or between two of its tasks; or no longer."""
        if yes != self._hurry:
            with self._changed:
                self._hurry = yes
                self._changed.notify_all()

    def result(self, task: Task[T]) -> T:
        """The task's result, or its exception; WorkerCrashedError where the task itself kills workers."""
        return task.future.result()  # a worker is killed after WALL_S, and tries are counted

    def close(self) -> None:
        """Forget what waits and let the workers finish what they do."""
        with self._changed:
            self._closing = True
            for task in self._waiting:
                task.future.cancel()
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()  # in time: each try of its task has WALL_S

    def _serve(self) -> None:
        """On a thread: one worker, and the tasks that it gets."""
        from cxrnode.loops import at_work  # noqa: PLC0415 (the workers, which load this module, do without)

        worker = None
        with suppress(NoWorkerError):  # whose task it is will be told, if it cannot be started then either
            worker = _Worker(self._begin)
        while (task := self._next()) is not None:
            try:
                if worker is None or not worker.alive:
                    worker = _Worker(self._begin)
                with at_work(threading.current_thread().name, (1 + len(_ALONE_WAITS_S)) * WALL_S + _HANGS_S):
                    result = self._run(task, worker)
            except Exception as error:  # noqa: BLE001 (whatever the task raised is its result)
                task.future.set_exception(error)
            else:
                task.future.set_result(result)
            finally:
                with self._changed:
                    self._running -= 1
                    self._running_first -= task.first
                    self._changed.notify_all()
        if worker is not None:
            worker.end()

    def _next(self) -> Task[Any] | None:
        """The next task that may run; None when the pool closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._may_run())  # idle: `submit` and `close` wake it
            if self._closing:
                return None
            task = self._waiting.popleft()
            self._running += 1
            self._running_first += task.first
            return task

    def _may_run(self) -> bool:
        if not self._waiting or self._solitary:
            return False
        return not self._hurry or self._waiting[0].first or self._running == self._running_first

    def _run(self, task: Task[T], worker: _Worker) -> T:
        try:
            return worker.run(task)
        except _Died as died:
            if died.too_long:
                raise WorkerCrashedError(str(died)) from None
        try:  # something else may have been to blame
            return self._run_anew(task)
        except _Died as died:
            if not died.killed:
                raise WorkerCrashedError(str(died)) from None
        return self._run_alone(task)

    def _run_anew(self, task: Task[T]) -> T:
        """In a worker of its own."""
        worker = _Worker(self._begin)
        try:
            return worker.run(task)
        finally:
            worker.end()

    def _run_alone(self, task: Task[T]) -> T:
        """With no other beside it: what they take together may be more memory than there is."""
        died: _Died | None = None
        with self._alone():
            for wait_s in _ALONE_WAITS_S:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, wait_s)
                try:
                    return self._run_anew(task)
                except _Died as e:
                    died = e
                    if not e.killed:
                        break
        raise WorkerCrashedError(f"{died}, also with no other task beside it")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No task is begun, and those that run have come to their end."""
        with self._changed:
            self._solitary += 1
            self._changed.notify_all()
        try:
            with self._solitude:
                with self._changed:
                    self._changed.wait_for(lambda: self._running == self._solitary)
                yield
        finally:
            with self._changed:
                self._solitary -= 1
                self._changed.notify_all()


class _Died(Exception):  # noqa: N818 (a signal inside this module)
    """A worker ended with its task."""

    def __init__(self, why: str, *, too_long: bool = False, killed: bool = False) -> None:
        super().__init__(why)
        self.too_long = too_long
        self.killed = killed  # by SIGKILL, which is not the task's own signal


class _Worker:
    """A process and the pipe to it."""

    _starting = threading.Lock()

    def __init__(self, begin: Callable[[], None]) -> None:
        try:
            self._start(begin)
        except (OSError, EOFError, MemoryError) as e:  # EOFError: the server that forks them is gone
            why = getattr(e, "strerror", None) or type(e).__name__
            raise NoWorkerError(
                f"no worker process can be started ({why}): is there memory left, and may this user have more "
                "processes and open files?"
            ) from e
        self.alive = True

    def _start(self, begin: Callable[[], None]) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("forkserver")
        self._process = context.Process(target=_work, args=(theirs, begin), daemon=True)
        try:
            with self._starting, theirs:
                self._process.start()
        except BaseException:
            self._connection.close()
            raise

    def run(self, task: Task[T]) -> T:
        """The task's result, or its exception. Raises _Died where the worker ended with it, or had to be ended."""
        call, args = task.call
        try:
            self._connection.send((call, args, task.cpu_s))
            if not self._connection.poll(WALL_S):
                self._process.kill()
                raise self._died(f"it took more than {WALL_S:.0f} s")
            error, result, task.seconds = self._connection.recv()
        except (EOFError, ConnectionError):
            raise self._died() from None
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def _died(self, why: str = "") -> _Died:
        self.alive = False
        self._connection.close()
        self._process.join(_POLITE_S)
        code = self._process.exitcode or 0
        if code == -signal.SIGPROF:
            why = "it took too much processor time"
        elif not why:
            why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"its process ended with {code}"
            return _Died(why, killed=code == -signal.SIGKILL)
        return _Died(why, too_long=True)

    def end(self) -> None:
        """After its last task."""
        if self.alive:
            self._connection.close()
            self._process.join(_POLITE_S)
            self._process.kill()
            self._process.join(_POLITE_S)  # a file system that does not answer holds even what was killed


def _nothing() -> None:
    pass


def _work(connection: Connection, begin: Callable[[], None]) -> None:
    """In a worker, from its start to its end."""
    _initialise(begin)
    while True:
        try:
            call, args, cpu_s = connection.recv()
        except EOFError:
            return
        began = time.perf_counter()
        error = result = None
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # its signal ends the process
        try:
            result = call(*args)
        except Exception as raised:  # noqa: BLE001 (the task's, who waits for it gets it)
            error = raised
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        _answer(connection, error, result, time.perf_counter() - began)


def _answer(connection: Connection, error: Exception | None, result: object, seconds: float) -> None:
    try:
        connection.send((error, result, seconds))
    except (ConnectionError, EOFError):
        raise
    except Exception as unsent:  # noqa: BLE001 (it cannot be pickled, or not be held in memory: the task's fault)
        connection.send((RuntimeError(f"{type(error or unsent).__name__}, which cannot be told"), None, seconds))


def _initialise(begin: Callable[[], None]) -> None:
    """In each worker: the parent decides about Ctrl-C; a worker whose parent was killed must not stay behind."""
    begin()
    os.umask(PRIVATE_UMASK)  # the server that workers are forked from may be older than the parent's own
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _keep_freed_memory()
    _limit_memory()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _limit_memory() -> None:
    """What a task asks for beyond is a MemoryError, and so its own row. Source: getrlimit(2), proc(5) on statm."""
    try:
        with open("/proc/self/statm") as f:  # noqa: PTH123 (no Path in a process that begins)
            pages = int(f.read().split()[5])
    except OSError:  # no Linux
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = pages * resource.getpagesize() + DATA_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))


def _keep_freed_memory() -> None:
    """A film's arrays have ten megabytes each: given back to the system and taken anew, a fifth of the time goes there.

    Source: mallopt(3); a C library that is not glibc has no such function, or ignores it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_M_TRIM_THRESHOLD, 256 * 2**20)


def _exit_with(parent: BaseProcess) -> None:
    parent.join()  # as long as it lives: this thread is for nothing else
    os._exit(1)
