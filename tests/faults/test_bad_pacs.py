"""A PACS that comes and goes, and a sender that is killed: every result arrives, and is recorded once."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cxrnode.deliver import _PAGE, Deliverer
from cxrnode.patience import Patience
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.outbox import PENDING, SENT, Outbox
from cxrnode.types import Destination
from tests.support.audit import faults
from tests.support.faulty_pacs import AET, faulty_pacs, wait_for
from tests.support.flaky_proxy import flaky_proxy
from tests.support.orthanc import AET as ORTHANC
from tests.support.orthanc import running_orthanc
from tests.support.outbox import queue_up, states

QUICK = Patience(first_wait_s=0.05, longest_wait_s=0.2)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "store.sqlite")
    yield opened
    opened.close()


@contextmanager
def delivering(database: Database, root: Path, *destinations: Destination) -> Iterator[None]:
    deliverer = Deliverer(
        destinations=destinations, root=root, database=database, outbox=Outbox("test"), patience=QUICK, timeout_s=1.0
    )
    deliverer.start()
    try:
        yield
    finally:
        assert deliverer.stop()


def delivered(database: Database) -> list[object]:
    with database.begin() as c:
        assert faults(c, but=("instance", "job")) == []
        return [e.sop_instance_uid for e in ledger.events(c) if e.kind == "delivered"]


def all_sent(database: Database, destination: Destination) -> bool:
    return {state for state, _ in states(database, destination.key).values()} == {SENT}


@pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)  # pynetdicom's sockets
def test_a_flapping_pacs_gets_everything_in_the_end(database: Database, tmp_path: Path) -> None:
    with running_orthanc(tmp_path / "peer") as pacs, flaky_proxy(pacs.dicom_port) as proxy:
        destination = Destination(ae_title=ORTHANC, host="127.0.0.1", port=proxy.port)
        uids = queue_up(database, tmp_path, destination, studies=range(1, 31), filler=100_000)
        with delivering(database, tmp_path, destination):
            fault = itertools.cycle([proxy.refuse, lambda: proxy.cut(250_000), proxy.blackhole])
            for _ in range(6):
                next(fault)()
                time.sleep(0.3)
                proxy.up()
                time.sleep(0.3)
            wait_for(lambda: all_sent(database, destination), 30)
        held = [i["MainDicomTags"]["SOPInstanceUID"] for i in pacs.get_json("/instances?expand")]
    assert sorted(held) == sorted(uids)
    assert sorted(map(str, delivered(database))) == sorted(uids)
    assert proxy.connections > 3


def test_a_pacs_that_is_down_for_a_backlog_and_then_not_itself(database: Database, tmp_path: Path) -> None:
    script = ["0xA700", "0xB000", "abort", "slow:0.3", "lost", "silent", "ok"]
    with faulty_pacs(script, associations=["reject", "ok"]) as pacs, flaky_proxy(pacs.port) as proxy:
        destination = Destination(ae_title=AET, host="127.0.0.1", port=proxy.port)
        proxy.refuse()
        with delivering(database, tmp_path, destination):
            uids = queue_up(database, tmp_path, destination, studies=range(1, 16))
            wait_for(lambda: proxy.connections >= 3)
            assert {state for state, _ in states(database, destination.key).values()} == {PENDING}
            proxy.up()
            wait_for(lambda: all_sent(database, destination), 30)
    assert set(pacs.stored) == set(uids)
    assert sorted(map(str, delivered(database))) == sorted(uids)


def sender(root: Path, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.test_bad_pacs", str(root), str(port)], stdout=subprocess.PIPE, text=True
    )


def test_a_sender_that_is_killed_while_sending_is_followed_by_the_next(database: Database, tmp_path: Path) -> None:
    with faulty_pacs(["slow:0.02"]) as pacs:
        uids = queue_up(database, tmp_path, pacs.destination, studies=range(1, 21))
        for n in range(1, 3):
            process = sender(tmp_path, pacs.port)
            wait_for(lambda wanted=12 * n: len(pacs.asked) >= wanted)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        last = sender(tmp_path, pacs.port)
        try:
            wait_for(lambda: all_sent(database, pacs.destination), 30)
        finally:
            last.send_signal(signal.SIGTERM)
            last.communicate()
    assert set(pacs.stored) == set(uids)
    assert max(pacs.stored.values()) <= 3  # what a killed one had in its page came again, under one UID
    assert sum(pacs.stored.values()) <= len(uids) + 2 * _PAGE
    assert sorted(map(str, delivered(database))) == sorted(uids)


def main(root: Path, port: int) -> None:
    """A deliver stage in a process of its own, with short leases, until it is killed."""
    destination = Destination(ae_title=AET, host="127.0.0.1", port=port)
    Deliverer(
        destinations=[destination], root=root, database=Database(root / "store.sqlite"), outbox=Outbox("test"),
        patience=QUICK, lease_s=1.0,
    ).start()  # fmt: skip
    signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
