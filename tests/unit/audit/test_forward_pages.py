"""How many records go at a time, and when they are confirmed: to a stand-in that keeps what it gets."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cxrnode.audit.atna import Source
from cxrnode.audit.forward import Forwarder, sent_up_to, unconfirmed_since
from cxrnode.audit.syslog import SyslogError
from cxrnode.store import ledger
from cxrnode.store.database import Database


@dataclass
class Receiver:
    """Server and connection in one."""

    got: list[int] = field(default_factory=list)
    connections: int = 0
    confirmed: int = 0
    abandoned: int = 0
    refuses: bool = False

    def connect(self) -> Receiver:
        if self.refuses:
            raise SyslogError("no connection")
        self.connections += 1
        return self

    def send(self, frames: bytes) -> None:
        self.got += [int(n) for n in re.findall(rb"/ledger#(\d+)", frames)]

    def confirm(self) -> None:
        if self.refuses:
            raise SyslogError("not confirmed")
        self.confirmed += 1

    def abandon(self) -> None:
        self.abandoned += 1


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "x.sqlite")
    yield opened
    opened.close()


def forwarder(database: Database, tmp_path: Path, receiver: Any, confirm_s: float = 3600.0) -> Forwarder:
    reader = Database(tmp_path / "x.sqlite", read_only=True)
    source = Source(ae_title="CXRNODE", host="node")
    return Forwarder(database=database, reader=reader, server=receiver, source=source, confirm_s=confirm_s)


def append(database: Database, number: int) -> None:
    with database.begin() as c:
        for _ in range(number):
            ledger.append(c, "received", actor="intake")


def confirmed(database: Database) -> int:
    with database.begin() as c:
        return sent_up_to(c)


@pytest.mark.parametrize(("records", "more"), [(0, False), (1, False), (199, False), (200, True), (201, True)])
def test_a_page_is_of_200_records_in_their_order(database: Database, tmp_path: Path, records: int, more: bool) -> None:
    append(database, records)
    receiver = Receiver()
    forwarding = forwarder(database, tmp_path, receiver)
    assert forwarding.step() is more
    assert receiver.got == list(range(1, min(records, 200) + 1))
    assert forwarding.step() is False
    assert receiver.got == list(range(1, records + 1))
    assert (receiver.connections, confirmed(database)) == (min(records, 1), 0)


def test_after_a_thousand_records_it_is_confirmed(database: Database, tmp_path: Path) -> None:
    append(database, 1001)
    receiver = Receiver()
    forwarding = forwarder(database, tmp_path, receiver)
    for _ in range(4):
        forwarding.step()
    assert (len(receiver.got), receiver.confirmed, confirmed(database)) == (800, 0, 0)
    forwarding.step()
    assert (len(receiver.got), receiver.confirmed, confirmed(database)) == (1000, 1, 1000)
    forwarding.step()
    assert (receiver.got[-1], receiver.connections, confirmed(database)) == (1001, 2, 1000)  # a connection of its own


def test_an_old_connection_is_confirmed_though_nothing_is_new(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(database, 3)
    receiver, now = Receiver(), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    forwarding = forwarder(database, tmp_path, receiver, confirm_s=30.0)
    assert (forwarding.step(), receiver.got, confirmed(database)) == (False, [1, 2, 3], 0)
    now[0] = 1029.9
    assert (forwarding.step(), confirmed(database)) == (False, 0)
    now[0] = 1030.0
    assert (forwarding.step(), confirmed(database), receiver.confirmed) == (False, 3, 1)
    assert (forwarding.step(), receiver.confirmed) == (False, 1)  # there is none open
    append(database, 1)
    assert (forwarding.step(), receiver.got, receiver.connections) == (False, [1, 2, 3, 4], 2)


def test_what_was_not_confirmed_is_sent_again(database: Database, tmp_path: Path) -> None:
    append(database, 3)
    receiver = Receiver()
    forwarding = forwarder(database, tmp_path, receiver, confirm_s=0.0)
    forwarding.step()
    assert confirmed(database) == 3
    append(database, 2)
    receiver.refuses = True
    with pytest.raises(SyslogError):
        forwarding.step()
    forwarding._failed(SyslogError("no connection"))
    assert (receiver.abandoned, confirmed(database)) == (0, 3)  # it was never open
    receiver.refuses = False
    forwarding.confirm_s = 3600.0
    forwarding.step()
    assert receiver.got == [1, 2, 3, 4, 5]
    receiver.refuses = True
    forwarding.confirm_s = 0.0
    with pytest.raises(SyslogError):
        forwarding.step()
    forwarding._failed(SyslogError("not confirmed"))
    assert (receiver.abandoned, confirmed(database)) == (1, 3)
    receiver.refuses = False
    forwarding.step()
    assert (receiver.got, confirmed(database)) == ([1, 2, 3, 4, 5, 4, 5], 5)


def test_the_loop_asks_again_at_once_while_records_wait(database: Database, tmp_path: Path) -> None:
    append(database, 201)
    receiver = Receiver()
    loop = forwarder(database, tmp_path, receiver).loop()
    assert (loop.name, loop.step(), loop.step()) == ("audit messages", 0.0, 1.0)
    assert (receiver.confirmed, confirmed(database)) == (0, 0)
    loop.close()
    assert (receiver.confirmed, confirmed(database)) == (1, 201)


def test_since_when_the_oldest_record_waits(database: Database, tmp_path: Path) -> None:
    with database.begin() as c:
        assert (unconfirmed_since(c), sent_up_to(c)) == (None, 0)
    append(database, 2)
    with database.begin() as c:
        first, second = ledger.events(c)
        assert unconfirmed_since(c) == first.at
    forwarding = forwarder(database, tmp_path, Receiver(), confirm_s=0.0)
    forwarding.step()
    append(database, 2)
    with database.begin() as c:
        (*_, third, _fourth) = ledger.events(c)
        assert unconfirmed_since(c) == third.at
        assert third.at >= second.at
        assert datetime.now(UTC) - third.at < timedelta(minutes=1)


def test_an_error_is_logged_once_an_outage_with_where_it_waits(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    append(database, 3)
    receiver = Receiver(refuses=True)
    forwarding = forwarder(database, tmp_path, receiver, confirm_s=0.0)
    for error in (SyslogError("away"), SyslogError("away"), ssl.SSLError("other"), SyslogError("away"), KeyError("x")):
        forwarding._failed(error)
    said = [r.getMessage() for r in caplog.records]
    assert said == [
        f"audit messages wait in the ledger, from record 1 on: {w}" for w in ("away", "SSLError", "KeyError")
    ]
    assert [bool(r.exc_info) for r in caplog.records] == [False, True, True]  # of ours the words are enough
    receiver.refuses = False
    caplog.set_level("INFO")
    caplog.clear()
    forwarding.step()
    assert [r.levelname for r in caplog.records] == ["INFO"]
    append(database, 1)
    forwarding.step()
    assert len(caplog.records) == 1  # told once
    forwarding._failed(SyslogError("away"))
    assert caplog.records[-1].getMessage().startswith("audit messages wait in the ledger, from record 5 on: away")
