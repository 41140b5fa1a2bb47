"""Whatever the database does, a sender has its answer in time: one that makes it come again, and the next is taken."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from cxrnode.dicom.commitment import PUSH_MODEL_INSTANCE, references
from cxrnode.dicom.negotiation import COMMITMENT
from cxrnode.store.database import Database
from tests.interop.conftest import require
from tests.support.awaiting import await_true, film
from tests.support.node import Node
from tests.support.orthanc import free_port
from tests.support.postgres import Postgres, missing_postgres, running_postgres
from tests.support.receiving import associated
from tests.support.sqlite import locked

OUT_OF_RESOURCES, RESOURCE_LIMITATION = 0xA700, 0x0213
PATIENCE_S = 20.0  # a sender's
BUSY_S = 10.0  # what a busy machine takes beside
SENDERS = 10
CR = "1.2.840.10008.5.1.4.1.1.1"
COMMITS, REPORTS = "ORTHANC", "PACS2"  # who asks for storage commitment, who reports on ours

Answer = tuple[str, int, float]  # service, status, seconds


def timed(service: str, ask: Callable[[], Dataset]) -> Answer:
    began = time.monotonic()
    status = int(ask().get("Status", -1))
    return service, status, time.monotonic() - began


def store(node: Node, path: Path) -> Answer:
    ds = dcmread(path)
    with associated(node.port, ds) as assoc:
        assoc.dimse_timeout = 90.0
        return timed("C-STORE", lambda: assoc.send_c_store(ds))


def ask(node: Node, number: int) -> Answer:
    asked = Dataset()
    asked.TransactionUID, asked.ReferencedSOPSequence = f"2.25.{number}", references([(CR, "1.2.3")])
    with associated(node.port, COMMITMENT, calling=COMMITS) as assoc:
        assoc.dimse_timeout = 90.0
        return timed("N-ACTION", lambda: assoc.send_n_action(asked, 1, COMMITMENT, PUSH_MODEL_INSTANCE)[0])


def report(node: Node, number: int) -> Answer:
    told = Dataset()
    told.TransactionUID, told.ReferencedSOPSequence = f"2.25.{number}", references([(CR, "1.2.3")])
    with associated(node.port, COMMITMENT, calling=REPORTS) as assoc:
        assoc.dimse_timeout = 90.0
        return timed("N-EVENT-REPORT", lambda: assoc.send_n_event_report(told, 1, COMMITMENT, PUSH_MODEL_INSTANCE)[0])


def echo(node: Node, _number: int) -> Answer:
    """Association and all."""
    began = time.monotonic()
    with associated(node.port, Verification) as assoc:
        status = int(assoc.send_c_echo().get("Status", -1))
    return "C-ECHO", status, time.monotonic() - began


def everybody(node: Node, films: list[Path]) -> list[Answer]:
    """All at the same time."""
    with ThreadPoolExecutor(len(films) + 6) as pool:
        sent = [pool.submit(store, node, path) for path in films]
        others = [pool.submit(other, node, number) for number in (1, 2) for other in (ask, report, echo)]
        return [future.result() for future in (*sent, *others)]


def told(answers: list[Answer]) -> Counter[tuple[str, int]]:
    print(sorted((service, hex(status), round(seconds, 1)) for service, status, seconds in answers))
    assert max(seconds for _, _, seconds in answers) < PATIENCE_S + BUSY_S
    return Counter((service, status) for service, status, _ in answers)


TROUBLE = {
    ("C-STORE", OUT_OF_RESOURCES): SENDERS, ("N-ACTION", RESOURCE_LIMITATION): 2,
    ("N-EVENT-REPORT", RESOURCE_LIMITATION): 2, ("C-ECHO", 0): 2,
}  # fmt: skip
WELL = {("C-STORE", 0): SENDERS, ("N-ACTION", 0): 2, ("N-EVENT-REPORT", 0): 2, ("C-ECHO", 0): 2}


@pytest.fixture
def films(tmp_path: Path) -> list[Path]:
    return [film(tmp_path, number) for number in range(SENDERS)]


def new_node(folder: Path, database: str = "sqlite") -> Node:
    return Node(folder=folder, database=database, destinations=[("pacs", REPORTS, free_port())])


@contextmanager
def intake_of(node: Node) -> Iterator[Node]:
    try:
        node.start("--only", "intake")
        yield node
    finally:
        node.kill()


@pytest.fixture
def server() -> Iterator[Postgres]:
    """One that may be stopped."""
    require(missing_postgres())
    with running_postgres() as server:
        yield server


@contextmanager
def stopped(server: Postgres) -> Iterator[None]:
    server.server.stop()
    try:
        yield
    finally:
        server.start()


@contextmanager
def locked_table(server: Postgres, url: str) -> Iterator[None]:
    """Another session has it, as a migration or a VACUUM FULL would."""
    with server.connect(url.rsplit("/", 1)[1].partition("?")[0]) as other:
        other.execute("BEGIN")
        other.execute("LOCK TABLE instance, ledger, commitment_request, delivery IN ACCESS EXCLUSIVE MODE")
        yield
        other.execute("ROLLBACK")


def goes_on(node: Node, films: list[Path], where: Path | str) -> None:
    """By itself; every study that was refused is taken, once."""
    await_true(lambda: store(node, films[0])[1] == 0, lambda: node.log[-3000:])  # as soon as what hung is back
    assert told(everybody(node, films)) == WELL
    await_true(lambda: node.readiness()["ready"], lambda: f"{node.readiness()}\n{node.log[-3000:]}")
    database = Database(where)
    try:
        with database.begin(shared=True) as c:
            counts = "SELECT count(*), count(DISTINCT sop_instance_uid) FROM instance"
            assert tuple(c.exec_driver_sql(counts).one()) == (SENDERS, SENDERS)
            paths = [row[0] for row in c.exec_driver_sql("SELECT path FROM instance")]
    finally:
        database.close()
    assert all((node.data_dir / path).is_file() for path in paths)


@pytest.mark.parametrize("trouble", ["frozen", "locked", "stopped"])
def test_postgresql(server: Postgres, tmp_path: Path, films: list[Path], trouble: str) -> None:
    url = server.new_database()
    troubles: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "frozen": server.server.frozen, "locked": lambda: locked_table(server, url), "stopped": lambda: stopped(server),
    }  # fmt: skip
    with intake_of(new_node(tmp_path / "node", url)) as node:
        with troubles[trouble]():
            assert told(everybody(node, films)) == TROUBLE
            assert told(everybody(node, films)) == TROUBLE  # while what hangs still hangs
        goes_on(node, films, url)
    assert "Traceback" not in node.log


def test_sqlite_locked_by_another_process(tmp_path: Path, films: list[Path]) -> None:
    with intake_of(new_node(tmp_path / "node")) as node:
        with locked(node.data_dir / "ledger.sqlite"):
            assert told(everybody(node, films)) == TROUBLE
        goes_on(node, films, node.data_dir / "ledger.sqlite")
