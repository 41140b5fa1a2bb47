"""/readyz sees an instance that was received whole and waits too long for its answer."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cxrnode import metrics, monitor
from cxrnode.audit.anchors import record_anchor, take_anchor
from cxrnode.config import load_config
from cxrnode.monitor import Monitor
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.supervisor import Supervisor
from tests.support.awaiting import await_true

# an intake with two instances in hand; each line that it reads ends the wait of one, the older first
STAGE = """
import sys, time
from cxrnode import metrics
metrics.begin("intake")
with metrics.answering():
    time.sleep(0.5)
    older = metrics.answering()
    older.__enter__()
    print("two", flush=True)
    sys.stdin.readline()
print("one", flush=True)
sys.stdin.readline()
older.__exit__(None, None, None)
print("none", flush=True)
sys.stdin.readline()
"""


def test_the_oldest_that_waits_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_UNANSWERED_S", 0.4)
    config = tmp_path / "cxrnode.toml"
    config.write_text('[node]\ndata_dir = "."\n')
    database = Database(tmp_path / "ledger.sqlite")
    with metrics.shared_folder(["intake"]) as folder:
        assert folder is not None
        watch = Monitor(
            config=load_config(config), database=database, measured=folder,
            supervisor=Supervisor(config=config, stages=["intake"]),
        )  # fmt: skip
        check = watch.checks["answers"]
        assert check() is None
        stage = subprocess.Popen(
            [sys.executable, "-c", STAGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert stage.stdin
        assert stage.stdout
        try:
            assert stage.stdout.readline() == "two\n"
            assert re.fullmatch(r"a stored instance has waited \d+ s for its answer", check() or "")
            stage.stdin.write("\n")
            assert stage.stdout.readline() == "one\n"
            await_true(check)  # the other has waited as long by now
            stage.stdin.write("\n")
            assert stage.stdout.readline() == "none\n"
            assert check() is None
            stage.stdin.write("\n")
            assert stage.wait(timeout=30) == 0
        finally:
            stage.kill()
            stage.wait()
            stage.stdin.close()
            stage.stdout.close()
            database.close()


def test_without_figures_nothing_is_said(tmp_path: Path) -> None:
    config = tmp_path / "cxrnode.toml"
    config.write_text('[node]\ndata_dir = "."\n')
    database = Database(tmp_path / "ledger.sqlite")
    watch = Monitor(
        config=load_config(config), database=database, supervisor=Supervisor(config=config, stages=["intake"])
    )
    assert watch.checks["answers"]() is None
    database.close()


def test_an_anchor_that_is_overdue_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "cxrnode.toml"
    config.write_text('[node]\ndata_dir = "."\n[audit]\nanchor_file = "anchors"\nanchor_every_hours = 24\n')
    database = Database(tmp_path / "ledger.sqlite")
    watch = Monitor(
        config=load_config(config), database=database, supervisor=Supervisor(config=config, stages=["deliver"])
    )
    warning = watch.warnings["anchor"]
    now = time.time()
    assert warning() is None, "there is nothing to anchor"
    with database.begin() as c:
        ledger.append(c, "received", actor="test")
        record_anchor(c, take_anchor(c), tmp_path / "anchors", actor="test")
    monkeypatch.setattr(time, "time", lambda: now + 30 * 3600)
    assert warning() is None, "nothing came after it"
    with database.begin() as c:
        ledger.append(c, "received", actor="test")
    assert warning() == "the newest anchor of the ledger is 30 hours old (the log says why)"
    monkeypatch.setattr(time, "time", lambda: now + 24 * 3600)
    assert warning() is None
    database.close()
