"""The analyse stage outlasts the database's outages: what was in hand counts no attempt, and it goes on by itself."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from cxrnode import outlast
from cxrnode.errors import StorageFullError, StoreAwayError
from cxrnode.outlast import Outlast
from cxrnode.pool import NoWorkerError
from cxrnode.store import unclaimed
from cxrnode.store.database import Database
from cxrnode.store.queue import CLAIMED, MAX_ATTEMPTS, Queue
from cxrnode.store.schema import job, study
from cxrnode.store.studies import Studies
from engines.base import EngineError
from tests.support.scripted import DOES, Script, Told, World, analyser, each_beat
from tests.support.store import analysed, claim, item, lease

__all__ = ["each_beat"]

QUEUE, STUDIES = Queue("test"), Studies("test")


class Outage:
    """A database that is away while `away` says so, whatever it is asked for."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away = False
        self.asked = 0
        for name in ("begin", "read"):
            monkeypatch.setattr(database, name, self._guarded(getattr(database, name)))

    def _guarded(self, opens: Callable[..., AbstractContextManager[Connection]]) -> Callable[..., Any]:
        @contextmanager
        def guarded(**how: Any) -> Iterator[Connection]:
            self.asked += self.away
            if self.away:
                raise StoreAwayError("the server is stopped")
            with opens(**how) as c:
                yield c
                if self.away:  # it went while the transaction was open
                    raise StoreAwayError("the server is stopped")

        return guarded


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "x.sqlite")
    with database.begin() as c:
        QUEUE.add(c, [item(1, i) for i in range(4)], now=1.0)
    yield database
    database.close()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlast, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(outlast, "_LONGEST_WAIT_S", 0.05)


def attempts(database: Database) -> set[tuple[str, int]]:
    with database.read() as c:
        return {(row.state, row.attempts) for row in c.execute(select(job.c.state, job.c.attempts))}


def test_an_outage_with_images_in_hand_counts_no_attempt_and_is_told_once(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outage, told, rounds = Outage(database, monkeypatch), Told(), 0
    caplog.set_level(logging.INFO, "cxrnode.outlast")

    def goes_and_comes() -> None:
        nonlocal rounds
        rounds += 1
        if rounds in (2, 9, 16, 23, 30, 37, 44, 51, 58, 65):  # ten times, with images in hand
            outage.away = True
            threading.Timer(0.2, lambda: setattr(outage, "away", False)).start()

    worlds = iter(World(Script(), between=goes_and_comes) for _ in range(100))
    Outlast(make=lambda: analyser(database, next(worlds), told)).run()
    assert attempts(database) == {("reported", 1)}
    lines = [r.getMessage() for r in caplog.records]
    assert lines[0].startswith("analyse waits for the database, and then goes on by itself: the server is stopped")
    assert lines[1].startswith("analyse goes on, after ")
    assert len(lines) % 2 == 0
    assert outage.asked > len(lines)  # it was asked more often than was told


def test_the_waits_are_short_at_first_and_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    waits: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            outage.away = len(waits) < 12
            return False

    outage = Outage(database, monkeypatch)
    outage.away = True
    Outlast(make=lambda: analyser(database, World(Script()), Told()), stopping=Stop()).run()
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, *[5.0] * 7]
    assert attempts(database) == {("reported", 1)}


def test_a_stage_that_ends_by_an_error_hands_back_what_it_had(database: Database) -> None:
    def lost(_images: Any) -> Any:
        raise EngineError("the GPU is gone")

    stage = Outlast(make=lambda: analyser(database, World(Script(), does={"infer": lost}), Told()))
    for _ in range(9):
        with pytest.raises(EngineError):
            stage.run()
        assert attempts(database) == {("received", 0)}


