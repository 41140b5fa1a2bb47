"""`cxrnode queue list | show`: one image can be read at 60 columns, by a script, and found by what it is of."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import update

from cxrnode.intake import Intake
from cxrnode.set_aside import set_aside
from cxrnode.store.database import Database
from cxrnode.store.outbox import Outbox
from cxrnode.store.queue import Finding, Queue
from cxrnode.store.schema import job
from cxrnode.types import Destination, Reason, Rejection
from tests.support.make_dicom import chest
from tests.support.outbox import queue_up, states
from tests.support.receiving import recorder
from tests.support.store import analysed, claim, lease, received
from tests.unit.test_intake import incoming

LATER = time.time() + 3600
Ask = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1 analysed, refused by one of two destinations; 2 not analysed; 3 to be tried again in an hour; 4 STAT, waits."""
    folder = tmp_path_factory.mktemp("queue")
    at, queue = time.time() - 60, Queue("test")
    database = Database(folder / "ledger.sqlite")
    with database.begin() as c:
        images = [received(n, 1, at=at, stat=n == 4) for n in (1, 2, 3, 4)]
        queue.receive(c, [replace(r, patient_id="P-7" if n == 2 else "P-1") for n, r in enumerate(images, 1)])
        jobs = {j.id: j for j in claim(c, owner="a", now=at)}
        queue.finish(c, analysed(jobs[1]), owner="a")
        lateral = Rejection(reason=Reason.LATERAL, detail="by its view")
        queue.finish(c, Finding(job=jobs[2], rejection=lateral), owner="a")
        queue.release(c, "a")
        c.execute(update(job).where(job.c.id == 3).values(attempts=2, not_before=LATER, last_error="decoder crashed"))
        for name in ("pacs", "late"):
            Outbox("test").enqueue_all(c, name, now=at)
        (d,) = Outbox("test").claim(c, "pacs", lease("a", at), now=at, limit=1)
        Outbox("test").refused(c, d, owner="a", now=at, status="0x0122")
    database.close()
    path = folder / "cxrnode.toml"
    peer = '[[destination]]\nname = "{}"\nae_title = "A"\nhost = "127.0.0.1"\nport = 104'
    peers = "\n".join(map(peer.format, ("pacs", "late")))
    path.write_text(f'[node]\ndata_dir = "{folder}"\n{peers}\n', encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def ask(config: Path) -> Ask:
    def run(*arguments: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cxrnode", "queue", *arguments, "--config", str(config)]
        environment = os.environ | {"COLUMNS": str(columns)}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    return run


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_one_image_can_be_read(ask: Ask, columns: int) -> None:
    said = ask("list", columns=columns)
    assert (said.returncode, said.stderr) == (0, "")
    lines = said.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    words = " ".join(said.stdout.split())
    for n in (1, 2, 3, 4):
        assert f"1.2.826.0.{n:03}.1.1" in words
    for whole in ("from PACS", "not_analysed", "lateral: by its view", "2 attempts, next ", "decoder crashed", "STAT"):
        assert whole in words
    assert "1 delivery pacs refused" in words


def test_for_a_script(ask: Ask) -> None:
    rows = json.loads(ask("list", "--format", "json").stdout)
    assert [row["id"] for row in rows] == [4, 3, 2, 1]
    assert [row["priority"] for row in rows] == ["STAT", "routine", "routine", "routine"]
    assert abs(datetime.fromisoformat(rows[0]["received_at"]).timestamp() - time.time()) < 3600
    assert datetime.fromisoformat(rows[1]["next_try"]).timestamp() == int(LATER)
    assert (rows[1]["last_error"], rows[0]["next_try"]) == ("decoder crashed", "now")
    table = list(csv.DictReader(io.StringIO(ask("list", "--format", "csv").stdout)))
    assert [{k: v for k, v in row.items() if v} for row in table] == [
        {k: str(v) for k, v in row.items() if v is not None} for row in rows
    ]


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (["--state", "received"], [4, 3]),
        (["--study", "1.2.826.0.002"], [2]),
        (["--patient", "P-7"], [2]),
        (["--patient", "P-1", "--state", "received"], [4, 3]),
        (["--destination", "pacs"], [1]),
        (["--destination", "pacs", "--delivery", "refused"], [1]),
        (["--destination", "late", "--delivery", "refused"], []),
        (["--delivery", "pending"], [1]),
        (["--patient", "P-7", "--destination", "pacs"], []),
        (["--limit", "2"], [4, 3]),
    ],
)
def test_filters(ask: Ask, filters: list[str], ids: list[int]) -> None:
    said = ask("list", "--format", "json", *filters)
    assert [row["id"] for row in json.loads(said.stdout)] == ids
    assert said.returncode == 0


