"""Archives of synthetic chests, and `cxrnode run-batch` over them as a user runs it: in a process of its own."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

from pydicom import Dataset, dcmread

from tests.support.make_dicom import chest, write


def command(*archives: Path, out: Path, options: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, "-m", "cxrnode", "run-batch", *map(str, archives), "--out", str(out), *options]


def run(*archives: Path, out: Path, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONWARNINGS": "default", "COLUMNS": "200"}
    return subprocess.run(
        command(*archives, out=out, options=options), capture_output=True, text=True, check=False, env=environment
    )


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def by_name(out: Path) -> dict[str, dict[str, str]]:
    return {Path(row["path"]).name: row for row in rows(out)}


def objects(out: Path) -> dict[str, Dataset]:
    """Every DICOM file in the output, by its path relative to it."""
    return {p.relative_to(out).as_posix(): dcmread(p) for p in sorted((out / "dicom").rglob("*")) if p.is_file()}


def studies(folder: Path, count: int, images: int = 1, *, size: tuple[int, int] = (256, 220)) -> Path:
    """`count` studies of `images` chests each, every film another one."""
    for study in range(count):
        for image in range(images):
            seed = study * images + image
            ids = (f"1.2.826.0.1.{study + 1}", f"1.2.826.0.1.{study + 1}.1", f"1.2.826.0.1.{study + 1}.1.{image + 1}")
            write(chest(*size, seed=seed, uids=ids), folder / f"s{study:03}" / f"i{image}")
    return folder
