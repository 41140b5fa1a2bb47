"""A clock that jumps back and forth: nothing is held up for longer than a lease, nothing is done twice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cxrnode.store.database import Database
from cxrnode.store.outbox import COMMITTED, Delivery, Outbox
from cxrnode.store.queue import Job, Lease, Queue
from cxrnode.store.studies import Studies
from cxrnode.types import Destination, Kind, Study
from tests.support.outbox import queue_up, states
from tests.support.store import NOW, analysed, made, received, reports

JUMPS_S = (3600.0, -3600.0, 1200.0, -1200.0, 90.0, -90.0)
LEASE_S = 10.0
QUIET_S = 5.0
PEER = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=104)
QUEUE, STUDIES = Queue("test"), Studies("test")


@dataclass(slots=True, kw_only=True)
class Clock:
    """True seconds since the start, and what the machine's clock says meanwhile: it jumps now and then."""

    chance: random.Random
    true: float = 0.0
    off: float = 0.0

    @property
    def now(self) -> float:
        return NOW + self.true + self.off

    def tick(self) -> None:
        self.true += 1.0
        if self.chance.random() < 0.2:
            self.off += self.chance.choice(JUMPS_S)

    def lease(self, owner: str) -> Lease:
        return Lease(owner=owner, now=self.now, seconds=LEASE_S)


@dataclass(slots=True, kw_only=True)
class Worker:
    """Takes two seconds for what it claims, and beats; `dies` the second after its first claim."""

    name: str
    dies: bool = False
    jobs: list[Job] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    finished: Counter[int] = field(default_factory=Counter)
    reported: Counter[str] = field(default_factory=Counter)

    def second(self, database: Database, clock: Clock) -> None:
        if self.dies and self.jobs:
            return
        with database.begin() as c:
            if self.jobs or self.studies:
                QUEUE.heartbeat(c, clock.lease(self.name))
                STUDIES.heartbeat(c, clock.lease(self.name))
                self.finished.update(j.id for j in self.jobs if QUEUE.finish(c, analysed(j), owner=self.name))
                for study in self.studies:
                    uid = study.study_instance_uid
                    sr = made(f"{uid}.9.{len(study.images)}", int(uid.rpartition(".")[2]), Kind.SR)
                    if STUDIES.reported(c, study, reports(study, sr), owner=self.name) is not None:
                        self.reported[uid] += 1
                self.jobs, self.studies = [], []
                return
            self.jobs = QUEUE.claim(c, clock.lease(self.name), limit=2, idle=True)
            self.studies = STUDIES.claim(c, clock.lease(self.name), quiet_s=QUIET_S, limit=2)


@pytest.mark.parametrize("seed", range(2))
def test_every_image_is_analysed_and_every_study_reported_once(database: Database, seed: int) -> None:
    clock = Clock(chance=random.Random(seed))
    workers = [Worker(name="a"), Worker(name="b"), Worker(name="dead", dies=True)]
    with database.begin() as c:
        QUEUE.receive(c, [received(study, 1, at=clock.now) for study in range(1, 9)])
    working_s = 8 / 2 * 2 + 8 / 2 * 2  # one worker that does it all, images and reports
    while clock.true < working_s + QUIET_S + 2 * LEASE_S + 2:
        clock.tick()
        for worker in clock.chance.sample(workers, 3):
            worker.second(database, clock)
    finished = sum((w.finished for w in workers), Counter())
    assert sorted(finished.values()) == [1] * 8
    assert sum((w.reported for w in workers), Counter()) == {f"1.2.826.0.{n:03}": 1 for n in range(1, 9)}


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_a_dead_process_holds_nothing_for_longer_than_its_lease(database: Database, jump_s: float) -> None:
    """Whichever way the clock went since it claimed."""
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1), received(2, 1)])
        one, _ = QUEUE.claim(c, Lease(owner="mine", now=NOW, seconds=LEASE_S), limit=9, idle=True)
        QUEUE.finish(c, analysed(one), owner="mine")
        assert STUDIES.claim(c, Lease(owner="dead", now=NOW, seconds=LEASE_S), quiet_s=0.0, limit=9)
        later = Lease(owner="other", now=NOW + jump_s + LEASE_S + 1, seconds=LEASE_S)
        assert len(QUEUE.claim(c, later, limit=9, idle=True)) == 1
        assert len(STUDIES.claim(c, later, quiet_s=0.0, limit=9)) == 1


@pytest.mark.parametrize("jump_s", JUMPS_S)
@pytest.mark.parametrize("held", [False, True], ids=["new", "held by a dead sender"])
def test_a_result_waits_for_no_longer_than_a_lease(
    database: Database, tmp_path: Path, jump_s: float, held: bool
) -> None:
    outbox, lease_s = Outbox("test"), 30.0
    queue_up(database, tmp_path, PEER, now=NOW)
    with database.begin() as c:
        if held:
            assert len(outbox.claim(c, PEER.key, Lease(owner="dead", now=NOW, seconds=lease_s), limit=9)) == 2
        now = NOW + jump_s + (lease_s + 1 if held else 0.0)
        assert outbox.due(c, PEER.key, now=now)
        assert len(outbox.claim(c, PEER.key, Lease(owner="b", now=now, seconds=lease_s), limit=9)) == 2


@pytest.mark.parametrize("seed", range(2))
def test_every_result_is_delivered_and_committed_once(database: Database, tmp_path: Path, seed: int) -> None:
    clock, outbox = Clock(chance=random.Random(seed)), Outbox("test")
    uids = queue_up(database, tmp_path, PEER, studies=range(1, 5), now=NOW)
    sent: Counter[str] = Counter()
    owners = ["a", "b", "dead"]
    held: dict[str, Sequence[Delivery]] = dict.fromkeys(owners, ())
    while clock.true < len(uids) + 2 * LEASE_S + 5:
        clock.tick()
        for owner in clock.chance.sample(owners, 3):
            with database.begin() as c:
                if not held[owner]:
                    held[owner] = outbox.claim(c, PEER.key, clock.lease(owner), limit=2)
                elif owner != "dead":
                    outbox.heartbeat(c, PEER.key, clock.lease(owner))
                    for d in held[owner]:
                        sent[d.made.sop_instance_uid] += outbox.sent(c, d, owner=owner, now=clock.now, status="0x0000")
                    held[owner] = ()
        with database.begin() as c:
            transaction = f"2.25.{int(clock.true)}"
            asked = outbox.requested(c, PEER.key, transaction, now=clock.now, limit=9)
            outbox.answered(c, transaction, [d.made.sop_instance_uid for d in asked], [], now=clock.now)
    assert sent == Counter(uids)
    assert {state for state, _ in states(database, PEER.key).values()} == {COMMITTED}


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_what_was_sent_is_asked_for_at_once(database: Database, tmp_path: Path, jump_s: float) -> None:
    outbox = Outbox("test")
    queue_up(database, tmp_path, PEER, now=NOW)
    with database.begin() as c:
        for d in outbox.claim(c, PEER.key, Lease(owner="a", now=NOW, seconds=30.0), limit=9):
            assert outbox.sent(c, d, owner="a", now=NOW, status="0x0000")
        assert outbox.uncommitted(c, PEER.key, now=NOW + jump_s)
        assert len(outbox.requested(c, PEER.key, "2.25.1", now=NOW + jump_s, limit=9)) == 2
