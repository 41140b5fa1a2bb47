"""Whether a stage can write what it must: what failed is remembered until it succeeds.

A disk may have room for a probe and not for a film, a database may answer and have no room for a row: only what was
tried tells. A stage that failed tries again by itself, with a file as large as the one that failed and a record of the
ledger, so that the node is ready again before the next study comes.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cxrnode import metrics
from cxrnode.errors import StorageFullError, StoreError
from cxrnode.loops import Loop
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.spool import storage_errors

FILES, ROWS = "files", "rows"
_POLL_S = 2.0
_LEAST_BYTES = 1 << 20  # of a file that proves that there is room


@dataclass(slots=True, kw_only=True)
class Writable:
    """Of one stage; from any thread. watermark_bytes: what is to be free beside the file."""

    stage: str
    database: Database
    data_dir: Path
    watermark_bytes: int = 0
    _since: dict[str, float] = field(default_factory=dict)  # what fails -> monotonic seconds
    _largest: int = _LEAST_BYTES  # file that failed
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.database.on_write = self._on_write
        for what in (FILES, ROWS):
            metrics.not_written(what, 0.0)  # of an earlier process

    def failed(self, what: str, *, size_bytes: int = 0) -> None:
        """size_bytes: of the file, where there was one."""
        with self._lock:
            self._largest = max(self._largest, size_bytes)
            if what not in self._since:
                self._since[what] = time.monotonic()
                metrics.not_written(what, self._since[what])

    def succeeded(self, what: str) -> None:
        if what not in self._since:  # as ever: costs no lock
            return
        with self._lock:
            if self._since.pop(what, None) is not None:
                metrics.not_written(what, 0.0)
            if what == FILES:
                self._largest = _LEAST_BYTES

    def loop(self) -> Loop:
        """Proves, while something fails, that it no longer does."""

        def step() -> float:
            for what, since in dict(self._since).items():
                self._try(what, time.monotonic() - since)
            return _POLL_S

        return Loop(name="writes", step=step)

    def _try(self, what: str, seconds: float) -> None:
        try:
            if what == FILES:
                prove_file(self.data_dir, f".proof-{self.stage}", self._largest, free_bytes=self.watermark_bytes)
            with self.database.begin() as c:
                ledger.append(c, "writes_resumed", actor=self.stage, what=what, seconds=round(seconds, 1))
        except (StoreError, StorageFullError):
            return
        self.succeeded(what)

    def _on_write(self, written: bool) -> None:
        (self.succeeded if written else self.failed)(ROWS)


def prove_file(folder: Path, name: str, size_bytes: int, *, free_bytes: int = 0) -> None:
    """Make a file of this size and delete it again, with so much free beside it. Raises StorageFullError."""
    path = folder / name
    with storage_errors(path):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, max(1, size_bytes))
            free = shutil.disk_usage(folder).free
        finally:
            os.close(fd)
            path.unlink(missing_ok=True)
    if free < free_bytes:
        raise StorageFullError(f"{folder} has {free >> 20} MB free: make room")


def failing(states: Mapping[tuple[str, str], float], now: float) -> str | None:
    """(stage, what) -> since when it fails, in monotonic seconds, or 0: in words, or None where all is well."""
    fails = [(stage, what, now - since) for (stage, what), since in sorted(states.items()) if since]
    said = [f"{stage} could not write {what} for {seconds:.0f} s" for stage, what, seconds in fails]
    return f"{'; '.join(said)} (tried again; the log says why)" if said else None
