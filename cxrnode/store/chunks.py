"""Look-ups of many keys: a statement takes so many variables and no more.

SQLite took 999 for a long time, and 32766 since 3.32; PostgreSQL's protocol counts them in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
CHUNK = 300  # the keys may stand three times in a statement, with what else it has


def chunks(keys: Iterable[T]) -> Iterator[list[T]]:
    """`keys` in their order, CHUNK at a time: one statement each, in one transaction where they belong together."""
    left = iter(keys)
    while chunk := list(islice(left, CHUNK)):
        yield chunk
