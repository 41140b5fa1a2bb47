"""A PACS that reports on the association that asked, in every way that a requestor can trip over: nothing hangs, every
report has its answer, and no thread or descriptor stays behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cxrnode.committer import Committer
from cxrnode.dicom.commitment import CommitmentOperation
from cxrnode.patience import Patience
from cxrnode.store.database import Database
from cxrnode.store.outbox import COMMITTED, SENT, Outbox
from cxrnode.store.queue import Lease
from cxrnode.types import Destination
from tests.support.faulty_pacs import FaultyPacs, faulty_pacs, wait_for
from tests.support.outbox import queue_up, states

QUICK = Patience(first_wait_s=0.01, longest_wait_s=0.02)
BOUND_S = 30.0  # of the whole, on the busiest machine: what hung took 60 s, or for ever


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "store.sqlite")
    yield opened
    opened.close()


def sent(database: Database, root: Path, pacs: FaultyPacs, studies: range = range(1, 2)) -> Destination:
    """Results that the PACS took, to be asked for."""
    destination = replace(pacs.destination, storage_commitment=True)
    uids = queue_up(database, root, destination, studies=studies)
    outbox, now = Outbox("test"), time.time()
    with database.begin() as c:
        for d in outbox.claim(c, destination.key, Lease(owner="me", now=now, seconds=30.0), now=now, limit=len(uids)):
            outbox.sent(c, d, owner="me", now=now, status="0x0000")
    pacs.stored.update(uids)
    return destination


def committer(database: Database, destination: Destination, **how: Any) -> Committer:
    return Committer(destination=destination, database=database, outbox=Outbox("test"), patience=QUICK, **how)


def step_within(c: Committer, seconds: float = BOUND_S) -> float:
    """One step of the committer, on a thread, as the node runs it; how long it took."""
    began = time.monotonic()
    thread = threading.Thread(target=c.step, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "the committer hangs"
    return time.monotonic() - began


@contextmanager
def nothing_left() -> Iterator[None]:
    """No thread stays behind."""
    before = set(threading.enumerate())
    yield
    wait_for(lambda: not [t for t in threading.enumerate() if t not in before], BOUND_S)


def all_are(database: Database, destination: Destination, state: str) -> bool:
    return {s for s, _ in states(database, destination.key).values()} == {state}


def test_a_report_that_takes_long_to_record_is_answered_before_the_release(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committer is woken when the answer is under way: its release comes after it."""
    finish = CommitmentOperation.finish

    def dawdle(operation: Any) -> int:
        status = finish(operation)
        time.sleep(0.5)  # recorded, and not answered yet
        return status

    with faulty_pacs(commitment="same") as pacs:
        destination = sent(database, tmp_path, pacs)
        monkeypatch.setattr(CommitmentOperation, "finish", dawdle)
        step_within(committer(database, destination, report_wait_s=0.3))
        wait_for(lambda: pacs.reports)
    assert pacs.reports == [0x0000]
    assert pacs.releases == 1
    assert all_are(database, destination, COMMITTED)


@pytest.mark.parametrize("commitment", ["same", "twice", "before"])
def test_every_report_has_its_answer(database: Database, tmp_path: Path, commitment: str) -> None:
    with faulty_pacs(commitment=commitment) as pacs, nothing_left():
        destination = sent(database, tmp_path, pacs)
        assert step_within(committer(database, destination)) < BOUND_S
        wait_for(lambda: pacs.reports)
        assert pacs.reports[0] == 0x0000
    assert all_are(database, destination, COMMITTED)


def test_two_hundred_associations_leave_no_thread(database: Database, tmp_path: Path) -> None:
    """The report may come at any moment of the release that follows."""
    with faulty_pacs(commitment="same") as pacs, nothing_left():
        destination = sent(database, tmp_path, pacs, range(1, 101))
        c = committer(database, destination, page=1)
        slowest = 0.0
        for n in range(200):
            pacs.report_after_s = n % 10 * 0.001
            slowest = max(slowest, step_within(c))
        wait_for(lambda: len(pacs.reports) == 200)
    assert set(pacs.reports) == {0x0000}
    assert all_are(database, destination, COMMITTED)
    assert slowest < BOUND_S


@pytest.mark.parametrize("release", ["never", "half"])
def test_a_release_that_is_not_answered_is_cut_short(database: Database, tmp_path: Path, release: str) -> None:
    with faulty_pacs(commitment="same", release=release) as pacs:
        destination = sent(database, tmp_path, pacs)
        with nothing_left():
            assert step_within(committer(database, destination)) < BOUND_S
    assert pacs.reports == [0x0000]
    assert all_are(database, destination, COMMITTED)


def test_a_report_in_the_middle_of_our_release_counts(database: Database, tmp_path: Path) -> None:
    """It has no answer any more; its peer may repeat it."""
    with faulty_pacs(commitment="same", release="report") as pacs, nothing_left():
        destination = sent(database, tmp_path, pacs)
        step_within(committer(database, destination, report_wait_s=0.2))
        wait_for(lambda: all_are(database, destination, COMMITTED))


def test_no_report_at_all_ends_in_time(database: Database, tmp_path: Path) -> None:
    with faulty_pacs(commitment="never") as pacs, nothing_left():
        destination = sent(database, tmp_path, pacs)
        assert step_within(committer(database, destination, report_wait_s=0.2)) < BOUND_S
    assert all_are(database, destination, SENT)
