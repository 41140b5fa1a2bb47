"""A disk that does not come back, a real one that is frozen: senders are told to come again, and then all goes on."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.test_node_answers import intake_of
from tests.interop.conftest import require
from tests.support.awaiting import await_true, film
from tests.support.node import Node
from tests.support.postgres import missing_postgres, running_postgres

OUT_OF_RESOURCES = 0xA700
PATIENCE_S, BUSY_S = 20.0, 10.0  # a sender's, and what a busy machine takes beside
SENDERS = 5


def can(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, for the data folder."""
    image, mounted = tmp_path / "image", tmp_path / "disk"
    mounted.mkdir()
    with image.open("wb") as f:
        f.truncate(128 << 20)
    if os.geteuid() or not (can("mkfs.ext4", "-q", image) and can("mount", "-o", "loop", image, mounted)):
        pytest.skip("cannot mount a file system here (needs root, a loop device and mkfs.ext4)")
    try:
        yield mounted
    finally:
        can("umount", "-l", mounted)


@contextmanager
def frozen(disk: Path) -> Iterator[None]:
    subprocess.run(["fsfreeze", "-f", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "-u", disk], check=True)


def sent(node: Node, films: list[Path]) -> list[int]:
    """One association each, all at the same time."""

    def send(path: Path) -> tuple[int, float]:
        began = time.monotonic()
        (status,) = node.send(path)
        return status, time.monotonic() - began

    with ThreadPoolExecutor(len(films)) as pool:
        answers = list(pool.map(send, films))
    print(answers)
    assert max(seconds for _, seconds in answers) < PATIENCE_S + BUSY_S
    return [status for status, _ in answers]


def test_a_frozen_disk(disk: Path, tmp_path: Path) -> None:
    require(missing_postgres())
    films = [film(tmp_path, number) for number in range(SENDERS)]
    with running_postgres() as server:
        node = Node(folder=tmp_path / "node", database=server.new_database())
        node.folder.mkdir()
        node.data_dir.symlink_to(disk)
        with intake_of(node):
            assert node.send(film(tmp_path, 99)) == [0]
            with frozen(disk):
                for _ in range(2):
                    assert sent(node, films) == [OUT_OF_RESOURCES] * SENDERS
            await_true(lambda: node.send(films[0]) == [0], lambda: node.log[-3000:])
            assert sent(node, films) == [0] * SENDERS
            await_true(lambda: node.readiness()["ready"], lambda: f"{node.readiness()}\n{node.log[-3000:]}")
            assert not list((node.data_dir / "incoming").iterdir())
