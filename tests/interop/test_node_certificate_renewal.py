"""Certificates that are renewed while the node runs: in what it listens with, in what it sends with, and to syslog."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    Comprehensive3DSRStorage,
    SecondaryCaptureImageStorage,
    Verification,
)

from cxrnode.audit.forward import unconfirmed_since
from cxrnode.dicom.tls import client_context, server_context
from cxrnode.store.database import Database
from tests.interop.conftest import require
from tests.support.awaiting import await_true, film
from tests.support.certificates import Authority, Identity, replace
from tests.support.make_dicom import chest
from tests.support.node import SENDER, Node, running_node
from tests.support.orthanc import free_port
from tests.support.receiving import associated
from tests.support.syslog import Rsyslog, missing_rsyslog

pytestmark = pytest.mark.interop


def serial_of(made: Identity) -> int:
    return x509.load_pem_x509_certificates(made.certificate.read_bytes())[0].serial_number


def confirmed(node: Node) -> bool:
    """The syslog server has read all there is."""
    with closing(Database(node.data_dir / "ledger.sqlite", read_only=True)) as database, database.begin() as c:
        return unconfirmed_since(c) is None


@dataclass(kw_only=True)
class Pair:
    """A node with TLS everywhere, and a PACS that sees which certificate each association shows."""

    node: Node
    tls_port: int
    authority: Authority
    mine: Identity
    seen: list[int] = field(default_factory=list)  # serial numbers

    def shown(self) -> int:
        """The serial number of what the listener shows, as openssl sees it."""
        done = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{self.tls_port}", "-CAfile", self.authority.ca,
             "-cert", self.mine.certificate, "-key", self.mine.key],
            input="", capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        begin = done.stdout.index("-----BEGIN CERTIFICATE")
        return x509.load_pem_x509_certificate(done.stdout[begin:].encode()).serial_number

    def renew(self, **how: Any) -> int:
        made = self.authority.issue("renewed", rsa=True, **how)
        replace(self.mine, made)
        return serial_of(made)

    def hang_up(self) -> None:
        assert self.node.process
        self.node.process.send_signal(signal.SIGHUP)

    def tls_args(self) -> tuple[Any, str]:
        made = self.authority.issue("sender", rsa=True)
        return client_context(ca=self.authority.ca, certificate=made.certificate, key=made.key), "127.0.0.1"

    def expiry(self, role: str) -> float:
        lines = [
            x
            for x in self.node.http("/metrics").decode().splitlines()
            if f'expiry_timestamp_seconds{{role="{role}"' in x
        ]
        return float(lines[0].split()[-1])

    def warning(self) -> str:
        return str(self.node.readiness()["warnings"].get("certificates", ""))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    require(missing_rsyslog())
    authority = Authority(tmp_path)
    mine, theirs = authority.issue("node", rsa=True), authority.issue("pacs", rsa=True)
    rsyslog = Rsyslog(tmp_path, authority)
    tls_port, pacs_port = free_port(), free_port()
    files = f'certificate = "{mine.certificate}"\nkey = "{mine.key}"\nca = "{authority.ca}"\n'
    node = Node(
        folder=tmp_path / "node",
        extra=f"""[receive.tls]
port = {tls_port}
{files}[send.tls]
{files}[audit.syslog]
host = "127.0.0.1"
port = {rsyslog.port}
{files}[[destination]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {pacs_port}
tls = true
storage_commitment = false
""",
    )
    pair = Pair(node=node, tls_port=tls_port, authority=authority, mine=mine)

    def store(event: Any) -> int:
        der = event.assoc.dul.socket.socket.getpeercert(binary_form=True)
        pair.seen.append(x509.load_der_x509_certificate(der).serial_number)
        return 0

    ae = AE(ae_title="PACS")
    for sop_class in (Comprehensive3DSRStorage, SecondaryCaptureImageStorage, Verification):
        ae.add_supported_context(sop_class)
    context = server_context(certificate=theirs.certificate, key=theirs.key, ca=authority.ca)
    ae.start_server(("127.0.0.1", pacs_port), block=False, ssl_context=context, evt_handlers=[(evt.EVT_C_STORE, store)])
    rsyslog.start()
    try:
        with running_node(node):
            yield pair
    finally:
        rsyslog.stop()
        ae.shutdown()


def test_a_renewed_certificate_is_taken_with_sighup_and_open_associations_live_on(pair: Pair, tmp_path: Path) -> None:
    node, first = pair.node, serial_of(pair.mine)
    assert node.send(film(tmp_path, 1)) == [0]
    await_true(lambda: len(pair.seen) == 2, lambda: node.log[-3000:])
    assert {pair.shown(), *pair.seen} == {first}
    before = {name: stage.pid for name, stage in node.stages().items()}
    ds = chest(64, 64)
    with associated(pair.tls_port, ds, calling=SENDER, tls_args=pair.tls_args()) as assoc:
        assert assoc.send_c_store(ds).Status == 0
        until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=200)
        second = pair.renew(not_after=until)
        pair.hang_up()
        await_true(lambda: pair.shown() == second, lambda: node.log[-3000:])
        assert assoc.send_c_store(ds).Status == 0  # on the association that is open
    pair.seen.clear()
    await_true(lambda: node.log.count("certificates are loaded anew") == 4, lambda: node.log[-3000:])
    await_true(lambda: node.rows("SELECT 1 FROM delivery WHERE state = 'pending'") == [], lambda: node.log[-3000:])

    def sent_with_the_new_one() -> bool:  # once the association that was kept for what might come next is gone
        node.send(film(tmp_path, 2 + len(pair.seen)))
        return second in pair.seen

    await_true(sent_with_the_new_one, lambda: node.log[-3000:], every_s=6.0)
    for role in ("receive.tls", "send.tls", "audit.syslog"):
        assert pair.expiry(f"{role}.certificate") == until.timestamp()
    assert {name: stage.pid for name, stage in node.stages().items()} == before
    assert node.readiness() == {"ready": True, "reasons": {}, "warnings": {}}
    await_true(lambda: confirmed(node), lambda: node.log[-3000:], seconds=90.0)
    assert "audit messages wait" not in node.log


def test_files_that_cannot_serve_change_nothing_and_are_said_and_what_expires_soon_is(pair: Pair) -> None:
    node, first = pair.node, serial_of(pair.mine)
    pair.mine.key.write_bytes(pair.authority.issue("other", rsa=True).key.read_bytes())
    pair.hang_up()
    said = [f" ERROR {stage} cxrnode.live_tls: {name}: the key" for stage, name in (
        ("intake", "receive.tls"), ("deliver", "send.tls"), ("deliver", "audit.syslog"))]  # fmt: skip
    await_true(lambda: all(words in node.log for words in said), lambda: node.log[-3000:])
    assert "receive.tls: its files cannot be used" in pair.warning()
    assert node.readiness()["ready"]
    second = pair.renew(not_after=datetime.now(UTC) + timedelta(days=20))
    await_true(lambda: pair.shown() == second != first, lambda: node.log[-3000:])  # without a SIGHUP
    assert "cannot be used" not in pair.warning()
    assert "receive.tls.certificate expires on" in pair.warning()
    await_true(lambda: "audit.syslog.certificate expires on" in pair.warning(), pair.warning)
