"""A database that is away while studies come: the sender is told to come again, and when it is back all goes on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.interop.conftest import require
from tests.support.awaiting import await_true, film
from tests.support.node import Node, running_node
from tests.support.postgres import Postgres, missing_postgres, running_postgres
from tests.support.sqlite import locked

OUT_OF_RESOURCES = 0xA700  # what a sender keeps its study for; 0xCxxx it would take as final


@pytest.fixture
def server() -> Iterator[Postgres]:
    """One that may be stopped."""
    require(missing_postgres())
    with running_postgres() as server:
        yield server


def test_postgresql_is_stopped_and_started_while_studies_come(server: Postgres, tmp_path: Path) -> None:
    node = Node(folder=tmp_path / "node", database=server.new_database())
    with running_node(node):
        assert node.send(film(tmp_path, 1)) == [0]
        server.server.stop()
        assert node.send(film(tmp_path, 2), film(tmp_path, 3)) == [OUT_OF_RESOURCES] * 2
        await_true(lambda: "database" in node.readiness()["reasons"], lambda: node.log[-3000:])
        server.start()
        assert node.send(film(tmp_path, 2), film(tmp_path, 3)) == [0, 0]
        await_true(lambda: node.readiness()["ready"], lambda: f"{node.readiness()}\n{node.log[-3000:]}")
        assert set(node.stages()) == {"intake", "analyse", "deliver"}
        assert node.stop() == 0
    assert "Traceback" not in node.log


def test_sqlite_is_locked_by_another_process_while_studies_come(tmp_path: Path) -> None:
    node = Node(folder=tmp_path / "node")
    with running_node(node):
        assert node.send(film(tmp_path, 1)) == [0]
        with locked(node.data_dir / "ledger.sqlite"):
            assert node.send(film(tmp_path, 2)) == [OUT_OF_RESOURCES]
        assert node.send(film(tmp_path, 2)) == [0]
        await_true(lambda: node.readiness()["ready"], lambda: f"{node.readiness()}\n{node.log[-3000:]}")
        assert node.stop() == 0


def waiting_for(node: Node) -> float:
    page = node.http("/metrics").decode()
    (line,) = [x for x in page.splitlines() if x.startswith("cxrnode_receive_unanswered_seconds ")]
    return float(line.split()[1])


def test_an_instance_that_waits_for_its_answer_makes_the_node_unready(tmp_path: Path) -> None:
    node = Node(folder=tmp_path / "node")
    with running_node(node), ThreadPoolExecutor(1) as peer:
        intake = node.stages()["intake"]
        with locked(node.data_dir / "ledger.sqlite"):
            answer = peer.submit(node.send, film(tmp_path, 1))
            await_true(lambda: [*node.data_dir.glob("spool/*/*.dcm")], lambda: node.log[-3000:], every_s=0.01)
            intake.suspend()  # with the instance in hand: a stage that hangs says nothing more
        try:
            await_true(lambda: "answers" in node.readiness()["reasons"], lambda: str(node.readiness()))
            assert not node.readiness()["ready"]
            assert waiting_for(node) > 0
        finally:
            intake.resume()
        assert answer.result(timeout=120) in ([0], [OUT_OF_RESOURCES])
        await_true(lambda: node.readiness()["ready"], lambda: f"{node.readiness()}\n{node.log[-3000:]}")
        assert waiting_for(node) == 0
