"""A clock that jumps back and forth: nothing is held up for longer than a lease, nothing is done twice.

Each worker is a process: what it has seen of the others' leases is its own.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import Connection

from cxrnode.store.commitments import Commitments
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
        return Lease(owner=owner, now=self.true, seconds=LEASE_S)


@dataclass(slots=True, kw_only=True)
class Worker:
    """Takes two seconds for what it claims, and beats; `dies` the second after its first claim."""

    name: str
    dies: bool = False
    queue: Queue = field(default_factory=lambda: Queue("test"))
    store: Studies = field(default_factory=lambda: Studies("test"))
    jobs: list[Job] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    finished: Counter[int] = field(default_factory=Counter)
    reported: Counter[str] = field(default_factory=Counter)

    def second(self, database: Database, clock: Clock) -> None:
        if self.dies and self.jobs:
            return
        with database.begin() as c:
            self.queue.due(c, clock.lease(self.name))
            self.store.due(c, clock.lease(self.name), quiet_s=QUIET_S)
            if self.jobs or self.studies:
                self.queue.heartbeat(c, clock.lease(self.name))
                self.store.heartbeat(c, clock.lease(self.name))
                self.finished.update(j.id for j in self.jobs if self.queue.finish(c, analysed(j), owner=self.name))
                for study in self.studies:
                    uid = study.study_instance_uid
                    sr = made(f"{uid}.9.{len(study.images)}", int(uid.rpartition(".")[2]), Kind.SR)
                    if self.store.reported(c, study, reports(study, sr), owner=self.name) is not None:
                        self.reported[uid] += 1
                self.jobs, self.studies = [], []
                return
            self.jobs = self.queue.claim(c, clock.lease(self.name), limit=2, idle=True)
            self.studies = self.store.claim(c, clock.lease(self.name), quiet_s=QUIET_S, limit=2)


@pytest.mark.parametrize("seed", range(2))
def test_every_image_is_analysed_and_every_study_reported_once(database: Database, seed: int) -> None:
    clock = Clock(chance=random.Random(seed))
    workers = [Worker(name="a"), Worker(name="b"), Worker(name="dead", dies=True)]
    with database.begin() as c:
        Queue("intake").receive(c, [received(study, 1, at=clock.now) for study in range(1, 9)])
    working_s = 8 / 2 * 2 + 8 / 2 * 2  # one worker that does it all, images and reports
    while clock.true < working_s + 2 * QUIET_S + 2 * LEASE_S + 2:
        clock.tick()
        for worker in clock.chance.sample(workers, 3):
            worker.second(database, clock)
    finished = sum((w.finished for w in workers), Counter())
    assert sorted(finished.values()) == [1] * 8
    assert sum((w.reported for w in workers), Counter()) == {f"1.2.826.0.{n:03}": 1 for n in range(1, 9)}


@pytest.mark.parametrize("off_s", [0.0, *JUMPS_S])
def test_a_live_process_keeps_what_it_holds_and_a_dead_one_nothing_for_longer_than_its_lease(
    database: Database, tmp_path: Path, off_s: float
) -> None:
    """Whatever the clocks of the two say, and whichever of them jumps: the owner's own is `off_s` ahead."""
    queue, studies, outbox = Queue("owner"), Studies("owner"), Outbox("owner")
    others = Queue("other"), Studies("other"), Outbox("other")
    queue_up(database, tmp_path, PEER, studies=range(8, 9), now=NOW)

    def mine(at: float) -> Lease:
        return Lease(owner="owner", now=7.0 + at + (off_s if at > 3 else 0.0), seconds=LEASE_S)

    def taken_by_others(c: Connection, at: float) -> int:
        lease = Lease(owner="other", now=at, seconds=LEASE_S)
        jobs = others[0].claim(c, lease, limit=9, idle=True)
        found = others[1].claim(c, lease, quiet_s=0.0, limit=9)
        return len([*jobs, *found, *others[2].claim(c, PEER.key, lease, now=NOW, limit=9)])

    with database.begin() as c:
        queue.receive(c, [received(1, 1), received(2, 1)])
        one, _ = queue.claim(c, mine(0), limit=9, idle=True)
        queue.finish(c, analysed(one), owner="owner")
        assert len(studies.claim(c, mine(0), quiet_s=0.0, limit=9)) == 1
        assert len(outbox.claim(c, PEER.key, mine(0), now=NOW, limit=9)) == 2
        for second in range(30):
            queue.heartbeat(c, mine(second))
            studies.heartbeat(c, mine(second))
            outbox.heartbeat(c, PEER.key, mine(second))
            assert taken_by_others(c, second) == 0
        assert taken_by_others(c, 29 + LEASE_S - 1) == 0
        assert taken_by_others(c, 29 + LEASE_S) == 4


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_a_new_result_waits_for_nothing(database: Database, tmp_path: Path, jump_s: float) -> None:
    outbox = Outbox("test")
    queue_up(database, tmp_path, PEER, now=NOW)
    with database.begin() as c:
        lease = Lease(owner="b", now=1.0, seconds=30.0)
        assert outbox.due(c, PEER.key, lease, now=NOW + jump_s)
        assert len(outbox.claim(c, PEER.key, lease, now=NOW + jump_s, limit=9)) == 2


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_no_jump_stretches_a_wait(database: Database, tmp_path: Path, jump_s: float) -> None:
    """Of a retry, of a commitment request and of an answer to one: due by its time, or at once after a jump."""
    outbox, commitments = Outbox("test"), Commitments("test")
    lease = Lease(owner="a", now=1.0, seconds=30.0)
    queue_up(database, tmp_path, PEER, now=NOW)
    with database.begin() as c:
        first, second = outbox.claim(c, PEER.key, lease, now=NOW, limit=9)
        outbox.retry(c, first, owner="a", now=NOW, not_before=NOW + 20, status="0xA700")
        outbox.sent(c, second, owner="a", now=NOW, status="0x0000")
        assert len(outbox.requested(c, PEER.key, "2.25.1", now=NOW, limit=9, ask_again_s=20.0)) == 1
        commitments.ask(c, "2.25.5", "PACS", "127.0.0.1", [])
        asked = commitments.due(c, now=NOW)
        assert asked
        commitments.postponed(c, asked, now=NOW, wait_s=20.0)
        assert not outbox.due(c, PEER.key, lease, now=NOW + 19)
        assert not outbox.uncommitted(c, PEER.key, now=NOW + 19)
        assert not commitments.due(c, now=NOW + 19)
        for now in (NOW + 20, NOW + jump_s - 1, NOW + jump_s + 20):
            waits = NOW <= now < NOW + 20
            assert outbox.due(c, PEER.key, lease, now=now) is not waits
            assert outbox.uncommitted(c, PEER.key, now=now) is not waits
            assert bool(commitments.due(c, now=now)) is not waits


