"""Audit messages to a real rsyslog over TLS: whole, in order, and none lost whatever becomes of the server."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

import pytest

from cxrnode.audit.atna import Source
from cxrnode.audit.forward import Forwarder, unconfirmed_since
from cxrnode.audit.syslog import SyslogError
from cxrnode.config import load_config
from cxrnode.dicom.tls import client_context
from cxrnode.doctor import diagnose
from cxrnode.live_tls import LiveTls
from cxrnode.patience import Patience
from cxrnode.serve import run_deliver
from cxrnode.store import ledger
from cxrnode.store.data_dir import establish
from cxrnode.store.database import Database
from cxrnode.store.queue import Queue
from tests.interop.conftest import require
from tests.support.atna import check_message, objects, seq_of
from tests.support.audit import lived
from tests.support.certificates import Authority
from tests.support.store import received
from tests.support.syslog import Rsyslog, missing_rsyslog

pytestmark = pytest.mark.interop
SECONDS = 20.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def rsyslog(tmp_path: Path, authority: Authority) -> Iterator[Rsyslog]:
    require(missing_rsyslog())
    server = Rsyslog(tmp_path, authority)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = lived(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


@contextmanager
def forwarding(database: Database, where: Path, rsyslog: Rsyslog) -> Iterator[None]:
    """As the node does it, but for the times."""
    reader = Database(where / "ledger.sqlite", read_only=True)
    forwarder = Forwarder(
        database=database, reader=reader, server=rsyslog.server(), source=Source(ae_title="CXRNODE", host="node"),
        patience=Patience(first_wait_s=0.1, longest_wait_s=0.5), confirm_s=0.2,
    )  # fmt: skip
    stopping = threading.Event()
    thread = threading.Thread(target=forwarder.loop().run, args=(stopping,))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        reader.close()


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_sent(database: Database) -> bool:
    with database.begin() as c:
        return unconfirmed_since(c) is None


def append(database: Database, count: int) -> None:
    with database.begin() as c:
        for _ in range(count):
            ledger.append(c, "claimed", actor="analyse", study_instance_uid="1.2.826.0.101", ae_title="Ä<PACS>")


def messages(rsyslog: Rsyslog) -> list[Element]:
    """What arrived, each a whole message of the schema."""
    roots = []
    for line in rsyslog.lines():
        header, mark, content = line.partition("\ufeff")
        assert header.startswith("<85>1 ")
        assert mark
        roots.append(fromstring(content))
        check_message(roots[-1])
    return roots


def in_order(seqs: list[int]) -> list[int]:
    """Without what was sent again; where that begins anew, it begins at a record that was sent before."""
    newest = 0
    for seq in seqs:
        assert seq <= newest + 1, "a record was left out"
        newest = max(newest, seq)
    return sorted(set(seqs))


def test_messages_arrive_whole(database: Database, tmp_path: Path, rsyslog: Rsyslog) -> None:
    patient = "Müller <&\"'> 東京"
    with database.begin() as c:
        Queue("intake").receive(c, [replace(received(103, 1), patient_id=patient)])
        events = list(ledger.events(c))
    with forwarding(database, tmp_path, rsyslog):
        until(lambda: is_sent(database))
    got = messages(rsyslog)
    assert [seq_of(m) for m in got] == [e.seq for e in events]  # each once
    assert objects(got[-1])["2"][0].attrib["ParticipantObjectID"] == patient


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_an_outage_mid_stream_loses_none(
    database: Database, tmp_path: Path, rsyslog: Rsyslog, how: signal.Signals
) -> None:
    append(database, 2500)
    with forwarding(database, tmp_path, rsyslog):
        until(lambda: len(rsyslog.lines()) > 300)
        rsyslog.stop(how)
        append(database, 500)
        time.sleep(0.5)
        rsyslog.start()
        until(lambda: is_sent(database))
        append(database, 10)
        until(lambda: is_sent(database))
    with database.begin() as c:
        newest = ledger.newest(c)
    assert newest
    assert in_order([seq_of(m) for m in messages(rsyslog)]) == list(range(1, newest[0] + 1))


def test_a_restart_of_the_node_goes_on_where_it_was(database: Database, tmp_path: Path, rsyslog: Rsyslog) -> None:
    with forwarding(database, tmp_path, rsyslog):
        until(lambda: is_sent(database))
    append(database, 3)
    with forwarding(database, tmp_path, rsyslog):
        until(lambda: is_sent(database))
    seqs = [seq_of(m) for m in messages(rsyslog)]
    assert seqs == list(range(1, len(seqs) + 1))


def test_a_node_with_audit_syslog_sends_it_all(tmp_path: Path, rsyslog: Rsyslog, authority: Authority) -> None:
    node = authority.issue("node")
    (tmp_path / "cxrnode.toml").write_text(
        '[node]\ndata_dir = "."\nae_title = "NODE7"\n[audit.syslog]\nhost = "localhost"\n'
        f'port = {rsyslog.port}\nca = "{authority.ca}"\ncertificate = "{node.certificate}"\nkey = "{node.key}"\n'
    )
    config, stopping = load_config(tmp_path / "cxrnode.toml"), threading.Event()
    tls = LiveTls(config.tls_tables)
    with closing(lived(tmp_path / "ledger.sqlite")) as database:
        (tmp_path / "spool").mkdir()  # where what it received would lie
        data_dir = establish(database, tmp_path, make=True)
        work = partial(run_deliver, config, database, data_dir, stopping, tls=tls)
        stage = threading.Thread(target=work)
        stage.start()
        until(lambda: len(rsyslog.lines()) > 10)
        stopping.set()  # it confirms what it has sent
        stage.join()
        assert is_sent(database)
    assert {s.attrib["AuditSourceID"] for m in messages(rsyslog) for s in m.iter("AuditSourceIdentification")} == {
        "NODE7"
    }
    rsyslog.stop()
    (said,) = [check for check in diagnose(config, file=tmp_path, store=False) if check.name == "audit messages"]
    assert "is the syslog server up?" in said.found
    rsyslog.start()
    (said,) = [check for check in diagnose(config, file=tmp_path, store=False) if check.name == "audit messages"]
    assert "takes a TLS connection" in said.found


def test_a_server_that_wants_a_certificate(rsyslog: Rsyslog, authority: Authority) -> None:
    nobody = replace(rsyslog.server(), tls=lambda: client_context(ca=authority.ca))
    with pytest.raises(SyslogError, match="Does it want a client certificate"):
        nobody.connect().confirm()
    rsyslog.server().connect().confirm()
