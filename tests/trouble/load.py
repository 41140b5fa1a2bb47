"""Senders that never give up: films, one a study, until each is acknowledged, and what they were told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.awaiting import film, study_uid
from tests.support.node import Node, send

NO_ANSWER = -1
_AGAIN_S = 0.5
_LAST_S = 180.0  # for what is in hand when the load ends


@dataclass(kw_only=True)
class Load:
    """`start`, then `stop`: each film that was begun is sent again until it is acknowledged, as a PACS does at 0xA7xx.

    What is answered otherwise is not sent again: a PACS would not either, and the study would be lost.
    """

    node: Node
    folder: Path  # for the films
    associations: int = 3
    pause_s: float = 0.15  # of each association, between two films
    acknowledged: set[str] = field(default_factory=set)  # SOP Instance UIDs
    sent: set[str] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    longest_s: float = 0.0  # that a sender waited for an answer, or for the end of the connection
    longest_page_s: float = 0.0  # that /readyz took
    unready: Counter[str] = field(default_factory=Counter)  # what it named, how often
    _numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 10**9)))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stopping.clear()
        self._threads = [threading.Thread(target=self._send_on, name=f"load {n}") for n in range(self.associations)]
        self._threads.append(threading.Thread(target=self._ask_pages, name="pages"))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * _LAST_S)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.stop()

    def _ask_pages(self) -> None:
        while not self._stopping.wait(_AGAIN_S):
            began = time.monotonic()
            reasons = self.node.readiness().get("reasons", {})
            self.longest_page_s = max(self.longest_page_s, time.monotonic() - began)
            self.unready.update(set(reasons))

    def _send_on(self) -> None:
        while not self._stopping.wait(self.pause_s):
            with self._lock:
                number = next(self._numbers)
            self._send(number)

    def _send(self, number: int) -> None:
        uid, path = f"{study_uid(number)}.1.1", film(self.folder, number)
        self.sent.add(uid)
        until = None
        while until is None or time.monotonic() < until:
            status = self._ask(path)
            self.statuses[status] += 1
            if status == 0:
                self.acknowledged.add(uid)
            if status != NO_ANSWER and status & 0xFF00 != 0xA700:
                break
            if self._stopping.wait(_AGAIN_S):
                until = until or time.monotonic() + _LAST_S
                time.sleep(_AGAIN_S)
        path.unlink()

    def _ask(self, path: Path) -> int:
        began = time.monotonic()
        try:
            (status,) = send(self.node.port, path)
        except OSError:  # nobody listens, or it does not let us in
            return NO_ANSWER
        with self._lock:
            self.longest_s = max(self.longest_s, time.monotonic() - began)
        return status
