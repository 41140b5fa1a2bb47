"""A task that kills its worker costs itself alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from cxrnode.pool import Pool, WorkerCrashedError


def double_unless_bad(n: int) -> int:
    if n == 7:
        os.kill(os.getpid(), signal.SIGSEGV)
    return 2 * n


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
