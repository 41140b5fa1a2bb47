"""What the listener sees and no row tells: associations, and instances that were refused.

Recording each in a transaction of its own would cost as much as an instance, and let whoever may connect keep the disk
busy. They wait for the next transaction of the intake, a second at most, and what is the same is one record with its
count.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection

from cxrnode import metrics
from cxrnode.dicom.status import OUT_OF_RESOURCES
from cxrnode.errors import StorageFullError, StoreAwayError
from cxrnode.loops import Loop
from cxrnode.store import ledger
from cxrnode.store.database import Database, is_away
from cxrnode.types import Peer
from cxrnode.words import counted

_FLUSH_S = 1.0
_TELL_EVERY_S = 60.0
_MOST = 1000  # different ones that wait; of more (a full disk, a flood of made-up names) only the number is kept

log = logging.getLogger(__name__)


class TurnedAway:
    """Says in the log what the listener turned away: at once, then a line a minute for each sender and status."""

    def __init__(self) -> None:
        self._said: dict[tuple[Peer, int], float] = {}  # monotonic s; senders are those of the allow list
        self._since: Counter[tuple[Peer, int]] = Counter()
        self._lock = threading.Lock()

    def tell(self, peer: Peer, status: int, why: str) -> None:
        key, now = (peer, status), time.monotonic()
        with self._lock:
            self._since[key] += 1
            if now < self._said.get(key, -_TELL_EVERY_S) + _TELL_EVERY_S:
                return
            self._said[key], n = now, self._since.pop(key)
        if status == OUT_OF_RESOURCES:
            why += "; is there less free space than receive.disk_watermark_mb? /readyz says it"
        log.warning(
            "refused %s of %s at %s with 0x%04X: %s", counted(n, "image"), peer.calling_aet, peer.host, status, why,
            extra={"calling_aet": peer.calling_aet, "host": peer.host, "status": f"0x{status:04X}"},
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    kind: str
    outcome: str = ""
    calling_aet: str = ""
    called_aet: str = ""
    host: str = ""
    sop_instance_uid: str = ""
    status: str = ""
    why: str = ""


class Seen:
    """Takes note from any thread; `transaction` writes it down before all else that the caller writes there."""

    def __init__(self, database: Database, *, actor: str) -> None:
        self._database = database
        self._actor = actor
        self._waiting: Counter[_Seen] = Counter()
        self._suspects: deque[tuple[_Seen, int]] = deque()  # of a transaction that could not write them all
        self._lock = threading.Lock()

    def association(self, peer: Peer, rejected: str) -> None:
        """`rejected`: why it was; empty where it was accepted."""
        kind = "association_rejected" if rejected else "association_accepted"
        self._note(kind, peer, outcome="rejected" if rejected else "accepted", why=rejected)

    def refused(self, peer: Peer, sop_instance_uid: str, status: int, why: str) -> None:
        """An instance that was not taken, with the status of the answer."""
        self._note(
            "refused", peer, outcome="refused", sop_instance_uid=sop_instance_uid, status=f"0x{status:04X}", why=why
        )

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction of the store. What waits is in it, and waits on where it fails."""
        with self._lock:
            taken, self._waiting = self._waiting, Counter()
        try:
            with self._database.begin() as c:
                self._append_all(c, taken)
                yield c
        except BaseException:
            with self._lock:
                self._waiting = taken + self._waiting
            raise

    def loop(self) -> Loop:
        """Writes down what no instance took along; `flush` once more when the listeners are closed."""

        def step() -> float:
            self.flush()
            return _FLUSH_S

        return Loop(name="associations", step=step)

    def flush(self) -> None:
        if self._waiting:
            with self.transaction():
                pass
        while self._suspects:
            self._write_suspect()

    def _append_all(self, c: Connection, taken: Counter[_Seen]) -> None:
        """One that the database will not have keeps no instance from its own place: it is looked at by itself."""
        try:
            with c.begin_nested():
                for seen, count in taken.items():
                    self._append(c, seen, count)
        except Exception as e:
            if is_away(e):
                raise
            self._suspects.extend(taken.items())
            taken.clear()

    def _write_suspect(self) -> None:
        seen, count = self._suspects[0]
        try:
            with self._database.begin() as c:
                self._append(c, seen, count)
        except (StoreAwayError, StorageFullError):
            raise
        except Exception:
            log.exception("what the listener saw cannot be recorded: %s", seen.kind, extra={"host": seen.host})
            metrics.thread_survived("associations")
        self._suspects.popleft()

    def _note(self, kind: str, peer: Peer, **more: str) -> None:
        seen = _Seen(
            kind=kind, calling_aet=peer.calling_aet, called_aet=peer.called_aet, host=peer.host, **more
        )  # fmt: skip
        with self._lock:
            if seen not in self._waiting and len(self._waiting) >= _MOST:
                seen = _Seen(kind=kind, outcome=seen.outcome, why="and others: too many different ones at once")
            self._waiting[seen] += 1

    def _append(self, c: Connection, seen: _Seen, count: int) -> None:
        detail = {"called_aet": seen.called_aet, "host": seen.host, "status": seen.status, "why": seen.why}
        ledger.append(
            c, seen.kind, actor=self._actor, ae_title=seen.calling_aet, sop_instance_uid=seen.sop_instance_uid,
            outcome=seen.outcome, count=count, **{k: v for k, v in detail.items() if v},
        )  # fmt: skip
