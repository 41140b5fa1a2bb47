"""Killed at any moment and started again, the run ends as if it had never been interrupted."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import tarfile
import time
import zipfile
from contextlib import closing
from io import BytesIO
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


def ended_alike(killed: Path, whole: Path) -> None:
    (table, made), (whole_table, whole_made) = end_state(killed), end_state(whole)
    assert made == whole_made
    for row, undisturbed in zip(table, whole_table, strict=True):
        p = [k for k in row if k.startswith("p_")]  # who shares an image's batch moves the last decimal
        assert [float(row.pop(k) or 0) for k in p] == pytest.approx(
            [float(undisturbed.pop(k) or 0) for k in p], abs=5e-6
        )
        assert row == undisturbed


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
    ended_alike(tmp_path / "killed", tmp_path / "whole")
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


@pytest.mark.slow
def test_killed_as_soon_as_it_scans_it_gets_on_each_time(tmp_path: Path) -> None:
    """Each time with the first commit that it makes, in a folder, in a tar and in a zip."""
    folder, options = studies(tmp_path / "in", 6, 2, size=(128, 128)), ("--quiet",)
    with tarfile.open(folder / "many.tar", "w") as tar, zipfile.ZipFile(folder / "more.zip", "w") as more:
        for n in range(300):
            member = tarfile.TarInfo(f"{n}")
            member.size = 9
            tar.addfile(member, BytesIO(b"no image\n"))
            more.writestr(f"{n}", "no image")
        film = folder / "s000" / "i0"
        tar.add(film, "copy")
        more.write(film, "copy")
    assert run(folder, out=tmp_path / "whole", options=options).returncode == 0
    counted = [0]
    while counted[-1] < 614:
        process = subprocess.Popen(command(folder, out=tmp_path / "killed", options=options))
        while (now := scanned(tmp_path / "killed")) == counted[-1] and process.poll() is None:
            time.sleep(0.005)
        assert now > counted[-1], f"after {counted} it gets no further"
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        psutil.wait_procs(workers, timeout=10)
        counted.append(scanned(tmp_path / "killed"))
    assert len(counted) > 4
    assert run(folder, out=tmp_path / "killed", options=options).returncode == 0
    ended_alike(tmp_path / "killed", tmp_path / "whole")


def scanned(out: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{out}/ledger.sqlite?mode=ro", uri=True)) as c:
            return int(c.execute("SELECT count(*) FROM instance").fetchone()[0])
    except sqlite3.Error:  # not there yet
        return 0
