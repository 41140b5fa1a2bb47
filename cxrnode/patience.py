"""How often a peer that fails is tried: exponential backoff with full jitter, and a breaker."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_BREAKER_OPENS = 3  # failures in a row


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Exponential backoff with full jitter."""

    first_wait_s: float
    longest_wait_s: float
    attempts: int | None = None  # after so many what is left counts as refused; None: for ever

    def wait_s(self, failures: int) -> float:
        """How long to wait after so many failures in a row, at least one."""
        most = self.first_wait_s * 2.0 ** min(failures - 1, 30)
        return random.uniform(0.0, min(self.longest_wait_s, most))  # noqa: S311 (jitter)


FOR_EVER = Patience(first_wait_s=1.0, longest_wait_s=60.0)
ONE_RUN = Patience(first_wait_s=2.0, longest_wait_s=8.0, attempts=4)


@dataclass(slots=True, kw_only=True)
class Breaker:
    """Keeps a destination that fails from being tried all the time; one answer to a request closes it.

    A request may be about an object, which may itself be what fails. So of one object only the first failure counts,
    and none while others pass; when different ones fail in a row, it is the destination that does.
    """

    patience: Patience
    failures: int = 0  # in a row
    why: str = ""
    reached: bool = True  # the last failure was about an object: there was an association
    tell: Callable[[int, bool], None] = lambda _failures, _is_open: None  # at the start and after each change
    _until: float = 0.0  # monotonic, s
    _failed: set[int] = field(default_factory=set)  # objects, since the last success
    _to_blame: set[int] = field(default_factory=set)  # objects that failed while others passed

    def __post_init__(self) -> None:
        self.tell(self.failures, self.is_open)

    @property
    def wait_s(self) -> float:
        return max(0.0, self._until - time.monotonic())

    @property
    def is_open(self) -> bool:
        return self.failures >= _BREAKER_OPENS

    def failed(self, why: str, *, of: int | None = None) -> None:
        """of: the object that it was about; None: the destination could not be asked at all."""
        if of is not None:
            if self.blames(of) or (of in self._failed and not self.is_open):
                return
            self._failed.add(of)
        self.failures += 1
        self.why, self.reached = why, of is not None
        if self.is_open or not self.reached:  # else the object's own wait is enough
            self._until = time.monotonic() + self.patience.wait_s(self.failures)
        self.tell(self.failures, self.is_open)

    def succeeded(self, *, of: int | None = None) -> None:
        self._to_blame = (self._to_blame | self._failed) - {of}
        self._failed.clear()
        if self.failures:
            self.failures, self._until = 0, 0.0
            self.tell(self.failures, self.is_open)

    def blames(self, of: int) -> bool:
        """Whether it failed while others passed."""
        return of in self._to_blame