def test_a_stage_that_is_stopped_during_an_outage_leaves_a_note_for_the_next(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outage, stopping = Outage(database, monkeypatch), threading.Event()

    def goes() -> None:
        outage.away = True
        stopping.set()

    Outlast(
        make=lambda: analyser(database, World(Script(), between=goes), Told()), stopping=stopping, notes=tmp_path
    ).run()
    outage.away = False
    assert attempts(database) == {("claimed", 1)}
    with database.begin() as c:  # one of them is another's by now
        c.execute(update(job).where(job.c.id == 2).values(lease_owner="another", attempts=2))
        c.execute(update(study).values(lease_owner="nobody"))
    unclaimed.take_back(tmp_path, database, QUEUE, STUDIES)
    assert attempts(database) == {("received", 0), ("claimed", 1)}
    assert not [*tmp_path.glob(".unclaimed/*.json")]
    with database.read() as c:
        assert QUEUE.claimed_by(c, "another") == {2}
        assert STUDIES.claimed_by(c, "nobody")


def test_a_note_that_is_none_is_left_alone(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / ".unclaimed"
    folder.mkdir()
    for name, text in (
        ("a", "{"),
        ("b", json.dumps({"owner": "x"})),
        ("c", "[]"),
        ("d", '{"owner": "x", "jobs": ["y"]}'),
    ):
        (folder / f"{name}.json").write_text(text)
    unclaimed.take_back(tmp_path, database, QUEUE, STUDIES)
    assert len([*folder.iterdir()]) == 4
    assert caplog.text.count("is no note of this node's") == 4


def test_an_outage_that_lasts_too_long_for_a_batch_ends_it_with_the_message(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    outage = Outage(database, monkeypatch)
    outage.away = True
    with pytest.raises(StoreAwayError, match="is stopped"):
        Outlast(make=lambda: analyser(database, World(Script()), Told()), most_s=0.2).run()
    assert outage.asked > 3


def test_what_is_not_outlasted_ends_the_stage(database: Database) -> None:
    def full(*_: Any) -> Any:
        raise StorageFullError("no room")

    world = World(Script(), does={"make_capture": full})
    with pytest.raises(StorageFullError):
        Outlast(make=lambda: analyser(database, world, Told()), outlasts=(StoreAwayError,)).run()
    assert attempts(database) == {("received", 0)}


def test_a_full_disk_is_told_to_be_over_when_something_was_committed(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cxrnode.outlast")
    full = 5

    def capture(*args: Any) -> Any:
        nonlocal full
        full -= 1
        if full > 0:
            raise StorageFullError("no room")
        return DOES["make_capture"](*args)

    def make() -> Any:
        made = analyser(database, World(Script(), does={"make_capture": capture}), Told())
        made.on_done = lambda _: held.worked()
        return made

    held = Outlast(make=make)
    held.run()
    lines = [r.getMessage() for r in caplog.records]
    assert [line[:22] for line in lines] == ["analyse waits for room", "analyse goes on, after"]
    assert attempts(database) == {("reported", 1)}


@pytest.mark.parametrize("call", ["decode", "make_capture", "make_sr"])
def test_no_memory_for_workers_is_nobodys_outcome(
    database: Database, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cxrnode.outlast")
    left = 12

    def sometimes(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left > 0:
            raise NoWorkerError("no worker process can be started")
        return DOES[call](*args)

    Outlast(make=lambda: analyser(database, World(Script(), does={call: sometimes}), Told())).run()
    assert attempts(database) == {("reported", 1)}
    with database.read() as c:
        assert set(c.execute(select(job.c.outcome)).scalars()) == {"analysed"}
    assert caplog.records[0].getMessage().startswith("analyse waits for workers, and then goes on by itself")


# -- what counts


def test_a_process_that_lost_its_lease_and_lives_gives_the_attempt_back(database: Database) -> None:
    """It was frozen, or the database was; another one has the image by now."""
    with database.begin() as c:
        (one, *_) = claim(c, limit=1, owner="frozen", now=1000.0)
        QUEUE.due(c, lease("other", 1000.0))
    with database.begin() as c:
        (two, *_) = QUEUE.claim(c, lease("other", 2000.0), limit=1, idle=True)
        assert (one.id, two.attempts) == (two.id, 2)
    with database.begin() as c:
        assert not QUEUE.finish(c, analysed(one), owner="frozen")
        assert c.execute(select(job.c.attempts).where(job.c.id == one.id)).scalar_one() == 1
        QUEUE.release(c, "frozen", also=[one.id])  # never below what there is
        QUEUE.release(c, "frozen", also=[one.id])
        assert c.execute(select(job.c.attempts).where(job.c.id == one.id)).scalar_one() == 0
        assert QUEUE.claimed_by(c, "other") == {one.id}


def test_whose_own_lease_ended_counts_no_attempt_when_it_claims_again(database: Database) -> None:
    for now in (1000.0, 2000.0, 3000.0, 4000.0, 5000.0):
        with database.begin() as c:
            (again, *_) = QUEUE.claim(c, lease("slow", now), limit=1, idle=True)
            QUEUE.due(c, lease("slow", now))
        assert again.attempts == 1


def test_what_a_killed_process_had_in_hand_counts(database: Database) -> None:
    for n in range(1, 4):
        with database.begin() as c:
            claimed = QUEUE.claim(c, lease(f"killed {n}", 1000.0 * n), limit=4, idle=True)
            QUEUE.due(c, lease("next", 1000.0 * n))
        assert {j.attempts for j in claimed} == {n}
    with database.begin() as c:
        (suspect,) = QUEUE.claim(c, lease("next", 9000.0), limit=4, idle=True)
    assert suspect.alone


def test_a_frozen_stage_that_thaws_gives_back_what_others_took(database: Database, each_beat: None) -> None:
    taken = False

    def steal() -> None:
        nonlocal taken
        if not taken:
            taken = True
            with database.begin() as c:
                mine = update(job).where(job.c.state == CLAIMED)
                c.execute(mine.values(lease_owner="other", lease_until=time.time() + 15, attempts=2))

    stage = analyser(database, World(Script(), between=steal), Told())
    stage.run()
    assert attempts(database) == {("claimed", 1)}


def test_eight_power_cuts_of_a_node_with_a_backlog_fail_no_image(database: Database) -> None:
    """Each takes what is in hand; after three the images go alone, and each cut finds another one there."""
    with database.begin() as c:
        QUEUE.add(c, [item(2, i) for i in range(20)], now=1.0)
    for cut in range(8):
        owner, now = f"boot {cut}", 1000.0 * (cut + 1)
        with database.begin() as c:
            QUEUE.give_up(c, lease(owner, now))
            jobs = QUEUE.claim(c, lease(owner, now), limit=8, idle=True)
            if jobs[0].alone:
                assert QUEUE.finish(c, analysed(jobs[0]), owner=owner)
                jobs = QUEUE.claim(c, lease(owner, now), limit=8, idle=True)
            assert jobs
    with database.begin() as c:
        QUEUE.give_up(c, lease("last", 9000.0))
        assert not c.execute(select(job.c.id).where(job.c.reason == "gave_up")).all()
        assert max(c.execute(select(job.c.attempts)).scalars()) < MAX_ATTEMPTS
