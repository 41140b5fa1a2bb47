"""Opening the database: a SQLite file or PostgreSQL, brought to today's schema; durable commits, clear errors."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, insert, inspect, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError, StatementError
from sqlalchemy.pool import NullPool

from cxrnode.bounded import Bounded, answer_by
from cxrnode.errors import StorageFullError, StoreAwayError, StoreError
from cxrnode.store import ledger
from cxrnode.store.peek import is_foreign
from cxrnode.store.schema import REVISION, alembic_version, metadata
from cxrnode.store.turns import Turns

LEDGER_NAME = "ledger.sqlite"  # the SQLite file, in the output folder or the data folder
_EXAMPLE = "postgresql+psycopg://user:password@host:5432/cxrnode"
_WRITE_WAIT_S = 10.0  # for the other threads of this process, and then for the other processes
_SQLITE = (
    f"busy_timeout={_WRITE_WAIT_S * 1000:.0f}",
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
)
# A transaction of ours takes milliseconds. One whose process hangs is ended before those that wait for it give up.
_POSTGRESQL = (
    "synchronous_commit = on",  # whatever the server's default: committed is on disk
    "statement_timeout = '60s'",
    "lock_timeout = '30s'",
    "idle_in_transaction_session_timeout = '20s'",
)
_POSTGRESQL_READ_ONLY = ("default_transaction_read_only = on",)  # and takes its time: a pager, a million records
# A server that vanished is known as such after half a minute, or a minute where nothing was under way.
_CONNECT = {
    "connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,  # s
    "tcp_user_timeout": 30_000,  # ms
}  # fmt: skip
# What these say is not about the rows that they were given: the server, the file, the connection, the pool
_AWAY = (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.DisconnectionError, exc.TimeoutError)
_AWAY_NAMES = frozenset(kind.__name__ for kind in _AWAY)  # PEP 249 gives the drivers' errors the same
_READ_ONLY = "postgresql_readonly"  # SQLAlchemy's option, which ours for SQLite goes by too
_READING: dict[str, Any] = {_READ_ONLY: True}
_READ_WAIT_S = 5.0  # for who holds the file: in WAL mode nobody does for long
_DISK_FULL = "53100"  # SQLSTATE, PostgreSQL appendix A
_ITS_OWN_FAULT = "54"  # SQLSTATE class of a statement above a limit, which psycopg calls operational
_FIRST_VERSION = 1  # PRAGMA user_version of cxrnode 0.1.0, which knew no alembic_version

T = TypeVar("T")


class Database:
    """A SQLite file (a Path) or a PostgreSQL database (a URL). Opening it makes or migrates its tables.

    `begin()` is the only way to write: one transaction, committed or rolled back whole, one writer at a time on both.
    `read()` is for what only asks: it waits for no writer, and no writer for it.
    `read_only` never writes, waits for nobody and holds nobody up: a transaction sees the store as it was when it
    began. It wants a database of today's schema.

    Raises StoreError where the database cannot be used (StoreAwayError where it may be, later), StorageFullError where
    its disk is full.
    """

    def __init__(self, where: Path | str, *, read_only: bool = False) -> None:
        self._read_only = read_only
        self._answers = Bounded("the database", threads=1)
        self.on_write: Callable[[bool], None] = lambda _written: None  # whether a transaction could be written
        if isinstance(where, Path):
            self.name, self._mend = (
                str(where),
                "Is it ours, and does nobody hold it?" if read_only else "Is it ours, readable and writable?",
            )
            if not read_only and is_foreign(where):
                raise self._not_ours()
            self._engine = _sqlite_read_only(where) if read_only else _sqlite(where)
        else:
            url = _postgresql_url(where)
            self.name = f"{url.database} on {url.host or 'this host'}"
            may = "read" if read_only else "make and write"
            self._mend = f"Is the server up, and may this user {may} tables there?"
            self._engine = _postgresql(url, read_only=read_only)
        self._turn = Turns(_WRITE_WAIT_S) if self._engine.dialect.name == "sqlite" and not read_only else nullcontext()
        self._reading = self._engine.execution_options(**_READING)
        try:
            if read_only:
                self._check_revision()
            else:
                self._open()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def begin(self, *, shared: bool = False) -> Iterator[Connection]:
        """One transaction. `shared` lets PostgreSQL run others beside it: to read, or to claim with SKIP LOCKED.

        What appends to the ledger begins alone: the ledger is one chain, and a transaction that came to it with rows
        in hand would deadlock with the one before it that wants these rows.
        """
        with self._told(shared=shared or self._read_only), self._errors(), self._turn, self._engine.begin() as c:
            if not (shared or self._read_only):
                ledger.lock(c)
            yield c

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that may not write: it sees the store as it was when it first asked, and never waits.

        To write what follows from it, end it and `begin`: it may have been overtaken.
        """
        with self._errors(), self._reading.begin() as c:
            yield c

    def answer(self, work: Callable[[Connection], T]) -> T:
        """`work` in one transaction, for a peer that waits. StoreAwayError after `bounded.ANSWER_S`, whatever hangs.

        Then it is rolled back where it comes to its end all the same; only its commit may have been under way.
        """
        until = answer_by()

        def transaction() -> T:
            with self.begin() as c:
                found = work(c)
                if time.monotonic() > until:
                    raise StoreAwayError("it came too late, and nobody waits for it")
                return found

        with self._told(shared=False):
            return self._answers.do(transaction, until=until)

    @contextmanager
    def _told(self, *, shared: bool) -> Iterator[None]:
        """`on_write` hears of each transaction that writes; what is not the database's failure it does not hear of."""
        try:
            yield
        except (StoreAwayError, StorageFullError):
            if not shared:
                self.on_write(False)
            raise
        if not shared:
            self.on_write(True)

    def close(self) -> None:
        self._engine.dispose()

    def _open(self) -> None:
        with self.begin() as c:  # alone: of several processes that open it at once, one makes the tables
            tables = set(inspect(c).get_table_names())
            if not tables:
                metadata.create_all(c, checkfirst=False)
                c.execute(insert(alembic_version).values(version_num=REVISION))
            elif (found := self._revision(c, tables)) != REVISION:
                self._migrate(c, found)
            else:
                return
            if c.dialect.name == "sqlite":  # for 0.1.0, which looks at nothing else: so it refuses
                c.execute(text(f"PRAGMA user_version = {_FIRST_VERSION + 1}"))

    def _check_revision(self) -> None:
        with self.begin() as c:
            if alembic_version.name not in inspect(c).get_table_names():
                raise StoreError(
                    f"{self.name} is no database of cxrnode, or of its first version: name another one, or let cxrnode "
                    "serve or run-batch bring it to today's schema (keep a copy)"
                )
            found = c.execute(select(alembic_version.c.version_num)).scalars().first()
        if found != REVISION:
            raise StoreError(
                f"{self.name} has schema revision {found}, this cxrnode reads {REVISION}: an older one is brought to "
                "it by cxrnode serve or run-batch (keep a copy), a newer one wants the cxrnode that made it"
            )

    def _revision(self, c: Connection, tables: set[str]) -> str | None:
        if alembic_version.name in tables:
            return c.execute(select(alembic_version.c.version_num)).scalars().first()
        if c.dialect.name == "sqlite" and "ledger" in tables and _user_version(c) == _FIRST_VERSION:
            alembic_version.create(c)
            c.execute(insert(alembic_version).values(version_num="0001"))
            return "0001"
        raise self._not_ours()

    def _not_ours(self) -> StoreError:
        return StoreError(f"{self.name} holds tables that are not ours: give cxrnode an empty database of its own")

    def _migrate(self, c: Connection, found: str | None) -> None:
        from alembic.util import CommandError  # noqa: PLC0415 (costs a quarter of a second, and is seldom needed)

        from cxrnode.store.migrations import upgrade  # noqa: PLC0415

        if c.dialect.name == "postgresql":
            c.execute(text("SET LOCAL statement_timeout = 0"))
        try:
            upgrade(c)
        except CommandError as e:
            raise StoreError(
                f"{self.name} has schema revision {found}, this cxrnode knows those up to {REVISION}: use the cxrnode "
                "that made it, or another database"
            ) from e

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Whatever SQLAlchemy, its pool or the driver raise becomes an error of ours."""
        try:
            yield
        except (
            SQLAlchemyError,
            self._engine.dialect.loaded_dbapi.Error,
            self._engine.dialect.loaded_dbapi.Warning,
        ) as e:
            why = _why(e)
            if _is_full(e):
                raise StorageFullError(f"cannot write {self.name} ({why}): free some space") from e
            kind = StoreAwayError if is_away(e) else StoreError
            raise kind(f"cannot use the database {self.name} ({why}). {self._mend}") from e


def _postgresql_url(where: str) -> URL:
    try:
        url = make_url(where)
    except (ArgumentError, ValueError):  # may quote a part of the password
        url = None
    if url is None or url.drivername != "postgresql+psycopg" or not url.database:
        raise StoreError(
            f"cxrnode cannot use the database's URL: write {_EXAMPLE}, with %XX for what is special in the password "
            "(%40 for @)"
        )
    return url


def _sqlite(path: Path) -> Engine:
    engine = create_engine(URL.create("sqlite", database=str(path)), hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _configure(dbapi: Any, _record: Any) -> None:
        dbapi.isolation_level = None  # SQLAlchemy's own BEGIN below, so that DDL is transactional too
        for pragma in _SQLITE:
            dbapi.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get(_READ_ONLY, False)
        connection.exec_driver_sql(f"PRAGMA query_only={reading:d}")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _sqlite_read_only(path: Path) -> Engine:
    engine = create_engine("sqlite://", creator=lambda: _connect_read_only(path), poolclass=NullPool)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def _connect_read_only(path: Path) -> sqlite3.Connection:
    """Beside a writer, and where the folder is not ours to write. Raises StoreError, sqlite3.Error."""
    try:
        if not path.is_file():
            raise StoreError(f"there is no database {path}: check the path; cxrnode serve or run-batch makes it")
        wal = path.with_name(path.name + "-wal")
        left = wal.is_file() and wal.stat().st_size
    except OSError as e:
        raise StoreError(f"cannot read the database {path}: {e.strerror}. May this user read it?") from e
    if not os.access(path, os.R_OK):  # to open and close it would end the locks that this process has on it
        raise StoreError(f"cannot read the database {path}: {os.strerror(errno.EACCES)}. May this user read it?")
    try:
        return _opened(path, "mode=ro")
    except sqlite3.OperationalError as e:
        if e.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise
        if left:  # committed records that are not yet in the file itself
            raise StoreError(
                f"cannot read {path} where it lies: its newest records are in {wal.name}, and SQLite must be able to "
                "write beside it. Copy both files to a folder of your own, and read them there"
            ) from e
    return _opened(path, "immutable=1")


def _opened(path: Path, how: str) -> sqlite3.Connection:
    dbapi = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?{how}", uri=True, isolation_level=None, timeout=_READ_WAIT_S
    )
    try:
        dbapi.execute("SELECT name FROM sqlite_master LIMIT 1").fetchall()
    except BaseException:
        dbapi.close()
        raise
    return dbapi


def _postgresql(url: URL, *, read_only: bool) -> Engine:
    settings = _POSTGRESQL_READ_ONLY if read_only else _POSTGRESQL
    level: Any = "REPEATABLE READ" if read_only else "READ COMMITTED"  # one moment for a whole transaction that reads
    try:
        engine = create_engine(
            url, isolation_level=level, connect_args=_CONNECT, pool_pre_ping=True, hide_parameters=True
        )
    except ModuleNotFoundError as e:
        raise StoreError(f"PostgreSQL needs {e.name}: pip install 'psycopg[binary]'") from e

    @event.listens_for(engine, "connect")
    def _configure(dbapi: Any, _record: Any) -> None:
        for setting in settings:
            dbapi.execute(f"SET {setting}")
        dbapi.commit()

    return engine


def _user_version(c: Connection) -> int:
    return int(c.execute(text("PRAGMA user_version")).scalar_one())


def is_away(e: Exception) -> bool:
    """Whether the database is to blame, and not what it was asked: by SQLAlchemy's word, or by the driver's own."""
    lost = isinstance(e, DBAPIError) and e.connection_invalidated
    if str(getattr(_said(e), "sqlstate", "")).startswith(_ITS_OWN_FAULT):
        return False
    return lost or isinstance(e, _AWAY) or bool({kind.__name__ for kind in type(e).__mro__} & _AWAY_NAMES)


def _why(e: Exception) -> str:
    """The database's own words, without PostgreSQL's DETAIL, which quotes values."""
    said = _said(e)
    diagnosis = getattr(said, "diag", None)
    return " ".join(str((diagnosis and diagnosis.message_primary) or said).split())


def _said(e: Exception) -> BaseException | None:
    """What the driver raised, where SQLAlchemy wrapped it."""
    return e.orig if isinstance(e, StatementError) else e


def _is_full(e: Exception) -> bool:
    said = _said(e)
    sqlite = getattr(said, "sqlite_errorname", "")
    return sqlite.startswith(("SQLITE_FULL", "SQLITE_IOERR")) or getattr(said, "sqlstate", None) == _DISK_FULL
