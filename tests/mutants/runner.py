"""Runs the tests over one mutant after another, in a copy of the tree that is its own: python tests/mutants/runner.py

Each line of standard input is a job, each line of standard output its answer (JSON). The libraries are imported once,
and each job is a fork: importing them would take longer than most tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

import highdicom  # noqa: F401 (imported for the forks)
import numpy as np  # noqa: F401
import pynetdicom  # noqa: F401
import pytest
import sqlalchemy  # noqa: F401

_OPTIONS = ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:randomly", "--hypothesis-seed=0", "--tb=short"]


class _Reached:
    """Which test runs which lines of the files (in this process), and how long it takes."""

    def __init__(self, files: list[str]) -> None:
        self._files = {str(Path(f).resolve()): f for f in files}
        self._test = ""
        self.lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.seconds: dict[str, float] = {}

    def _enter(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        file = self._files.get(frame.f_code.co_filename)
        return self._line(self.lines[file]) if file else None

    def _line(self, lines: dict[int, set[str]]) -> Any:
        def seen(frame: FrameType, _event: str, _arg: Any) -> Any:
            lines[frame.f_lineno].add(self._test)
            return seen

        return seen

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self._test, began = item.nodeid, time.monotonic()
        threading.settrace(self._enter)
        sys.settrace(self._enter)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self.seconds[item.nodeid] = time.monotonic() - began


class _Chosen:
    """Only these tests, in this order; all where none is named."""

    def __init__(self, tests: list[str]) -> None:
        self._place = {test: n for n, test in enumerate(tests)}
        self.failed: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._place:
            items[:] = sorted((i for i in items if i.nodeid in self._place), key=lambda item: self._place[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    reached, chosen = _Reached(job["files"]), _Chosen(job["chosen"])
    plugins: list[object] = [chosen, *([reached] if job["files"] else [])]
    try:
        code = int(pytest.main([*_OPTIONS, *job["options"], f"--basetemp={job['basetemp']}", *job["tests"]], plugins))
    except Exception:  # noqa: BLE001 (of pytest's own end: a warning of something that was never closed)
        code = 1
    lines = {file: {n: sorted(tests) for n, tests in found.items()} for file, found in reached.lines.items()}
    return {"code": code, "failed": chosen.failed, "lines": lines, "seconds": reached.seconds}


def _child(job: dict[str, Any], answer: Path) -> None:
    os.setsid()
    log = os.open(job["log"], os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    null = os.open(os.devnull, os.O_RDONLY)
    for to, fd in ((0, null), (1, log), (2, log)):
        os.dup2(fd, to)
    answer.write_text(json.dumps(_run(job)))


def _wait(pid: int, timeout: float) -> bool:
    """Whether it ended in time; what it left running is ended with it."""
    until = time.monotonic() + timeout
    while not (ended := os.waitpid(pid, os.WNOHANG)[0]) and time.monotonic() < until:
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if not ended:
        os.waitpid(pid, 0)
    return bool(ended)


def main() -> None:
    answer = Path("answer.json").resolve()
    for line in sys.stdin:
        job = json.loads(line)
        answer.unlink(missing_ok=True)
        began = time.monotonic()
        pid = os.fork()
        if not pid:
            try:
                _child(job, answer)
            except BaseException:  # noqa: BLE001 (the fork ends here whatever comes)
                traceback.print_exc()
            finally:
                os._exit(0)
        in_time = _wait(pid, job["timeout"])
        result = (
            json.loads(answer.read_text())
            if answer.exists()
            else {"code": -1, "failed": [], "lines": {}, "seconds": {}}
        )
        result |= {"timed_out": not in_time, "wall": time.monotonic() - began}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
