"""How many connections there may be: of one host, and in all."""

from __future__ import annotations

import threading
from typing import Protocol


class Held(Protocol):
    """A connection, as far as the gate knows it."""

    @property
    def host(self) -> str: ...

    def force_down(self) -> None:
        """End it from another thread."""


class Gate:
    """Counts connections. Those without an association never keep anybody out: the oldest makes room for the newest.

    So silent peers, half-open connections and health checks cost what they hold for a few seconds, and no more of
    them are held than there may be associations.
    """

    def __init__(self, most: int, most_per_host: int) -> None:
        self._most = most
        self._most_per_host = most_per_host
        self._lock = threading.Lock()
        self._silent: dict[Held, None] = {}  # in the order of arrival
        self._associated: set[Held] = set()

    def enter(self, held: Held) -> None:
        """A connection came in. May end another that has no association yet."""
        with self._lock:
            self._silent[held] = None
            same = [other for other in self._silent if other.host == held.host]
            oldest = None
            if len(same) > self._most_per_host:
                oldest = same[0]
            elif len(self._silent) > self._most:
                oldest = next(iter(self._silent))
            if oldest is not None:
                del self._silent[oldest]
        if oldest is not None:
            oldest.force_down()

    def establish(self, held: Held) -> bool:
        """True if there is room for its association; it counts as one from now on."""
        with self._lock:
            here = sum(other.host == held.host for other in self._associated)
            if len(self._associated) >= self._most or here >= self._most_per_host:
                return False
            self._silent.pop(held, None)
            self._associated.add(held)
            return True

    def leave(self, held: Held) -> None:
        with self._lock:
            self._silent.pop(held, None)
            self._associated.discard(held)
