"""A task that kills its worker costs itself alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

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
