"""Nothing leaves the machine but to configured peers: no file of a maker's, no name looked up (design rule 14)."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from tests.support.batch import studies
from tests.support.node import Node
from tests.support.outbound import STRACE, Account

pytestmark = pytest.mark.skipif(STRACE is None, reason="needs strace")
CXRNODE = [sys.executable, "-m", "cxrnode"]


@pytest.fixture
def account() -> Iterator[Account]:
    with TemporaryDirectory(prefix="cxr") as folder:  # sockets lie in its tmp, and no path of one may be long
        yield Account(folder=Path(folder))


def test_strace_sees_what_is_asked(account: Account) -> None:
    """Else the tests below would pass on a machine where it sees nothing."""
    code = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.0.0.53', 53))"
    account.run([sys.executable, "-c", code])
    assert account.asked() == {("127.0.0.53", 53)}


@pytest.mark.parametrize("engine", ["cpu", "cpu-int8"])
def test_run_batch_asks_nobody(account: Account, tmp_path: Path, engine: str) -> None:
    archive = studies(tmp_path / "in", 2, size=(128, 128))
    command = ["run-batch", str(archive), "--out", str(tmp_path / "out"), "--engine", engine, "--quiet"]
    done = account.run([*CXRNODE, *command])
    assert (done.returncode, account.asked(), account.left()) == (0, set(), []), done.stderr


def test_a_node_and_its_doctor_ask_only_the_node_s_own_ports(account: Account, tmp_path: Path) -> None:
    node = Node(folder=tmp_path / "node")
    node.write_config()
    film = next(p for p in studies(tmp_path / "in", 1, size=(128, 128)).rglob("*") if p.is_file())
    command = [*CXRNODE, "serve", "--config", str(node.config)]
    with (node.folder / "log").open("ab") as log:
        node.process = subprocess.Popen(account.traced(command), env=account.environment, stdout=log, stderr=log)
    try:
        node.await_ready()
        assert node.send(film) == [0]
        time.sleep(3)  # what is sent by and by
        doctor = Account(folder=account.folder / "doctor")
        done = doctor.run([*CXRNODE, "doctor", "--config", str(node.config)])
        assert doctor.asked() <= {("127.0.0.1", node.port), ("127.0.0.1", node.http_port)}, done.stdout
        assert doctor.left() == []
        (supervisor,) = psutil.Process(node.process.pid).children()  # strace keeps the signal for itself
        supervisor.send_signal(signal.SIGTERM)
        node.process.wait(timeout=60)
    finally:
        node.kill()
    assert account.asked() <= {("127.0.0.1", node.port), ("127.0.0.1", node.http_port)}
    assert account.left() == []


@pytest.mark.parametrize("code", ["import training.export", "import openvino", "import timm"])
def test_training_asks_nobody(account: Account, code: str) -> None:
    done = account.run([sys.executable, "-c", f"import training; {code}"], cwd=Path(__file__).parents[2])
    assert (done.returncode, account.asked(), account.left()) == (0, set(), []), done.stderr


def test_an_engine_that_is_used_as_a_library_asks_nobody(account: Account) -> None:
    code = (
        "from engines.bundle import load_bundle; from engines.cpu import CpuEngine;"
        "e = CpuEngine(load_bundle('default')); e.activate(); e.deactivate()"
    )
    done = account.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    assert (done.returncode, account.asked(), account.left()) == (0, set(), []), done.stderr
