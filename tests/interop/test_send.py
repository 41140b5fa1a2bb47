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
from tests.support.announcing_proxy import announcing
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
    assert {row["sr_status"] for row in rows(tmp_path / "out")} == {f"no connection: refused by 127.0.0.1:{port}"}
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
    assert {row["sr_status"] for row in rows(tmp_path / "out")} == {
        "association rejected: Called AE title not recognised"
    }


# --- what a destination announces -------------------------------------------------------------------------------------

STORESCP = Path("/usr/bin/storescp")
BRIEF = Patience(first_wait_s=0.01, longest_wait_s=0.02, attempts=2)
CAPTURES_ONLY = """\
[[TransferSyntaxes]]
[Uncompressed]
TransferSyntax1 = LittleEndianExplicit
TransferSyntax2 = LittleEndianImplicit
[Old]
TransferSyntax1 = BigEndianExplicit
[[PresentationContexts]]
[Captures]
PresentationContext1 = VerificationSOPClass\\Uncompressed
PresentationContext2 = SecondaryCaptureImageStorage\\Uncompressed
[BigEndian]
PresentationContext1 = VerificationSOPClass\\Uncompressed
PresentationContext2 = SecondaryCaptureImageStorage\\Uncompressed
PresentationContext3 = Comprehensive3DSRStorage\\Old
[Nothing]
PresentationContext1 = CTImageStorage\\Uncompressed
[[Profiles]]
[Captures]
PresentationContexts = Captures
[BigEndian]
PresentationContexts = BigEndian
[Nothing]
PresentationContexts = Nothing
"""


@pytest.mark.parametrize("length", [9, 4097, 16383, 131071])
def test_fragments_are_even_whatever_length_a_destination_announces(
    database: Database, tmp_path: Path, length: int
) -> None:
    """DCMTK aborts at a fragment of odd length (PS3.8 section E.1)."""
    uids = make_results(database, tmp_path, study=1, filler=300_000 if length > 100 else 0)
    with running_storescp(tmp_path / "peer", "--max-pdu", "131072") as real, announcing(real, length) as port:
        said = deliver(database, tmp_path, Destination(ae_title="PACS", host="127.0.0.1", port=port, name="pacs"))
        arrived = {path.name.partition(".")[2] for path in (tmp_path / "peer").iterdir()}
    assert said == {(SENT, "0x0000")}
    assert arrived == set(uids)


@pytest.mark.parametrize(
    ("profile", "sr_said"),
    [("Captures", "does not take Comprehensive 3D SR Storage (1.2.840.10008.5.1.4.1.1.88.34): enable this SOP class"),
     ("BigEndian", "of Comprehensive 3D SR Storage (1.2.840.10008.5.1.4.1.1.88.34) the destination takes neither "
                   "explicit nor implicit VR little endian: enable one")],
)  # fmt: skip
def test_a_destination_without_the_report_is_told_what_to_enable_and_gets_the_captures(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture, profile: str, sr_said: str
) -> None:
    made = [make_results(database, tmp_path, study=study, captures=2) for study in (1, 2, 3)]
    with running_storescp(tmp_path / "peer", *profiles(tmp_path, profile)) as port:
        destination = Destination(ae_title="PACS", host="127.0.0.1", port=port, name="pacs")
        deliver(database, tmp_path, destination)
        arrived = {path.name.partition(".")[2] for path in (tmp_path / "peer").iterdir()}
    told = states(database, "pacs")
    for sr, *captures in made:
        assert told[sr][0] == REFUSED
        assert sr_said in told[sr][1]
        assert "for the AE title CXRNODE at PACS" in told[sr][1]
        assert {told[uid] for uid in captures} == {(SENT, "0x0000")}
    assert arrived == {uid for _, *captures in made for uid in captures}
    lines = [record.getMessage() for record in caplog.records if record.name == "cxrnode.deliver"]
    assert len(lines) == 1  # for three reports
    assert sr_said in lines[0]


def test_a_destination_that_takes_nothing_is_told_as_such(database: Database, tmp_path: Path) -> None:
    make_results(database, tmp_path, study=1)
    with running_storescp(tmp_path / "peer", *profiles(tmp_path, "Nothing")) as port:
        said = deliver(database, tmp_path, Destination(ae_title="PACS", host="127.0.0.1", port=port, name="pacs"))
    assert said == {
        (REFUSED, "none of the node's SOP classes is accepted: enable Comprehensive 3D SR and Secondary Capture for it")
    }


def profiles(folder: Path, profile: str) -> tuple[str, ...]:
    path = folder / "storescp.cfg"
    path.write_text(CAPTURES_ONLY)
    return ("--config-file", str(path), profile)


# --- TLS ------------------------------------------------------------------------------------------------------------


def tls_options(identity: Identity, ca: Path) -> tuple[str, ...]:
    """To let in only those whose certificate `ca` signed."""
    return ("+tls", str(identity.key), str(identity.certificate), "+cf", str(ca), "--require-peer-cert")


@contextmanager
def running_storescp(folder: Path, *options: str) -> Iterator[int]:
    """DCMTK's storescp; yields its port."""
    require([] if STORESCP.exists() else [str(STORESCP)])
    folder.mkdir()
    port = free_port()
    process = subprocess.Popen(
        [STORESCP, "-v", *options, "-od", str(folder), str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
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


def deliver(database: Database, root: Path, destination: Destination) -> set[tuple[str, str]]:
    deliver_all(
        destination, root=root, database=database, outbox=Outbox("test"), on_done=lambda _: None, patience=BRIEF
    )
    return set(states(database, destination.key).values())


def test_results_go_over_tls_with_client_certificates(database: Database, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    node, pacs = authority.issue("node", rsa=True), authority.issue("pacs", rsa=True)
    uids = make_results(database, tmp_path, study=1)
    context = client_context(ca=authority.ca, certificate=node.certificate, key=node.key)
    with running_storescp(tmp_path / "peer", *tls_options(pacs, authority.ca)) as port:
        destination = Destination(ae_title="TLSPACS", host="127.0.0.1", port=port, name="pacs", tls=lambda: context)
        assert deliver(database, tmp_path, destination) == {(SENT, "0x0000")}
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
    with running_storescp(tmp_path / "peer", *tls_options(pacs, authority.ca)) as port:
        destination = Destination(ae_title="TLSPACS", host="127.0.0.1", port=port, name="pacs", tls=lambda: context)
        said = deliver(database, tmp_path, destination)
        assert not list((tmp_path / "peer").iterdir())
    ((state, why),) = said
    assert state == REFUSED
    assert {
        "no client certificate": "want a client certificate", "foreign server": "certificate of 127.0.0.1:",
        "other host": "certificate of 127.0.0.1:",
    }[wrong] in why  # fmt: skip
