"""Each job leaves each state once, in every order in which the futures may end, and whatever they end with."""

from __future__ import annotations

import errno
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from cxrnode.errors import ResultError, StorageFullError
from cxrnode.in_hand import Decoding, Ready, Waiting, jobs_in_hand
from cxrnode.inference import Said
from cxrnode.pool import WorkerCrashedError
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.queue import CLAIMED, Job, Queue
from cxrnode.store.schema import job, result
from cxrnode.store.studies import Studies
from cxrnode.types import Reason, Rejection
from cxrnode.workers import Decoded, decode
from tests.support.scripted import DOES, RandomScript, Script, Told, World, analyser, each_beat, orders
from tests.support.store import item

__all__ = ["each_beat"]
FILMS = {1: 2, 2: 1}  # study -> images


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Database]:
    """A copy of a store that holds FILMS, each time another one."""
    template, number = Database(tmp_path / "template.sqlite"), count()
    with template.begin() as c:
        Queue("test").add(c, [item(s, i) for s, n in FILMS.items() for i in range(n)], now=1.0)
    template.close()

    def copy() -> Database:
        to = tmp_path / f"{next(number)}.sqlite"
        shutil.copy(tmp_path / "template.sqlite", to)
        return Database(to)

    return copy


def outcomes(database: Database) -> dict[int, tuple[str, str, str | None]]:
    with database.begin() as c:
        rows = c.execute(select(job.c.id, job.c.state, job.c.outcome, job.c.reason)).all()
        kinds = Counter((e.kind, e.sop_instance_uid) for e in ledger.events(c) if e.kind in ("analysed", "failed"))
    assert set(kinds.values()) <= {1}, "an outcome was recorded twice"
    return {row.id: (row.state, row.outcome, row.reason) for row in rows}


DONE = ("reported", "analysed", None)


def test_every_order_of_the_ends_gives_every_row(fresh: Callable[[], Database]) -> None:
    def case(script: Script) -> None:
        database, told = fresh(), Told()
        analyser(database, World(script), told).run()
        assert outcomes(database) == {1: DONE, 2: DONE, 3: DONE}
        assert (told.done, sorted(told.reported)) == (3, ["1.2.826.0.001", "1.2.826.0.002"])
        with database.begin() as c:
            assert Counter(c.execute(select(result.c.kind)).scalars()) == {"capture": 3, "sr": 2}
        database.close()

    assert orders(case, most=150) > 50


@pytest.mark.parametrize("seed", range(20))
def test_any_order_with_faults_and_lost_leases(fresh: Callable[[], Database], seed: int, each_beat: None) -> None:
    """Each task may end in an exception, and each job may be taken by somebody else, at any moment."""
    chance = random.Random(seed)
    database, told = fresh(), Told()
    stolen: set[int] = set()

    def between() -> None:
        if chance.random() < 0.15 and len(stolen) < 2:
            with database.begin() as c:
                mine = list(c.execute(select(job.c.id).where(job.c.state == CLAIMED)).scalars())
                if mine:
                    stolen.add(chosen := chance.choice(mine))
                    taken = {"lease_owner": "another", "lease_until": time.time() + 15}
                    c.execute(update(job).where(job.c.id == chosen).values(**taken))

    def sometimes(does: Callable[..., Any]) -> Callable[..., Any]:
        def do(*args: Any) -> Any:
            if chance.random() < 0.2:
                raise chance.choice([IndexError("x"), WorkerCrashedError(), ResultError("bad"), OSError(5, "gone")])
            return does(*args)

        return do

    world = World(RandomScript(chance), does={k: sometimes(v) for k, v in DOES.items()}, between=between)
    stage = analyser(database, world, told, until_dry=True)
    with pytest.MonkeyPatch.context() as patch:  # what was stolen stays with its thief
        patch.setattr(type(stage.queue), "give_up", lambda *_: None)
        stage.run()
    found = outcomes(database)
    with database.begin() as c:
        held = set(c.execute(select(job.c.id).where(job.c.lease_owner == "another")).scalars())
        assert stage.queue.claimed_by(c, stage.owner) == set()
        assert stage.studies.claimed_by(c, stage.owner) == set()
    assert held == stolen
    assert told.done == 3 - len(stolen), "a lost lease is not counted"
    assert all(found[n][0] in ("analysed", "reported") for n in found if n not in stolen)
    database.close()


@pytest.mark.parametrize("when", range(8))
def test_a_job_that_was_forgotten_is_noticed_and_handed_back(
    fresh: Callable[[], Database], when: int, each_beat: None, caplog: pytest.LogCaptureFixture
) -> None:
    database, told, rounds = fresh(), Told(), count()

    def between() -> None:
        if next(rounds) == when:
            stage._jobs.drop(list(stage._jobs.keys)[:1])

    stage = analyser(database, world := World(Script(), between=between), told)
    stage.run()
    assert set(outcomes(database).values()) == {DONE}
    forgotten = "a fault of cxrnode" in caplog.text
    with database.begin() as c:
        assert ("forgotten" in {e.kind for e in ledger.events(c)}) is forgotten
    assert forgotten or when >= 6  # by then all may be done
    assert not world.open or forgotten
    database.close()


