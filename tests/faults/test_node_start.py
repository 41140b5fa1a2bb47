"""A stage alone that cannot start says why."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.node import Node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(folder=tmp_path / "node")


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
