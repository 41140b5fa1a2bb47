"""Results to real peers: beside their source, over TLS, statuses recorded, a dead peer tried again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cxrnode.deliver import deliver_all
from cxrnode.dicom.tls import client_context
from cxrnode.patience import Patience
from cxrnode.store.database import Database
from cxrnode.store.outbox import REFUSED, SENT, Outbox
from cxrnode.types import Destination
from tests.interop.conftest import require
from tests.support.batch import objects, rows, run, studies
from tests.support.certificates import Authority, Identity
from tests.support.faulty_pacs import wait_for
from tests.support.orthanc import AET, Orthanc, free_port, missing_orthanc, running_orthanc
from tests.support.outbox import make_results, states

pytestmark = pytest.mark.interop


def test_results_land_in_the_study_of_their_source(orthanc: Orthanc, tmp_path: Path) -> None:
    folder = studies(tmp_path / "in", 2, 2)
    for path in sorted(folder.rglob("i*")):
        orthanc.upload(path.read_bytes())
    done = run(folder, out=tmp_path / "out", options=("--send", f"{AET}@127.0.0.1:{orthanc.dicom_port}"))
    assert done.returncode == 0, done.stderr
    for row in rows(tmp_path / "out"):
        assert (row["sr_status"], row["capture_status"]) == ("0x0000", "0x0000")
    for ds in objects(tmp_path / "out").values():
        (study,) = orthanc.find("Study", StudyInstanceUID=ds.StudyInstanceUID)
        held = orthanc.get_json(f"/studies/{study}/instances")
        uids = {i["MainDicomTags"]["SOPInstanceUID"] for i in held}
        assert ds.SOPInstanceUID in uids
        assert len(uids) == 2 + 1 + 2  # two films, one report, two captures


def test_a_dead_destination_is_said_and_tried_again_by_the_next_call(tmp_path: Path) -> None:
    require(missing_orthanc())
    folder, port = studies(tmp_path / "in", 1), free_port()
    send = ("--send", f"{AET}@127.0.0.1:{port}")
    dead = run(folder, out=tmp_path / "out", options=send)
    assert dead.returncode == 1
    assert "not delivered" in dead.stderr
    assert {row["sr_status"] for row in rows(tmp_path / "out")} == {"no connection"}
    assert len(objects(tmp_path / "out")) == 2  # the results are kept
    with running_orthanc(tmp_path / "peer", dicom_port=port) as peer:
        again = run(folder, out=tmp_path / "out", options=send)
        assert again.returncode == 0, again.stderr
        assert len(peer.get_json("/instances")) == 2
    assert {row["sr_status"] for row in rows(tmp_path / "out")} == {"0x0000"}


def test_a_rejected_association_is_said(orthanc: Orthanc, tmp_path: Path) -> None:
    send = ("--send", f"NOBODY@127.0.0.1:{orthanc.dicom_port}")  # Orthanc checks the called AE title
    done = run(studies(tmp_path / "in", 1), out=tmp_path / "out", options=send)
    assert done.returncode == 1
    assert {row["sr_status"] for row in rows(tmp_path / "out")} == {"association rejected"}


# --- TLS ------------------------------------------------------------------------------------------------------------

STORESCP = Path("/usr/bin/storescp")
BRIEF = Patience(first_wait_s=0.01, longest_wait_s=0.02, attempts=2)


@contextmanager
def running_storescp(folder: Path, identity: Identity, ca: Path) -> Iterator[int]:
    """DCMTK's storescp over TLS, which lets in only those whose certificate `ca` signed; yields its port."""
    require([] if STORESCP.exists() else [str(STORESCP)])
    folder.mkdir()
    port = free_port()
    tls = ["+tls", str(identity.key), str(identity.certificate), "+cf", str(ca), "--require-peer-cert"]
    process = subprocess.Popen(
        [STORESCP, "-v", *tls, "-od", str(folder), str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**os.environ, "TCP_NODELAY": "1"},
    )  # fmt: skip
    try:
        wait_for(lambda: process.poll() is not None or _listens(port))
        yield port
    finally:
        process.kill()
        said, _ = process.communicate()
        print(said)


def _listens(port: int) -> bool:
    """As the kernel says: a probe by a connection would be a peer without TLS."""
    return any(f":{port:04X} 00000000:0000 0A" in line for line in Path("/proc/net/tcp").read_text().splitlines())


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "store.sqlite")
    yield opened
    opened.close()


def deliver_over_tls(database: Database, root: Path, destination: Destination) -> set[tuple[str, str]]:
    deliver_all(
        destination, root=root, database=database, outbox=Outbox("test"), on_done=lambda _: None, patience=BRIEF
    )
    return set(states(database, destination.key).values())


def test_results_go_over_tls_with_client_certificates(database: Database, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    node, pacs = authority.issue("node", rsa=True), authority.issue("pacs", rsa=True)
    uids = make_results(database, tmp_path, study=1)
    context = client_context(ca=authority.ca, certificate=node.certificate, key=node.key)
    with running_storescp(tmp_path / "peer", pacs, authority.ca) as port:
        destination = Destination(ae_title="TLSPACS", host="127.0.0.1", port=port, name="pacs", tls=context)
        assert deliver_over_tls(database, tmp_path, destination) == {(SENT, "0x0000")}
        arrived = {path.name.partition(".")[2] for path in (tmp_path / "peer").iterdir()}
    assert arrived == set(uids)


@pytest.mark.parametrize("wrong", ["no client certificate", "foreign server", "other host"])
def test_nothing_is_sent_where_a_certificate_is_wrong(database: Database, tmp_path: Path, wrong: str) -> None:
    authority, foreign = Authority(tmp_path), Authority(tmp_path, "foreign")
    node = authority.issue("node", rsa=True)
    pacs = authority.issue("pacs", *(["elsewhere.example"] if wrong == "other host" else []), rsa=True)
    trusted = foreign.ca if wrong == "foreign server" else authority.ca
    context = (
        client_context(ca=trusted)
        if wrong == "no client certificate"
        else client_context(ca=trusted, certificate=node.certificate, key=node.key)
    )
    make_results(database, tmp_path, study=1)
    with running_storescp(tmp_path / "peer", pacs, authority.ca) as port:
        destination = Destination(ae_title="TLSPACS", host="127.0.0.1", port=port, name="pacs", tls=context)
        said = deliver_over_tls(database, tmp_path, destination)
        assert not list((tmp_path / "peer").iterdir())
    assert said == {(REFUSED, "no connection, or the TLS handshake failed")}
