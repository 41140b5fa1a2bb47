"""Checks that may hang: asked on a thread of their own, and answered in time whatever they do.

    asked = Asked({"reasons": {"database": ..., "disk": ...}, "warnings": {...}})
    asked()         # {"reasons": {"database": "no answer for 4 s"}, "warnings": {}}

A round that hangs goes on; until it ends nobody starts another, so there is never more than one thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

WITHIN_S = 4.0  # a probe waits for five, as a rule

Checks = Mapping[str, Callable[[], str | None]]  # None where all is well, else why not, in words that may be shown
log = logging.getLogger(__name__)


class _Round:
    """Each check once, in order; read it from any thread."""

    def __init__(self, groups: Mapping[str, Checks]) -> None:
        self._groups = groups
        self._found: dict[str, dict[str, str]] = {group: {} for group in groups}
        self._asking: tuple[str, str] | None = None
        self._lock = threading.Lock()
        self.since = time.monotonic()  # when the one that is being asked was put
        self.ended = threading.Event()

    def run(self) -> None:
        for group, checks in self._groups.items():
            for name, check in checks.items():
                with self._lock:
                    self._asking, self.since = (group, name), time.monotonic()
                reason = _ask(name, check)
                with self._lock:
                    self._asking = None
                    if reason is not None:
                        self._found[group][name] = reason
        self.ended.set()

    def found(self) -> dict[str, dict[str, str]]:
        """What is known by now; of the check that has not answered yet, that it has not."""
        with self._lock:
            found = {group: dict(reasons) for group, reasons in self._found.items()}
            if self._asking:
                group, name = self._asking
                found[group][name] = f"no answer for {time.monotonic() - self.since:.0f} s"
        return found


class Asked:
    """groups: name -> checks, in the order in which they are asked: first what cannot hang."""

    def __init__(self, groups: Mapping[str, Checks], *, within_s: float = WITHIN_S) -> None:
        self._groups = groups
        self._within_s = within_s
        self._lock = threading.Lock()
        self._round: _Round | None = None

    def __call__(self) -> dict[str, dict[str, str]]:
        """Group -> name -> why it is not well, `within_s` at most after the call.

        Whoever comes while a round is under way waits for the next one, which sees what happened before the call.
        """
        until = time.monotonic() + self._within_s
        while True:
            mine, asked = self._next()
            if not asked.ended.wait(self._patience(asked, until)) or mine:
                return asked.found()

    def _next(self) -> tuple[bool, _Round]:
        """(whether it was begun for this caller, a round)"""
        with self._lock:
            if self._round and not self._round.ended.is_set():
                return False, self._round
            self._round = _Round(self._groups)
            threading.Thread(target=self._round.run, name="checks", daemon=True).start()
            return True, self._round

    def _patience(self, asked: _Round, until: float) -> float:
        """None with a check that has hung for long already."""
        return max(0.0, min(until, asked.since + self._within_s) - time.monotonic())


def _ask(name: str, check: Callable[[], str | None]) -> str | None:
    """Why it is not well; a check that raises is not."""
    try:
        return check()
    except Exception as e:  # noqa: BLE001 (a check that fails is a reason; its text might hold a secret)
        log.warning("the check %s failed: %s", name, type(e).__name__)
        return f"the check failed: {type(e).__name__}"
