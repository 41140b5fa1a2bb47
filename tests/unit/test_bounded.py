"""Work that may hang: whoever waits has an answer in time, what was not begun never is, and threads do not pile up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cxrnode import bounded
from cxrnode.bounded import Bounded
from cxrnode.errors import StoreAwayError
from tests.support.awaiting import await_true


def later(seconds: float = 60.0) -> float:
    return time.monotonic() + seconds


class Hanging:
    """Work that comes back when it is told to."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()

    def __call__(self) -> str:
        self.begun.release()
        assert self.go_on.wait(60)
        return "late"


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    made = Hanging()
    yield made
    made.go_on.set()


def mine() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "the test"]


@pytest.fixture(autouse=True)
def soon_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "_IDLE_S", 0.01)
    await_true(lambda: not mine(), every_s=0.005)


@pytest.fixture
def one() -> Bounded:
    return Bounded("the test", threads=1)


def test_what_the_work_says_is_what_comes(one: Bounded) -> None:
    assert one.do(lambda: 7, until=later()) == 7
    for error in (KeyError("x"), StoreAwayError("away"), SystemExit(3)):

        def fails(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as told:
            one.do(fails, until=later())
        assert told.value is error
    assert one.do(lambda: None, until=later()) is None
    assert len(mine()) <= 1


def test_what_hangs_is_left_to_itself_and_what_waits_behind_it_is_never_begun(one: Bounded, hanging: Hanging) -> None:
    begun: list[str] = []
    with pytest.raises(StoreAwayError, match="the test does not answer in time"):
        one.do(hanging, until=later(0.05))
    assert one.hangs
    with pytest.raises(StoreAwayError):
        one.do(lambda: begun.append("waited"), until=later(0.05))
    hanging.go_on.set()
    assert one.do(lambda: "next", until=later()) == "next"
    await_true(lambda: not one.hangs)
    assert not begun


def test_what_comes_too_late_is_not_begun(one: Bounded) -> None:
    begun: list[str] = []
    with pytest.raises(StoreAwayError):
        one.do(lambda: begun.append("late"), until=time.monotonic() - 0.001)
    assert not begun
    assert not one.hangs


def test_while_somebody_still_waits_it_does_not_hang(one: Bounded, hanging: Hanging) -> None:
    with ThreadPoolExecutor(1) as peer:
        answer = peer.submit(one.do, hanging, until=later())
        assert hanging.begun.acquire(timeout=60)
        assert not one.hangs
        hanging.go_on.set()
        assert answer.result(60) == "late"


def test_an_hour_of_requests_to_what_hangs_piles_up_nothing(hanging: Hanging) -> None:
    few = Bounded("the test", threads=3)
    for _ in range(500):
        with pytest.raises(StoreAwayError):
            few.do(hanging, until=later(0.001))
    assert len(mine()) <= 3
    assert not few._waiting
    assert len(few._running) <= 3
    hanging.go_on.set()
    assert few.do(lambda: "well", until=later()) == "well"


def test_it_begins_in_order(one: Bounded, hanging: Hanging) -> None:
    begun: list[int] = []
    with ThreadPoolExecutor(8) as peers:
        peers.submit(one.do, hanging, until=later())
        assert hanging.begun.acquire(timeout=60)
        for number in range(5):
            peers.submit(one.do, lambda number=number: begun.append(number), until=later())
            await_true(lambda number=number: len(one._waiting) > number, every_s=0.001)  # type: ignore[misc]
        hanging.go_on.set()
    assert begun == list(range(5))


def test_many_work_at_the_same_time(hanging: Hanging) -> None:
    several = Bounded("the test", threads=4)
    with ThreadPoolExecutor(6) as peers:
        answers = [peers.submit(several.do, hanging, until=later()) for _ in range(6)]
        for _ in range(4):
            assert hanging.begun.acquire(timeout=60)
        assert not hanging.begun.acquire(timeout=0.1)
        hanging.go_on.set()
        assert [answer.result(60) for answer in answers] == ["late"] * 6


def test_threads_without_work_end_and_new_ones_come(one: Bounded) -> None:
    for number in range(3):
        assert one.do(lambda number=number: number, until=later()) == number  # type: ignore[misc]
        await_true(lambda: not mine(), every_s=0.005)


def test_where_there_are_no_more_threads_it_is_away_and_goes_on_later(
    monkeypatch: pytest.MonkeyPatch, one: Bounded
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(StoreAwayError):
            one.do(lambda: 1, until=later(0.05))
    assert one.do(lambda: 2, until=later()) == 2


def test_every_caller_has_its_own_answer(one: Bounded) -> None:
    def work(number: int) -> Callable[[], int]:
        return lambda: number

    with ThreadPoolExecutor(8) as peers:
        answers = peers.map(lambda number: one.do(work(number), until=later()), range(400))
        assert list(answers) == list(range(400))
