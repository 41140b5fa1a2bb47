"""`cxrnode doctor` on a node beside a real PACS: all well, and one thing wrong at a time."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydicom import dcmread

from cxrnode import doctor_destination
from cxrnode.config import load_config
from cxrnode.config_here import listening
from cxrnode.dicom.tls import server_context
from cxrnode.doctor import diagnose
from cxrnode.doctor_destination import DestinationDoctor, Level
from cxrnode.doctor_study import PATIENT_ID, STUDY_UID, write_study
from cxrnode.store.database import Database
from cxrnode.store.queue import Queue
from cxrnode.types import Destination
from engines.bundle import SHIPPED, load_bundle
from tests.interop.conftest import require
from tests.support.certificates import Authority, replace
from tests.support.node import Node, running_node
from tests.support.orthanc import AET, Orthanc, free_port, missing_orthanc, running_orthanc
from tests.support.receiving import running_node as running_listener
from tests.support.store import received
from tests.support.validators import dciodvfy, dsrdump, pixelmed_sr

pytestmark = pytest.mark.interop
STORESCP = Path("/usr/bin/storescp")


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one run said: name -> (level, what was found), and its exit code."""

    code: int
    checks: dict[str, tuple[str, str]]
    text: str

    def level(self, name: str) -> str:
        return self.checks[name][0]


def doctor(config: Path, *arguments: str) -> Said:
    command = [sys.executable, "-m", "cxrnode", "doctor", "--config", str(config), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    checks = {}
    for line in done.stdout.splitlines():
        level, _, rest = line.partition(" ")
        name, colon, found = rest.strip().partition(": ")
        if level in {"ok", "warn", "FAIL"} and colon:
            checks[name] = (level, found)
    assert "Traceback" not in done.stderr, done.stderr
    return Said(code=done.returncode, checks=checks, text=done.stdout + done.stderr)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Orthanc]]:
    """A node and an Orthanc that know each other."""
    require(missing_orthanc())
    folder = tmp_path_factory.mktemp("doctor")
    dicom_port = free_port()
    node = Node(folder=folder / "node", destinations=[("pacs", AET, dicom_port)])
    modalities = {"cxrnode": ["CXRNODE", "127.0.0.1", node.port]}
    with running_orthanc(folder / "pacs", modalities, dicom_port=dicom_port) as orthanc, running_node(node):
        yield node, orthanc


def beside(node: Node, folder: Path, **changes: object) -> Path:
    """Another configuration of the same node."""
    other = Node(folder=folder / "other", port=node.port, http_port=node.http_port, **changes)  # type: ignore[arg-type]
    other.write_config()
    other.config.write_text(other.config.read_text().replace('"var"', f'"{node.data_dir}"'))
    return other.config


def test_all_is_well_and_a_second_run_stores_the_same_objects(pair: tuple[Node, Orthanc]) -> None:
    node, orthanc = pair
    for _ in range(2):
        said = doctor(node.config)
        assert said.code == 0, said.text
        assert {level for level, _ in said.checks.values()} == {"ok"}, said.text
        assert len(orthanc.find("Instance", StudyInstanceUID=STUDY_UID)) == 2
    assert set(said.checks) == {
        "configuration", "database", "disk", "clock", "bundle", "certificates", "listener",
        "pacs C-ECHO", "pacs contexts", "pacs store", "pacs commitment", "pacs read back",
    }  # fmt: skip
    assert "schema revision" in said.checks["database"][1]
    assert "Comprehensive 3D SR: Explicit VR Little Endian" in said.checks["pacs contexts"][1]
    assert f"to our node at port {node.port}" in said.checks["pacs commitment"][1]
    assert node.rows("SELECT count(*) FROM delivery") == node.rows("SELECT count(*) FROM result") == [(0,)]
    said_in_ledger = node.rows(f"SELECT kind, actor FROM ledger WHERE study_instance_uid = '{STUDY_UID}' ORDER BY seq")
    once = [("commitment_requested", "doctor"), *[("committed", "intake")] * 2, ("check_ended", "doctor")]
    assert said_in_ledger == once * 2


