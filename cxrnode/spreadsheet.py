"""CSV for people who open it in a spreadsheet, which would take what peers and files name themselves for formulas."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Mapping
from typing import TextIO

from cxrnode.printable import printable

# How a formula begins (OWASP, CSV Injection), in full width too
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def write_csv(f: TextIO, columns: Collection[str], rows: Iterable[Mapping[str, object]], *, header: bool = True) -> int:
    """How many rows were written: columns that one lacks are empty, others left out.

    Text like a formula gets a leading apostrophe, which spreadsheets take for 'this is text'. What acts on a terminal,
    and newlines, are escapes (see `printable`), so that a row is a line.
    """
    writer, written = csv.DictWriter(_Lines(f), columns, restval="", extrasaction="ignore"), 0
    if header:
        writer.writeheader()
    for row in rows:
        writer.writerow({name: _harmless(value) for name, value in row.items()})
        written += 1
    return written


class _Lines:
    """Rows that end as lines do here, from a writer that ends them with CR LF: it quotes no CR but of its line end."""

    def __init__(self, f: TextIO) -> None:
        self._f = f

    def write(self, row: str) -> int:
        return self._f.write(row.removesuffix("\r\n") + "\n")


def _harmless(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text
