"""Work that may hang, for somebody who waits for its answer: the database is frozen, the disk does not come back.

    bounded = Bounded("the database", threads=1)
    bounded.do(work, until=answer_by())     # what `work` returns or raises; StoreAwayError when the time is over

What hangs cannot be ended from outside. It keeps its thread until it comes back, and there are never more than
`threads` of them, however long it takes and whoever asks meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cxrnode.errors import StoreAwayError

ANSWER_S = 15.0  # that a peer's request may take; many peers give up after 30 s, some after 20 s
_IDLE_S = 10.0  # until a thread without work ends

T = TypeVar("T")


def answer_by() -> float:
    """When a request that is here now must have its answer, monotonic seconds."""
    return time.monotonic() + ANSWER_S


@dataclass(slots=True, kw_only=True, eq=False)
class _Call:
    work: Callable[[], Any]
    until: float
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as error:  # noqa: BLE001 (whoever waits raises it)
            self.error = error
        self.done.set()


class Bounded:
    """Calls are begun in the order in which they came. The threads are daemons: one that hangs keeps no process."""

    def __init__(self, name: str, *, threads: int) -> None:
        self._name = name
        self._most = threads
        self._threads = self._idle = 0
        self._waiting: deque[_Call] = deque()
        self._running: set[_Call] = set()
        self._changed = threading.Condition()

    @property
    def hangs(self) -> bool:
        """Whether something is not back that nobody waits for any more."""
        with self._changed:
            return any(time.monotonic() > call.until for call in self._running)

    def do(self, work: Callable[[], T], *, until: float) -> T:
        """What `work` returns, or raises. StoreAwayError at `until` (monotonic seconds).

        What was not begun by then never is; what was goes on, and nobody learns what comes of it.
        """
        call = _Call(work=work, until=until)
        if time.monotonic() < until:
            self._begin(call)
            call.done.wait(until - time.monotonic())
            with self._changed:
                if call in self._waiting:
                    self._waiting.remove(call)
        if not call.done.is_set():
            raise StoreAwayError(f"{self._name} does not answer in time")
        if call.error is not None:
            raise call.error
        result: T = call.result
        return result

    def _begin(self, call: _Call) -> None:
        with self._changed:
            self._waiting.append(call)
            one_more = len(self._waiting) > self._idle and self._threads < self._most
            self._threads += one_more
            self._changed.notify()
        if one_more:
            try:
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
            except RuntimeError:  # the system has no more threads for us: one that works takes it, or nobody does
                with self._changed:
                    self._threads -= 1

    def _work(self) -> None:
        while call := self._next():
            call.run()
            with self._changed:
                self._running.discard(call)

    def _next(self) -> _Call | None:
        with self._changed:
            self._idle += 1
            found = self._changed.wait_for(lambda: self._waiting, _IDLE_S)
            self._idle -= 1
            if not found:
                self._threads -= 1
                return None
            call = self._waiting.popleft()
            self._running.add(call)
            return call
