"""For how long a value that others write has not changed, by the clock of whoever looks.

A lease is alive while its owner's beats change it. Several machines write to one store and no two clocks agree, so
nobody compares the value with a clock: each process that would take what is left remembers what it saw last, and since
when, by its own monotonic clock. No jump of any clock ends a lease, or keeps one alive.

    ended = Stillness().still({job_id: (owner, value)}, now=time.monotonic(), seconds=10.0)
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Stillness(Generic[K, V]):
    """One an observer."""

    def __init__(self) -> None:
        self._seen: dict[K, tuple[V, float]] = {}

    def still(self, values: Mapping[K, V], *, now: float, seconds: float) -> set[K]:
        """Those of `values` that were the same at each look for so long. What is not among them any more is forgotten.

        now: seconds of a clock that nobody sets; before the last look, all begins anew.
        """
        seen = {}
        for key, value in values.items():
            last = self._seen.get(key)
            seen[key] = last if last and last[0] == value and last[1] <= now else (value, now)
        self._seen = seen
        return {key for key, (_, since) in seen.items() if now - since >= seconds}
