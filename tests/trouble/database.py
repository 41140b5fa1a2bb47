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
from tests.support.sqlite import locked
from tests.trouble.account import Account
from tests.trouble.scene import on_postgresql, scene, small_disk

_BEFORE_S, _TROUBLE_S, _AFTER_S = 5.0, 45.0, 5.0  # longer than a sender may have to wait for its answer
_RESTARTS = 10


def postgresql_restarted(folder: Path) -> Account:
    """Ten times, at once: every connection is cut."""
    with on_postgresql(folder) as (play, server):
        with play.load.going_on():
            for _ in range(_RESTARTS):
                time.sleep(_BEFORE_S)
                server.server.stop()
                time.sleep(1.0)
                server.start()
        return play.judged("PostgreSQL restarted ten times")


def postgresql_away(folder: Path) -> Account:
    with on_postgresql(folder) as (play, server):
        with play.load.going_on():
            time.sleep(_BEFORE_S)
            server.server.stop()
            time.sleep(_TROUBLE_S)
            server.start()
            time.sleep(_AFTER_S)
        return play.judged(f"PostgreSQL away for {_TROUBLE_S:.0f} s")


def postgresql_killed(folder: Path) -> Account:
    with on_postgresql(folder) as (play, server):
        with play.load.going_on():
            time.sleep(_BEFORE_S)
            for process in _family(server):
                os.kill(process.pid, signal.SIGKILL)
            assert server.server.process
            server.server.process.wait()
            time.sleep(3.0)
            server.start()
            time.sleep(_AFTER_S)
        return play.judged("PostgreSQL killed")


def postgresql_frozen(folder: Path) -> Account:
    """Its processes stand still: connections stay, and nothing answers."""
    with on_postgresql(folder) as (play, server):
        with play.load.going_on():
            time.sleep(_BEFORE_S)
            with _frozen(server):
                time.sleep(_TROUBLE_S)
            time.sleep(_AFTER_S)
        return play.judged(f"PostgreSQL frozen for {_TROUBLE_S:.0f} s")


def postgresql_locked(folder: Path) -> Account:
    """Another session holds every table, as a dump or an index build gone wrong does."""
    with on_postgresql(folder) as (play, server):
        with play.load.going_on():
            time.sleep(_BEFORE_S)
            with server.connect("test0") as other, other.transaction():
                for table in ("ledger", "job", "instance", "study", "delivery"):
                    other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
                time.sleep(_TROUBLE_S)
            time.sleep(_AFTER_S)
        return play.judged(f"PostgreSQL locked for {_TROUBLE_S:.0f} s")


def postgresql_full(folder: Path) -> Account:
    """The database lies on a small disk, which something else fills."""
    disk = folder / "tablespace"
    with small_disk(disk, "size=64m"):
        for path in (folder, *folder.parents):  # the server is another user
            path.chmod(path.stat().st_mode | 0o011)
        shutil.chown(disk, "nobody", "nogroup")
        with on_postgresql(folder, tablespace=disk) as (play, _):
            with play.load.going_on():
                time.sleep(_BEFORE_S)
                with filled(disk):
                    time.sleep(_TROUBLE_S)
                time.sleep(_AFTER_S)
            return play.judged("PostgreSQL's disk full")


def sqlite_locked(folder: Path) -> Account:
    with scene(folder) as play:
        with play.load.going_on():
            time.sleep(_BEFORE_S)
            with locked(play.node.data_dir / "ledger.sqlite"):
                time.sleep(_TROUBLE_S)
            time.sleep(_AFTER_S)
        return play.judged(f"SQLite locked for {_TROUBLE_S:.0f} s")


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """To the last byte."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as f:
        for size in (1 << 20, 4096, 1):
            try:
                while f.write(bytes(size)):
                    pass
            except OSError:
                continue
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def _frozen(server: Postgres) -> Iterator[None]:
    family = _family(server)
    for process in family:
        process.suspend()
    try:
        yield
    finally:
        for process in family:
            process.resume()


def _family(server: Postgres) -> list[psutil.Process]:
    assert server.server.process
    parent = psutil.Process(server.server.process.pid)
    return [parent, *parent.children(recursive=True)]


SCENES = (
    postgresql_restarted, postgresql_away, postgresql_killed, postgresql_frozen, postgresql_locked, postgresql_full,
    sqlite_locked,
)  # fmt: skip
