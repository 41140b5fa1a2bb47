"""Threads that live as long as their process: one loop that survives what its step raises, and that is seen to live.

    Loop(name="anchors", step=step).run(stopping)       # step: does what is due, and says when there may be more

A step that raises is tried again, with back-off, for ever; `metrics` shares when each thread beat last, when it is
overdue and how often it failed in a row, and /readyz says so.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cxrnode import metrics
from cxrnode.errors import CxrnodeError
from cxrnode.patience import FOR_EVER, Patience

_BEAT_S = 5.0  # while there is nothing to do
_HANGS_S = 120.0  # longer than a database (60 s) or a peer (60 s) is waited for
_END_S = 60.0  # for all loops to end when they are told to

log = logging.getLogger(__name__)
_current = threading.local()


@dataclass(slots=True, kw_only=True)
class Loop:
    """One thread.

    step: returns the seconds until there may be more to do. hangs_s: a step that goes on for longer without a `beat`
    counts as one that hangs. close: at the end. on_error: says what a step raised, in the place of a line in the log
    for each time.
    """

    name: str
    step: Callable[[], float]
    hangs_s: float = _HANGS_S
    close: Callable[[], None] = lambda: None
    patience: Patience = FOR_EVER
    on_error: Callable[[Exception], None] | None = None

    def run(self, stopping: threading.Event) -> None:
        """Until `stopping` is set. Nothing that a step raises ends it."""
        _current.loop = self
        failures = 0
        while not stopping.is_set():
            self.beat()
            try:
                wait_s = self.step()
            except Exception as error:  # noqa: BLE001 (what this module is for)
                failures += 1
                wait_s = self.patience.wait_s(failures)
                metrics.thread_failed(self.name, failures)
                (self.on_error or self._tell)(error)
            else:
                if failures:
                    metrics.thread_failed(self.name, failures := 0)
                    if self.on_error is None:
                        log.info("%s: goes on", self.name)
            self._wait(stopping, wait_s)
        try:
            self.close()
        except Exception as error:  # noqa: BLE001 (as above)
            (self.on_error or self._tell)(error)
        metrics.thread_ended(self.name)

    def beat(self) -> None:
        now = time.monotonic()
        metrics.thread_lives(self.name, now, now + self.hangs_s)

    def _wait(self, stopping: threading.Event, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not stopping.wait(min(left, _BEAT_S)):
            self.beat()

    def _tell(self, error: Exception) -> None:
        if isinstance(error, CxrnodeError):
            log.error("%s: %s; tried again", self.name, error)
        else:
            log.error("%s: an unexpected error; tried again", self.name, exc_info=error)


def beat() -> None:
    """In a step that takes long: the thread lives. Elsewhere: nothing."""
    if loop := getattr(_current, "loop", None):
        loop.beat()


def lives(name: str, hangs_s: float) -> None:
    """A sign of life of a thread that is no Loop; without another one in this time it hangs."""
    now = time.monotonic()
    metrics.thread_lives(name, now, now + hangs_s)


@contextmanager
def at_work(name: str, hangs_s: float) -> Iterator[None]:
    """What a thread that is no Loop does now and then: it hangs if this takes longer. Idle it may be for ever."""
    lives(name, hangs_s)
    try:
        yield
    finally:
        lives(name, math.inf)


@contextmanager
def running(loops: Iterable[Loop], stopping: threading.Event) -> Iterator[None]:
    """Each in a thread of its own; they have ended when this does, so `stopping` must be set by then. One that hangs is
    left behind, and ends with the process: what it had in hand is as that of a process that was killed."""
    threads = [threading.Thread(target=loop.run, args=(stopping,), name=loop.name, daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        until = time.monotonic() + _END_S
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                log.error("%s: hangs, and is left behind", thread.name)
