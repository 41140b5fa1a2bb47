"""Opening the database: SQLite in WAL mode, durable commits, clear errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DatabaseError

from cxrnode.errors import StorageFullError, StoreError
from cxrnode.store.schema import APPEND_ONLY, SCHEMA_VERSION, metadata

_BUSY_TIMEOUT_MS = 5_000


class Database:
    """One SQLite file. `begin()` is the only way to write: one transaction, committed or rolled back whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = _engine(path)
        with self._errors():
            self._create_or_check()

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        with self._errors(), self._engine.begin() as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()

    def _create_or_check(self) -> None:
        with self._engine.begin() as c:
            found = int(c.execute(text("PRAGMA user_version")).scalar_one())
            if found == 0 and not c.execute(text("SELECT count(*) FROM sqlite_master")).scalar_one():
                metadata.create_all(c)
                for trigger in APPEND_ONLY:
                    c.execute(text(trigger))
                c.execute(text(f"PRAGMA user_version = {SCHEMA_VERSION}"))
            elif found != SCHEMA_VERSION:
                raise StoreError(
                    f"{self.path} has schema version {found}, this cxrnode wants {SCHEMA_VERSION}: use the cxrnode "
                    "that made it, or another folder"
                )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as e:
            why = str(e.orig)
            if "full" in why or "disk I/O" in why:
                raise StorageFullError(
                    f"cannot write {self.path} ({why}): free some space, then run the same command again to go on"
                ) from e
            raise StoreError(f"cannot use the database {self.path}: {why}. Is it ours, readable and writable?") from e


def _engine(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def _configure(dbapi: Any, _record: Any) -> None:
        dbapi.isolation_level = None  # SQLAlchemy's own BEGIN below, so that DDL is transactional too
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            f"busy_timeout={_BUSY_TIMEOUT_MS}",
        ):
            dbapi.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
