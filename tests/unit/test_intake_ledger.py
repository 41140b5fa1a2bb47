"""What the listener sees: written with the next transaction, coalesced, bounded, and never lost to one that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import DataError

from cxrnode.audit.kinds import in_words
from cxrnode.errors import StoreError
from cxrnode.intake_ledger import Seen, tell_refused
from cxrnode.repeats import Repeats, SparseLog
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.types import AuditEvent, Peer
from tests.support.awaiting import await_true

PACS = Peer(calling_aet="PACS", called_aet="CXRNODE", host="10.0.0.5")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "x.sqlite")
    yield opened
    opened.close()


def told(database: Database) -> list[AuditEvent]:
    with database.begin(shared=True) as c:
        return list(ledger.events(c))


def test_it_stands_before_what_the_transaction_writes(database: Database) -> None:
    seen = Seen(database, actor="intake")
    seen.association(PACS, "")
    seen.refused(PACS, "1.2.3", 0xC000, "the file is truncated")
    with seen.transaction() as c:
        ledger.append(c, "received", actor="intake")
    accepted, refused, received = told(database)
    assert (accepted.kind, accepted.ae_title, accepted.outcome) == ("association_accepted", "PACS", "accepted")
    assert accepted.detail == {"called_aet": "CXRNODE", "host": "10.0.0.5", "count": 1}
    assert (refused.kind, refused.sop_instance_uid, refused.outcome) == ("refused", "1.2.3", "refused")
    assert refused.detail["status"] == "0xC000"
    assert received.kind == "received"


def fail(seen: Seen) -> None:
    with seen.transaction():
        seen.association(PACS, "")
        raise StoreError("the disk is full")


def test_what_fails_is_written_later(database: Database) -> None:
    seen = Seen(database, actor="intake")
    seen.association(PACS, "")
    with pytest.raises(StoreError):
        fail(seen)
    assert told(database) == []
    seen.flush()
    (accepted,) = told(database)
    assert (accepted.kind, accepted.detail["count"]) == ("association_accepted", 2)
    seen.flush()
    assert len(told(database)) == 1


def test_a_flood_while_the_database_is_away_is_counted_and_bounded(database: Database) -> None:
    seen = Seen(database, actor="intake")
    for minute in range(20):
        for n in range(400):
            seen.refused(PACS, f"1.2.{minute}.{n}", 0xA700, "away")
        with pytest.raises(StoreError):
            fail(seen)
    assert len(seen._waiting) <= 1002
    seen.flush()
    assert counted(told(database)) == 20 * 400 + 20


def test_a_flood_of_accepted_ones_is_counted_and_bounded(database: Database) -> None:
    seen = Seen(database, actor="intake")
    for n in range(3000):
        seen.association(Peer(calling_aet=f"X{n}", called_aet="CXRNODE", host="10.0.0.6"), "")
    seen.flush()
    events = told(database)
    assert len(events) == 1001
    assert counted(events) == 3000
    assert "others" in str(events[-1].detail["why"])


def counted(events: list[AuditEvent]) -> int:
    return sum(int(str(e.detail["count"])) for e in events)


WHY = "calling AE title not recognised"


@pytest.mark.parametrize("what", ["rejected", "aborted", "echo_only"])
def test_what_anybody_can_do_without_end_is_summed_up(database: Database, what: str) -> None:
    """A hundred a second for ten minutes: a record at once, then after 1, 2, 4 minutes, and what is left at the end."""
    clock = [0.0]
    seen = Seen(database, actor="intake", clock=lambda: clock[0])
    act: dict[str, Callable[[], None]] = {
        "rejected": lambda: seen.association(PACS, WHY),
        "aborted": lambda: seen.aborted(PACS, "no A-ASSOCIATE-RQ"),
        "echo_only": lambda: seen.echo_only(PACS, ""),
    }
    for second in range(600):
        clock[0] = float(second)
        for _ in range(100):
            act[what]()
        seen.flush()
    assert len(told(database)) == 4
    seen.flush(everything=True)
    events = told(database)
    assert counted(events) == 60_000
    assert events[0].detail["count"] == 1
    assert "since" not in events[0].detail
    assert all(e.ae_title == "PACS" and e.detail["host"] == "10.0.0.5" for e in events)
    assert all("since" in e.detail for e in events[1:])
    assert f"({events[-1].detail['count']} times) since " in in_words(events[-1])


def test_ever_new_titles_of_one_address_are_one(database: Database) -> None:
    seen = Seen(database, actor="intake", clock=lambda: 0.0)
    for n in range(3000):
        seen.association(Peer(calling_aet=f"X{n}", called_aet=f"Y{n}", host="10.0.0.6"), WHY)
        seen.aborted(Peer(calling_aet="", called_aet="", host="10.0.0.6"), f"a PDU of {n} bytes")
    seen.association(PACS, WHY)
    seen.flush(everything=True)
    events = told(database)
    assert len(events) == 2 * 10 + 1
    assert counted(events) == 6001
    last = next(e for e in events if e.ae_title == "X2999")
    assert last.detail["why"] == f"{WHY}; the last of different ones"
    assert any(e.ae_title == "PACS" and e.detail["why"] == WHY for e in events)


def test_ever_new_addresses_are_bounded(database: Database) -> None:
    seen = Seen(database, actor="intake", clock=lambda: 0.0)
    for n in range(3000):
        seen.association(Peer(calling_aet="X", called_aet="CXRNODE", host=f"2001:db8::{n:x}"), WHY)
    seen.flush(everything=True)
    events = told(database)
    assert counted(events) == 3000
    assert len(events) <= 1002


def test_it_is_written_within_a_second_or_so(database: Database) -> None:
    seen, stopping = Seen(database, actor="intake"), Event()
    thread = Thread(target=seen.loop(SparseLog()).run, args=(stopping,))
    thread.start()
    seen.association(PACS, "")
    await_true(lambda: len(told(database)) == 1, lambda: "no record")
    stopping.set()
    thread.join()


def test_a_full_disk_is_told_at_once_and_then_rarely_with_the_sender(caplog: pytest.LogCaptureFixture) -> None:
    clock = [1000.0]
    sparse = SparseLog(repeats=Repeats(clock=lambda: clock[0]))
    other = Peer(calling_aet="ER", called_aet="CXRNODE", host="10.0.0.2")
    for second in range(150):
        clock[0] = 1000.0 + second
        tell_refused(sparse, PACS, f"1.2.{second}", 0xA700, "no room")
    tell_refused(sparse, other, "1.2.3", 0xA700, "no room")
    sparse.flush(everything=True)
    said = [record.getMessage() for record in caplog.records]
    assert ["last of" in line for line in said] == [False, True, False, True]
    assert "the last of 60 since" in said[1]
    assert "the last of 89 since" in said[3]
    assert all(f"of {PACS.calling_aet} at {PACS.host} with 0xA700" in said[n] for n in (0, 1, 3))
    assert "of ER at 10.0.0.2" in said[2]
    assert "receive.disk_watermark_mb" in said[0]


def test_one_that_the_database_will_not_have_keeps_nothing_from_its_place(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = ledger.append

    def append(c: Connection, kind: str, **values: Any) -> int:
        if values.get("why") == "poison":
            raise DataError("INSERT", {}, ValueError("out of range"))
        return real(c, kind, **values)

    monkeypatch.setattr(ledger, "append", append)
    seen = Seen(database, actor="intake")
    for why in ("first", "poison", "last"):
        seen.association(PACS, why)
    with seen.transaction() as c:
        ledger.append(c, "received", actor="intake")
    assert [e.kind for e in told(database)] == ["received"]  # the instance is taken all the same
    seen.flush()
    assert [e.detail.get("why") for e in told(database)] == [None, "first", "last"]
    assert "cannot be recorded" in caplog.text
    seen.flush()
    assert len(told(database)) == 3
