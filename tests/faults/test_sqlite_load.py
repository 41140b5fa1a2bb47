"""SQLite under the load of a busy node: 4 processes that write and poll, 34 threads that poll. Nobody finds it locked.

`CXRNODE_LOAD_S=60` makes it a minute.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import func, select

from cxrnode.errors import CxrnodeError
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.outbox import Outbox
from cxrnode.store.queue import Queue
from cxrnode.store.schema import instance
from cxrnode.store.studies import Studies
from tests.support.audit import faults
from tests.support.processes import at_once
from tests.support.store import analysed, lease, received

PROCESSES, POLLERS = 4, 34
SECONDS = float(os.environ.get("CXRNODE_LOAD_S", "5"))


def write(database: Database, number: int, until: float) -> int:
    """Receive, claim and finish, one transaction after the other, without a breath in between."""
    queue, owner, n = Queue("test"), str(number), 0
    while time.monotonic() < until:
        n += 1
        with database.begin() as c:
            queue.receive(c, [received(number, n)])
        with database.begin(shared=True) as c:
            jobs = queue.claim(c, lease(owner), limit=4, idle=True)
        with database.begin() as c:
            for job in jobs:
                queue.finish(c, analysed(job), owner=owner)
    return n


def poll(database: Database, number: int, until: float) -> int:
    """What idle stages ask, all day: senders, committers, analysers; and what a monitor counts."""
    queue, studies, outbox, n = Queue("test"), Studies("test"), Outbox("test"), 0
    while time.monotonic() < until:
        n += 1
        with database.read() as c:
            outbox.due(c, f"pacs {number}", lease(), now=time.time())
            outbox.uncommitted(c, f"pacs {number}", now=time.time())
            queue.due(c, lease())
            studies.due(c, lease(), quiet_s=3600.0)
            ledger.newest(c)
        time.sleep(0.05)
    return n


def work(where: Path | str, number: int) -> tuple[int, list[str], float]:
    """(transactions that wrote, errors, the longest that one waited for its turn) of one process."""
    database, until, errors = Database(where), time.monotonic() + SECONDS, list[str]()
    done: list[int] = []

    def guarded(what: Callable[[Database, int, float], int], n: int) -> None:
        try:
            done.append(what(database, n, until))
        except CxrnodeError as e:
            errors.append(repr(e))

    slowest = 0.0
    threads = [threading.Thread(target=guarded, args=(write, PROCESSES * n + number)) for n in range(2)]
    threads += [threading.Thread(target=guarded, args=(poll, n)) for n in range(number, POLLERS, PROCESSES)]
    for thread in threads:
        thread.start()
    while time.monotonic() < until:
        began = time.monotonic()
        with database.begin() as c:
            ledger.append(c, "test", actor="test")
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    database.close()
    return sum(done), errors, slowest


def test_nobody_finds_the_database_locked(tmp_path: Path) -> None:
    where = tmp_path / "node.sqlite"
    Database(where).close()
    found = at_once(work, where, PROCESSES)
    print(f"{SECONDS:.0f} s: {[f'{n} rounds, longest wait {slowest:.2f} s' for n, _, slowest in found]}")
    assert [errors for _, errors, _ in found] == [[]] * PROCESSES
    database = Database(where)
    with database.read() as c:
        assert faults(c) == []
        assert c.execute(select(func.count()).select_from(instance)).scalar_one() > 0
    database.close()
