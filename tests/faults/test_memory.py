"""The listener holds no more after thousands of associations than after the first few hundred."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from pydicom import FileDataset
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from cxrnode.dicom.requestor import TidyAE
from tests.support.awaiting import await_true
from tests.support.make_dicom import chest
from tests.support.node import SENDER, Node

ASSOCIATIONS, HEALTH_CHECKS = 2000, 1000
WARM_UP = 400  # associations: what the allocator settles to
STORES_EVERY = 4  # of the associations; the others echo
SENDERS = 4


@pytest.mark.slow
def test_resident_memory_is_flat(tmp_path: Path) -> None:
    """2,000 associations, of which 500 store an image, and 1,000 connections that say nothing, as load balancers do."""
    node = Node(folder=tmp_path)
    node.start("--only", "intake", ready=False)
    assert node.process is not None
    try:
        await_true(lambda: answers(node.port), lambda: node.log[-3000:])
        intake = psutil.Process(node.process.pid)
        visit(node, range(WARM_UP))
        warm = intake.memory_info().rss
        visit(node, range(WARM_UP, WARM_UP + ASSOCIATIONS))
        after = intake.memory_info().rss
        assert after <= 1.1 * warm, f"{warm / 2**20:.1f} MiB became {after / 2**20:.1f} MiB"
        assert intake.num_threads() < 20  # one a connection: they have ended with them
    finally:
        assert node.stop() == 0
    stored = (WARM_UP + ASSOCIATIONS) // STORES_EVERY
    assert node.rows("SELECT count(*) FROM instance") == [(stored,)]


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def visit(node: Node, numbers: range) -> None:
    with ThreadPoolExecutor(SENDERS) as pool:
        assert all(pool.map(lambda n: one_visit(node, n), numbers))


def one_visit(node: Node, number: int) -> bool:
    if number % (ASSOCIATIONS // HEALTH_CHECKS) == 0:
        assert answers(node.port)
    ds = film(number)
    ae = TidyAE(ae_title=SENDER)
    contexts = [build_context(Verification), build_context(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID)]
    assoc = ae.associate("127.0.0.1", node.port, ae_title="CXRNODE", contexts=contexts)
    assert assoc.is_established
    try:
        status = assoc.send_c_echo() if number % STORES_EVERY else assoc.send_c_store(ds)
        return bool(status and status.Status == 0)
    finally:
        assoc.release()


def film(number: int) -> FileDataset:
    return chest(64, 56, seed=1, uids=("1.2.826.0.1.57.1", "1.2.826.0.1.57.1.1", f"1.2.826.0.1.57.1.1.{number}"))
