"""A run whose SQLite file somebody else holds for a while, longer than one transaction waits: it goes on by itself."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

from tests.support.awaiting import await_true
from tests.support.batch import command, rows, studies
from tests.support.sqlite import locked

WAITS = "analyse waits for the database, and then goes on by itself"


def claims(ledger: Path) -> bool:
    if not ledger.exists():
        return False
    try:
        with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as c:
            return bool(c.execute("SELECT 1 FROM job WHERE state = 'claimed'").fetchone())
    except sqlite3.OperationalError:  # it has no tables yet
        return False


def test_a_run_goes_on_when_its_database_is_no_longer_locked(tmp_path: Path) -> None:
    folder, out = studies(tmp_path / "in", 20, 2), tmp_path / "out"
    process = subprocess.Popen(command(folder, out=out, options=("--quiet",)), stderr=subprocess.PIPE, text=True)
    try:
        await_true(lambda: claims(out / "ledger.sqlite"), every_s=0)
        with locked(out / "ledger.sqlite"):
            time.sleep(16.0)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert said.count(WAITS) == 1, said
    assert {row["outcome"] for row in rows(out)} == {"analysed"}
    assert json.loads((out / "run.json").read_text())["state"] == "complete"
