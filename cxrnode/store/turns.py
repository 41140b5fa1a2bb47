"""Threads of one process take turns, in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType

from cxrnode.errors import StoreAwayError


class Turns:
    """A lock that no late-comer gets before those that wait: SQLite lets whoever asks at the right moment write.

    Entering raises StoreAwayError where the turn does not come within `wait_s` seconds.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._guard = threading.Lock()
        self._queue: deque[threading.Event] = deque()  # the first one's turn it is

    def __enter__(self) -> None:
        mine = threading.Event()
        with self._guard:
            self._queue.append(mine)
            if len(self._queue) == 1:
                mine.set()
        if mine.wait(self._wait_s):
            return
        with self._guard:
            if mine.is_set():  # it came at the last moment
                return
            self._queue.remove(mine)
            ahead = len(self._queue)
        raise StoreAwayError(f"waited {self._wait_s:.0f} s for {ahead} others of this process to write: tried again")

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with self._guard:
            self._queue.popleft()
            if self._queue:
                self._queue[0].set()
