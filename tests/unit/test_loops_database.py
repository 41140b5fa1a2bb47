"""The threads that keep the ledger's books survive a database that errs, and do their work when it is back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

from cxrnode.audit.anchors import Anchors
from cxrnode.audit.atna import Source
from cxrnode.audit.forward import Forwarder, unconfirmed_since
from cxrnode.errors import StoreAwayError, StoreError
from cxrnode.intake_ledger import Seen
from cxrnode.loops import Loop, running
from cxrnode.patience import Patience
from cxrnode.repeats import SparseLog
from cxrnode.retention import Retention
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.types import Peer
from tests.support import syslog
from tests.support.audit import lived
from tests.support.awaiting import await_true
from tests.support.certificates import Authority

SOON = Patience(first_wait_s=0.001, longest_wait_s=0.01)
Work = tuple[Loop, Callable[[], object]]  # and whether it was done


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = lived(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """What the database raises, one after the other, in threads that are a loop's."""
    left: list[Exception] = [StoreAwayError("away"), StoreError("locked"), OSError(5, "I/O error"), RuntimeError("?")]
    for name in ("begin", "read"):
        monkeypatch.setattr(Database, name, partialmethod(_erring, getattr(Database, name), left))
    return left


def _erring(self: Database, real: Callable[..., Any], left: list[Exception], **how: Any) -> Any:
    if left and threading.current_thread() is not threading.main_thread():
        raise left.pop(0)
    return real(self, **how)


def does(work: Work, errors: list[Exception]) -> None:
    loop, done = work
    stopping = threading.Event()
    with running([replace(loop, patience=SOON)], stopping):
        try:
            await_true(lambda: not errors and done(), lambda: f"left: {errors}")
        finally:
            stopping.set()


def test_associations(database: Database, errors: list[Exception]) -> None:
    seen = Seen(database, actor="intake")
    seen.association(Peer(calling_aet="PACS", called_aet="CXRNODE", host="10.0.0.5"), "called AE title not recognised")

    def written() -> bool:
        with database.begin(shared=True) as c:
            return "association_rejected" in [e.kind for e in ledger.events(c)]

    does((seen.loop(SparseLog()), written), errors)


def test_anchors(database: Database, errors: list[Exception], tmp_path: Path) -> None:
    file = tmp_path / "anchors.jsonl"
    anchors = Anchors(database=database, file=file, every_records=1, every_s=3600.0)
    does((anchors.loop(), file.exists), errors)


def test_audit_messages(database: Database, errors: list[Exception], tmp_path: Path) -> None:
    authority, reader = Authority(tmp_path), Database(tmp_path / "ledger.sqlite", read_only=True)

    def sent() -> bool:
        with database.begin() as c:
            return unconfirmed_since(c) is None

    with syslog.bad_server(authority, syslog.forgets_close_notify) as server:
        forwarder = Forwarder(
            database=database, reader=reader, server=server.server(authority, timeout_s=10.0), confirm_s=0.0,
            source=Source(ae_title="CXRNODE", host="node"),
        )  # fmt: skip
        does((forwarder.loop(), sent), errors)
    reader.close()


def test_retention(database: Database, errors: list[Exception], tmp_path: Path) -> None:
    """It asks of what lies in the folder, and swept once it waits for an hour."""
    (tmp_path / "spool" / "1.2.3").mkdir(parents=True)
    swept = threading.Event()
    stopping = threading.Event()
    work = Retention(database=database, data_dir=tmp_path, days=7, destinations={"pacs": True}).loop(stopping)

    def step() -> float:
        wait_s = work.step()
        swept.set()
        return wait_s

    does((replace(work, step=step), swept.is_set), errors)
