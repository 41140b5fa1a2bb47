"""The node's processes: each stage in its own, started again when it dies.

SIGTERM (or Ctrl-C) drains: every stage brings what it has in hand to its end. A second one ends them at once: what was
in hand is done again at the next start.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

STAGES = ("intake", "analyse", "deliver")
_POLL_S = 0.1
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 30.0  # before a stage that died is started again, doubled each time
_SETTLED_S = 60.0  # a stage that lived so long had a fresh start
_TELL = "CXRNODE_STARTED_FD"  # in a stage's environment: the pipe on which it tells its supervisor that it works

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Child:
    stage: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    told: int = -1  # the pipe's other end
    works: bool = False  # it told so
    started: float = 0.0  # monotonic seconds
    not_before: float = 0.0
    wait_s: float = _FIRST_WAIT_S
    deaths: int = 0

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        self.told, tell = os.pipe()
        os.set_blocking(self.told, False)
        environment = os.environ | {_TELL: str(tell)}
        self.process = subprocess.Popen(self.command, pass_fds=[tell], env=environment)  # noqa: S603 (our own command)
        os.close(tell)
        self.started = time.monotonic()

    def hear(self) -> None:
        with suppress(BlockingIOError):  # nothing was told yet
            self.works = self.works or bool(os.read(self.told, 1))

    def died(self) -> None:
        assert self.process is not None  # noqa: S101
        os.close(self.told)
        self.works = False
        self.deaths += 1
        now = time.monotonic()
        self.wait_s = _FIRST_WAIT_S if now - self.started > _SETTLED_S else min(_LONGEST_WAIT_S, 2 * self.wait_s)
        self.not_before = now + self.wait_s
        log.error("%s ended with %s, starts again in %.1f s", self.stage, self.process.returncode, self.wait_s)
        self.process = None


@dataclass(slots=True, kw_only=True)
class Supervisor:
    """`run()` returns when all stages have ended after a signal. One that dies is started again, for ever."""

    config: Path
    stages: Sequence[str] = STAGES
    _children: list[_Child] = field(default_factory=list)
    _signals: int = 0

    def run(self, on_started: Callable[[], None] = lambda: None) -> None:
        self._children = [_Child(stage=s, command=_command(self.config, s)) for s in self.stages]
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        for child in self._children:
            child.start()
        on_started()
        while not self._signals:
            self._start_again()
            time.sleep(_POLL_S)
        while any(child.alive for child in self._children):
            time.sleep(_POLL_S)

    @property
    def down(self) -> list[str]:
        """The stages that do not run, or have not told yet that they work: a port, for instance, may be taken."""
        return [child.stage for child in self._children if not (child.alive and child.works)]

    @property
    def deaths(self) -> dict[str, int]:
        return {child.stage: child.deaths for child in self._children}

    def _start_again(self) -> None:
        for child in self._children:
            if child.process is not None and not child.alive:
                child.died()
            if child.process is None and time.monotonic() >= child.not_before:
                child.start()
            if child.process is not None:
                child.hear()

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._signals += 1
        for child in self._children:
            if child.process is not None and child.alive:
                child.process.send_signal(signal.SIGTERM if self._signals == 1 else signal.SIGKILL)


def _command(config: Path, stage: str) -> list[str]:
    return [sys.executable, "-m", "cxrnode", "serve", "--config", str(config), "--only", stage]


def stop_on_signals(stopping: threading.Event) -> None:
    """In a stage: SIGTERM drains. Ctrl-C reaches every process of the terminal; the supervisor's word counts."""
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, lambda *_: stopping.set())


def tell_started() -> None:
    """In a stage: it works from now on. Without a supervisor nobody is told."""
    if pipe := os.environ.pop(_TELL, ""):
        with suppress(BrokenPipeError):  # the supervisor is gone
            os.write(int(pipe), b"1")
        os.close(int(pipe))
