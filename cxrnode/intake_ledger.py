"""What the listener sees and no row tells: associations, and instances that were refused.

Recording each in a transaction of its own would cost as much as an instance, and let whoever may connect keep the disk
busy. They wait for the next transaction of the intake, a second at most, and what is the same is one record with its
count.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection

from cxrnode.errors import CxrnodeError
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.types import Peer

_FLUSH_S = 1.0
_MOST = 1000  # different ones that wait; of more (a full disk, a flood of made-up names) only the number is kept

log = logging.getLogger(__name__)


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
                for seen, count in taken.items():
                    self._append(c, seen, count)
                yield c
        except BaseException:
            with self._lock:
                self._waiting = taken + self._waiting
            raise

    def run(self, stopping: threading.Event) -> None:
        """Write down what no instance took along, until `stopping` is set; then `flush` once more, in the end."""
        while not stopping.wait(_FLUSH_S):
            try:
                self.flush()
            except CxrnodeError as e:  # a full disk, a database that is away: it waits
                log.warning("associations are recorded later: %s", e)

    def flush(self) -> None:
        if self._waiting:
            with self.transaction():
                pass

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
