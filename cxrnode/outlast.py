"""The analyse stage through trouble of the database, the disk or the workers: it waits, and goes on by itself.

What was in hand is handed back as soon as the database is there again, and counts as no attempt of any image: only the
death of a process may be an image's doing, and this one lives. The engine stays as it is.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cxrnode.analyse import Analyser
from cxrnode.errors import CxrnodeError, DataDirAwayError, StorageFullError, StoreError
from cxrnode.pool import NoWorkerError
from cxrnode.store import unclaimed

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 5.0  # doubled with each failure in a row
_SETTLED_S = 10.0  # what worked so long was no failure in a row

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Outlast:
    """Runs an Analyser, and another one after each trouble.

    make: the next Analyser, whose commits are told to `worked`: nothing else shows that a full disk has room again.
    notes: where what cannot be handed back at the end is kept for the next start; None: that one frees every claim.
    on_full: called each time that the disk turns out to be full. most_s: how long trouble may last.
    """

    make: Callable[[], Analyser]
    stopping: threading.Event = field(default_factory=threading.Event)
    notes: Path | None = None
    outlasts: tuple[type[CxrnodeError], ...] = (StoreError, StorageFullError, NoWorkerError)
    on_full: Callable[[], None] = lambda: None
    most_s: float = math.inf
    _waits_since: float | None = None  # monotonic seconds
    _failures: int = 0  # in a row
    _is_full: bool = False  # the disk, as far as is known

    def run(self) -> None:
        """Until an Analyser has come to its end, or `stopping` is set. Raises what is no such trouble."""
        while True:
            held, began = self.make(), time.monotonic()
            try:
                held.run()
            except self.outlasts as e:
                if time.monotonic() - began > _SETTLED_S:
                    self._failures = 0
                self._failed(e, held)
            except BaseException:
                self._leave(held)
                raise
            else:
                return
            if not self._handed_back(held):
                return

    def worked(self) -> None:
        """Something was committed: whatever it waited for is there."""
        if self._waits_since is not None:
            log.info("analyse goes on, after %.0f s", time.monotonic() - self._waits_since)
            self._waits_since = None

    def _handed_back(self, held: Analyser) -> bool:
        """Once that is possible; False where the stage is to stop first."""
        while not self.stopping.wait(min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(self._failures - 1, 10))):
            try:
                held.hand_back()
            except self.outlasts as e:
                self._failed(e, held)
            else:
                if not self._is_full:
                    self.worked()
                return True
        self._leave(held)
        return False

    def _failed(self, error: CxrnodeError, held: Analyser) -> None:
        """Raises it where it has lasted too long."""
        self._failures += 1
        self._is_full = isinstance(error, StorageFullError)
        if self._is_full:
            self.on_full()
        now = time.monotonic()
        if self._waits_since is None:
            self._waits_since = now
            log.error("analyse waits for %s, and then goes on by itself: %s", _awaited(error), error)
        if now - self._waits_since > self.most_s:
            self._leave(held)
            raise error

    def _leave(self, held: Analyser) -> None:
        """At the end, whatever it was: what is in hand is handed back, now or by the next start."""
        try:
            held.hand_back()
        except (StoreError, StorageFullError):
            if self.notes:
                with suppress(StorageFullError):  # then this once the attempt counts
                    unclaimed.leave(self.notes, held.owner, held.job_ids)


def _awaited(error: CxrnodeError) -> str:
    awaited = {StorageFullError: "room", NoWorkerError: "workers", DataDirAwayError: "the data folder"}
    return next((what for kind, what in awaited.items() if isinstance(error, kind)), "the database")
