"""kill -9 of the node's processes, at named points and at random: what was acknowledged has one result set, once."""

from __future__ import annotations

import gc
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydicom.uid import UID
from pynetdicom import AE

from tests.interop.conftest import require
from tests.support.awaiting import ONE_SET, await_true
from tests.support.make_dicom import chest, write
from tests.support.node import SENDER, Node, running_node
from tests.support.orthanc import AET, Orthanc, free_port, missing_orthanc, running_orthanc

# pynetdicom leaves the socket of a refused connection to the garbage collector
pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
WAIT_S = 90.0
KILLS = 200
KILLS_A_STUDY = 10  # at most: however slow the machine, studies are taken between the kills
STAGES = ("intake", "analyse", "deliver")


def film(folder: Path, number: int) -> Path:
    root = f"1.2.826.0.1.56.{number}"
    path = folder / f"{number}.dcm"
    return (
        path
        if path.exists()
        else write(chest(160, 140, seed=number % 5, uids=(root, f"{root}.1", f"{root}.1.1")), path)
    )


def results(orthanc: Orthanc) -> dict[str, Counter[str]]:
    """Study Instance UID -> how many SRs and captures the PACS holds of it."""
    found: dict[str, Counter[str]] = {}
    for uid in orthanc.find("Instance", Manufacturer="cxrnode"):
        study = orthanc.get_json(f"/instances/{uid}/study")["MainDicomTags"]["StudyInstanceUID"]
        kind = orthanc.get(f"/instances/{uid}/metadata/SopClassUid").decode().strip("\0 ")
        found.setdefault(study, Counter())[kind] += 1
    return found


def await_results(node: Node, orthanc: Orthanc, studies: set[str], wait_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        states = {row[0] for row in node.rows("SELECT state FROM delivery")}
        if states == {"committed"} and set(results(orthanc)) >= studies:
            break
        time.sleep(0.5)
    found = results(orthanc)
    assert {study: found.get(study) for study in studies} == dict.fromkeys(studies, ONE_SET), node.log[-4000:]
    assert len(list((node.data_dir / "spool").rglob("*.dcm"))) == len(studies)
    assert {row[0] for row in node.rows("SELECT state FROM delivery")} == {"committed"}


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()  # while the warning is expected


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Node, Orthanc]]:
    require(missing_orthanc())
    port = free_port()
    node = Node(folder=tmp_path / "node", destinations=[("pacs", AET, port)])
    modalities = {"cxrnode": ["CXRNODE", "127.0.0.1", node.port]}
    with running_orthanc(tmp_path / "pacs", modalities, dicom_port=port) as orthanc, running_node(node):
        yield node, orthanc


def kill_at_syscall(process: psutil.Process, syscall: str, when: int = 1) -> subprocess.Popen[bytes]:
    """strace kills the process as it enters that system call for the `when`th time."""
    inject = f"inject={syscall}:signal=SIGKILL:when={when}"
    strace = subprocess.Popen(
        ["strace", "-f", "-p", str(process.pid), "-e", f"trace={syscall}", "-e", inject, "-o", "/dev/null"],
        stderr=subprocess.DEVNULL,
    )
    threads = Path(f"/proc/{process.pid}/task")
    poll(lambda: all("TracerPid:\t0" not in (t / "status").read_text() for t in threads.iterdir()))
    return strace


