"""The node on a disk that fills up: while it receives, while it reports. Nothing is lost, and room is all it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE

from tests.support.awaiting import await_true, film, study_uid
from tests.support.node import SENDER, Node, running_node
from tests.support.small_disk import fill, small_disk

OUT_OF_RESOURCES = 0xA700


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node that runs on a real file system of 24 MB of its own."""
    node = Node(folder=tmp_path / "node", quiet_s=2.0)
    with small_disk(node.data_dir, "size=24m"), running_node(node):
        yield node


def partial_files(node: Node) -> list[Path]:
    return [*node.data_dir.rglob("*.part"), *(node.data_dir / "incoming").iterdir()]


def reported(node: Node, *numbers: int) -> bool:
    """Each study has its SR and its capture, and every image was analysed, the files whole."""
    studies = {study_uid(n) for n in numbers}
    made = set(node.rows("SELECT study_instance_uid, kind FROM result"))
    jobs = set(node.rows("SELECT state, outcome FROM job"))
    return made == {(s, k) for s in studies for k in ("sr", "capture")} and jobs == {("reported", "analysed")}


def echo(node: Node) -> Any:
    ae = AE(ae_title=SENDER)
    ae.add_requested_context("1.2.840.10008.1.1")
    assoc = ae.associate("127.0.0.1", node.port, ae_title="CXRNODE")
    try:
        return assoc.send_c_echo().Status
    finally:
        assoc.release()


def test_full_while_it_receives(node: Node, tmp_path: Path) -> None:
    assert node.send(film(tmp_path, 1)) == [0]
    await_true(lambda: reported(node, 1), lambda: node.log[-3000:])
    filler = fill(node.data_dir)
    assert node.send(film(tmp_path, 2), film(tmp_path, 3)) == [OUT_OF_RESOURCES] * 2
    assert echo(node) == 0
    assert not partial_files(node)
    assert "disk_watermark_mb" in node.readiness()["reasons"]["disk"]
    assert node.rows("SELECT count(*) FROM instance") == [(1,)]
    filler.unlink()
    assert node.send(film(tmp_path, 2), film(tmp_path, 3)) == [0, 0]
    await_true(lambda: reported(node, 1, 2, 3), lambda: node.log[-3000:])
    assert node.readiness()["ready"]


def test_full_to_the_last_byte_without_a_watermark(node: Node, tmp_path: Path) -> None:
    """Where the watermark did not help (another program was faster), the write itself fails, and is answered."""
    node.stop()
    node.watermark_mb = 0
    node.start()
    filler = fill(node.data_dir)
    assert set(node.send(film(tmp_path, 1), film(tmp_path, 2))) == {OUT_OF_RESOURCES}
    assert echo(node) == 0
    assert not partial_files(node)
    filler.unlink()
    assert node.send(film(tmp_path, 1), film(tmp_path, 2)) == [0, 0]
    await_true(lambda: reported(node, 1, 2), lambda: node.log[-3000:])


def test_full_while_it_reports(node: Node, tmp_path: Path) -> None:
    assert node.send(film(tmp_path, 1), film(tmp_path, 2)) == [0, 0]
    filler = fill(node.data_dir)  # well within the time that a study must be quiet
    waits = "analyse waits for room, and then goes on by itself"
    await_true(lambda: waits in node.log, lambda: node.log[-3000:])
    time.sleep(12.0)  # it tries more often meanwhile than an image may fail
    assert node.log.count(waits) == 1
    assert "No space left" in node.log or "full" in node.log
    assert "disk" in node.readiness()["reasons"]
    assert not list((node.data_dir / "dicom").rglob("*.part"))
    assert not node.rows("SELECT 1 FROM job WHERE outcome = 'failed' OR attempts > 2")
    filler.unlink()
    await_true(lambda: reported(node, 1, 2), lambda: node.log[-3000:])
    assert "Traceback" not in node.log
    assert "analyse ended" not in node.log
    assert node.log.count("analyse goes on, after") == 1


def test_room_above_the_watermark_and_none_for_a_film(node: Node, tmp_path: Path) -> None:
    """Free space says that all is well, and every film is refused: so does /readyz, until a film would fit."""
    size = film(tmp_path, 1).stat().st_size
    filler = fill(node.data_dir)
    with filler.open("r+b") as f:
        f.truncate(filler.stat().st_size - (1 << 20) - size // 2)
    assert node.send(film(tmp_path, 1)) == [OUT_OF_RESOURCES]
    found = node.readiness()["reasons"]
    assert "disk" not in found
    assert found["writes"].startswith("intake could not write files for ")
    filler.unlink()
    await_true(lambda: node.readiness()["ready"], lambda: f"{node.readiness()}\n{node.log[-3000:]}")
    assert node.rows("SELECT count(*) FROM ledger WHERE kind = 'writes_resumed'") == [(1,)]
    assert node.send(film(tmp_path, 1)) == [0]
