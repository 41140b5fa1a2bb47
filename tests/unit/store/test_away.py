"""Whatever SQLAlchemy, its pool or a driver raise is an error of ours, and one that says whether to try again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

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


SQLALCHEMY = sorted(set(family(exc.SQLAlchemyError)), key=lambda kind: f"{kind.__module__}.{kind.__name__}")
SQLITE = sorted(set(family(sqlite3.Error)), key=lambda kind: kind.__name__)
POSTGRESQL = sorted(set(family(psycopg.Error)), key=lambda kind: f"{kind.__module__}.{kind.__name__}")


def caught(database: Database, error: Exception) -> CxrnodeError:
    with pytest.raises(CxrnodeError) as told, database.begin():
        raise error
    return told.value


def test_every_error_of_sqlalchemy_and_sqlite_is_one_of_ours(tmp_path: Path) -> None:
    database = Database(tmp_path / "node.sqlite")
    assert len(SQLALCHEMY) > 40
    for kind in SQLALCHEMY + SQLITE:
        told = caught(database, raised(kind))
        assert isinstance(told, StoreError), kind
        assert isinstance(told, StoreAwayError) == bool(AWAY & {base.__name__ for base in kind.__mro__}), kind
    with database.begin(shared=True):  # and the database goes on
        pass
    database.close()


def test_every_error_of_psycopg_is_one_of_ours(postgres: Postgres) -> None:
    database = Database(postgres.new_database())
    assert len(POSTGRESQL) > 200
    for kind in POSTGRESQL:
        told = caught(database, raised(kind))
        full = getattr(kind, "sqlstate", None) == "53100"
        assert isinstance(told, StorageFullError if full else StoreError), kind
        if not full:
            assert isinstance(told, StoreAwayError) == bool(AWAY & {base.__name__ for base in kind.__mro__}), kind
    database.close()


def test_a_pool_that_has_no_connection_left_is_away(tmp_path: Path) -> None:
    told = caught(Database(tmp_path / "node.sqlite"), exc.TimeoutError("QueuePool limit of size 5 overflow 10 reached"))
    assert isinstance(told, StoreAwayError)
    assert told.exit_code == 1  # the same command again
