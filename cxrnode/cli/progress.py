"""Progress: a bar with rate and time left on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cxrnode.cli.output import say
from cxrnode.words import counted

_LINE_EVERY_S = 5.0


class Silent:
    """--quiet."""

    def phase(self, name: str, total: int | None) -> None:
        pass

    def total(self, n: int) -> None:
        pass

    def advance(self, n: int) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """For logs: one line at the start and end of a phase, and one every few seconds between."""

    def __init__(self) -> None:
        self._name, self._total, self._done = "", None, 0  # type: tuple[str, int | None, int]
        self._started = self._said = time.monotonic()

    def phase(self, name: str, total: int | None) -> None:
        self.close()
        self._name, self._total, self._done = name, total, 0
        self._started = self._said = time.monotonic()

    def total(self, n: int) -> None:
        self._total = n

    def advance(self, n: int) -> None:
        self._done += n
        if time.monotonic() - self._said >= _LINE_EVERY_S:
            self._say()

    def close(self) -> None:
        if self._name:
            self._say()
        self._name = ""

    def _say(self) -> None:
        self._said = time.monotonic()
        rate = self._done / max(self._said - self._started, 1e-3)
        files = (
            counted(self._done, "file") if self._total is None else f"{self._done} of {counted(self._total, 'file')}"
        )
        left = ""
        if self._total and rate and self._done < self._total:
            left = f", {(self._total - self._done) / rate:.0f} s left"
        say(f"{self._name}: {files}, {rate:.1f}/s{left}", err=True)


class _Files(ProgressColumn):
    """How many so far; of how many, once that is known."""

    def render(self, task: Task) -> Text:
        done = int(task.completed)
        return Text(counted(done, "file") if task.total is None else f"{done}/{int(task.total)}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.1f}/s")


class Bar:
    """For people at a terminal."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            _Files(),
            _Rate(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._progress.start()
        self._task: TaskID | None = None

    def phase(self, name: str, total: int | None) -> None:
        if self._task is not None:  # a phase of unknown length is over now
            self._progress.update(self._task, total=self._progress.tasks[self._task].completed)
        self._task = self._progress.add_task(name, total=total)

    def total(self, n: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, total=n)

    def advance(self, n: int) -> None:
        if self._task is not None:
            self._progress.advance(self._task, n)

    def close(self) -> None:
        self._progress.stop()


def make_progress(*, quiet: bool) -> Silent | Lines | Bar:
    if quiet:
        return Silent()
    return Bar() if sys.stderr.isatty() else Lines()
