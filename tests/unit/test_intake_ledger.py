"""What the listener sees: written with the next transaction, coalesced, bounded, and never lost to one that fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import DataError

from cxrnode.errors import StoreError
from cxrnode.intake_ledger import Seen, TurnedAway
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
        seen.association(PACS, "calling AE title not recognised")
        raise StoreError("the disk is full")


def test_what_fails_is_written_later(database: Database) -> None:
    seen = Seen(database, actor="intake")
    seen.association(PACS, "calling AE title not recognised")
    with pytest.raises(StoreError):
        fail(seen)
    assert told(database) == []
    seen.flush()
    (rejected,) = told(database)
    assert (rejected.kind, rejected.detail["count"]) == ("association_rejected", 2)
    seen.flush()
    assert len(told(database)) == 1


def test_a_flood_is_counted_and_bounded(database: Database) -> None:
    seen = Seen(database, actor="intake")
    for n in range(3000):
        seen.association(Peer(calling_aet=f"X{n}", called_aet="CXRNODE", host="10.0.0.6"), "calling AE title")
    seen.flush()
    events = told(database)
    assert len(events) == 1001
    counts = [int(str(e.detail["count"])) for e in events]
    assert sum(counts) == 3000
    assert "others" in str(events[-1].detail["why"])


def test_it_is_written_within_a_second_or_so(database: Database) -> None:
    seen, stopping = Seen(database, actor="intake"), Event()
    thread = Thread(target=seen.loop().run, args=(stopping,))
    thread.start()
    seen.association(PACS, "")
    await_true(lambda: len(told(database)) == 1, lambda: "no record")
    stopping.set()
    thread.join()


def test_a_full_disk_is_told_once_a_minute_with_the_sender(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("cxrnode.intake_ledger.time.monotonic", lambda: clock[0])
    turned_away, other = TurnedAway(), Peer(calling_aet="ER", called_aet="CXRNODE", host="10.0.0.2")
    for seconds in range(150):
        clock[0] = 1000.0 + seconds
        turned_away.tell(PACS, 0xA700, "no room")
    turned_away.tell(other, 0xA700, "no room")
    said = [record.getMessage() for record in caplog.records]
    counts = [line.partition(" of ")[0] for line in said]
    assert counts == ["refused 1 image", "refused 60 images", "refused 60 images", "refused 1 image"]
    assert all(f"of {PACS.calling_aet} at {PACS.host} with 0xA700" in line for line in said[:3])
    assert "of ER at 10.0.0.2" in said[3]
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
