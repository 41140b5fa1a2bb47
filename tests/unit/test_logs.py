"""The log: one line a record, in words that are ours alone."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cxrnode import logs
from cxrnode.errors import ResultError, StoreError

SECRET = "DOE^JANE"
Say = Callable[[], object]


@contextmanager
def configured(form: str, level: str) -> Iterator[None]:
    """`logs.configure`, and everything as it was before afterwards."""
    root, hooks = logging.getLogger(), (sys.excepthook, threading.excepthook, sys.unraisablehook)
    handlers, level_before = list(root.handlers), root.level
    root.handlers = []
    try:
        logs.configure(form=form, level=level, stage="intake")
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers = handlers
        root.setLevel(level_before)
        for name in ("cxrnode", "engines", "__main__"):
            logging.getLogger(name).setLevel(logging.NOTSET)
        sys.excepthook, threading.excepthook, sys.unraisablehook = hooks


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    def written(say: Say, form: str = "json", level: str = "debug") -> list[str]:
        with configured(form, level):
            say()
        return capsys.readouterr().err.splitlines()

    return written


def failing(error: BaseException) -> Say:
    def say() -> None:
        try:
            try:
                raise ValueError(SECRET)
            except ValueError as cause:
                raise error from cause
        except type(error):
            logging.getLogger("cxrnode.test").exception("goes on")

    return say


def test_a_record_is_a_line_of_json(lines: Callable[..., list[str]]) -> None:
    log = logging.getLogger("cxrnode.intake")
    extra = {"sop_instance_uid": "1.2.3", "calling_aet": "PACS", "patient_name": SECRET}
    (line,) = lines(lambda: log.warning("refused %d", 1, extra=extra))
    record = json.loads(line)
    assert record.pop("time").endswith("Z")
    assert record == {
        "level": "warning", "stage": "intake", "logger": "cxrnode.intake", "message": "refused 1",
        "sop_instance_uid": "1.2.3", "calling_aet": "PACS",
    }  # fmt: skip


@pytest.mark.parametrize("form", ["text", "json"])
def test_nobody_else_writes_a_line(form: str, lines: Callable[..., list[str]]) -> None:
    log = logging.getLogger("cxrnode.intake")
    (line,) = lines(lambda: log.info("of 'A\nERROR forged\u2028\x1b[2J'"), form)
    assert not {"\x1b", "\u2028"} & set(line)


def test_the_level_is_that_of_our_own_loggers(lines: Callable[..., list[str]]) -> None:
    log = logging.getLogger("engines.load")
    assert lines(lambda: log.debug("a"), level="info") == []
    assert len(lines(lambda: log.info("b"), level="info")) == 1


@pytest.mark.parametrize("name", ["pydicom", "pynetdicom.acse", "py.warnings"])
def test_those_that_quote_are_silent(name: str, lines: Callable[..., list[str]]) -> None:
    assert lines(lambda: logging.getLogger(name).critical(SECRET)) == []


def test_of_others_the_place_is_told(lines: Callable[..., list[str]]) -> None:
    (line,) = lines(lambda: logging.getLogger("concurrent.futures").error(SECRET), "text")
    assert "concurrent.futures: said at test_logs.py:" in line
    assert SECRET not in line
    other = logging.getLogger("highdicom")
    other.setLevel(logging.DEBUG)
    assert lines(lambda: other.info(SECRET)) == []
    other.setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StoreError("the disk is away"), "StoreError: the disk is away"),
        (ResultError("Rows is empty"), "ResultError: Rows is empty"),
        (OSError(28, "No space left on device", SECRET), "OSError: No space left on device"),
        (KeyError(SECRET), "KeyError"),
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_an_error_is_one_line_without_what_it_quotes(
    error: BaseException, said: str, form: str, lines: Callable[..., list[str]]
) -> None:
    (line,) = lines(failing(error), form)
    assert f"{said} (test_logs.py:" in line
    assert "<- ValueError (test_logs.py:" in line
    assert SECRET not in line


def test_warnings_and_errors_that_nobody_catches() -> None:
    """In a process of its own: they end it, or a thread of it."""
    code = f"""
import threading, warnings
from cxrnode import logs
logs.configure(form="json", level="info", stage="deliver")
warnings.warn({SECRET!r})
def fail(): raise ValueError({SECRET!r})
class Bad:
    def __del__(self): fail()
bad = Bad(); del bad
thread = threading.Thread(target=fail, name="send pacs"); thread.start(); thread.join()
fail()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    records = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert [r["level"] for r in records] == ["error", "critical", "critical"]
    assert "send pacs" in records[1]["message"]
    assert all(r["exception"].startswith("ValueError (") and "<string>:" in r["exception"] for r in records)
    assert SECRET not in done.stderr + done.stdout