EXCEPTIONS = [
    IndexError("an index"), RecursionError("deep"), MemoryError(), KeyError("k"), ValueError("\udc80\0"),
    OSError(errno.ENAMETOOLONG, "File name too long"), ZeroDivisionError(),
    UnicodeDecodeError("utf-8", b"x", 0, 1, "y"),
    RuntimeError("x" * 100_000), AssertionError(), StopIteration(), TimeoutError(),
]  # fmt: skip


@pytest.mark.parametrize("error", EXCEPTIONS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("seam", ["decode", "make_capture", "make_sr", "scored", "seen", "finish", "reported"])
def test_what_nobody_expects_costs_its_own_image(
    fresh: Callable[[], Database], seam: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, told, calls = fresh(), Told(), count()

    def second_raises(does: Callable[..., Any]) -> Callable[..., Any]:
        def do(*args: Any, **options: Any) -> Any:
            if next(calls) == 1:
                raise error
            return does(*args, **options)

        return do

    world = World(Script())
    if seam == "finish":  # the store refuses this one outcome, whichever transaction it comes in
        real = Queue.finish

        def finish(self: Queue, c: Any, finding: Any, *, owner: str) -> bool:
            if finding.job.id == 2 and finding.prediction:
                raise error
            return real(self, c, finding, owner=owner)

        monkeypatch.setattr(Queue, "finish", finish)
    elif seam == "reported":
        real_reported = Studies.reported

        def reported(self: Studies, c: Any, study: Any, reports: Any, *, owner: str) -> Any:
            if study.study_instance_uid == "1.2.826.0.002" and reports and reports[0].sr:
                raise error
            return real_reported(self, c, study, reports, owner=owner)

        monkeypatch.setattr(Studies, "reported", reported)
    elif seam == "seen":
        monkeypatch.setattr(Queue, "seen", second_raises(Queue.seen))
    elif seam == "scored":
        monkeypatch.setattr("cxrnode.analyse.metrics.scored", second_raises(lambda *_: None))
    else:
        world.does = {seam: second_raises(DOES[seam])}
    analyser(database, world, told).run()
    found = outcomes(database)
    failed = {n: reason for n, (_, outcome, reason) in found.items() if outcome != "analysed"}
    assert list(failed.values()) == ["unexpected_error"], found
    assert {state for state, _, _ in found.values()} == {"reported"}
    with database.begin() as c:
        assert type(error).__name__ in c.execute(select(job.c.detail).where(job.c.id.in_(failed))).scalar_one()
    database.close()


def test_an_engine_that_answers_too_few_is_not_believed(fresh: Callable[[], Database]) -> None:
    database = fresh()
    world = World(Script(), does={"infer": lambda images: [Said(error="one")] * (len(images) - 1)})
    with pytest.raises(ValueError, match="shorter"):
        analyser(database, world, Told()).run()
    database.close()


def test_a_full_disk_is_no_images_fault(fresh: Callable[[], Database]) -> None:
    def full(*_: Any) -> Any:
        raise StorageFullError("no room")

    database = fresh()
    stage = analyser(database, World(Script(), does={"make_capture": full}), Told())
    with pytest.raises(StorageFullError):
        stage.run()
    stage.hand_back()
    assert {state for state, _, _ in outcomes(database).values()} == {"received"}
    database.close()


def test_no_state_is_left_twice_and_none_is_passed_over() -> None:
    one = Job(
        id=1, path="p", location={}, study_instance_uid="1.2", sop_instance_uid="1.2.3", header=b"",
        received_at=None, study_since=None, priority=1, attempts=1,
    )  # fmt: skip
    hand = jobs_in_hand()
    decoding = Decoding(job=one, task=World(Script()).submit(decode))
    hand.take(decoding)
    with pytest.raises(RuntimeError, match="claimed while it was in hand"):
        hand.take(decoding)
    waiting = Waiting(job=one, decoded=Decoded(rejection=Rejection(reason=Reason.LATERAL)))
    with pytest.raises(RuntimeError, match="may not go from Decoding to Ready"):
        hand.move(decoding, Ready(job=one, decoded=waiting.decoded, note=None, since=0.0))
    hand.move(decoding, waiting)
    with pytest.raises(RuntimeError, match="has left Decoding before"):
        hand.move(decoding, waiting)
    hand.leave(waiting)
    with pytest.raises(RuntimeError, match="has left Waiting before"):
        hand.leave(waiting)