def test_without_store_nothing_is_sent(pair: tuple[Node, Orthanc], tmp_path: Path) -> None:
    node, _ = pair
    said = doctor(node.config, "--no-store")
    assert said.code == 0, said.text
    assert "pacs contexts" in said.checks
    assert "pacs store" not in said.checks


def test_a_pacs_that_is_down_fails(pair: tuple[Node, Orthanc], tmp_path: Path) -> None:
    node, _ = pair
    said = doctor(beside(node, tmp_path, destinations=[("pacs", AET, free_port())]))
    assert said.code == 1
    assert said.level("pacs C-ECHO") == "FAIL"
    assert "no connection: refused by 127.0.0.1:" in said.checks["pacs C-ECHO"][1]
    assert "is the peer up" in said.text
    assert said.level("listener") == "ok"


def test_a_wrong_ae_title_fails_and_says_whose(pair: tuple[Node, Orthanc], tmp_path: Path) -> None:
    node, orthanc = pair
    said = doctor(beside(node, tmp_path, destinations=[("pacs", "NOBODY", orthanc.dicom_port)]))
    assert said.code == 1
    assert "Called AE title not recognised" in said.checks["pacs C-ECHO"][1]
    assert "correct the destination's ae_title" in said.text


def test_without_storage_commitment_it_warns(pair: tuple[Node, Orthanc], tmp_path: Path) -> None:
    node, orthanc = pair
    said = doctor(beside(node, tmp_path, destinations=[("pacs", AET, orthanc.dicom_port)], commitment=False))
    assert said.code == 0, said.text
    assert said.level("pacs commitment") == "warn"
    assert said.level("pacs read back") == "ok"


def test_a_report_that_does_not_come_warns_and_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The PACS reports to a port where nobody listens."""
    require(missing_orthanc())
    monkeypatch.setattr(doctor_destination, "_COMMIT_WAIT_S", 0.5)
    nobody = free_port()
    database = Database(tmp_path / "ledger.sqlite")
    with running_orthanc(tmp_path / "pacs", {"cxrnode": ["CXRNODE", "127.0.0.1", nobody]}) as orthanc:
        peer = Destination(
            name="pacs", ae_title=AET, host="127.0.0.1", port=orthanc.dicom_port, storage_commitment=True
        )  # fmt: skip
        patient = DestinationDoctor(
            peer=peer, calling_ae_title="CXRNODE", port=nobody, database=database, bundle=load_bundle("default")
        )
        found = {check.name: check for check in patient.diagnose(store=True)}
    assert found["pacs commitment"].level is Level.WARN
    assert f"port {nobody}" in found["pacs commitment"].mend
    with database.begin() as c:
        left = c.exec_driver_sql("SELECT (SELECT count(*) FROM delivery) + (SELECT count(*) FROM result)").scalar()
    database.close()
    assert left == 0


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[int]:
    """DCMTK's: it stores, and does neither storage commitment nor queries. Its port."""
    require([] if STORESCP.exists() else [str(STORESCP)])
    port = free_port()
    (tmp_path / "taken").mkdir()
    with subprocess.Popen([STORESCP, "-od", str(tmp_path / "taken"), str(port)]) as process:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield port
        process.kill()


@pytest.mark.parametrize("commitment", [True, False])
def test_a_peer_that_only_stores(storescp: int, pair: tuple[Node, Orthanc], tmp_path: Path, commitment: bool) -> None:
    said = doctor(
        beside(pair[0], tmp_path, destinations=[("pacs", "ANY", storescp)], commitment=commitment)
    )  # fmt: skip
    assert "storage commitment: not accepted" in said.checks["pacs contexts"][1]
    taken = list((tmp_path / "taken").iterdir())
    if commitment:
        assert said.code == 1
        assert said.level("pacs contexts") == "FAIL"
        assert not taken
    else:
        assert said.code == 0, said.text
        assert said.level("pacs commitment") == said.level("pacs read back") == "warn"
        assert len(taken) == 2


