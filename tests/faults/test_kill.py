"""Killed at any moment and started again, the run ends as if it had never been interrupted."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from cxrnode.store import ledger
from cxrnode.store.database import Database
from tests.support.audit import faults
from tests.support.batch import command, objects, rows, run, studies

IDENTITY = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "SOPClassUID")


def end_state(out: Path) -> tuple[list[dict[str, str]], dict[str, list[str]]]:
    objects_ = {path: [str(ds[k].value) for k in IDENTITY] for path, ds in objects(out).items()}
    return rows(out), objects_


@pytest.mark.slow
def test_kill_9_at_many_moments_then_resume(tmp_path: Path) -> None:
    folder = studies(tmp_path / "in", 14, 2)
    options = ("--batch-size", "4", "--quiet")
    started = time.monotonic()
    assert run(folder, out=tmp_path / "whole", options=options).returncode == 0
    whole_s = time.monotonic() - started
    moments = [whole_s * f for f in (0.25, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8)]
    killed = 0
    for moment in moments:
        process = subprocess.Popen(command(folder, out=tmp_path / "killed", options=options))
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            workers = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
            _, alive = psutil.wait_procs(workers, timeout=10)
            assert not alive, "workers outlive a killed run"
    assert killed >= 4
    assert run(folder, out=tmp_path / "killed", options=options).returncode == 0
    (table, made), (whole_table, whole_made) = end_state(tmp_path / "killed"), end_state(tmp_path / "whole")
    assert made == whole_made
    for row, whole in zip(table, whole_table, strict=True):
        p = [k for k in row if k.startswith("p_")]  # who shares an image's batch moves the last decimal
        assert [float(row.pop(k)) for k in p] == pytest.approx([float(whole.pop(k)) for k in p], abs=5e-6)
        assert row == whole
    assert not list((tmp_path / "killed").rglob("*.part"))
    database = Database(tmp_path / "killed" / "ledger.sqlite")
    with database.begin() as c:
        assert faults(c) == []
        analysed = [e.detail["path"] for e in ledger.events(c) if e.kind == "analysed"]
    database.close()
    assert len(analysed) == len(set(map(str, analysed))) == 28


@pytest.mark.parametrize(
    ("number", "started"),
    [
        (signal.SIGINT, ("env", "--default-signal=INT")),
        (signal.SIGTERM, ("env", "--ignore-signal=INT")),  # as a script's `nohup cxrnode run-batch ... &` does
    ],
)
def test_interrupted_politely_it_says_so_and_resumes(
    tmp_path: Path, number: signal.Signals, started: tuple[str, ...]
) -> None:
    folder = studies(tmp_path / "in", 60)
    options = ("--batch-size", "2")
    process = subprocess.Popen(
        [*started, *command(folder, out=tmp_path / "out", options=options)], stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "out").glob("dicom/*/*.dcm")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in said
    assert "Traceback" not in said
    assert run(folder, out=tmp_path / "out", options=options).returncode == 0
    assert len(rows(tmp_path / "out")) == 60