def send_until_taken(node: Node, path: Path, deadline_s: float = WAIT_S) -> None:
    """As a PACS does: until the answer is 0x0000."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        try:
            if node.send(path) == [0]:
                return
        except ConnectionError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{path} was never taken\n{node.log[-3000:]}")


def poll(what: Callable[[], Any]) -> None:
    """Until it is true, and not long after."""
    await_true(what, seconds=WAIT_S, every_s=0.002)


def test_killed_at_each_named_point(pair: tuple[Node, Orthanc], tmp_path: Path) -> None:
    node, orthanc = pair
    stages = node.stages()
    studies = set()

    def take(number: int) -> Path:
        studies.add(f"1.2.826.0.1.56.{number}")
        return film(tmp_path, number)

    def until_restarted(stage: str) -> None:
        old = stages[stage]
        old.wait(60)
        poll(lambda: node.stages().get(stage) not in (None, old))
        stages.update(node.stages())

    # the file is written, not yet in the spool
    strace = kill_at_syscall(stages["intake"], "rename")
    assert node.send(take(1)) == [-1]
    until_restarted("intake")
    strace.wait(10)
    send_until_taken(node, take(1))
    # the row is committed, the sender not yet told: it sends again, and that is a duplicate
    ae = AE(ae_title=SENDER)
    ds = chest(160, 140, seed=2, uids=("1.2.826.0.1.56.2", "1.2.826.0.1.56.2.1", "1.2.826.0.1.56.2.1.1"))
    ae.add_requested_context(UID(ds.SOPClassUID), ds.file_meta.TransferSyntaxUID)
    assoc = ae.associate("127.0.0.1", node.port, ae_title="CXRNODE")
    strace = kill_at_syscall(stages["intake"], "sendto")
    assert "Status" not in assoc.send_c_store(ds)
    until_restarted("intake")
    strace.wait(10)
    assert node.rows("SELECT count(*) FROM instance WHERE study_instance_uid = '1.2.826.0.1.56.2'") == [(1,)]
    send_until_taken(node, take(2))
    assert node.rows("SELECT count(*) FROM instance WHERE study_instance_uid = '1.2.826.0.1.56.2'") == [(1,)]
    # while an image is in hand
    send_until_taken(node, take(3))
    poll(lambda: node.rows("SELECT 1 FROM job WHERE state = 'claimed'"))
    stages["analyse"].kill()
    until_restarted("analyse")
    # the report is written, and not in the outbox
    send_until_taken(node, take(4))
    poll(lambda: list((node.data_dir / "dicom" / "1.2.826.0.1.56.4").glob("sr-*.dcm")))
    stages["analyse"].kill()
    until_restarted("analyse")
    # in the middle of a result
    strace = kill_at_syscall(stages["deliver"], "sendto", when=4)
    send_until_taken(node, take(5))
    until_restarted("deliver")
    strace.wait(10)
    # sent, not yet committed
    send_until_taken(node, take(6))
    poll(lambda: node.rows("SELECT 1 FROM delivery WHERE state = 'sent'"))
    stages["deliver"].kill()
    until_restarted("deliver")
    await_results(node, orthanc, studies)


@pytest.mark.slow
def test_two_hundred_random_kills(tmp_path: Path) -> None:
    """Each stage is started again at once (by the test: the supervisor is patient), while studies keep coming."""
    require(missing_orthanc())
    chance = random.Random(20261122)
    port = free_port()
    node = Node(folder=tmp_path / "node", destinations=[("pacs", AET, port)])
    modalities = {"cxrnode": ["CXRNODE", "127.0.0.1", node.port]}
    node.write_config()
    running: dict[str, subprocess.Popen[bytes]] = {}

    def start(stage: str) -> None:
        running[stage] = node.start_alone(stage)

    with running_orthanc(tmp_path / "pacs", modalities, dicom_port=port) as orthanc:
        for stage in STAGES:
            start(stage)
        acknowledged: set[str] = set()
        stopping = threading.Event()

        def keep_sending() -> None:
            number = 100
            while not stopping.is_set():
                send_until_taken(node, film(tmp_path, number))
                acknowledged.add(f"1.2.826.0.1.56.{number}")
                number += 1
                stopping.wait(1.0)

        sender = threading.Thread(target=keep_sending)
        sender.start()
        try:
            for killed in range(KILLS):
                poll(lambda: len(acknowledged) > killed // KILLS_A_STUDY)  # noqa: B023 (it is called here)
                time.sleep(chance.uniform(0.1, 1.2))
                stage = chance.choice(STAGES)
                running[stage].send_signal(signal.SIGKILL)
                running[stage].wait()
                start(stage)
            stopping.set()
            sender.join()
            assert len(acknowledged) >= KILLS // KILLS_A_STUDY
            await_results(node, orthanc, acknowledged, wait_s=240)
        finally:
            stopping.set()
            for process in running.values():
                process.kill()
                process.wait()
