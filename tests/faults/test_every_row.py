"""Every film that was scanned has its row and its objects, however the threads are timed and whatever else runs."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.batch import command, rows, studies

# an hour's proof: CXRNODE_ROWS_FILMS=300 CXRNODE_ROWS_RUNS=20
FILMS, RUNS = int(os.environ.get("CXRNODE_ROWS_FILMS", "60")), int(os.environ.get("CXRNODE_ROWS_RUNS", "1"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studies(tmp_path_factory.mktemp("rows") / "in", FILMS, size=(160, 144))


def spin() -> None:
    while True:
        pass


@contextmanager
def load() -> Iterator[None]:
    """Two busy neighbours a core."""
    context = multiprocessing.get_context("spawn")
    busy = [context.Process(target=spin, daemon=True) for _ in range(2 * (os.cpu_count() or 1))]
    for process in busy:
        process.start()
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.join()


def check_run(archive: Path, out: Path, *, module: str) -> None:
    line = command(archive, out=out, options=("--quiet",))
    line[2] = module
    assert line[:3] == [sys.executable, "-m", module]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    found = rows(out)
    assert (done.returncode, len(found)) == (0, FILMS), done.stderr
    assert {row["outcome"] for row in found} == {"analysed"}
    assert all((out / row[kind]).is_file() for row in found for kind in ("sr", "capture"))
    assert json.loads((out / "run.json").read_text())["state"] == "complete"


@pytest.mark.parametrize("n", range(RUNS))
def test_under_a_thread_that_is_held_up_between_two_questions(archive: Path, tmp_path: Path, n: int) -> None:
    check_run(archive, tmp_path / "out", module="tests.support.paused")


@pytest.mark.parametrize("n", range(RUNS))
def test_under_load(archive: Path, tmp_path: Path, n: int) -> None:
    with load():
        check_run(archive, tmp_path / "out", module="cxrnode")
