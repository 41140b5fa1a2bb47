"""What the node makes is its owner's alone, whatever umask it was started with."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cxrnode.config import load_config
from cxrnode.config_here import open_to_others
from tests.support.batch import command, studies
from tests.support.certificates import Authority
from tests.support.node import Node, running_node


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def others_may(folder: Path) -> list[str]:
    both = [folder, *folder.rglob("*")]
    return [f"{p.relative_to(folder)} {stat.filemode(p.lstat().st_mode)}" for p in both if p.lstat().st_mode & 0o077]


def test_of_run_batch(tmp_path: Path) -> None:
    archive, out = studies(tmp_path / "in", 2, size=(128, 128)), tmp_path / "out"
    subprocess.run(command(archive, out=out, options=("--quiet",)), check=True)
    assert others_may(out) == []
    for path in (out, out / "ledger.sqlite", out / "results.csv"):
        path.chmod(0o755)  # as an older version left them
    subprocess.run(command(archive, out=out, options=("--quiet",)), check=True)
    assert others_may(out) == []


def test_of_a_node(tmp_path: Path) -> None:
    film = next(p for p in studies(tmp_path / "in", 1, size=(128, 128)).rglob("*") if p.is_file())
    with running_node(Node(folder=tmp_path / "node")) as node:
        assert node.send(film) == [0]
        assert others_may(node.data_dir) == []
        assert {p.name for p in node.data_dir.iterdir()} >= {"ledger.sqlite", "ledger.sqlite-wal", "spool", "incoming"}
        node.stop()
    assert others_may(node.data_dir) == []


def test_doctor_names_what_others_may_read(tmp_path: Path) -> None:
    identity = Authority(tmp_path).issue("node")
    config_file, anchors = tmp_path / "cxrnode.toml", tmp_path / "anchors"
    anchors.touch()
    for path in (identity.key, anchors):
        path.chmod(0o640)
    tls = f'certificate = "{identity.certificate}"\nkey = "{identity.key}"\nca = "{identity.certificate}"'
    config_file.write_text(
        '[node]\ndatabase = "postgresql+psycopg://u:secret@127.0.0.1/none"\n'
        f'[receive.tls]\n{tls}\n[audit]\nanchor_file = "{anchors}"\n'
    )
    config_file.chmod(0o604)
    found = list(open_to_others(load_config(config_file), config_file))
    assert [line.partition(" /")[0] for line in found] == [
        "receive.tls.key", "audit.anchor_file", "the configuration, which holds a password,",
    ]  # fmt: skip
    assert "(-rw-r-----): chmod go= " in found[0]
    assert not any("secret" in line for line in found)
    for path in (identity.key, anchors, config_file):
        path.chmod(0o600)
    assert list(open_to_others(load_config(config_file), config_file)) == []
