"""Standard output and error as they are in practice: narrow, piped, closed half-way, in another encoding than UTF-8.

All that a command prints goes through here, so that no name from outside acts on the terminal or forges a line.
"""

from __future__ import annotations

import errno
import io
import os
import select
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from cxrnode.printable import printable

_WIDE = 160  # columns where nobody says how wide it is: a file, a pipe
_PIPE_CLOSED = 128 + 13  # what a shell says of a program that SIGPIPE ended, as it ends the usual tools
_Usage: type[Any] = typer.BadParameter.__mro__[2]  # ClickException, of the click that typer brings


class Group(TyperGroup):
    """A command: a reader of its output that goes away (`| head`) ends it without a word."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        with _usage_is_printable():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        with _usage_is_printable():
            return self._invoke(ctx)

    def _invoke(self, ctx: Any) -> Any:
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
            say(f"error: cannot write the output: {e.strerror}", err=True)
            raise typer.Exit(1) from None


@contextmanager
def _usage_is_printable() -> Iterator[None]:
    """What typer says of an argument quotes it."""
    try:
        yield
    except _Usage as e:
        e.message = printable(e.message)
        raise


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


# --- what is said -----------------------------------------------------------------------------------------------------


def say(text: str, *, err: bool = False) -> None:
    """One line of it, whatever is in it; to standard error with `err`."""
    stream = sys.stderr if err else sys.stdout
    if stream is not None:
        stream.write(f"{printable(text)}\n")
        stream.flush()


def say_error(error: Exception, more: str = "") -> None:
    """Each of an error's messages on a line of its own."""
    first, *others = map(str, error.args)
    say(f"error: {first}{more}", err=True)
    for text in others:
        say(f"  {text}", err=True)


def say_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """The first column is never broken."""
    table = Table(*columns)
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)


def exact() -> TextIO:
    """Standard output for what is printable by its own form: `json_text`, `write_csv`, an export."""
    return sys.stdout


# --- lines for people -------------------------------------------------------------------------------------------------


def width() -> int:
    """Columns of the terminal, or what COLUMNS says."""
    known = sys.stdout is not None and sys.stdout.isatty()
    return shutil.get_terminal_size().columns if known or os.environ.get("COLUMNS") else _WIDE


def shown(text: str) -> str:
    """As it will stand there: what acts, and what the terminal's encoding lacks, as an escape."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)


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
