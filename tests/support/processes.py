"""The same work in several processes at the very same time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PROCESSES = 3
_barriers: list[Barrier] = []  # of this process: a pool passes one on at its start alone


def at_once(work: Callable[[Path | str, int], T], where: Path | str, processes: int = PROCESSES) -> list[T]:
    """`work(where, number)` in fresh processes, from a barrier on: without it, one would have done its work before the
    next has read its imports."""
    context = get_context("spawn")
    barrier = context.Barrier(processes)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_keep, initargs=(barrier,)) as pool:
        return [f.result() for f in [pool.submit(_run, work, where, number) for number in range(processes)]]


def _keep(barrier: Barrier) -> None:
    _barriers.append(barrier)


def _run(work: Callable[[Path | str, int], T], where: Path | str, number: int) -> T:
    _barriers[0].wait(timeout=60)
    return work(where, number)
