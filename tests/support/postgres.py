"""A disposable PostgreSQL: a real server on a socket of its own, in a temporary folder, with a password."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
from sqlalchemy import URL

ADMINISTRATOR = "postgres"
USER, PASSWORD = "cxrnode", "p@ss/word"  # no superuser, as it should be; special characters, as they come
START_SECONDS = 30.0


def binaries() -> Path | None:
    """Debian keeps the server's programs beside the PATH, by version; others put them on it."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    found = debian[-1] if debian else shutil.which("initdb")
    return Path(found).parent if found else None


def missing_postgres() -> list[str]:
    return [] if binaries() else ["initdb"]


@dataclass(kw_only=True)
class _Server:
    """The process; `start` and `stop` it as often as you like."""

    command: list[str | Path]
    log: Path
    unprivileged: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, cwd=self.log.parent, **self.unprivileged
            )

    def stop(self) -> None:
        """At once: its connections are cut, and it recovers at the next start."""
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(timeout=START_SECONDS)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Every process of it is stopped: connections stay up, new ones are taken by the system, nothing answers."""
        assert self.process is not None
        first = psutil.Process(self.process.pid)
        first.suspend()  # so that it starts no more
        others = first.children()
        try:
            for other in others:
                other.suspend()
            yield
        finally:
            for other in (*others, first):
                with suppress(psutil.NoSuchProcess):
                    other.resume()


@dataclass(frozen=True, kw_only=True)
class Postgres:
    folder: Path  # with its socket
    server: _Server
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def new_database(self, *, tablespace: Path | None = None) -> str:
        """The URL of an empty database, one for each test. tablespace: an empty folder of the server's user."""
        name = f"test{next(self._numbers)}"
        with self.connect("postgres") as raw:
            where = ""
            if tablespace:
                raw.execute(f"CREATE TABLESPACE {name}_space LOCATION '{tablespace}'")
                where = f" TABLESPACE {name}_space"
            raw.execute(f"CREATE DATABASE {name} OWNER {USER}{where}")
        return self.url(name)

    def url(self, name: str, password: str = PASSWORD) -> str:
        where = {"host": str(self.folder)}
        url = URL.create("postgresql+psycopg", USER, password, database=name, query=where)
        return url.render_as_string(hide_password=False)

    def start(self) -> None:
        """Returns when it answers."""
        self.server.start()
        _await(self)

    def connect(self, name: str) -> psycopg.Connection[Any]:
        """A connection of the server's administrator."""
        return psycopg.connect(
            host=str(self.folder), user=ADMINISTRATOR, password=PASSWORD, dbname=name, autocommit=True
        )


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Start a server, wait until it answers, and stop it at the end. It refuses root, who starts it as `nobody`."""
    programs = binaries()
    assert programs, "no PostgreSQL here"
    unprivileged: dict[str, Any] = {} if os.geteuid() else {"user": "nobody", "group": "nogroup", "extra_groups": []}
    with tempfile.TemporaryDirectory(prefix="cxrnode-pg-") as name:  # not pytest's, which only we may enter
        folder = Path(name)
        password = folder / "password"
        password.write_text(PASSWORD)
        for path in (folder, password) if unprivileged else ():
            shutil.chown(path, "nobody", "nogroup")
        initdb: list[str | Path] = [
            programs / "initdb", "--pgdata", folder / "data", "--username", ADMINISTRATOR, "--pwfile", password,
            "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync",
        ]  # fmt: skip
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **unprivileged)
        server: list[str | Path] = [
            programs / "postgres", "-D", folder / "data", "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off",
        ]  # fmt: skip
        process = _Server(command=server, log=folder / "log", unprivileged=unprivileged)
        try:
            peer = Postgres(folder=folder, server=process)
            peer.start()
            with peer.connect("postgres") as raw:
                raw.execute(f"CREATE ROLE {USER} LOGIN CREATEDB PASSWORD '{PASSWORD}'")
            yield peer
        finally:
            process.stop()  # its data is thrown away


def _await(peer: Postgres) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            peer.connect("postgres").close()
            return
        except psycopg.OperationalError as e:
            process = peer.server.process
            if process is None or process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not answer:\n{(peer.folder / 'log').read_text()}") from e
            time.sleep(0.05)