def test_a_destination_that_is_not_there(ask: Ask) -> None:
    said = ask("list", "--destination", "pasc")
    assert said.returncode == 2
    assert "there is no destination pasc: the configuration has pacs, late" in said.stderr


def test_one_image_in_words(ask: Ask) -> None:
    said = ask("show", "3").stdout
    assert "priority: routine\n" in said
    assert "attempts: 2\n" in said
    assert "last_error: decoder crashed\n" in said
    assert f"next_try: {datetime.fromtimestamp(int(LATER)).astimezone().isoformat()}\n" in said
    assert "received_at: 20" in said
    delivered = ask("show", "1").stdout
    assert "pacs: refused 0x0122" in delivered
    assert "late: pending, 0 attempts, next now" in delivered


def test_an_image_that_is_not_there(ask: Ask) -> None:
    said = ask("show", "77")
    assert said.returncode == 2
    assert "there is no image 77 in the queue" in " ".join(said.stderr.split())


def test_results_that_are_tried_in_vain_can_be_given_up(tmp_path: Path) -> None:
    peer = Destination(ae_title="A", host="127.0.0.1", port=104, name="pacs")
    database, now = Database(tmp_path / "ledger.sqlite"), time.time()
    bad, _ = queue_up(database, tmp_path, peer)
    with database.begin() as c:
        (d,) = Outbox("test").claim(c, "pacs", lease("a", now), now=now, limit=1)
        Outbox("test").retry(c, d, owner="a", now=now, not_before=LATER, status="0x0110")
    path = tmp_path / "cxrnode.toml"
    path.write_text(
        f'[node]\ndata_dir = "{tmp_path}"\n[[destination]]\nname = "pacs"\nae_title = "A"\nhost = "h"\nport = 104\n'
    )
    command = [sys.executable, "-m", "cxrnode", "queue", "bury", "1", "--config", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == "bury: 0 of 1 image\n1 result not sent any more\n"
    found = states(database, "pacs")
    database.close()
    assert found.pop(bad) == ("refused", "given up by hand")
    assert set(found.values()) == {("pending", "")}  # never tried: nothing speaks against it
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


def test_what_was_set_aside_is_taken_in_and_what_is_refused_is_named(tmp_path: Path) -> None:
    """As after the restore of a database that had no rows yet."""
    config = tmp_path / "cxrnode.toml"
    config.write_text('[node]\ndata_dir = "data"\n[receive]\ndisk_watermark_mb = 0\n', encoding="utf-8")
    data_dir, database = tmp_path / "data", Database(tmp_path / "lost.sqlite")
    node = Intake(data_dir, record=recorder(database), is_stat=lambda _ds, _peer: False, watermark_bytes=0)
    assert [node.store(incoming(node, chest(64, 64, seed=seed))) for seed in (1, 2)] == [0, 0]
    database.close()
    restored = Database(data_dir / "ledger.sqlite")
    set_aside(data_dir, restored, Queue("intake"), actor="intake")
    restored.close()
    bad = data_dir / "set-aside" / "1.2" / "notes.dcm"
    bad.parent.mkdir()
    bad.write_text("notes")

    def take_in() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cxrnode", "queue", "take-in", "--config", str(config)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    said = take_in()
    assert said.returncode == 1
    assert said.stdout.count(": new") == 2
    assert "taken in: 2 files, refused: 1" in said.stdout
    assert "set-aside/1.2/notes.dcm: refused: " in said.stderr
    bad.unlink()
    said = take_in()
    assert (said.returncode, said.stdout, said.stderr) == (0, "taken in: 0 files, refused: 0\n", "")
