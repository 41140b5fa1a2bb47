"""What a peer does again and again is told at once, and then summed up: nothing is lost, and nobody fills the log.

After it was told, the next time is a minute later, then two, four, ... up to an hour, while it goes on. What stayed
away for as long is new when it comes again. Of one peer a few different things are told apart, of all a thousand; of
more, the peer's, or everybody's, are one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

_FIRST_S, _LONGEST_S = 60.0, 3600.0
_MOST, _MOST_OF_A_PEER = 1000, 8
Way = tuple[Hashable, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """What is to be told. since: when the first of the `count` was, seconds since 1970. value: of the last."""

    value: Any
    count: int
    since: float

    @property
    def begin(self) -> str:
        """ISO 8601, UTC."""
        return datetime.fromtimestamp(self.since, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


@dataclass(slots=True, kw_only=True)
class _Kept:
    group: Hashable
    due: float  # monotonic
    wait_s: float = _FIRST_S
    value: Any = None
    count: int = 0
    since: float = 0.0


@dataclass(slots=True, kw_only=True)
class Repeats:
    """Safe in threads; `clock` is monotonic, in seconds."""

    clock: Callable[[], float] = time.monotonic
    _kept: dict[Hashable, _Kept] = field(default_factory=dict)
    _groups: Counter[Hashable] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, exact: Way, whose: Way, kind: Way) -> Sum | None:
        """What to tell now, if anything. Keys and values of what exactly it is, of its peer's such, and of all such.

        Of the last there must be few.
        """
        with self._lock:
            now = self.clock()
            key, value = self._way(exact, whose, kind)
            kept = self._kept.get(key)
            if kept is None:
                kept = self._kept[key] = _Kept(group=whose[0], due=now)
                self._groups[kept.group] += 1
            kept.since = kept.since if kept.count else time.time()
            kept.value, kept.count = value, kept.count + 1
            return self._take(kept, now) if now >= kept.due else None

    def due(self, *, everything: bool = False) -> list[Sum]:
        """What is to be told without a new one; `everything`: at the end."""
        with self._lock:
            now = self.clock()
            for key in [k for k, kept in self._kept.items() if not kept.count and now >= kept.due + kept.wait_s]:
                group = self._kept.pop(key).group
                self._groups[group] -= 1
                if not self._groups[group]:
                    del self._groups[group]
            told = (kept for kept in self._kept.values() if kept.count and (everything or now >= kept.due))
            return [self._take(kept, now) for kept in told]

    def _way(self, exact: Way, whose: Way, kind: Way) -> Way:
        full = len(self._kept) >= _MOST
        if exact[0] in self._kept or (not full and self._groups[whose[0]] < _MOST_OF_A_PEER):
            return exact
        return whose if whose[0] in self._kept or not full else kind

    @staticmethod
    def _take(kept: _Kept, now: float) -> Sum:
        told = Sum(value=kept.value, count=kept.count, since=kept.since)
        kept.count, kept.due, kept.wait_s = 0, now + kept.wait_s, min(2 * kept.wait_s, _LONGEST_S)
        return told


@dataclass(slots=True, kw_only=True)
class SparseLog:
    """Warnings of what may be repeated."""

    repeats: Repeats = field(default_factory=Repeats)

    def warning(self, log: logging.Logger, text: str, *, whose: Hashable, kind: str, **extra: str) -> None:
        """kind: one of few; extra: see `logs.FIELDS`."""
        line = log, text, extra
        self._say(self.repeats.note(((whose, kind, text), line), ((whose, kind), line), (kind, line)))

    def flush(self, *, everything: bool = False) -> None:
        """What was held back for its time, or all of it."""
        for told in self.repeats.due(everything=everything):
            self._say(told)

    def _say(self, told: Sum | None) -> None:
        if told:
            log, text, extra = told.value
            more = f" (the last of {told.count} since {told.begin})" if told.count > 1 else ""
            log.warning("%s%s", text, more, extra=extra)
