"""A data folder that is not mounted is waited for: with PostgreSQL, and real mounts that come and go."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cxrnode.store.data_dir import MARKER
from cxrnode.store.database import Database
from tests.support.awaiting import await_true, film
from tests.support.faulty_pacs import AET, faulty_pacs
from tests.support.node import Node, running_node
from tests.support.postgres import Postgres

_WAITS = "waits for the data folder, and then goes on by itself: node.data_dir"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


class Share:
    """A folder that can be mounted at another one."""

    def __init__(self, folder: Path, at: Path) -> None:
        self._folder, self._at = folder, at
        folder.mkdir()
        at.mkdir(parents=True, exist_ok=True)

    def mount(self) -> None:
        subprocess.run(["mount", "--bind", self._folder, self._at], check=True)

    def unmount(self) -> None:
        """At once, whoever has files open in it, as when a file server goes."""
        subprocess.run(["umount", "-l", self._at], check=False, capture_output=True)


@pytest.fixture
def node(tmp_path: Path, postgres: Postgres) -> Iterator[Node]:
    with faulty_pacs() as pacs:
        yield Node(
            folder=tmp_path / "node", database=postgres.new_database(), commitment=False,
            destinations=[("pacs", AET, pacs.port)],
        )  # fmt: skip


@pytest.fixture
def share(tmp_path: Path, node: Node) -> Iterator[Share]:
    made = Share(tmp_path / "share", node.data_dir)
    made.mount()
    yield made
    node.kill()
    made.unmount()


def ask(node: Node, query: str) -> list[tuple[object, ...]]:
    database = Database(node.database)
    try:
        with database.begin(shared=True) as c:
            return [tuple(row) for row in c.exec_driver_sql(query)]
    finally:
        database.close()


def disk(node: Node) -> str:
    return str(node.readiness()["reasons"].get("disk"))


def waited(node: Node, times: int) -> bool:
    return node.log.count(_WAITS) == times


def outcomes(node: Node) -> list[tuple[object, ...]]:
    return ask(node, "SELECT outcome, count(*) FROM job GROUP BY outcome ORDER BY outcome")


def delivered(node: Node) -> list[tuple[object, ...]]:
    return ask(node, "SELECT state, count(*) FROM delivery GROUP BY state")


def test_a_share_that_goes_away_under_a_node_at_work(node: Node, share: Share, tmp_path: Path) -> None:
    with running_node(node):
        assert [node.send(film(tmp_path, n)) for n in range(1, 5)] == [[0]] * 4
        share.unmount()
        await_true(lambda: "is not there" in disk(node), lambda: disk(node))
        assert node.send(film(tmp_path, 5)) == [0xA700]
        await_true(lambda: _WAITS in node.log)
        share.mount()
        await_true(lambda: node.readiness()["ready"], lambda: f"{node.readiness()}\n{node.log[-3000:]}")
        assert node.send(film(tmp_path, 5)) == [0]
        await_true(lambda: delivered(node) == [("sent", 10)], lambda: f"{delivered(node)} {node.log[-3000:]}", 90)
        assert outcomes(node) == [("analysed", 5)]
        assert ask(node, "SELECT max(attempts) FROM job") == [(1,)]
        share.unmount()
        assert [path.name for path in node.data_dir.rglob("*.dcm")] == []


@pytest.mark.parametrize("stage", ["analyse", "deliver"])
def test_a_stage_that_starts_before_the_mount_makes_nothing_and_waits(
    node: Node, share: Share, tmp_path: Path, stage: str
) -> None:
    before = ["intake"] if stage == "analyse" else ["intake", "analyse"]
    node.start(*(word for name in before for word in ("--only", name)), ready=False)
    await_true(lambda: "listening on" in node.log, lambda: node.log, 60)
    assert node.send(film(tmp_path, 1)) == [0]
    if stage == "deliver":
        await_true(lambda: delivered(node) == [("pending", 2)], lambda: node.log[-3000:], 90)
    node.stop()
    share.unmount()
    for nth in (1, 2):  # an empty mount point, and none
        if nth == 2:
            node.data_dir.rmdir()
        node.start("--only", stage, ready=False)
        await_true(partial(waited, node, nth), lambda: node.log)
        assert node.stop() == 0
        assert not node.data_dir.exists() or list(node.data_dir.iterdir()) == []
    node.data_dir.mkdir()
    assert outcomes(node) == ([(None, 1)] if stage == "analyse" else [("analysed", 1)])
    node.start("--only", stage, ready=False)
    share.mount()
    wanted = [("pending", 2)] if stage == "analyse" else [("sent", 2)]
    await_true(lambda: delivered(node) == wanted, lambda: f"{delivered(node)} {node.log[-3000:]}", 90)
    assert outcomes(node) == [("analysed", 1)]
    assert node.stop() == 0


def test_a_whole_node_that_starts_before_the_mount_says_so_on_its_page(node: Node, share: Share) -> None:
    with running_node(node):
        pass
    share.unmount()
    node.start(ready=False)
    await_true(lambda: "Is it mounted?" in disk(node), lambda: disk(node))
    assert list(node.data_dir.iterdir()) == []
    share.mount()
    node.await_ready()
    assert (node.data_dir / MARKER).is_file()