@pytest.mark.parametrize("off_s", JUMPS_S)
def test_a_study_that_still_arrives_is_reported_once_whatever_its_receipts_are_stamped_with(
    database: Database, off_s: float
) -> None:
    """The clock of the machine that receives is off, and jumps in the middle."""
    queue, studies, found = Queue("analyse"), Studies("analyse"), 0
    with database.begin() as c:
        for second in range(40):
            lease = Lease(owner="a", now=float(second), seconds=LEASE_S)
            if second < 20 and second % 2 == 0:
                at = NOW + second + (off_s if second < 10 else 0.0)
                queue.receive(c, [received(1, second, at=at)])
            for waiting in queue.claim(c, lease, limit=9, idle=True):
                queue.finish(c, analysed(waiting), owner="a")
            for study in studies.claim(c, lease, quiet_s=QUIET_S, limit=9):
                assert len(study.images) == 10
                assert second == 18 + QUIET_S
                found += 1
                uids = studies.reported(c, study, reports(study, made("2.25.900", 1, Kind.SR)), owner="a")
                assert uids
    assert found == 1


@pytest.mark.parametrize("seed", range(2))
def test_every_result_is_delivered_and_committed_once(database: Database, tmp_path: Path, seed: int) -> None:
    clock = Clock(chance=random.Random(seed))
    uids = queue_up(database, tmp_path, PEER, studies=range(1, 5), now=NOW)
    sent: Counter[str] = Counter()
    owners = {"a": Outbox("test"), "b": Outbox("test"), "dead": Outbox("test")}
    held: dict[str, Sequence[Delivery]] = dict.fromkeys(owners, ())
    while clock.true < len(uids) + 2 * LEASE_S + 5:
        clock.tick()
        for owner, outbox in clock.chance.sample(list(owners.items()), 3):
            with database.begin() as c:
                outbox.due(c, PEER.key, clock.lease(owner), now=clock.now)
                if not held[owner]:
                    held[owner] = outbox.claim(c, PEER.key, clock.lease(owner), now=clock.now, limit=2)
                elif owner != "dead":
                    outbox.heartbeat(c, PEER.key, clock.lease(owner))
                    for d in held[owner]:
                        sent[d.made.sop_instance_uid] += outbox.sent(c, d, owner=owner, now=clock.now, status="0x0000")
                    held[owner] = ()
        with database.begin() as c:
            transaction, outbox = f"2.25.{int(clock.true)}", owners["a"]
            asked = outbox.requested(c, PEER.key, transaction, now=clock.now, limit=9)
            outbox.answered(c, transaction, [d.made.sop_instance_uid for d in asked], [], now=clock.now)
    assert sent == Counter(uids)
    assert {state for state, _ in states(database, PEER.key).values()} == {COMMITTED}


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_what_was_sent_is_asked_for_at_once(database: Database, tmp_path: Path, jump_s: float) -> None:
    outbox = Outbox("test")
    queue_up(database, tmp_path, PEER, now=NOW)
    with database.begin() as c:
        for d in outbox.claim(c, PEER.key, Lease(owner="a", now=NOW, seconds=30.0), now=NOW, limit=9):
            assert outbox.sent(c, d, owner="a", now=NOW, status="0x0000")
        assert outbox.uncommitted(c, PEER.key, now=NOW + jump_s)
        assert len(outbox.requested(c, PEER.key, "2.25.1", now=NOW + jump_s, limit=9)) == 2
