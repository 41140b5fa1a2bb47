"""The node's processes: each stage in its own, started again when it dies.

SIGTERM (or Ctrl-C) drains: every stage brings what it has in hand to its end. A second one ends them at once: what was
in hand is done again at the next start. SIGHUP is handed on: what can be read anew is. A stage that ends with exit code
2 before it ever worked says that the configuration cannot be used, and ends the node.

A stage of which a thread hangs for many minutes is killed and started again. Nothing is lost by that, as by any kill:
states move in one transaction, files are whole before their rows, leases end, results are made again under their UIDs.
Its stacks go to stderr before.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

STAGES = ("intake", "analyse", "deliver")
MISCONFIGURED = 2  # exit code
_POLL_S = 0.1
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 30.0  # before a stage that died is started again, doubled each time
_SETTLED_S = 60.0  # a stage that lived so long had a fresh start
_ORPHAN_S = 10.0  # for a stage to drain whose supervisor was killed
_TELL = "CXRNODE_STARTED_FD"  # in a stage's environment: the pipe on which it tells its supervisor that it works
_LOOK_S = 5.0  # between looks for stages that hang
_STACKS_S = 1.0  # for one to say where
_PR_SET_PDEATHSIG = 1  # prctl(2)

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Child:
    stage: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    told: int = -1  # the pipe's other end
    works: bool = False  # it told so
    worked: bool = False  # it told so once
    started: float = 0.0  # monotonic seconds
    not_before: float = 0.0
    wait_s: float = _FIRST_WAIT_S
    deaths: int = 0

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, shared: Sequence[int]) -> None:
        """`shared`: descriptors that it is to hold, too."""
        self.told, tell = os.pipe()
        os.set_blocking(self.told, False)
        environment = os.environ | {_TELL: str(tell)}
        self.started = time.monotonic()
        try:
            self.process = subprocess.Popen(self.command, pass_fds=[tell, *shared], env=environment)  # noqa: S603 (ours)
        except OSError as e:  # no memory, no more processes
            self.died(e.strerror or type(e).__name__)
        finally:
            os.close(tell)

    def hear(self) -> None:
        with suppress(BlockingIOError):  # nothing was told yet
            self.works = self.works or bool(os.read(self.told, 1))
        self.worked = self.worked or self.works

    def died(self, how: object) -> None:
        os.close(self.told)
        self.works = False
        self.deaths += 1
        now = time.monotonic()
        self.wait_s = _FIRST_WAIT_S if now - self.started > _SETTLED_S else min(_LONGEST_WAIT_S, 2 * self.wait_s)
        self.not_before = now + self.wait_s
        log.error("%s ended with %s, starts again in %.1f s", self.stage, how, self.wait_s)
        self.process = None

    def send(self, number: int) -> None:
        if self.process is not None and self.alive:
            self.process.send_signal(number)


@dataclass(slots=True, kw_only=True)
class Supervisor:
    """`run()` returns when all stages have ended. One that dies is started again, for ever."""

    config: Path
    stages: Sequence[str] = STAGES
    on_hangup: Callable[[], None] = lambda: None
    hung: Callable[[], Mapping[str, str]] = dict  # stages that a new start is to mend, and which thread hangs
    _looked: float = 0.0  # monotonic seconds
    _children: list[_Child] = field(default_factory=list)
    _signals: int = 0

    def run(self, on_started: Callable[[], None] = lambda: None, *, shared: Sequence[int] = ()) -> int:
        """The exit code: 0 after a signal, MISCONFIGURED where a stage cannot work as it is told to.

        `shared`: descriptors that every stage holds as long as it lives. To be called with SIGHUP blocked.
        """
        self._children = [_Child(stage=s, command=_command(self.config, s)) for s in self.stages]
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            for child in self._children:
                child.start(shared)
            on_started()
            return self._watch(shared)
        finally:  # whatever ended the watch
            while any(child.alive for child in self._children):
                if not self._signals:
                    self._on_signal(signal.SIGTERM, None)
                time.sleep(_POLL_S)

    @property
    def down(self) -> list[str]:
        """The stages that do not run, or have not told yet that they work: a port, for instance, may be taken."""
        return [child.stage for child in self._children if not (child.alive and child.works)]

    @property
    def deaths(self) -> dict[str, int]:
        return {child.stage: child.deaths for child in self._children}

    def since(self, stage: str) -> float:
        """When its process was started, monotonic seconds."""
        return next((child.started for child in self._children if child.stage == stage), 0.0)

    def _watch(self, shared: Sequence[int]) -> int:
        while not self._signals:
            for child in self._children:
                if child.process is not None:
                    child.hear()
                    if child.process.poll() == MISCONFIGURED and not child.worked:
                        return MISCONFIGURED  # the stage said why
                    if not child.alive:
                        child.died(child.process.returncode)
                elif time.monotonic() >= child.not_before:
                    child.start(shared)
            if signal.sigtimedwait([signal.SIGHUP], _POLL_S):
                self._hang_up()
            if time.monotonic() > self._looked + _LOOK_S:
                self._end_hung()
                self._looked = time.monotonic()
        return 0

    def _end_hung(self) -> None:
        try:
            hung = self.hung()
        except Exception:
            log.exception("it cannot be seen whether a stage hangs")
            return
        for stage, why in hung.items():
            child = next(child for child in self._children if child.stage == stage)
            log.error("%s is ended, to start again: %s", stage, why)
            child.send(signal.SIGUSR2)
            time.sleep(_STACKS_S)
            child.send(signal.SIGKILL)

    def _hang_up(self) -> None:
        log.info("SIGHUP: log level and certificates are read anew")
        self.on_hangup()
        for child in self._children:
            child.send(signal.SIGHUP)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._signals += 1
        for child in self._children:
            child.send(signal.SIGTERM if self._signals == 1 else signal.SIGKILL)


def _command(config: Path, stage: str) -> list[str]:
    return [sys.executable, "-m", "cxrnode", "serve", "--config", str(config), "--only", stage]


@contextmanager
def hangups_wait() -> Iterator[None]:
    """SIGHUP kills nobody, here or in what is started meanwhile: it waits for `signal.sigtimedwait`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- in a stage -----------------------------------------------------------------------------------------------------

