"""A stage that runs alone has pages of its own: they say how it is, from before it works until it has ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from cxrnode.opening import open_database
from cxrnode.store.data_dir import establish
from tests.support.awaiting import await_true
from tests.support.node import Node
from tests.support.sqlite import locked


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(folder=tmp_path / "node")
    node.write_config()
    with open_database(node.config) as database:
        establish(database, node.data_dir, make=True)  # as an intake does at its first start
    return node


def test_a_stage_alone_says_how_it_is(node: Node) -> None:
    deliver = node.start_alone("deliver")
    page = node.pages["deliver"]
    try:
        await_true(lambda: node.readiness(page)["ready"], lambda: node.log[-3000:])
        assert node.http("/healthz", page) == b"ok\n"
        with locked(node.data_dir / "ledger.sqlite"):
            await_true(lambda: "database" in node.readiness(page)["reasons"], lambda: node.log[-3000:])
        await_true(lambda: node.readiness(page)["ready"], lambda: node.log[-3000:])
        metrics = node.http("/metrics", page).decode()
        assert 'cxrnode_thread_silent_seconds{stage="deliver"' in metrics
        assert 'stage="intake"' not in metrics
    finally:
        deliver.terminate()
        assert deliver.wait(timeout=60) == 0
    assert "Connection refused" in str(node.readiness(page))


def test_two_that_share_a_port_are_told_so(node: Node) -> None:
    first = node.start_alone("deliver")
    page = node.pages["deliver"]
    try:
        await_true(lambda: node.readiness(page)["ready"], lambda: node.log[-3000:])
        node.pages.clear()
        second = node.start_alone("intake", page=page)
        assert second.wait(timeout=60) == 2
        assert f"cannot listen on 127.0.0.1:{page}" in node.log
        assert "http.port" in node.log
    finally:
        first.kill()
        first.wait()
