"""The deliver stage: results that a destination has not acknowledged are sent, and each answer is recorded."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cxrnode.dicom.scu import SendError, StoreScu
from cxrnode.store.database import Database
from cxrnode.store.queue import Queue
from cxrnode.types import Destination, ResultObject

ATTEMPTS = 4
_PAGE = 256
_FIRST_WAIT_S = 0.5  # doubled with each attempt, with jitter


def deliver(
    destination: Destination, *, root: Path, database: Database, queue: Queue, on_sent: Callable[[int], None]
) -> int:
    """Send what waits for `destination`; returns how many results it did not take. Every status is in the store.

    A refusal is final for this run. A broken association is tried again with backoff, from where it broke; when
    the attempts are used up, what is left is recorded as undelivered, and the next run tries again.
    """
    sender = _Sender(destination=destination, root=root, database=database, queue=queue, on_sent=on_sent)
    after = 0
    while page := sender.next_page(after):
        after = page[-1][0]
        sender.send_page(deque(made for _, made in page))
    return sender.refused


@dataclass(slots=True, kw_only=True)
class _Sender:
    destination: Destination
    root: Path
    database: Database
    queue: Queue
    on_sent: Callable[[int], None]
    refused: int = 0
    dead: str = ""  # why the destination was given up

    def next_page(self, after: int) -> list[tuple[int, ResultObject]]:
        with self.database.begin() as c:
            return self.queue.undelivered(c, str(self.destination), after=after, limit=_PAGE)

    def send_page(self, left: deque[ResultObject]) -> None:
        attempt = 0
        while left and not self.dead:
            before = len(left)
            try:
                self._send_over_one_association(left)
            except SendError as e:
                attempt = 1 if len(left) < before else attempt + 1  # progress earns new patience
                if attempt >= ATTEMPTS:
                    self.dead = str(e)
                else:
                    time.sleep(_FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)
        while left:
            self._record(left.popleft(), accepted=False, status=self.dead)

    def _send_over_one_association(self, left: deque[ResultObject]) -> None:
        with StoreScu(self.destination) as scu:
            while left:
                accepted, status = scu.send(self.root / left[0].path)
                self._record(left.popleft(), accepted=accepted, status=status)

    def _record(self, sent: ResultObject, *, accepted: bool, status: str) -> None:
        with self.database.begin() as c:
            self.queue.delivered(c, sent, str(self.destination), status, ok=accepted)
        self.refused += not accepted
        self.on_sent(1)
