"""A database that is stopped, killed, frozen, locked or full, under load."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.postgres import Postgres
from tests.support.small_disk import fill, small_disk
from tests.support.sqlite import locked
from tests.trouble.account import Account
from tests.trouble.scene import on_postgresql, scene

_TROUBLE_S = 45.0  # longer than a sender may have to wait for its answer
_RESTARTS = 10


def postgresql_restarted(folder: Path) -> Account:
    """Ten times, at once: every connection is cut."""
    with on_postgresql(folder) as (play, server):
        with play.load.going_on():
            for _ in range(_RESTARTS):
                time.sleep(5.0)
                server.server.stop()
                time.sleep(1.0)
                server.start()
        return play.judged("PostgreSQL restarted ten times")


def postgresql_away(folder: Path) -> Account:
    with on_postgresql(folder) as (play, server):
        return play.through(f"PostgreSQL away for {_TROUBLE_S:.0f} s", _stopped(server), _TROUBLE_S)


def postgresql_killed(folder: Path) -> Account:
    with on_postgresql(folder) as (play, server):
        return play.through("PostgreSQL killed", _killed(server), 3.0)


def postgresql_frozen(folder: Path) -> Account:
    """Its processes stand still: connections stay, and nothing answers."""
    with on_postgresql(folder) as (play, server):
        return play.through(f"PostgreSQL frozen for {_TROUBLE_S:.0f} s", server.server.frozen(), _TROUBLE_S)


def postgresql_locked(folder: Path) -> Account:
    with on_postgresql(folder) as (play, server):
        return play.through(f"PostgreSQL locked for {_TROUBLE_S:.0f} s", _locked(server), _TROUBLE_S)


def postgresql_full(folder: Path) -> Account:
    """The database lies on a small disk, which something else fills."""
    disk = folder / "tablespace"
    with small_disk(disk, "size=64m"):
        for path in (folder, *folder.parents):  # the server is another user
            path.chmod(path.stat().st_mode | 0o011)
        shutil.chown(disk, "nobody", "nogroup")
        with on_postgresql(folder, tablespace=disk) as (play, _):
            return play.through("PostgreSQL's disk full", filled(disk), _TROUBLE_S)


def sqlite_locked(folder: Path) -> Account:
    with scene(folder) as play:
        trouble = locked(play.node.data_dir / "ledger.sqlite")
        return play.through(f"SQLite locked for {_TROUBLE_S:.0f} s", trouble, _TROUBLE_S)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    filler = fill(disk)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def _stopped(server: Postgres) -> Iterator[None]:
    server.server.stop()
    yield
    server.start()


@contextmanager
def _killed(server: Postgres) -> Iterator[None]:
    """All its processes at once, from outside."""
    assert server.server.process
    parent = psutil.Process(server.server.process.pid)
    for process in (parent, *parent.children(recursive=True)):
        os.kill(process.pid, signal.SIGKILL)
    server.server.process.wait()
    yield
    server.start()


@contextmanager
def _locked(server: Postgres) -> Iterator[None]:
    """Another session holds every table, as a dump or an index build gone wrong does."""
    with server.connect("test0") as other, other.transaction():
        for table in ("ledger", "job", "instance", "study", "delivery"):
            other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield


SCENES = (
    postgresql_restarted, postgresql_away, postgresql_killed, postgresql_frozen, postgresql_locked, postgresql_full,
    sqlite_locked,
)  # fmt: skip
