"""A run is complete only with a row for every scanned item and the objects of every analysed image; else it says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import delete, select
from typer.testing import CliRunner

from cxrnode import batch
from cxrnode.cli.main import app
from cxrnode.store.queue import Queue
from cxrnode.store.schema import instance, job, result
from tests.support.batch import studies


def run(tmp_path: Path) -> tuple[int, str, dict[str, object]]:
    done = CliRunner().invoke(app, ["run-batch", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--quiet"])
    return done.exit_code, done.stderr, json.loads((tmp_path / "out" / "run.json").read_text())


def lose_a_row(b: batch.BatchRun) -> None:
    with b.database.begin() as c:
        last = c.execute(select(instance.c.id).order_by(instance.c.id.desc()).limit(1)).scalar_one()
        c.execute(delete(result).where(result.c.instance_id == last))
        c.execute(delete(job).where(job.c.id == last))
        c.execute(delete(instance).where(instance.c.id == last))


def lose_a_capture(b: batch.BatchRun) -> None:
    with b.database.begin() as c:
        c.execute(delete(result).where(result.c.kind == "capture"))


def lose_a_report(b: batch.BatchRun) -> None:
    with b.database.begin() as c:
        c.execute(delete(result).where(result.c.kind == "sr"))


def lose_a_file(b: batch.BatchRun) -> None:
    next(b.options.out.rglob("sr-*.dcm")).unlink()


def reopen_a_job(b: batch.BatchRun) -> None:
    with b.database.begin() as c:
        Queue("test").retry(c, [1])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lose_a_row, "1 image scanned and not in the database"),
        (lose_a_capture, "2 images analysed and without a capture"),
        (lose_a_report, "2 images analysed and without a report"),
        (lose_a_file, "1 result file gone from"),
        (reopen_a_job, "1 image without an outcome"),
    ],
)
def test_what_is_missing_is_said(
    fault: Callable[[batch.BatchRun], None], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies(tmp_path / "in", 2, size=(128, 128))
    analyse = batch.BatchRun._analyse

    def sabotaged(self: batch.BatchRun, *args: object) -> None:
        analyse(self, *args)  # type: ignore[arg-type]
        fault(self)

    monkeypatch.setattr(batch.BatchRun, "_analyse", sabotaged)
    code, stderr, summary = run(tmp_path)
    assert (code, summary["state"]) == (1, "incomplete")
    assert f"INCOMPLETE: {said}" in stderr
    assert said in str(summary["missing"])


def test_what_is_whole_is_complete(tmp_path: Path) -> None:
    studies(tmp_path / "in", 2, size=(128, 128))
    code, stderr, summary = run(tmp_path)
    assert (code, summary["state"], summary["missing"], stderr) == (0, "complete", [], "")
