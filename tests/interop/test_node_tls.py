"""The node over TLS, both ways, with client certificates; who shows none is refused, and the node goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import dcmread

from cxrnode.config import load_config
from cxrnode.doctor import diagnose
from tests.interop.conftest import require
from tests.support.awaiting import ONE_SET, await_true, film, results_of, study_uid
from tests.support.certificates import Authority, Identity
from tests.support.node import SENDER, Node, running_node
from tests.support.orthanc import AET, Orthanc, free_port, missing_orthanc, running_orthanc

pytestmark = pytest.mark.interop
STORESCU = Path("/usr/bin/storescu")


@dataclass(frozen=True, kw_only=True)
class Tls:
    """A node and an Orthanc that speak TLS alone with each other."""

    node: Node
    orthanc: Orthanc
    port: int
    authority: Authority

    def storescu(self, path: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [STORESCU, "-v", *options, "+cf", self.authority.ca, "-aet", SENDER, "-aec", "CXRNODE", "127.0.0.1",
             str(self.port), path],
            capture_output=True, text=True, check=False, timeout=30, env={**os.environ, "TCP_NODELAY": "1"},
        )  # fmt: skip

    def await_committed(self, number: int) -> None:
        await_true(lambda: results_of(self.orthanc, number) == ONE_SET, lambda: self.node.log[-3000:])
        states = f"SELECT state FROM delivery JOIN result ON sop_instance_uid = result_uid \
            WHERE study_instance_uid = '{study_uid(number)}'"
        await_true(
            lambda: self.node.rows(states) == [("committed",)] * 2,
            lambda: f"{self.node.rows(states)}\n{self.node.log[-3000:]}",
        )


@contextmanager
def tls_orthanc(folder: Path, identity: Identity, ca: Path, ports: tuple[int, int]) -> Iterator[Orthanc]:
    """`ports`: its own, and the node's for TLS."""
    options = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(identity.certificate),
        "DicomTlsPrivateKey": str(identity.key),
        "DicomTlsTrustedCertificates": str(ca),
        "DicomTlsRemoteCertificateRequired": True,
    }
    node = {"AET": "CXRNODE", "Host": "127.0.0.1", "Port": ports[1], "UseDicomTls": True}
    with running_orthanc(folder, {"cxrnode": node}, dicom_port=ports[0], options=options) as orthanc:
        yield orthanc


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    require([*missing_orthanc(), *([] if STORESCU.exists() else [str(STORESCU)])])
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    mine, theirs = authority.issue("node", rsa=True), authority.issue("pacs", rsa=True)
    pacs_port, node_port = free_port(), free_port()
    node = Node(
        folder=folder / "node",
        receive="plain = false",
        answers=f"port = {pacs_port}, tls = true",
        extra=f"""
[receive.tls]
port = {node_port}
certificate = "{mine.certificate}"
key = "{mine.key}"
ca = "{authority.ca}"
[send.tls]
certificate = "{mine.certificate}"
key = "{mine.key}"
ca = "{authority.ca}"
[[destination]]
name = "pacs"
ae_title = "{AET}"
host = "127.0.0.1"
port = {pacs_port}
tls = true
""",
    )
    peer = tls_orthanc(folder / "pacs", theirs, authority.ca, (pacs_port, node_port))
    with peer as orthanc, running_node(node):
        yield Tls(node=node, orthanc=orthanc, port=node_port, authority=authority)


def test_a_study_comes_and_its_results_go_and_are_committed_over_tls(tls: Tls, tmp_path: Path) -> None:
    tls.orthanc.upload(film(tmp_path, 1).read_bytes())
    (study,) = tls.orthanc.find("Study", StudyInstanceUID=study_uid(1))
    tls.orthanc.store(study, "cxrnode")
    tls.await_committed(1)


def test_the_pacs_asks_the_node_to_commit_and_is_answered_over_tls(tls: Tls, tmp_path: Path) -> None:
    path = film(tmp_path, 6)
    ds = dcmread(path)
    tls.orthanc.upload(path.read_bytes())
    (study,) = tls.orthanc.find("Study", StudyInstanceUID=study_uid(6))
    tls.orthanc.store(study, "cxrnode")
    objects = {"DicomInstances": [[ds.SOPClassUID, ds.SOPInstanceUID]]}
    asked = tls.orthanc.post_json("/modalities/cxrnode/storage-commitment", objects)
    await_true(lambda: tls.orthanc.get_json(asked["Path"])["Status"] == "Success", lambda: tls.node.log[-3000:])


@pytest.mark.parametrize(("number", "who"), [(2, "anonymous"), (3, "foreign")])
def test_who_shows_no_certificate_of_ours_is_refused_and_the_node_goes_on(
    tls: Tls, tmp_path: Path, number: int, who: str
) -> None:
    path = film(tmp_path, number)
    stranger = Authority(tmp_path, "stranger").issue("thief", rsa=True)
    shown = ["+tla"] if who == "anonymous" else ["+tls", stranger.key, stranger.certificate]
    assert tls.storescu(path, *shown).returncode != 0
    assert not tls.node.rows(f"SELECT 1 FROM instance WHERE study_instance_uid = '{study_uid(number)}'")
    known = tls.authority.issue("known", rsa=True)
    done = tls.storescu(path, "+tls", known.key, known.certificate)
    assert done.returncode == 0, done.stderr
    tls.await_committed(number)


def test_the_plain_port_is_closed_and_the_node_is_well(tls: Tls) -> None:
    open_ports = {c.laddr.port for c in tls.node.stages()["intake"].net_connections("tcp") if c.status == "LISTEN"}
    assert open_ports == {tls.port}
    assert tls.node.readiness() == {"ready": True, "reasons": {}, "warnings": {}}
    checks = {c.name: c.level.value for c in diagnose(load_config(tls.node.config), file=tls.node.config, store=False)}
    assert checks["TLS listener"] == checks["pacs C-ECHO"] == "ok"
    assert "listener" not in checks


def test_without_tls_the_tls_port_takes_nothing(tls: Tls, tmp_path: Path) -> None:
    path = film(tmp_path, 4)
    plain: list[str | Path] = [STORESCU, "-aet", SENDER, "-aec", "CXRNODE", "127.0.0.1", str(tls.port), path]
    assert subprocess.run(plain, capture_output=True, check=False, timeout=30).returncode != 0
    assert not tls.node.rows(f"SELECT 1 FROM instance WHERE study_instance_uid = '{study_uid(4)}'")
    assert tls.node.readiness()["ready"]
