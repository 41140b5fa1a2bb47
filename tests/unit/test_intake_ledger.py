"""What the listener sees: written with the next transaction, coalesced, bounded, and never lost to one that fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest

from cxrnode.errors import StoreError
from cxrnode.intake_ledger import Seen
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
    thread = Thread(target=seen.run, args=(stopping,))
    thread.start()
    seen.association(PACS, "")
    await_true(lambda: len(told(database)) == 1, lambda: "no record")
    stopping.set()
    thread.join()