def test_no_node_no_bundle_no_room(pair: tuple[Node, Orthanc], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, orthanc = pair
    bundle = shutil.copytree(SHIPPED / "cxr3-lite2", tmp_path / "bundle")
    (bundle / "MODEL_CARD.md").write_text("changed")
    monkeypatch.setenv("CXRNODE_ANALYSE__BUNDLE", str(bundle))
    stopped = Node(folder=tmp_path, destinations=[("pacs", AET, orthanc.dicom_port)], watermark_mb=10**9)
    stopped.write_config()
    said = doctor(stopped.config)
    assert said.code == 1
    assert said.level("listener") == said.level("disk") == said.level("bundle") == said.level("pacs store") == "FAIL"
    assert "does not match its sha256" in said.checks["bundle"][1]
    assert "is `cxrnode serve` running?" in said.text
    assert "below receive.disk_watermark_mb" in said.checks["disk"][1]
    assert said.level("pacs C-ECHO") == "ok"


def test_a_time_in_the_store_that_is_yet_to_come_fails_the_clock(tmp_path: Path) -> None:
    node = Node(folder=tmp_path)
    node.write_config()
    assert doctor(node.config).level("clock") == "ok"
    database = Database(node.data_dir / "ledger.sqlite")
    with database.begin() as c:
        Queue("intake").receive(c, [received(1, 1, at=(datetime.now(UTC) + timedelta(days=1)).timestamp())])
    database.close()
    said = doctor(node.config)
    assert said.level("clock") == "FAIL"
    assert said.level("destinations") == "warn"


def test_certificates_and_the_tls_port(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    soon = authority.issue("soon", not_after=datetime.now(UTC) + timedelta(days=10))
    context = server_context(certificate=soon.certificate, key=soon.key, ca=authority.ca)
    (tmp_path / "node" / "var").mkdir(parents=True)
    with (
        running_listener(tmp_path / "peer", ssl_context=context) as listener,
        listening(tmp_path / "node" / "var", [listener.port]),
    ):
        tls = f'port = {listener.port}\ncertificate = "{soon.certificate}"\nkey = "{soon.key}"\nca = "{authority.ca}"'
        node = Node(folder=tmp_path / "node", extra=f"[receive.tls]\n{tls}\n")
        node.write_config()

        def levels() -> dict[str, str]:
            return {
                check.name: check.level.value
                for check in diagnose(load_config(node.config), file=node.config, store=False)
            }

        first = levels()
        assert first["receive.tls.certificate"] == "warn"
        assert first["TLS listener"] == "ok"
        replace(soon, authority.issue("other"))
        second = levels()
        assert second["receive.tls.certificate"] == "ok"
        assert second["TLS listener"] == "warn"  # it still shows the one it started with
        begin, end = datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC)
        replace(soon, authority.issue("late", not_before=begin, not_after=end))
        third = levels()
        assert third["receive.tls.certificate"] == third["TLS"] == "FAIL"
    assert levels()["TLS listener"] == "FAIL"


def test_a_bad_configuration_exits_2(tmp_path: Path) -> None:
    config = tmp_path / "cxrnode.toml"
    config.write_text("[node]\nprot = 1\n")
    said = doctor(config)
    assert said.code == 2
    assert "prot" in said.text


def test_the_synthetic_study_is_valid_and_of_no_patient(validators: None, tmp_path: Path) -> None:
    for folder in (tmp_path / "1", tmp_path / "2"):
        capture, report = write_study(folder, load_bundle("default"))
    assert dciodvfy(folder / capture.path) == []
    assert dciodvfy(folder / report.path) == dsrdump(folder / report.path) == []
    assert pixelmed_sr([folder / report.path]) == {folder / report.path: []}
    for made in (capture, report):
        assert (tmp_path / "1" / made.path).read_bytes() == (tmp_path / "2" / made.path).read_bytes()
        ds = dcmread(folder / made.path)
        assert (ds.PatientName, ds.PatientID, ds.StudyInstanceUID) == ("CXRNODE^DOCTOR", PATIENT_ID, STUDY_UID)
