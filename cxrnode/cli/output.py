"""Standard output and error as they are in practice: narrow, piped, closed half-way, in another encoding than UTF-8."""

from __future__ import annotations

import errno
import io
import os
import select
import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import Any, TextIO

import typer
from rich.cells import cell_len, set_cell_size
from typer.core import TyperGroup

_WIDE = 160  # columns where nobody says how wide it is: a file, a pipe
_PIPE_CLOSED = 128 + 13  # what a shell says of a program that SIGPIPE ended, as it ends the usual tools


class Group(TyperGroup):
    """The `cxrnode` command: a reader of its output that goes away (`| head`) ends it without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                flush()
        except OSError as e:
            if e.errno == errno.EPIPE and (gone := [s for s in _streams() if _reader_is_gone(s)]):
                _silence(gone)
                raise typer.Exit(_PIPE_CLOSED) from None
            if _can_be_written():
                raise
            _silence([sys.stdout])
            sys.stderr.write(f"error: cannot write the output: {e.strerror}\n")
            raise typer.Exit(1) from None


def prepare() -> None:
    """What the terminal's encoding lacks (a path in kanji, in latin-1) is printed as an escape, and ends nothing."""
    for stream in _streams():
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _can_be_written() -> bool:
    try:
        sys.stdout.write("\n")
        flush()
    except OSError:
        return False
    return True


def _silence(streams: Iterable[TextIO]) -> None:
    """What is left in them goes nowhere, at the interpreter's end too."""
    for stream in streams:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _streams() -> list[TextIO]:
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]


def _reader_is_gone(stream: TextIO) -> bool:
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


# --- lines for people -------------------------------------------------------------------------------------------------


def width() -> int:
    """Columns of the terminal, or what COLUMNS says."""
    known = sys.stdout is not None and sys.stdout.isatty()
    return shutil.get_terminal_size().columns if known or os.environ.get("COLUMNS") else _WIDE


def shown(text: str) -> str:
    """As it will stand there: what the terminal's encoding lacks, as an escape."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def cut(text: str, columns: int) -> str:
    """`text` in so many columns: of what is longer, the middle is left out, for a path tells most at its ends."""
    if cell_len(text) <= columns:
        return text
    end = text[-columns * 2 // 3 :]
    while cell_len(end) > (columns - 1) * 2 // 3:
        end = end[1:]
    return set_cell_size(text, columns - 1 - cell_len(end)) + "~" + end


def padded(text: str, columns: int) -> str:
    """`text` in exactly so many columns."""
    return set_cell_size(cut(text, columns), columns)


def flow(fields: Iterable[str], *, columns: int, indent: int) -> list[str]:
    """The fields two blanks apart; one that does not fit there is on a line of its own, indented, or on several."""
    lines: list[str] = []
    for field in filter(None, fields):
        if lines and cell_len(lines[-1]) + 2 + cell_len(field) <= columns:
            lines[-1] += f"  {field}"
        else:
            lines += indented(field, columns=columns, indent=indent if lines else 0)
    return lines


def indented(text: str, *, columns: int, indent: int) -> list[str]:
    """`text` on as many lines as it takes, broken between words where that can be."""
    blanks = " " * indent
    return textwrap.wrap(
        text, max(columns, indent + 20), initial_indent=blanks, subsequent_indent=blanks, break_on_hyphens=False
    )
