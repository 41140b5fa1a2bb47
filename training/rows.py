"""Labelled images as a data folder lists them, and the CSV that most folders list them in."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from training.recipe import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One labelled image."""

    image: str  # its name in all that is written: of a DICOM file its UID, for its path may hold a patient's name
    path: Path
    dicom: bool = False
    label: str
    source: str
    group: str
    age: float | None = None  # years
    part: str = ""  # "": the split decides
    license: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A file of the folder that is no row, and why."""

    image: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    rows: list[Row] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def read_table(path: Path, required: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a CSV in UTF-8, with a byte order mark or without, parted by commas, semicolons or tabs.

    Names of columns in lower case; all values stripped. Raises RecipeError: another encoding, a column that is not
    there, a row of another length, no row.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as e:
        raise RecipeError(f"cannot read {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise RecipeError(f"{path} is not UTF-8 (byte {e.start}): save it as CSV UTF-8") from e
    separator = max(",;\t", key=text.partition("\n")[0].count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows = []
    try:
        head = [name.strip().lower() for name in next(lines, [])]
        if missing := set(required) - set(head):
            lacks = f"has no column {', '.join(sorted(missing))}"
            raise RecipeError(f"{path} {lacks if text.strip() else 'is empty'}")
        for line in lines:
            if any(line) and len(line) != len(head):
                raise RecipeError(f"line {lines.line_num} of {path} has {len(line)} values, its head {len(head)} names")
            if any(line):
                rows.append(dict(zip(head, (cell.strip() for cell in line), strict=True)))
    except csv.Error as e:
        raise RecipeError(f"line {lines.line_num} of {path} is no CSV: {e}") from e
    if not rows:
        raise RecipeError(f"{path} is empty: it has a head and no row")
    return rows


def inside(table: Path, name: str) -> str:
    """`name` where it can only lie below the folder: checked before it becomes a path, on any system."""
    path = PureWindowsPath(name)  # takes both slashes for separators
    if not name or "\0" in name or path.anchor or ".." in path.parts:
        raise RecipeError(f"{table} names the image '{name}', which is not below the data folder: give its path there")
    return name


def few(names: Sequence[str]) -> str:
    """The first of them, for a message."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def counted(left_out: Sequence[LeftOut]) -> str:
    """How many are left out, by reason."""
    reasons = [x.reason for x in left_out]
    return ", ".join(f"{reasons.count(reason)} {reason}" for reason in sorted(set(reasons)))
