"""A run is complete only with a row for every scanned item and the objects of every analysed image; else it says so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import delete, select
from typer.testing import CliRunner

from cxrnode import batch
from cxrnode.analyse import Analyser
from cxrnode.cli.main import app
from cxrnode.store.database import LEDGER_NAME
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


ONE = dict.fromkeys(("not_analysed", "duplicate", "failed"), 0)
CLAIM = """
import sys, time
from pathlib import Path
from cxrnode.store.database import Database
from cxrnode.store.queue import Lease, Queue
database, queue = Database(Path(sys.argv[1])), Queue("second")
def lease():
    return Lease(owner="second", now=time.time(), seconds=19)
with database.begin() as c:
    print(len(queue.claim(c, lease(), limit=1, idle=True)), flush=True)
while True:
    time.sleep(0.5)
    with database.begin() as c:
        queue.heartbeat(c, lease())
"""


def test_what_a_killed_process_holds_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run that meets its claim says so; the next one has the folder to itself, and takes it back."""
    studies(tmp_path / "in", 2, size=(128, 128))
    analyse, ledger = Analyser.run, tmp_path / "out" / LEDGER_NAME

    def beside_another(self: Analyser) -> None:
        second = subprocess.Popen([sys.executable, "-c", CLAIM, str(ledger)], stdout=subprocess.PIPE, text=True)
        assert second.stdout
        assert second.stdout.readline() == "1\n"
        try:
            analyse(self)
        finally:
            second.kill()
            second.communicate()

    with monkeypatch.context() as patched:
        patched.setattr(Analyser, "run", beside_another)
        code, stderr, summary = run(tmp_path)
    assert (code, summary["state"], summary["missing"]) == (1, "incomplete", ["1 image without an outcome"])
    assert "INCOMPLETE: 1 image without an outcome" in stderr
    assert summary["outcomes"] == ONE | {"analysed": 1}
    code, _, summary = run(tmp_path)
    assert (code, summary["state"], summary["missing"]) == (0, "complete", [])
    assert summary["outcomes"] == ONE | {"analysed": 2}


def test_what_is_whole_is_complete(tmp_path: Path) -> None:
    studies(tmp_path / "in", 2, size=(128, 128))
    code, stderr, summary = run(tmp_path)
    assert (code, summary["state"], summary["missing"], stderr) == (0, "complete", [], "")


def test_files_that_were_cut_off_are_whole_after_the_next_run(tmp_path: Path) -> None:
    """Nothing is read back from them: they say what the database holds."""
    studies(tmp_path / "in", 1, size=(128, 128))
    assert run(tmp_path)[0] == 0
    table = (tmp_path / "out" / "results.csv").read_bytes()
    for name in ("results.csv", "run.json"):
        with (tmp_path / "out" / name).open("r+b") as f:
            f.truncate(40)
    assert run(tmp_path)[2]["state"] == "complete"
    assert (tmp_path / "out" / "results.csv").read_bytes() == table
