"""A long-lived thread survives what its step raises, tries again with back-off, and is seen to live, fail and hang."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cxrnode import metrics
from cxrnode.config import load_config
from cxrnode.errors import StoreAwayError
from cxrnode.loops import Loop, beat, running
from cxrnode.monitor import Monitor
from cxrnode.patience import Patience
from cxrnode.store.database import Database
from cxrnode.supervisor import Supervisor
from tests.support.awaiting import await_true

SOON = Patience(first_wait_s=0.001, longest_wait_s=0.002)
# a stage with a thread that works, one that fails, one that hangs and one that has ended
STAGE = """
import sys, threading, time
from cxrnode import loops, metrics
metrics.begin("deliver")
def fails():
    raise RuntimeError("Phantom^Chest")
def hangs():
    time.sleep(60)
stopping, over = threading.Event(), threading.Event()
loops.Loop(name="ended", step=lambda: over.set() or 0.0, hangs_s=0.0).run(over)
for name, step, hangs_s in (("works", lambda: 0.05, 5.0), ("fails", fails, 5.0), ("hangs", hangs, 0.1)):
    loop = loops.Loop(name=name, step=step, hangs_s=hangs_s)
    threading.Thread(target=loop.run, args=(stopping,), daemon=True).start()
time.sleep(1.5)
print("up", flush=True)
sys.stdin.read()
"""


class Steps:
    """Raises the first few, then works."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls, self.threads = list(errors), 0, set[str]()

    def __call__(self) -> float:
        self.calls += 1
        self.threads.add(threading.current_thread().name)
        if self.errors:
            raise self.errors.pop(0)
        return 0.001


def test_it_survives_any_error_and_says_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    errors = (StoreAwayError("it is away"), RuntimeError("Phantom^Chest"), MemoryError(), RecursionError())
    steps, closed, stopping = Steps(*errors), threading.Event(), threading.Event()
    with running([Loop(name="anchors", step=steps, close=closed.set, patience=SOON)], stopping):
        await_true(lambda: steps.calls > 10, every_s=0.01)
        assert not closed.is_set()
        stopping.set()
    assert closed.is_set()
    assert steps.threads == {"anchors"}
    said = [r.getMessage() for r in caplog.records]
    assert said[0] == "anchors: it is away; tried again"
    assert said[1:] == ["anchors: an unexpected error; tried again"] * 3 + ["anchors: goes on"]


def test_it_waits_longer_with_each_failure() -> None:
    stopping, at = threading.Event(), list[float]()

    def step() -> float:
        at.append(time.monotonic())
        raise ValueError

    patience = Patience(first_wait_s=0.4, longest_wait_s=30.0)
    with running([Loop(name="x", step=step, patience=patience)], stopping):
        stopping.wait(2.0)
        stopping.set()
    assert 1 <= len(at) < 40  # and not a busy loop


def test_an_error_at_its_end_is_said_and_none(caplog: pytest.LogCaptureFixture) -> None:
    def close() -> None:
        raise OSError("gone")

    stopping = threading.Event()
    stopping.set()
    Loop(name="x", step=lambda: 0.0, close=close).run(stopping)
    assert "unexpected error" in caplog.text
    beat()  # nothing, outside of a loop


def test_what_all_threads_do_is_seen_by_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "cxrnode.toml"
    config.write_text('[node]\ndata_dir = "."\n')
    database = Database(tmp_path / "ledger.sqlite")
    with metrics.shared_folder(["deliver"]) as folder:
        assert folder is not None
        stage = subprocess.Popen([sys.executable, "-c", STAGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert stage.stdin
        assert stage.stdout
        try:
            assert stage.stdout.readline() == b"up\n"
            monitor = Monitor(
                config=load_config(config), database=database, supervisor=Supervisor(config=config, stages=[]),
                measured=folder,
            )  # fmt: skip
            states = {t.name: t for t in metrics.threads(folder)}
            assert set(states) == {"works", "fails", "hangs", "ended"}
            why = monitor.checks["threads"]()
            assert why
            assert why.startswith("no sign of life: deliver: hangs, silent for ")
            assert "works" not in why + str(monitor.warnings["threads"]())
            assert "deliver: fails, " in str(monitor.warnings["threads"]())
            assert monitor.hung() == {}  # not for long yet
            monkeypatch.setattr("cxrnode.monitor._RESTART_S", 0.0)
            assert monitor.hung() == {"deliver": "hangs gave no sign of life for 0 minutes"}
            monkeypatch.setattr(Supervisor, "since", lambda *_: time.monotonic())
            assert monitor.hung() == {}  # that was the process before
            monkeypatch.undo()
            found = {(m.name, s.labels.get("thread")): s.value for m in monitor.metrics() for s in m.samples}
        finally:
            stage.stdin.close()
            stage.kill()
            stage.wait()
            stage.stdout.close()
            database.close()
    assert found["cxrnode_thread_silent_seconds", "hangs"] > 1.0
    assert found["cxrnode_thread_errors", "fails"] >= 1
    assert found["cxrnode_thread_failures", "fails"] >= 1
    assert ("cxrnode_thread_beat", "works") not in found  # whose figures mean nothing to anybody else


def test_a_loop_that_hangs_at_the_end_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cxrnode.loops._END_S", 0.2)
    stopping, over = threading.Event(), threading.Event()

    def hang() -> float:
        over.wait(60)
        return 0.0

    with running([Loop(name="hangs", step=hang), Loop(name="works", step=lambda: 0.01)], stopping):
        stopping.set()
    over.set()
    assert [r.getMessage() for r in caplog.records] == ["hangs: hangs, and is left behind"]
