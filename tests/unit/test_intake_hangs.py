"""What hangs while an instance is taken: its sender is told to come again, and whatever comes in whichever order then,
nothing is acknowledged without its row and its file."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

from cxrnode import intake as intake_module
from cxrnode.dicom.status import OUT_OF_RESOURCES
from cxrnode.dicom.storing import IncomingInstance
from cxrnode.errors import StorageFullError, StoreAwayError
from cxrnode.intake import Intake
from cxrnode.set_aside import set_aside
from cxrnode.store.database import Database
from cxrnode.store.queue import Queue
from cxrnode.types import Receipt, ReceivedInstance
from tests.support.awaiting import await_true
from tests.support.make_dicom import chest
from tests.support.receiving import recorder
from tests.unit.test_intake import incoming

SOON_S, PATIENT_S = 0.1, 60.0


class Place:
    """Where one call hangs, once, and how it ends."""

    def __init__(self) -> None:
        self.armed = False
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def passes(self) -> None:
        if self.armed:
            self.armed = False
            self.reached.set()
            assert self.go_on.wait(60)
            if self.error:
                raise self.error


class Site:
    """An intake with a real store, and a place where it hangs."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "var"
        self.database = Database(folder / "node.sqlite")
        self.hangs = {name: Place() for name in ("file", "folder", "before", "after")}
        self._peer = threading.local()  # how long each waits
        self.peers = ThreadPoolExecutor(8)
        self._record = recorder(self.database)
        self._numbers = iter(range(1000))
        sync = intake_module.sync

        def slow_sync(path: Path) -> None:
            if path.suffix == ".part":
                self.hangs["file"].passes()
            elif path.parent.name == "spool":
                self.hangs["folder"].passes()
            sync(path)

        monkeypatch.setattr(intake_module, "sync", slow_sync)
        monkeypatch.setattr(intake_module, "answer_by", lambda: time.monotonic() + self._peer.waits_s)
        monkeypatch.setattr(intake_module, "_GRACE_S", 0.05)
        self.start()

    def start(self) -> None:
        """Again, as after a stop: with its sweep."""
        set_aside(self.folder, self.database, Queue("intake"), actor="intake")
        self.node = Intake(
            self.folder, record=self.record, is_stat=lambda _ds, _peer: False,
            watermark_bytes=0,
        )  # fmt: skip

    def record(self, batch: Sequence[ReceivedInstance]) -> Sequence[Receipt]:
        self.hangs["before"].passes()
        receipts = self._record(batch)
        self.hangs["after"].passes()
        return receipts

    def comes(self, ds: Dataset) -> IncomingInstance:
        return incoming(self.node, ds, f".{next(self._numbers)}.part")

    def take(self, arrived: IncomingInstance, waits_s: float = PATIENT_S, *, discard: bool = True) -> Future[int]:
        """As an association does it: what still lies there after the answer is deleted."""

        def answer() -> int:
            self._peer.waits_s = waits_s
            status = self.node.store(arrived)
            if status == 0:
                assert self.rows(arrived) == 1
                assert self.files(arrived)
            if discard:
                arrived.path.unlink(missing_ok=True)
            return status

        return self.peers.submit(answer)

    def rows(self, arrived: IncomingInstance) -> int:
        query = "SELECT path FROM instance WHERE sop_instance_uid = ?"
        with self.database.read() as c:
            paths = list(c.exec_driver_sql(query, (arrived.sop_instance_uid,)).scalars())
        assert all((self.folder / path).is_file() for path in paths)
        return len(paths)

    def files(self, arrived: IncomingInstance) -> list[Path]:
        found = list((self.folder / "spool").glob(f"*/{arrived.sop_instance_uid}-*.dcm"))
        for file in found:
            raw = file.read_bytes()
            assert hashlib.sha256(raw[arrived.data_set_at :]).hexdigest() == arrived.sha256
        return found

    def given_up(self, ds: Dataset, place: Place, *, discard: bool = True) -> IncomingInstance:
        """One whose time was over while it hung there: on a machine that is too busy to get there in time, a later."""
        waits_s, place.armed = SOON_S, True
        while True:
            arrived = self.comes(ds)
            assert self.take(arrived, waits_s, discard=discard).result(60) == OUT_OF_RESOURCES
            await_true(lambda: place.reached.is_set() or self.is_idle(), every_s=0.01)
            if place.reached.is_set():
                return arrived
            waits_s *= 2.0

    def is_idle(self) -> bool:
        return not (self.node._takers._running or self.node._commits._turn._running)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(tmp_path, monkeypatch)
    yield made
    for place in made.hangs.values():
        place.go_on.set()
    made.peers.shutdown()
    made.database.close()


