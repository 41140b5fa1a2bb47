"""Threads that write to one SQLite file: each has its turn, in the order in which they came."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cxrnode.errors import StoreAwayError
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.turns import Turns
from tests.support.awaiting import await_true


def test_turns_come_in_the_order_of_asking() -> None:
    turns, order = Turns(30.0), list[int]()

    def take(n: int) -> None:
        with turns:
            order.append(n)

    with turns:
        threads = []
        for n in range(8):
            threads.append(threading.Thread(target=take, args=(n,)))
            threads[-1].start()
            await_true(lambda n=n: len(turns._queue) == n + 2)  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_whoever_comes_again_at_once_goes_to_the_end_of_the_line() -> None:
    turns, other = Turns(30.0), threading.Event()

    def once() -> None:
        with turns:
            other.set()

    with turns:
        thread = threading.Thread(target=once)
        thread.start()
        await_true(lambda: len(turns._queue) == 2)
    with turns:
        assert other.is_set()
    thread.join()


def test_a_turn_that_does_not_come_is_an_error_and_holds_up_nobody() -> None:
    turns = Turns(0.05)
    with turns, pytest.raises(StoreAwayError, match="for 1 others"), turns:
        pass
    with turns:
        pass


def test_a_transaction_that_fails_gives_its_turn_on(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.sqlite")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), database.begin():
            raise ZeroDivisionError
    with database.begin() as c:
        assert ledger.append(c, "test", actor="test") == 1
    database.close()


def test_who_reads_waits_for_no_writer(tmp_path: Path) -> None:
    database, began = Database(tmp_path / "x.sqlite"), time.monotonic()
    with database.begin() as writer:
        ledger.append(writer, "test", actor="test")
        with database.read() as reader:
            assert ledger.newest(reader) is None
    assert time.monotonic() - began < 5
    with database.read() as reader:
        assert ledger.newest(reader)
    database.close()
