"""What comes again and again is told at once, then more and more rarely; nothing is lost, and the table is bounded."""

from __future__ import annotations

import logging
from collections import Counter
from threading import Barrier, Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrnode.repeats import Repeats, SparseLog

log = logging.getLogger("cxrnode.test")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def note(repeats: Repeats, exact: str, whose: str, kind: str = "kind") -> int:
    told = repeats.note((exact, exact), ((whose, kind), "whose"), (kind, "kind"))
    return told.count if told else 0


def test_once_at_once_then_after_1_2_4_minutes_up_to_an_hour() -> None:
    clock = Clock()
    repeats, told = Repeats(clock=clock), []
    for second in range(5 * 3600):
        clock.now = 1000.0 + second
        if n := note(repeats, "a", "x"):
            told.append((second, n))
    minutes = [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]
    assert [second for second, _ in told] == [60 * m for m in minutes]
    assert sum(n for _, n in told) + sum(t.count for t in repeats.due(everything=True)) == 5 * 3600


def test_the_rest_is_told_when_nothing_comes_any_more() -> None:
    clock = Clock()
    repeats = Repeats(clock=clock)
    assert [note(repeats, "a", "x") for _ in range(5)] == [1, 0, 0, 0, 0]
    assert repeats.due() == []
    clock.now += 59.9
    assert repeats.due() == []
    clock.now += 0.1
    (rest,) = repeats.due()
    assert (rest.count, rest.value) == (4, "a")
    assert rest.begin.endswith("Z")
    assert repeats.due(everything=True) == []


def test_what_stayed_away_is_new_when_it_comes_again() -> None:
    clock = Clock()
    repeats = Repeats(clock=clock)
    note(repeats, "a", "x")
    clock.now += 60 + 120
    assert repeats.due() == []
    assert not repeats._kept
    assert not repeats._groups
    assert [note(repeats, "a", "x") for _ in range(2)] == [1, 0]
    clock.now += 60
    assert [t.count for t in repeats.due()] == [1]


def test_who_says_ever_new_things_is_one() -> None:
    repeats = Repeats(clock=Clock())
    told = [note(repeats, f"title {n}", "evil") for n in range(2000)]
    assert sum(told) == 9  # eight different ones, and the first of the rest
    assert note(repeats, "other", "good") == 1
    (rest,) = repeats.due(everything=True)
    assert (rest.value, rest.count) == ("whose", 1991)


def test_from_however_many_addresses_the_table_is_bounded() -> None:
    repeats = Repeats(clock=Clock())
    told = sum(note(repeats, f"a {n}", f"host {n}") for n in range(50_000))
    assert len(repeats._kept) == 1001
    assert told == 1001
    assert sum(t.count for t in repeats.due(everything=True)) == 50_000 - 1001


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 3), st.integers(0, 1), st.integers(0, 400)), max_size=300))
def test_each_is_counted_once_whatever_the_order(steps: list[tuple[int, int, int, int]]) -> None:
    clock = Clock()
    repeats, told = Repeats(clock=clock), 0
    for exact, whose, kind, seconds in steps:
        clock.now += seconds
        told += note(repeats, f"{exact} {whose} {kind}", f"{whose}", f"{kind}")
        told += sum(t.count for t in repeats.due()) if seconds % 2 else 0
    assert told + sum(t.count for t in repeats.due(everything=True)) == len(steps)
    assert sum(repeats._groups.values()) == len(repeats._kept)


def test_threads_lose_none() -> None:
    repeats, told, barrier = Repeats(clock=Clock()), Counter[str](), Barrier(4)

    def work(name: str) -> None:
        barrier.wait()
        told[name] = sum(note(repeats, f"{n % 20}", "x") for n in range(5000))

    threads = [Thread(target=work, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told.total() + sum(t.count for t in repeats.due(everything=True)) == 20_000


def test_the_log_says_how_many_and_since_when(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    sparse = SparseLog(repeats=Repeats(clock=clock))
    for _ in range(100):
        sparse.warning(log, "10.0.0.9: no 100 % DICOM", whose="10.0.0.9", kind="aborted", host="10.0.0.9")
    sparse.flush()
    assert [r.getMessage() for r in caplog.records] == ["10.0.0.9: no 100 % DICOM"]
    clock.now += 60
    sparse.flush()
    last = caplog.records[-1]
    assert last.getMessage().startswith("10.0.0.9: no 100 % DICOM (the last of 99 since 20")
    assert (last.name, last.levelname, last.__dict__["host"]) == ("cxrnode.test", "WARNING", "10.0.0.9")
