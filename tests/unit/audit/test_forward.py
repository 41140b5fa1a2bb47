"""Audit messages and servers that misbehave: nothing is lost, the reason is said once, and nobody is pestered."""

from __future__ import annotations

import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cxrnode.audit import atna, forward
from cxrnode.audit.atna import Source
from cxrnode.audit.forward import Forwarder, sent_up_to, unconfirmed_since
from cxrnode.audit.syslog import SyslogConnection, SyslogError, SyslogServer
from cxrnode.patience import Patience
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.types import AuditEvent
from tests.support import syslog
from tests.support.audit import lived
from tests.support.awaiting import await_true
from tests.support.certificates import Authority
from tests.support.syslog import Behaviour, bad_server, free_port

SHORT = Patience(first_wait_s=0.05, longest_wait_s=0.2)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = lived(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


def forwarder(database: Database, tmp_path: Path, server: SyslogServer) -> Forwarder:
    """Its reader is closed by the garbage collector: it holds no connection between transactions."""
    reader = Database(tmp_path / "ledger.sqlite", read_only=True)
    return Forwarder(
        database=database, reader=reader, server=server, source=Source(ae_title="CXRNODE", host="node"),
        patience=SHORT, confirm_s=0.0,
    )  # fmt: skip


@contextmanager
def running(forwarding: Forwarder) -> Iterator[None]:
    stopping = threading.Event()
    thread = threading.Thread(target=forwarding.loop().run, args=(stopping,))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(timeout=30)
    assert not thread.is_alive()


BAD: list[tuple[Behaviour, str]] = [
    (syslog.no_tls, r"no TLS with .*RFC 5425"),
    (syslog.closes, r"no TLS with "),
    (syslog.closes_after_handshake, r"did not confirm|took no more"),
    (syslog.says_goodbye_unread, r"did not confirm|took no more"),
    (syslog.answers, r"did not confirm \(application data after close notify\): a syslog server .* says nothing"),
    (syslog.never_reads, r"did not confirm \(not in time\)"),
    (syslog.dies_unread, r"did not confirm \(.*reset.*\)"),
]


@pytest.mark.parametrize(("behave", "why"), BAD, ids=[b.__name__ for b, _ in BAD])
def test_what_was_not_confirmed_waits(
    database: Database, tmp_path: Path, authority: Authority, behave: Behaviour, why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with database.begin() as c:
        last = ledger.newest(c)
    assert last
    assert last[0] > 10

    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records]

    began = time.monotonic()
    with (
        bad_server(authority, behave) as bad,
        caplog.at_level(logging.INFO),
        running(forwarder(database, tmp_path, bad.server(authority, timeout_s=1.0))),
    ):
        await_true(lambda: said() and bad.connections >= 3)
    assert bad.connections <= 20 + 2 * (time.monotonic() - began) / SHORT.longest_wait_s
    with database.begin() as c:
        assert sent_up_to(c) == 0
    assert len(set(said())) == len(said()) <= 3  # what a server does depends on when: each reason once
    assert all(s.startswith("audit messages wait in the ledger, from record 1 on: ") for s in said())
    assert re.search(why, said()[0])


def test_a_server_that_is_not_there(
    database: Database, tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    with bad_server(authority, syslog.closes) as bad:
        known = bad.server(authority)
    nobody = SyslogServer(host="127.0.0.1", port=free_port(), tls=known.tls, timeout_s=0.5)
    with caplog.at_level(logging.INFO), running(forwarder(database, tmp_path, nobody)):
        await_true(lambda: caplog.records)
        time.sleep(0.5)  # it tries again, and says no more
    assert [r.getMessage() for r in caplog.records] == [
        "audit messages wait in the ledger, from record 1 on: no connection to "
        f"{nobody} (Connection refused): is the syslog server up?"
    ]


def test_a_certificate_of_another_authority(authority: Authority, tmp_path: Path) -> None:
    with bad_server(authority, syslog.forgets_close_notify) as bad:
        stranger = bad.server(Authority(tmp_path, "other"))
        with pytest.raises(SyslogError, match=r"is not trusted \(.*\): audit\.syslog\.ca must hold"):
            stranger.connect()


def test_a_certificate_of_another_host(authority: Authority) -> None:
    with bad_server(authority, syslog.forgets_close_notify, hosts=("elsewhere.example",)) as bad:
        here = bad.server(authority)
        with pytest.raises(SyslogError, match=r"the certificate name 127\.0\.0\.1"):
            here.connect()


def test_a_full_send_buffer_is_given_up(authority: Authority) -> None:
    with bad_server(authority, syslog.never_reads) as bad:
        connection = bad.server(authority).connect()
        with pytest.raises(SyslogError, match=r"took no more \(not in time\)"):
            connection.send(bytes(1 << 26))
        connection.abandon()


def test_who_forgets_to_say_goodbye_has_read_all(database: Database, tmp_path: Path, authority: Authority) -> None:
    with bad_server(authority, syslog.forgets_close_notify) as bad:
        forwarding = forwarder(database, tmp_path, bad.server(authority, timeout_s=5.0))
        forwarding.step()
    with database.begin() as c:
        assert unconfirmed_since(c) is None
        ledger.append(c, "received", actor="test")
        since = unconfirmed_since(c)
        assert since
        assert abs((datetime.now(UTC) - since).total_seconds()) < 60


def test_what_the_other_machine_has_not_acknowledged_is_not_confirmed(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended the connection in good order, and bytes were still on their way (RFC 9293 section 3.6.1)."""
    for waiting in (0, 1):
        with bad_server(authority, syslog.forgets_close_notify) as bad:
            connection = bad.server(authority, timeout_s=5.0).connect()
            connection.send(b"5 <85>1")
            monkeypatch.setattr(SyslogConnection, "_unacknowledged", lambda _self, n=waiting: n)
            if waiting:
                with pytest.raises(SyslogError, match=r"did not confirm \(it did not read all\)"):
                    connection.confirm()
            else:
                connection.confirm()


def test_a_recovery_is_told(
    database: Database, tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    def first_badly(raw: socket.socket, tls: ssl.SSLContext) -> None:
        tries.append(1)
        (syslog.closes if len(tries) == 1 else syslog.forgets_close_notify)(raw, tls)

    with (
        bad_server(authority, first_badly) as bad,
        caplog.at_level(logging.INFO),
        running(forwarder(database, tmp_path, bad.server(authority, timeout_s=10.0))),
    ):
        await_true(lambda: len(caplog.records) == 2, lambda: caplog.text)
    with database.begin() as c:
        newest = sent_up_to(c)
        assert unconfirmed_since(c) is None
    assert len(caplog.records) == 2
    assert f"again, up to record {newest}" in caplog.records[1].getMessage()


def test_a_record_of_which_no_message_can_be_made_keeps_no_other_from_its_way(
    database: Database, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    real, made = atna.xml, list[int]()

    def xml(event: AuditEvent, *how: Any) -> bytes:
        if event.seq == 3:
            raise RuntimeError("Phantom^Chest")
        made.append(event.seq)
        return real(event, *how)

    monkeypatch.setattr(forward, "xml", xml)
    with bad_server(authority, syslog.forgets_close_notify) as bad:
        forwarder(database, tmp_path, bad.server(authority, timeout_s=5.0)).step()
    with database.begin() as c:
        assert unconfirmed_since(c) is None
        newest = sent_up_to(c)
    assert made == [n for n in range(1, newest + 1) if n != 3]
    assert "record 3 of the ledger cannot be made an audit message" in caplog.text