ENDS = {"well": None, "away": StoreAwayError("away"), "full": StorageFullError("full"), "error": RuntimeError("?")}
ORDERS = ("repeat, end", "end, repeat", "end, stop, repeat")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("where", ["file", "folder", "before", "after"])
def test_what_hangs_with_it_in_hand(site: Site, where: str, end: str, order: str) -> None:
    """The first to come is given up, and sent again: before or after what hangs has ended, or after another start."""
    ds, place = chest(64, 64), site.hangs[where]
    place.error = ENDS[end]
    first = site.given_up(ds, place, discard=where != "file")
    again = site.comes(ds)
    repeated = site.take(again) if order == "repeat, end" else None
    if repeated and where == "file":  # the others work on beside it
        assert repeated.result(60) == 0
    place.go_on.set()
    if not repeated:
        await_true(site.is_idle)
        in_its_transaction = where == "after" or (where == "before" and end == "well")
        assert site.rows(first) == in_its_transaction
    first.path.unlink(missing_ok=True)
    if "stop" in order:
        site.start()
        assert len(site.files(first)) == site.rows(first)  # swept where nobody was told of it
        again = site.comes(ds)
    assert (repeated or site.take(again)).result(60) == 0
    site.start()
    assert len(site.files(again)) == site.rows(again) == 1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("where", ["folder", "before", "after"])
def test_what_waits_behind_what_hangs_is_withdrawn(site: Site, where: str, end: str, order: str) -> None:
    place = site.hangs[where]
    place.armed, place.error = True, ENDS[end]
    other, ds = site.comes(chest(64, 64, seed=1)), chest(64, 64, seed=2)
    hangs = site.take(other)
    assert place.reached.wait(60)
    first, again = site.comes(ds), site.comes(ds)
    assert site.take(first, SOON_S).result(60) == OUT_OF_RESOURCES
    assert not site.rows(first)
    repeated = site.take(again) if order == "repeat, end" else None
    place.go_on.set()
    assert hangs.result(60) == (0 if end == "well" else OUT_OF_RESOURCES)
    if not repeated:
        await_true(site.is_idle)
        assert not site.rows(first)
    if "stop" in order:
        site.start()
        assert not site.files(first)
        again = site.comes(ds)
    assert (repeated or site.take(again)).result(60) == 0
    site.start()
    assert len(site.files(again)) == site.rows(again) == 1


def test_one_that_is_given_up_is_in_no_transaction_that_begins_later(site: Site) -> None:
    """The two share a transaction that fails, after which each has its own: one of them may be to blame."""
    first, second = site.hangs["after"], site.hangs["before"]
    first.armed = True
    holds, stays, goes = (site.comes(chest(64, 64, seed=seed)) for seed in range(3))
    answers = [site.take(holds)]
    assert first.reached.wait(60)
    answers += [site.take(stays), site.take(goes)]
    waiting = site.node._commits._waiting
    await_true(lambda: len(waiting) == 2, every_s=0.01)
    entries = list(waiting)
    second.armed, second.error = True, RuntimeError("one of them")
    first.go_on.set()
    assert second.reached.wait(60)
    (entry,) = [e for e in entries if e.instance.sop_instance_uid == goes.sop_instance_uid]
    site.node._commits._give_up(entry)
    second.go_on.set()
    assert [answer.result(60) for answer in answers] == [0, 0, OUT_OF_RESOURCES]
    assert (site.rows(stays), site.rows(goes)) == (1, 0)


def test_what_is_committed_at_the_last_moment_is_acknowledged(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = site.node._commits._turn

    def do(work: Callable[[], Any], *, until: float) -> None:
        work()
        raise StoreAwayError(f"at {until}")

    monkeypatch.setattr(turn, "do", do)
    assert site.take(site.comes(chest(64, 64))).result(60) == 0


def test_while_it_hangs_whoever_comes_is_told_and_nothing_piles_up(site: Site) -> None:
    place = site.hangs["before"]
    assert site.node.has_room()
    site.given_up(chest(64, 64, seed=20), place)
    arrived = [site.comes(chest(64, 64, seed=seed)) for seed in range(20)]
    answers = [site.take(each, SOON_S) for each in arrived]
    assert [answer.result(60) for answer in answers] == [OUT_OF_RESOURCES] * 20
    assert not site.node.has_room()  # so what comes now is turned away before it is received
    assert not site.node._commits._waiting
    place.go_on.set()
    await_true(site.node.has_room)
    assert [site.take(site.comes(chest(64, 64, seed=seed))).result(60) for seed in range(20)] == [0] * 20


def test_a_disk_that_hangs_is_known_as_one(site: Site) -> None:
    place = site.hangs["file"]
    site.given_up(chest(64, 64), place)
    await_true(lambda: not site.node.has_room())
    place.go_on.set()
    await_true(site.node.has_room)
    assert site.take(site.comes(chest(64, 64))).result(60) == 0
