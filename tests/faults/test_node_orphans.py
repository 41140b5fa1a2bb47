"""A killed supervisor leaves nobody behind, SIGHUP ends nobody, and a node that cannot work says so once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.awaiting import await_true, film
from tests.support.node import Node
from tests.support.orthanc import free_port

GONE_S = 25.0  # ten to drain, and what a busy machine takes


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(folder=tmp_path / "node")
    yield node
    node.kill()


def family(node: Node) -> list[psutil.Process]:
    assert node.process
    return list(psutil.Process(node.process.pid).children(recursive=True))


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def kill_supervisor(node: Node) -> list[psutil.Process]:
    """Its children and theirs: they are all that is left."""
    left = family(node)
    assert node.process
    node.process.kill()
    node.process.wait(timeout=10)
    return left


def test_a_killed_supervisor_leaves_nobody_behind_and_the_next_start_is_ready(node: Node, tmp_path: Path) -> None:
    node.start()
    assert node.send(film(tmp_path, 1)) == [0]
    left = kill_supervisor(node)
    assert len(left) > 4  # three stages, a forkserver, workers
    try:
        await_true(lambda: not living(left), lambda: f"{living(left)}\n{node.log[-3000:]}", GONE_S)
    finally:
        for process in living(left):
            process.kill()
    with socket.create_server(("127.0.0.1", node.port)):  # the port is free
        pass
    node.start()
    assert node.send(film(tmp_path, 1), film(tmp_path, 2)) == [0, 0]


def test_the_next_start_waits_for_what_a_killed_one_left(node: Node, tmp_path: Path) -> None:
    """At once, while the stages still drain: no two of them ever work on one folder."""
    node.start()
    left = kill_supervisor(node)
    node.start()
    assert not living(left)
    assert node.send(film(tmp_path, 1)) == [0]
    assert "ended with" not in node.log


def test_a_supervisor_killed_before_its_stages_are_up(node: Node) -> None:
    node.start(ready=False)
    await_true(lambda: len(node.stages()) == 3, lambda: node.log)
    left = kill_supervisor(node)
    await_true(lambda: not living(left), lambda: f"{living(left)}\n{node.log[-3000:]}", GONE_S)


def test_a_stopped_stage_is_killed_with_its_supervisor(node: Node) -> None:
    """One that cannot run any code of ours when it happens: it ends when it runs again."""
    node.start()
    stage = node.stages()["analyse"]
    stage.suspend()
    left = kill_supervisor(node)
    stage.resume()
    await_true(lambda: not living(left), lambda: f"{living(left)}\n{node.log[-3000:]}", GONE_S)


def test_sighup_is_no_end(node: Node, tmp_path: Path) -> None:
    node.start()
    before = {name: stage.pid for name, stage in node.stages().items()}
    workers = family(node)
    node.config.write_text(node.config.read_text() + '[log]\nlevel = "debug"\n')
    assert node.process
    for process in (node.process.pid, *(p.pid for p in workers)):  # as when a terminal is closed
        os.kill(process, signal.SIGHUP)
    assert node.send(film(tmp_path, 1)) == [0]
    assert living(workers) == workers
    everyone = ("node", "intake", "analyse", "deliver")
    said = [f" INFO {name} cxrnode.serve: the log level is debug" for name in everyone]
    await_true(lambda: all(words in node.log for words in said), lambda: node.log[-3000:])
    node.config.write_text("nonsense")
    node.process.send_signal(signal.SIGHUP)
    said = [f" ERROR {name} cxrnode.serve: SIGHUP: " for name in everyone]
    await_true(lambda: all(words in node.log for words in said), lambda: node.log[-3000:])
    assert {name: stage.pid for name, stage in node.stages().items()} == before
    assert node.readiness()["ready"]
    assert node.stop() == 0


@pytest.mark.parametrize("what", ["DICOM", "TLS", "HTTP"])
def test_a_port_that_is_taken_ends_the_node_with_one_message(node: Node, tmp_path: Path, what: str) -> None:
    from tests.support.certificates import Authority

    tls_port, mine = free_port(), Authority(tmp_path).issue("node")
    node.extra = f"""[receive.tls]
port = {tls_port}
certificate = "{mine.certificate}"
key = "{mine.key}"
require_client_certificate = false
"""
    port = {"DICOM": node.port, "TLS": tls_port, "HTTP": node.http_port}[what]
    key = {"DICOM": "node.port", "TLS": "receive.tls.port", "HTTP": "http.port"}[what]
    with socket.create_server(("127.0.0.1", port)):
        node.start(ready=False)
        assert node.process
        assert node.process.wait(timeout=60) == 2
    (message,) = [line for line in node.log.splitlines() if "error" in line.lower()]
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in message
    assert key in message
    node.extra = ""
    node.start()  # and with the port free it starts


def test_a_second_node_on_the_same_folder_is_refused_and_changes_nothing(node: Node, tmp_path: Path) -> None:
    node.start()
    other = Node(folder=tmp_path / "other")
    other.write_config()
    text = other.config.read_text().replace('data_dir = "var"', f'data_dir = "{node.data_dir}"')
    other.config.write_text(text)
    count = "SELECT count(*) FROM ledger"
    before = node.rows(count)
    done = subprocess.run(
        [sys.executable, "-m", "cxrnode", "serve", "--config", str(other.config)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"error: another cxrnode node works on {node.data_dir}" in done.stderr
    assert node.rows(count) == before
    assert node.readiness()["ready"]
    assert node.send(film(tmp_path, 1)) == [0]
