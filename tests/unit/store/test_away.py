"""Whatever SQLAlchemy, its pool or a driver raise is an error of ours, and one that says whether to try again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from sqlalchemy import exc

from cxrnode.errors import CxrnodeError, StorageFullError, StoreAwayError, StoreError
from cxrnode.store.database import Database
from tests.support.postgres import Postgres

AWAY = {"OperationalError", "InterfaceError", "InternalError", "DisconnectionError", "TimeoutError"}


def family(kind: type[Exception]) -> Iterator[type[Exception]]:
    yield kind
    for child in kind.__subclasses__():
        yield from family(child)


def raised(kind: type[Exception]) -> Exception:
    """One of this kind, however its constructor would have it."""
    if issubclass(kind, exc.StatementError) and not issubclass(kind, exc.DBAPIError):
        return kind("gone", "SELECT 1", {}, ValueError("gone"))
    if issubclass(kind, exc.DBAPIError):
        return kind("SELECT 1", {}, sqlite3.OperationalError("gone"))
    made = kind.__new__(kind)
    made.args = ("gone",)
    return made


def classes(*modules: ModuleType) -> list[type[Exception]]:
    """Every exception that these modules know, with all that is made of it anywhere."""
    known = [kind for module in modules for kind in vars(module).values() if isinstance(kind, type)]
    found = {child for kind in known if issubclass(kind, Exception) for child in family(kind)}
    ours = {kind for kind in found if kind.__module__.partition(".")[0] in {"sqlalchemy", "sqlite3", "psycopg"}}
    return sorted(ours, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")


SQLALCHEMY = [kind for kind in classes(exc) if issubclass(kind, exc.SQLAlchemyError)]  # the others are notices
SQLITE = classes(sqlite3)
POSTGRESQL = [kind for kind in classes(psycopg, psycopg.errors) if kind is not psycopg.Rollback]  # raised by callers


def caught(database: Database, error: Exception) -> CxrnodeError:
    with pytest.raises(CxrnodeError) as told, database.begin():
        raise error
    return told.value


def wrapped(error: Exception, driver: Any) -> Exception:
    """As SQLAlchemy would raise it of a statement."""
    return exc.DBAPIError.instance("SELECT 1", {}, error, driver.Error, dialect=None)


def check(database: Database, kind: type[Exception], error: Exception) -> None:
    told, sqlstate = caught(database, error), str(getattr(kind, "sqlstate", ""))
    if sqlstate == "53100":
        assert isinstance(told, StorageFullError), kind
        return
    assert isinstance(told, StoreError), kind
    its_own_fault = sqlstate.startswith("54")  # too large, too complex: that says nothing of the database
    away = bool(AWAY & {base.__name__ for base in kind.__mro__}) and not its_own_fault
    assert isinstance(told, StoreAwayError) == away, kind


def test_every_error_of_sqlalchemy_and_sqlite_is_one_of_ours(tmp_path: Path) -> None:
    database = Database(tmp_path / "node.sqlite")
    assert len(SQLALCHEMY) > 40
    assert len(SQLITE) == 10
    for kind in SQLALCHEMY + SQLITE:
        check(database, kind, raised(kind))
    for kind in SQLITE:
        check(database, kind, wrapped(raised(kind), sqlite3))
    with database.begin(shared=True):  # and the database goes on
        pass
    database.close()


def test_every_error_of_psycopg_is_one_of_ours(postgres: Postgres) -> None:
    database = Database(postgres.new_database())
    assert len(POSTGRESQL) > 200
    for kind in POSTGRESQL:
        check(database, kind, raised(kind))
        check(database, kind, wrapped(raised(kind), psycopg))
    database.close()


# What PostgreSQL says when it is away or busy, or no longer takes part (PostgreSQL, appendix A)
BUSY = {
    "08000": "the connection", "08001": "no connection", "08003": "no connection", "08004": "it refuses connections",
    "08006": "the connection broke", "25006": "it is a standby now", "25P03": "idle in a transaction",
    "40001": "serialization", "40P01": "deadlock", "53000": "resources", "53200": "memory", "53300": "connections",
    "55P03": "lock_timeout", "57014": "statement_timeout", "57P01": "shutdown", "57P02": "crash",
    "57P03": "it starts", "57P05": "idle session", "58000": "system", "58030": "I/O error", "XX000": "internal",
}  # fmt: skip


@pytest.mark.parametrize("sqlstate", BUSY)
def test_a_server_that_is_away_or_busy_is_away(tmp_path: Path, sqlstate: str) -> None:
    kind = psycopg.errors.lookup(sqlstate)
    database = Database(tmp_path / "node.sqlite")
    assert isinstance(caught(database, wrapped(raised(kind), psycopg)), StoreAwayError)
    database.close()


def test_a_pool_that_has_no_connection_left_is_away(tmp_path: Path) -> None:
    told = caught(Database(tmp_path / "node.sqlite"), exc.TimeoutError("QueuePool limit of size 5 overflow 10 reached"))
    assert isinstance(told, StoreAwayError)
    assert told.exit_code == 1  # the same command again
