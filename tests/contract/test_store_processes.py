"""Several processes on one store: one unbroken ledger, nothing claimed twice, nobody stuck. On both databases."""

from __future__ import annotations

import os
import random
from pathlib import Path

from sqlalchemy import func, select

from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.queue import Queue
from cxrnode.store.schema import instance
from cxrnode.store.studies import Studies
from tests.support.audit import faults
from tests.support.postgres import Postgres
from tests.support.processes import PROCESSES, at_once
from tests.support.store import NOW, analysed, claim, item, lease, received

RECORDS, ROUNDS = 100, 30


def append(where: Path | str, number: int) -> list[int]:
    database, sequence = Database(where), []
    for n in range(RECORDS):
        with database.begin(shared=n % 2 == 0) as c:  # the chain holds whoever begins, and how
            sequence.append(ledger.append(c, "test", actor=str(number), n=n))
    database.close()
    return sequence


def test_appends_from_several_processes_are_one_chain(database: Database, where: Path | str) -> None:
    sequences = at_once(append, where)
    assert sorted(s for sequence in sequences for s in sequence) == list(range(1, RECORDS * PROCESSES + 1))
    with database.begin() as c:
        assert faults(c) == []


def claim_all(where: Path | str, number: int) -> list[int]:
    database = Database(where)
    mine: list[int] = []
    while True:
        with database.begin(shared=True) as c:
            jobs = claim(c, limit=3, owner=str(number))
        if not jobs:
            database.close()
            return mine
        mine += [job.id for job in jobs]


def test_nothing_is_claimed_twice(database: Database, where: Path | str) -> None:
    with database.begin() as c:
        Queue("test").add(c, [item(s, i) for s in range(60) for i in range(5)], now=NOW)
    claimed = [job_id for mine in at_once(claim_all, where) for job_id in mine]
    assert sorted(claimed) == list(range(1, 301))


def do_everything(where: Path | str, number: int) -> None:
    """Receive, analyse and report over the same few studies, in an order of its own."""
    database, queue, studies = Database(where), Queue("test"), Studies("test")
    order, owner = random.Random(number), str(os.getpid())
    for n in range(ROUNDS):
        batch = [received(study, 100 * number + n) for study in order.sample(range(4), 3)]
        with database.begin() as c:
            queue.receive(c, batch)
        with database.begin(shared=True) as c:
            jobs = claim(c, limit=4, owner=owner)
        order.shuffle(jobs)
        with database.begin() as c:
            queue.heartbeat(c, lease(owner))
            for job in jobs:
                assert queue.finish(c, analysed(job), owner=owner)
        with database.begin(shared=True) as c:
            ready = studies.claim(c, lease(owner), quiet_s=0.0, limit=2)
        with database.begin() as c:
            assert all(studies.reported(c, study, (), owner=owner) is not None for study in ready)
    database.close()


def test_stages_that_meet_wait_for_each_other_and_never_deadlock(database: Database, where: Path | str) -> None:
    at_once(do_everything, where)
    with database.begin() as c:
        assert faults(c) == []
        assert c.execute(select(func.count()).select_from(instance)).scalar_one() == 3 * ROUNDS * PROCESSES


def test_on_postgresql_a_claim_waits_for_nobody(postgres: Postgres) -> None:
    """Neither for another claim, whose rows it passes over (SKIP LOCKED), nor for who writes to the ledger."""
    url = postgres.new_database()
    database = Database(url)
    with database.begin() as c:
        Queue("test").receive(c, [received(1, n) for n in range(4)])
    with database.begin() as writer, database.begin(shared=True) as one, database.begin(shared=True) as other:
        ledger.append(writer, "test", actor="test")
        assert [j.id for j in claim(one, limit=2, owner="one")] == [1, 2]
        assert [j.id for j in claim(other, limit=3, owner="other")] == [3, 4]
    database.close()
