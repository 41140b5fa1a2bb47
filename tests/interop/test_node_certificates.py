"""AE titles bound to client certificates, DCMTK as the sender: log, ledger and metric say who is turned away."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.conftest import require
from tests.support.awaiting import await_true, film
from tests.support.certificates import Authority, Identity
from tests.support.node import Node, running_node
from tests.support.orthanc import free_port

pytestmark = pytest.mark.interop
STORESCU = Path("/usr/bin/storescu")


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A node with both ports that binds CT1 to a name, CT2 to a fingerprint, and OPEN to nothing."""

    node: Node
    port: int
    authority: Authority
    ct1: Identity
    ct2: Identity

    def sends(self, path: Path, ae_title: str, by: Identity | None) -> bool:
        """Whether DCMTK could: with a certificate over TLS, or without one over the plain port."""
        tls: list[str | Path] = ["+tls", by.key, by.certificate, "+cf", self.authority.ca] if by else []
        port = self.port if by else self.node.port
        done = subprocess.run(
            [STORESCU, "-v", *tls, "-aet", ae_title, "-aec", "CXRNODE", "127.0.0.1", str(port), path],
            capture_output=True, text=True, check=False, timeout=30, env={**os.environ, "TCP_NODELAY": "1"},
        )  # fmt: skip
        assert done.returncode == 0 or "Calling AE Title Not Recognized" in done.stderr, done.stderr
        return done.returncode == 0


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bound]:
    require([] if STORESCU.exists() else [str(STORESCU)])
    folder = tmp_path_factory.mktemp("bound")
    authority, port = Authority(folder), free_port()
    mine, ct1, ct2 = (authority.issue(n, "127.0.0.1", f"{n}.example", rsa=True) for n in ("node", "ct1", "ct2"))
    digest = subprocess.check_output(["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", ct2.certificate])
    node = Node(
        folder=folder / "node",
        allow=[
            '{ ae_title = "CT1", host = "127.0.0.1", certificate = "ct1.example" }',
            f'{{ ae_title = "CT2", host = "127.0.0.1", certificate = "{digest.decode().strip().partition("=")[2]}" }}',
            '{ ae_title = "OPEN", host = "127.0.0.1" }',
        ],
        extra=f'[receive.tls]\nport = {port}\ncertificate = "{mine.certificate}"\nkey = "{mine.key}"\n'
        f'ca = "{authority.ca}"',
    )
    with running_node(node):
        yield Bound(node=node, port=port, authority=authority, ct1=ct1, ct2=ct2)


def test_each_stores_with_its_own_certificate(bound: Bound, tmp_path: Path) -> None:
    assert bound.sends(film(tmp_path, 1), "CT1", bound.ct1)
    assert bound.sends(film(tmp_path, 2), "CT2", bound.ct2)
    assert bound.sends(film(tmp_path, 3), "OPEN", bound.ct1)
    assert bound.sends(film(tmp_path, 4), "OPEN", None)


def test_another_certificate_and_none_are_rejected_and_it_is_said_everywhere(bound: Bound, tmp_path: Path) -> None:
    path, node = film(tmp_path, 5), bound.node
    assert not bound.sends(path, "CT1", bound.ct2)
    assert not bound.sends(path, "CT2", bound.ct1)
    assert not bound.sends(path, "CT1", None)
    other = "calling AE title without its client certificate"
    plain = "calling AE title bound to a client certificate, without TLS"
    assert (
        f"association of 'CT1' to 'CXRNODE' rejected: {other} ([receive] allow wants ct1.example; it shows" in node.log
    )
    assert f"association of 'CT1' to 'CXRNODE' rejected: {plain}" in node.log
    page = node.http("/metrics").decode()
    assert f'cxrnode_receive_associations_rejected_total{{reason="{other}"}} 2.0' in page
    assert f'cxrnode_receive_associations_rejected_total{{reason="{plain}"}} 1.0' in page
    query = "SELECT ae_title, detail FROM ledger WHERE kind = 'association_rejected' ORDER BY seq"
    await_true(lambda: len(node.rows(query)) == 3, lambda: f"{node.rows(query)}")
    said = [(ae, other in detail, plain in detail, "SHA-256" in detail) for ae, detail in node.rows(query)]
    assert sorted(said) == [("CT1", False, True, False), ("CT1", True, False, True), ("CT2", True, False, True)]
    assert not node.rows("SELECT 1 FROM instance WHERE study_instance_uid LIKE '%.57.5'")
