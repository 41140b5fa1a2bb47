"""What a peer is told when something is wrong with us: statuses of its service, and only those that say "again"."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from sqlalchemy.exc import DataError, OperationalError

from cxrnode import intake as intake_module
from cxrnode.commit import CommitmentAnswers
from cxrnode.committer import CommitmentReports
from cxrnode.dicom.commitment import PUSH_MODEL_INSTANCE, references
from cxrnode.dicom.negotiation import COMMITMENT
from cxrnode.dicom.scp import Handlers, ListenerOptions, start_listener
from cxrnode.errors import StorageFullError, StoreAwayError, StoreError
from cxrnode.intake import Intake
from cxrnode.store.commitments import Commitments
from cxrnode.store.database import Database
from cxrnode.store.outbox import Outbox
from cxrnode.types import Destination
from tests.support.awaiting import await_true
from tests.support.make_dicom import chest
from tests.support.receiving import HOST, NODE, PACS, associated, recorder, send
from tests.support.sqlite import locked

CR = "1.2.840.10008.5.1.4.1.1.1"
AGAIN, FAILED, LIMITED = 0xA700, 0x0110, 0x0213


@dataclass(kw_only=True)
class Peers:
    """Each asks for one thing."""

    port: int
    database: Database
    file: Path

    def statuses(self, seed: int = 1) -> tuple[int, int, int]:
        """Of C-STORE, N-ACTION, N-EVENT-REPORT."""
        told = Dataset()
        told.TransactionUID, told.ReferencedSOPSequence = f"2.25.{seed}", references([(CR, "1.2.3")])
        with associated(self.port, COMMITMENT) as assoc:
            asked = assoc.send_n_action(told, 1, COMMITMENT, PUSH_MODEL_INSTANCE)[0]
            reported = assoc.send_n_event_report(told, 1, COMMITMENT, PUSH_MODEL_INSTANCE)[0]
        (stored,) = send(self.port, chest(64, 64, seed=seed))
        return stored, int(asked.Status), int(reported.Status)


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    file, folder = tmp_path / "node.sqlite", tmp_path / "var"
    folder.mkdir()
    database = Database(file)
    intake = Intake(folder, record=recorder(database), is_stat=lambda _ds, _peer: False, watermark_bytes=0)
    peer = ((PACS, HOST),)
    answers = CommitmentAnswers(
        database=database, commitments=Commitments("intake"), root=folder, calling_ae_title=NODE,
        peers={(PACS, HOST): Destination(ae_title=PACS, host=HOST, port=104)},
    )  # fmt: skip
    options = ListenerOptions(
        ae_title=NODE, bind=HOST, port=0, incoming=intake.incoming, allow=peer, commitment_peers=peer
    )
    handlers = Handlers(
        store=intake.store, has_room=intake.has_room, commit_requested=answers.requested,
        commit_reported=CommitmentReports(database=database, outbox=Outbox("intake"), reporters={"pacs": peer}).take,
    )  # fmt: skip
    with start_listener(options, handlers) as listener:
        yield Peers(port=listener.port, database=database, file=file)
    database.close()


ERRORS: list[tuple[Exception, int]] = [
    (StoreAwayError("away"), LIMITED),
    (StorageFullError("full"), LIMITED),
    (OperationalError("BEGIN", {}, sqlite3.OperationalError("database is locked")), LIMITED),
    (StoreError("foreign"), FAILED),
    (DataError("INSERT", {}, ValueError("out of range")), FAILED),
    (OSError(5, "I/O error"), FAILED),
    (MemoryError(), FAILED),
    (RuntimeError("?"), FAILED),
    (KeyError("?"), FAILED),
]


@pytest.mark.parametrize(
    ("error", "expected"), ERRORS, ids=lambda e: type(e).__name__ if isinstance(e, Exception) else ""
)
def test_an_error_of_ours(peers: Peers, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: int) -> None:
    real = Database.begin

    @contextmanager
    def begin(self: Database, **how: Any) -> Iterator[Any]:
        with real(self, **how):
            raise error
        yield

    with monkeypatch.context() as patched:
        patched.setattr(Database, "begin", begin)
        assert peers.statuses() == (AGAIN, expected, expected)
    assert peers.statuses() == (0, 0, 0)


@contextmanager
def no_connection_left(peers: Peers) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(15):  # SQLAlchemy's pool of 5, and the 10 that it may have beside
            stack.enter_context(peers.database._engine.connect())
        yield


@contextmanager
def full_file(peers: Peers) -> Iterator[None]:
    """As on a disk without room: the database itself says so, at the first new page."""
    pool = peers.database._engine.pool
    with peers.database.begin(shared=True) as c:
        pages = c.exec_driver_sql("PRAGMA page_count").scalar_one()
    pool.dispose()

    with pytest.MonkeyPatch.context() as patched:
        real = sqlite3.connect

        def connect(*args: Any, **how: Any) -> sqlite3.Connection:
            opened: sqlite3.Connection = real(*args, **how)
            opened.execute(f"PRAGMA max_page_count = {pages}")
            return opened

        patched.setattr(peers.database._engine.dialect.loaded_dbapi, "connect", connect)
        yield
    pool.dispose()


TROUBLES: dict[str, Callable[[Peers], AbstractContextManager[None]]] = {
    "locked by another process": lambda peers: locked(peers.file),
    "no connection left": no_connection_left,
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_database_that_is_away(peers: Peers, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    monkeypatch.setattr("cxrnode.bounded.ANSWER_S", 1.0)
    monkeypatch.setattr(intake_module, "_GRACE_S", 0.1)
    assert peers.statuses(1) == (0, 0, 0)
    with TROUBLES[trouble](peers):
        assert peers.statuses(2) == (AGAIN, LIMITED, LIMITED)
        assert peers.statuses(2) == (AGAIN, LIMITED, LIMITED)
    monkeypatch.undo()
    await_true(lambda: peers.statuses(2) == (0, 0, 0))  # by itself, as soon as what hung is back


def test_a_database_that_is_full(peers: Peers) -> None:
    with full_file(peers):
        stored: set[int] = set()
        asked: set[int] = set()
        for seed in range(1, 100):  # the first ones go into what room its pages have; a report adds nothing
            a, b, _ = peers.statuses(seed)
            stored, asked = stored | {a}, asked | {b}
            if AGAIN in stored and LIMITED in asked:
                break
        assert stored <= {0, AGAIN}
        assert asked <= {0, LIMITED}
        assert (AGAIN in stored, LIMITED in asked) == (True, True)
    assert peers.statuses(300) == (0, 0, 0)
