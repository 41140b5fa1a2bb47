"""A task that kills its worker costs itself alone."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from cxrnode.pool import DATA_BYTES, NoWorkerError, Pool, WorkerCrashedError


def double_unless_bad(n: int) -> int:
    if n == 7:
        os.kill(os.getpid(), signal.SIGSEGV)
    return 2 * n


def spin(seconds: float) -> int:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return 1


def take_memory(mib: int) -> int:
    return len(bytearray(mib << 20))


def die_once(marker: Path) -> int:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


def alone_or_killed(folder: Path) -> int:
    """The system has memory for one of these at a time: of two, it kills both."""
    mine = folder / str(os.getpid())
    mine.touch()
    time.sleep(0.3)
    others = len([*folder.iterdir()]) > 1
    mine.unlink()
    if others:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


def always_killed(_n: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 1


def unsendable(_n: int) -> object:
    return lambda: None


def fail(_n: int) -> int:
    raise ValueError("ordinary")


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(2, preload="tests.unit.test_pool")
    yield pool
    pool.close()


def test_the_culprit_is_found_and_the_others_get_their_results(pool: Pool) -> None:
    tasks = [pool.submit(double_unless_bad, n) for n in range(12)]
    results: list[int | None] = []
    for task in tasks:
        try:
            results.append(pool.result(task))
        except WorkerCrashedError:
            results.append(None)
    assert results == [None if n == 7 else 2 * n for n in range(12)]
    assert pool.result(pool.submit(double_unless_bad, 21)) == 42


def test_an_ordinary_exception_comes_back_as_it_is(pool: Pool) -> None:
    with pytest.raises(ValueError, match="ordinary"):
        pool.result(pool.submit(fail, 1))


def test_a_task_that_takes_too_much_processor_time_is_ended_and_the_others_go_on(pool: Pool) -> None:
    endless = pool.submit(spin, 1000.0, cpu_s=0.3)
    others = [pool.submit(spin, 0.05, cpu_s=5.0) for _ in range(4)]
    with pytest.raises(WorkerCrashedError, match="processor time"):
        pool.result(endless)
    assert [pool.result(task) for task in others] == [1] * 4


def test_a_task_that_never_ends_is_ended(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxrnode.pool.WALL_S", 0.5)
    stuck = pool.submit(time.sleep, 1000.0)
    with pytest.raises(WorkerCrashedError, match="took more than"):
        pool.result(stuck)
    monkeypatch.setattr("cxrnode.pool.WALL_S", 60.0)
    assert pool.result(pool.submit(double_unless_bad, 1)) == 2


def test_a_task_that_takes_too_much_memory_gets_an_error_and_its_worker_lives(pool: Pool) -> None:
    with pytest.raises(MemoryError):
        pool.result(pool.submit(take_memory, (DATA_BYTES >> 20) + 32))  # it may have given some back since its start
    assert pool.result(pool.submit(take_memory, 200)) == 200 << 20


def test_a_worker_that_was_killed_from_outside_costs_no_task(pool: Pool, tmp_path: Path) -> None:
    assert pool.result(pool.submit(die_once, tmp_path / "died")) == 1


def test_tasks_that_are_killed_for_what_they_take_together_are_done_one_by_one(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cxrnode.pool._ALONE_WAITS_S", (0.01, 0.01))
    tasks = [pool.submit(alone_or_killed, tmp_path) for _ in range(4)]
    assert [pool.result(task) for task in tasks] == [1] * 4


def test_a_task_that_is_killed_with_no_other_beside_it_is_to_blame_itself(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cxrnode.pool._ALONE_WAITS_S", (0.01, 0.01))
    tasks = [pool.submit(always_killed, n) for n in range(3)]
    good = [pool.submit(double_unless_bad, n) for n in range(4)]
    for task in tasks:
        with pytest.raises(WorkerCrashedError, match="killed by SIGKILL, also with no other task beside it"):
            pool.result(task)
    assert [pool.result(task) for task in good] == [0, 2, 4, 6]


def test_a_task_for_which_no_worker_can_be_started_is_not_to_blame(pool: Pool) -> None:
    assert pool.result(pool.submit(double_unless_bad, 1)) == 2
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(NoWorkerError, match="Too many open files"):
            pool.result(pool.submit(double_unless_bad, 7))  # kills its worker, and there is no other
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert pool.result(pool.submit(double_unless_bad, 21)) == 42


def test_a_result_that_cannot_be_sent_is_an_error_of_its_task(pool: Pool) -> None:
    with pytest.raises(RuntimeError, match="cannot be told"):
        pool.result(pool.submit(unsendable, 1))
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        pool.result(pool.submit(unsendable, lambda: None))
    assert pool.result(pool.submit(double_unless_bad, 1)) == 2


def nap(seconds: float) -> tuple[float, float]:
    """When it ran; all processes of a machine share this clock."""
    began = time.monotonic()
    time.sleep(seconds)
    return began, time.monotonic()


def test_in_a_hurry_routine_tasks_go_one_at_a_time_and_go_on(pool: Pool) -> None:
    pool.hurry(True)
    routine = [pool.submit(nap, 0.05) for _ in range(4)]
    urgent = [pool.submit(nap, 0.05, first=True) for _ in range(2)]
    runs = sorted(pool.result(task) for task in routine)
    assert all(one[1] <= other[0] for one, other in pairwise(runs))
    assert max(pool.result(task)[1] for task in urgent) < runs[-1][1]
    held = [pool.submit(nap, 0.01) for _ in range(4)]
    pool.hurry(False)
    assert len([pool.result(task) for task in held]) == 4