_started = threading.Event()


def is_supervised() -> bool:
    """Whether this process is a stage that a supervisor started, until `tell_started`."""
    return bool(os.environ.get(_TELL))


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """What a supervisor knows, of the one stage that runs in this process without any."""

    stage: str

    @property
    def stages(self) -> Sequence[str]:
        return (self.stage,)

    @property
    def down(self) -> list[str]:
        return [] if _started.is_set() else [self.stage]

    @property
    def deaths(self) -> dict[str, int]:
        return {}

    def since(self, _stage: str) -> float:
        return 0.0


def tell_stacks_on_request() -> None:
    """Where every thread is, to stderr on SIGUSR2: names of functions and lines, no values."""
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)


def stop_on_signals(stopping: threading.Event) -> None:
    """SIGTERM drains. Ctrl-C reaches every process of the terminal; the supervisor's word counts."""
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, lambda *_: stopping.set())


def end_with_supervisor(stopping: threading.Event) -> None:
    """Drain when the supervisor is gone, however it went, and be gone soon after: what is not done by then is done
    again at the next start, which waits for us. Without a supervisor nothing happens.
    """
    if not (pipe := os.environ.get(_TELL, "")):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # at once, even where no thread of ours gets to run
    ends = select.poll()  # and this also sees one that went before
    ends.register(os.dup(int(pipe)), 0)  # POLLERR: nobody reads any more (pipe(7)); `tell_started` closes the other

    def wait() -> None:
        ends.poll()  # as long as the supervisor lives: this thread is for nothing else
        log.error("the node's process is gone: this stage ends, too")
        stopping.set()
        time.sleep(_ORPHAN_S)
        os._exit(1)

    threading.Thread(target=wait, name="supervisor", daemon=True).start()


def tell_started() -> None:
    """It works from now on: the supervisor is told, or the page of a stage that runs alone."""
    _started.set()
    if pipe := os.environ.pop(_TELL, ""):
        with suppress(BrokenPipeError):  # the supervisor is gone
            os.write(int(pipe), b"1")
        os.close(int(pipe))
