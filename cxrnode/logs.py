"""The log of the node's processes: a line a record, as text or as JSON, without patient data at any level.

What our own loggers say is written so (rule 7). What others say (pydicom, pynetdicom, highdicom, SQLAlchemy, warnings)
may quote what they read, and so may the words of their exceptions: of those, at most the place is told.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from cxrnode.errors import CxrnodeError, Rejected
from cxrnode.printable import json_text, printable
from engines.base import EngineError

_OURS = frozenset({"cxrnode", "engines", "__main__"})  # the first part of a logger's name
# what matters of theirs is said by us, in words that quote nothing; "py" is where warnings go
_SILENT = frozenset({"pydicom", "pynetdicom", "py"})
# What may be given as `extra`: identifies an object, a peer or a number, never a patient
FIELDS = (
    "study_instance_uid", "sop_instance_uid", "calling_aet", "host", "destination", "status", "reason", "failures",
    "images", "studies",
)  # fmt: skip
_FRAMES = 8  # of a traceback, the innermost

log = logging.getLogger(__name__)


def configure(*, form: str, level: str, stage: str) -> None:
    """Log to stderr from now on. form: "text" or "json"; level: of our own loggers, as `logging` names it, any case.

    Errors that nobody catches, here or in a thread, and warnings go there too, in the same form.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter((_Json if form == "json" else _Text)(stage))
    handler.addFilter(_may_speak)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    set_level(level)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def begin_command() -> None:
    """For a command that is no node: what is warned of is a line of its words alone, on stderr.

    So are warnings and errors that nobody catches, of which nothing is told that may quote a patient.
    """
    if last := logging.lastResort:  # where nobody called `configure`
        last.setFormatter(_Plain())
        last.addFilter(_may_speak)
    warnings.formatwarning = _warned
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def set_level(level: str) -> None:
    """Of our own loggers, as `logging` names it, any case."""
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())


def words(error: BaseException) -> str:
    """What may be said of an error: its kind, and its words where they are ours, or the system's."""
    kind = type(error).__name__
    if isinstance(error, CxrnodeError | EngineError | Rejected):
        return f"{kind}: {error}"
    if isinstance(error, OSError) and error.strerror:
        return f"{kind}: {error.strerror}"
    return kind


def _may_speak(record: logging.LogRecord) -> bool:
    top = record.name.partition(".")[0]
    return top in _OURS or (top not in _SILENT and record.levelno >= logging.WARNING)


def _said(record: logging.LogRecord) -> str:
    if record.name.partition(".")[0] in _OURS:
        return record.getMessage()
    return f"said at {Path(record.pathname).name}:{record.lineno}; what, is left out: it may quote a patient"


def _told(record: logging.LogRecord) -> str:
    """The exception of a record with its causes, in one line; empty where there is none."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    return " <- ".join(f"{words(e)} ({_where(e.__traceback__)})" for e in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _where(trace: TracebackType | None) -> str:
    frames = traceback.extract_tb(trace)[-_FRAMES:]
    return " > ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames) or "no traceback"


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told = _told(record)
        return printable(f"{_said(record)}: {told}" if told else _said(record))


class _Text(logging.Formatter):
    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def format(self, record: logging.LogRecord) -> str:
        told = _told(record)
        line = f"{_time(record)} {record.levelname} {self._stage} {record.name}: {_said(record)}"
        return printable(f"{line}: {told}" if told else line)


class _Json(_Text):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "stage": self._stage,
            "logger": record.name,
            "message": _said(record),
        }
        line |= {k: record.__dict__[k] for k in FIELDS if k in record.__dict__}
        if told := _told(record):
            line["exception"] = told
        return json_text(line, default=str)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,  # noqa: ARG001
) -> str:
    return printable(f"{Path(filename).name}:{lineno}: {category.__name__}: {message}") + "\n"


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        log.critical("ended by an error that nothing here expects", exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread else "?"
        log.critical("the thread %s ended by an error that nothing here expects", name, exc_info=args.exc_value)


def _unraisable(args: Any) -> None:
    log.error("an error that nobody could be told of", exc_info=args.exc_value)
