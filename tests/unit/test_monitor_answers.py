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
from cxrnode.store.outbox import MANY_TRIES, Outbox
from cxrnode.store.queue import Lease
from cxrnode.supervisor import Supervisor
from cxrnode.types import Destination
from tests.support.awaiting import await_true
from tests.support.outbox import queue_up

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


def test_results_that_stay_uncommitted_are_a_gauge_and_in_the_end_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "cxrnode.toml"
    entry = '[[destination]]\nname = "{}"\nae_title = "A"\nhost = "127.0.0.1"\nport = 104\n'
    config.write_text(
        '[node]\ndata_dir = "."\n' + entry.format("pacs") + entry.format("plain") + "storage_commitment = false\n"
    )
    database, now = Database(tmp_path / "ledger.sqlite"), time.time()
    watch = Monitor(
        config=load_config(config), database=database, supervisor=Supervisor(config=config, stages=["deliver"])
    )
    destinations = [Destination(ae_title="A", host="127.0.0.1", port=104, name=name) for name in ("pacs", "plain")]
    outbox = Outbox("test")
    for study, hours in ((1, 7), (2, 5)):
        queue_up(database, tmp_path, *destinations, studies=range(study, study + 1))
        for d in destinations:
            with database.begin() as c:
                for one in outbox.claim(c, d.key, Lease(owner="me", now=now, seconds=30.0), now=now, limit=10):
                    outbox.sent(c, one, owner="me", now=now - hours * 3600, status="0x0000")

    def gauge(name: str) -> dict[str, float]:
        return {s.labels["destination"]: s.value for m in watch.metrics() for s in m.samples if s.name == name}

    assert "commitment plain" not in watch.warnings
    warning = watch.warnings["commitment pacs"]
    assert gauge("cxrnode_uncommitted") == {"pacs": 4, "plain": 0}
    assert gauge("cxrnode_uncommitted_age_seconds") == {"pacs": pytest.approx(7 * 3600, abs=60), "plain": 0}
    assert str(warning()).startswith("4 results not committed, the oldest taken 7 hours ago")
    with database.begin() as c:  # what is asked for again and again waits longest for its next request
        outbox.requested(c, "pacs", "1.2.3", now=now, limit=2)
    assert gauge("cxrnode_uncommitted_age_seconds") == {"pacs": pytest.approx(7 * 3600, abs=60), "plain": 0}
    with database.begin() as c:
        outbox.answered(c, "1.2.3", ["1.2.826.0.1.1.9.1", "1.2.826.0.1.1.9.2"], [], now=now)
    assert warning() is None
    assert gauge("cxrnode_uncommitted") == {"pacs": 2, "plain": 0}
    assert gauge("cxrnode_uncommitted_age_seconds") == {"pacs": pytest.approx(5 * 3600, abs=60), "plain": 0}
    with database.begin() as c:
        outbox.requested(c, "pacs", "1.2.4", now=now, limit=2)
        outbox.answered(c, "1.2.4", ["1.2.826.0.1.2.9.1", "1.2.826.0.1.2.9.2"], [], now=now)
    assert gauge("cxrnode_uncommitted") == gauge("cxrnode_uncommitted_age_seconds") == {"pacs": 0, "plain": 0}
    database.close()


def test_the_backlog_of_results_is_a_gauge_for_each_destination(tmp_path: Path) -> None:
    config = tmp_path / "cxrnode.toml"
    entry = '[[destination]]\nname = "{}"\nae_title = "A"\nhost = "127.0.0.1"\nport = 104\n'
    config.write_text('[node]\ndata_dir = "."\n' + entry.format("pacs") + entry.format("late"))
    database, now = Database(tmp_path / "ledger.sqlite"), time.time()
    watch = Monitor(
        config=load_config(config), database=database, supervisor=Supervisor(config=config, stages=["deliver"])
    )
    pacs, late = (Destination(ae_title="A", host="127.0.0.1", port=104, name=name) for name in ("pacs", "late"))
    queue_up(database, tmp_path, pacs, late, now=now - 700)
    queue_up(database, tmp_path, late, studies=range(2, 3), stat=True, now=now - 900)
    outbox = Outbox("test")
    with database.begin() as c:
        for _ in range(MANY_TRIES):
            for one in outbox.claim(c, pacs.key, Lease(owner="me", now=now, seconds=30.0), now=now, limit=10):
                outbox.retry(c, one, owner="me", now=now, not_before=now, status="0x0110")

    def gauge(name: str) -> dict[str, float]:
        return {s.labels["destination"]: s.value for m in watch.metrics() for s in m.samples if s.name == name}

    assert gauge("cxrnode_undelivered_age_seconds") == {"pacs": 0, "late": pytest.approx(900, abs=60)}
    assert gauge("cxrnode_undelivered_failing") == {"pacs": 2, "late": 0}
    database.close()
