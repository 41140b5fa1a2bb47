"""A stage that cannot start: the log says why, readiness names it, and it comes up once it can."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.awaiting import await_true, film
from tests.support.node import Node

PATIENT_S = 180.0  # on a busy machine an attempt takes a while, and the next one waits up to half a minute


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(folder=tmp_path / "node")


def test_a_port_that_is_taken(node: Node, tmp_path: Path) -> None:
    said = f"cannot listen on 127.0.0.1:{node.port}: Address already in use. Is another process there?"
    seen = []

    def tried_while_all_else_is_up() -> bool:
        seen.append(node.readiness())
        _, verified, since = node.log.partition("verified with")
        return bool(verified) and said in since

    try:
        with socket.create_server(("127.0.0.1", node.port)):
            node.start(ready=False)
            await_true(tried_while_all_else_is_up, lambda: node.log[-3000:], PATIENT_S)
            # started again and again, it is never taken for one that works: what listens there is another's
            assert not any(s["ready"] for s in seen)
            assert "intake" in seen[-1]["reasons"]["stages"]
        await_true(lambda: node.readiness()["ready"], lambda: node.log[-3000:], PATIENT_S)
        assert node.send(film(tmp_path, 1)) == [0]
        assert "Choose another node.port" in node.log
        assert "Traceback" not in node.log
    finally:
        node.kill()


def test_a_stage_alone_ends_with_the_reason(node: Node) -> None:
    node.write_config()
    with socket.create_server(("127.0.0.1", node.port)):
        done = subprocess.run(
            [sys.executable, "-m", "cxrnode", "serve", "--config", str(node.config), "--only", "intake"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1:{node.port}")
