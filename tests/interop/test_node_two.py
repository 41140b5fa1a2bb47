"""One node, three destinations: one lives, one is dead for a while, one refuses; and `cxrnode queue` on its store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.conftest import require
from tests.support.awaiting import ONE_SET, await_true, film, results_of, study_uid
from tests.support.faulty_pacs import AET as FAULTY
from tests.support.faulty_pacs import FaultyPacs, faulty_pacs
from tests.support.node import Node, running_node
from tests.support.orthanc import AET, Orthanc, free_port, missing_orthanc, running_orthanc

pytestmark = pytest.mark.interop


@dataclass(frozen=True, kw_only=True)
class Three:
    node: Node
    alive: Orthanc
    refusing: FaultyPacs
    dead_port: int
    folder: Path

    def states(self, destination: str) -> list[str]:
        query = f"SELECT state FROM delivery WHERE destination = '{destination}'"
        return [row[0] for row in self.node.rows(query)]

    def await_states(self, destination: str, *wanted: str) -> None:
        await_true(
            lambda: self.states(destination) == [*wanted],
            lambda: f"{destination}: {self.states(destination)}\n{self.node.log[-3000:]}",
        )

    def modalities(self) -> dict[str, list[str | int]]:
        return {"cxrnode": ["CXRNODE", "127.0.0.1", self.node.port]}

    def queue(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command, *rest = arguments
        return subprocess.run(
            [sys.executable, "-m", "cxrnode", "queue", command, "--config", str(self.node.config), *rest],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def result_uids(self) -> set[str]:
        return {row[0] for row in self.node.rows("SELECT sop_instance_uid FROM result")}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    """With the results of study 1 made, and the dead destination still dead."""
    require(missing_orthanc())
    folder = tmp_path_factory.mktemp("three")
    live_port, dead_port = free_port(), free_port()
    with ExitStack() as stack:
        refusing = stack.enter_context(faulty_pacs(["0xA900"]))
        node = Node(
            folder=folder / "node",
            destinations=[("alive", AET, live_port), ("dead", AET, dead_port), ("strict", FAULTY, refusing.port)],
        )
        modalities = {"cxrnode": ["CXRNODE", "127.0.0.1", node.port]}
        alive = stack.enter_context(running_orthanc(folder / "alive", modalities, dicom_port=live_port))
        stack.enter_context(running_node(node))
        assert node.send(film(folder, 1)) == [0]
        yield Three(node=node, alive=alive, refusing=refusing, dead_port=dead_port, folder=folder)


def test_a_dead_destination_delays_no_other_and_gets_everything_when_it_comes_up(three: Three) -> None:
    three.await_states("alive", "committed", "committed")
    assert results_of(three.alive, 1) == ONE_SET
    assert three.states("dead") == ["pending", "pending"]
    with running_orthanc(three.folder / "dead", three.modalities(), dicom_port=three.dead_port) as risen:
        three.await_states("dead", "committed", "committed")
        assert results_of(risen, 1) == ONE_SET


def test_what_a_destination_refuses_ends_there_and_is_shown(three: Three) -> None:
    three.await_states("strict", "refused", "refused")
    three.await_states("alive", "committed", "committed")
    assert set(three.refusing.asked) == three.result_uids()
    shown = three.queue("show", "1")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("strict: refused 0xA900") == 2
    assert shown.stdout.count("alive: committed") == 2
    listed = three.queue("list", "--state", "reported")
    assert listed.returncode == 0, listed.stderr
    assert f"{study_uid(1)}.1.1" in listed.stdout
    assert "2 delivery strict refused" in listed.stdout
    assert "TEST" not in listed.stdout + shown.stdout  # the patient's name


def test_retry_makes_the_same_objects_again_and_sends_what_was_refused(three: Three) -> None:
    three.await_states("strict", "refused", "refused")
    before = three.result_uids()
    three.refusing.steps = iter(lambda: "ok", None)  # it has changed its mind
    done = three.queue("retry", "1")
    assert (done.returncode, done.stdout.strip()) == (0, "retry: 1 of 1 image"), done.stderr
    await_true(lambda: three.node.rows("SELECT state FROM job") == [("reported",)], lambda: three.node.log[-3000:])
    three.await_states("strict", "sent", "sent")
    assert three.result_uids() == before
    assert set(three.refusing.stored) == before
    assert results_of(three.alive, 1) == ONE_SET


@pytest.mark.parametrize("command", ["retry", "bury"])
def test_what_cannot_be_changed_is_said(three: Three, command: str) -> None:
    done = three.queue(command, "77")
    assert (done.returncode, done.stdout.strip()) == (1, f"{command}: 0 of 1 image")
    assert "cxrnode queue show ID" in done.stderr


def test_a_wrong_id_is_a_clear_message(three: Three) -> None:
    done = three.queue("show", "77")
    assert done.returncode == 2
    assert "there is no image 77" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_buried_is_reported_as_not_analysed(three: Three) -> None:
    """Received by an intake whose analyse stage is away, and given up by hand."""
    three.node.stop()
    three.node.start("--only", "intake", "--only", "deliver", ready=False)
    await_true(lambda: three.node.readiness()["ready"], lambda: three.node.log[-3000:])
    assert three.node.send(film(three.folder, 2)) == [0]
    ((job_id,),) = three.node.rows(f"SELECT id FROM instance WHERE study_instance_uid = '{study_uid(2)}'")
    done = three.queue("bury", str(job_id))
    assert (done.returncode, done.stdout.strip()) == (0, "bury: 1 of 1 image"), done.stderr
    three.node.stop()
    three.node.start()
    sr = f"SELECT kind FROM result WHERE study_instance_uid = '{study_uid(2)}'"
    await_true(lambda: three.node.rows(sr) == [("sr",)], lambda: three.node.log[-3000:])
    assert "outcome: failed" in three.queue("show", str(job_id)).stdout
