"""What more than one folder of tests asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cxrnode.store.database import Database
from tests.interop.conftest import require
from tests.support.postgres import Postgres, missing_postgres, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for the session; each test has a database of its own."""
    require(missing_postgres())
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where an empty database lies, for Database(): the test runs on each kind."""
    if request.param == "sqlite":
        return tmp_path / "store.sqlite"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def database(where: Path | str) -> Iterator[Database]:
    """An empty store, on each kind of database."""
    opened = Database(where)
    yield opened
    opened.close()
