"""A transaction that only reads, on both databases: it may not write, and it sees one moment of the store."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from cxrnode.errors import StoreError
from cxrnode.store import ledger
from cxrnode.store.database import Database


def test_who_reads_may_not_write_and_the_next_transaction_may(database: Database) -> None:
    with pytest.raises(StoreError), database.read() as c:
        c.execute(text("INSERT INTO settings (key, value) VALUES ('a', '1')"))
    with database.begin() as c:
        c.execute(text("INSERT INTO settings (key, value) VALUES ('a', '1')"))
    with pytest.raises(StoreError), database.read() as c:
        ledger.append(c, "test", actor="test")
    with database.read() as c:
        assert c.execute(text("SELECT count(*) FROM settings")).scalar_one() == 1
        assert ledger.newest(c) is None


def test_on_sqlite_who_reads_sees_one_moment(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.sqlite")
    with database.read() as c:
        assert ledger.newest(c) is None
        with database.begin() as writer:
            ledger.append(writer, "test", actor="test")
        assert ledger.newest(c) is None
    database.close()
