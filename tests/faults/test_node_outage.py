"""PostgreSQL goes and comes while images are in hand: no outage becomes a result, and the engine stays as it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cxrnode.store.database import Database
from tests.interop.conftest import require
from tests.support.awaiting import await_true, film
from tests.support.node import Node, running_node
from tests.support.postgres import Postgres, missing_postgres, running_postgres

WAITS, GOES_ON = "analyse waits for the database, and then goes on by itself", "analyse goes on, after"
RESTARTS, FILMS = 10, 30


@pytest.fixture
def server() -> Iterator[Postgres]:
    """One that may be stopped."""
    require(missing_postgres())
    with running_postgres() as server:
        yield server


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with closing(Database(url)) as database, database.read() as c:
        return [tuple(row) for row in c.exec_driver_sql(query)]


def all_analysed(url: str, films: int) -> bool:
    return rows(url, "SELECT state, outcome, count(*) FROM job GROUP BY 1, 2") == [("reported", "analysed", films)]


def taken_up(url: str) -> int:
    """How many images are, or were, in the stage's hands."""
    return int(rows(url, "SELECT count(*) FROM job WHERE state = 'claimed' OR outcome IS NOT NULL")[0][0])


def test_ten_restarts_of_postgresql_under_load(server: Postgres, tmp_path: Path) -> None:
    url = server.new_database()
    node = Node(folder=tmp_path / "node", database=url, quiet_s=0.2)
    films = [film(tmp_path, n) for n in range(FILMS)]
    with running_node(node):
        analyse = node.stages()["analyse"].pid
        for n in range(RESTARTS):
            batch = films[n * FILMS // RESTARTS : (n + 1) * FILMS // RESTARTS]
            assert node.send(*batch) == [0] * len(batch)
            await_true(lambda: taken_up(url) > n * FILMS // RESTARTS, lambda: node.log[-3000:], every_s=0)  # noqa: B023
            server.server.stop()
            time.sleep(0.5)
            server.start()
        await_true(lambda: all_analysed(url, FILMS), lambda: f"{rows(url, 'SELECT * FROM job')}\n{node.log[-5000:]}")
        assert node.stages()["analyse"].pid == analyse
        assert set(rows(url, "SELECT max(attempts) FROM job")) == {(1,)}
        assert RESTARTS // 2 <= node.log.count(WAITS) == node.log.count(GOES_ON)
        assert "analyse ended" not in node.log
        assert node.stop() == 0
    assert "Traceback" not in node.log


def test_an_outage_that_is_longer_than_a_lease_and_a_stop_in_the_midst_of_it(server: Postgres, tmp_path: Path) -> None:
    url = server.new_database()
    node = Node(folder=tmp_path / "node", database=url, quiet_s=0.2)
    with running_node(node):
        films = [film(tmp_path, n) for n in range(8)]
        assert node.send(*films) == [0] * 8
        await_true(lambda: rows(url, "SELECT 1 FROM job WHERE state = 'claimed'"), every_s=0)
        server.server.stop()
        await_true(lambda: WAITS in node.log, lambda: node.log[-3000:])
        time.sleep(12.0)
        assert node.log.count(WAITS) == 1
        node.stages()["analyse"].terminate()  # as a deployment does, or an operator who thinks that it helps
        await_true(lambda: "analyse ended" in node.log, lambda: node.log[-3000:])
        server.start()
        await_true(lambda: all_analysed(url, 8), lambda: f"{rows(url, 'SELECT * FROM job')}\n{node.log[-5000:]}")
        assert rows(url, "SELECT max(attempts) FROM job") == [(1,)]
        assert node.stop() == 0
    assert "Traceback" not in node.log


def test_a_database_that_hangs_for_longer_than_a_lease(server: Postgres, tmp_path: Path) -> None:
    url = server.new_database()
    node = Node(folder=tmp_path / "node", database=url, quiet_s=0.2)
    with running_node(node):
        films = [film(tmp_path, n) for n in range(8)]
        assert node.send(*films) == [0] * 8
        await_true(lambda: rows(url, "SELECT 1 FROM job WHERE state = 'claimed'"), every_s=0)
        with server.server.frozen():
            time.sleep(13.0)
        await_true(lambda: all_analysed(url, 8), lambda: f"{rows(url, 'SELECT * FROM job')}\n{node.log[-5000:]}")
        assert rows(url, "SELECT max(attempts) FROM job") == [(1,)]
        assert "analyse ended" not in node.log
        assert node.stop() == 0
    assert "Traceback" not in node.log


def test_a_node_that_is_started_before_its_database(server: Postgres, tmp_path: Path) -> None:
    url = server.new_database()
    server.server.stop()
    node = Node(folder=tmp_path / "node", database=url)
    try:
        node.start(ready=False)
        waits = "waits for the database, and then goes on by itself: cannot use the database"
        await_true(lambda: waits in node.log, lambda: node.log[-3000:])
        time.sleep(3.0)
        assert node.process
        assert node.process.poll() is None
        assert node.log.count(waits) == 1
        server.start()
        node.await_ready()
        assert node.stop() == 0
    finally:
        node.kill()
    assert "Traceback" not in node.log
