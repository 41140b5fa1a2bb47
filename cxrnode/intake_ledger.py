"""What the listener sees and no row tells: associations, and instances that were refused.

Recording each in a transaction of its own would cost as much as an instance, and let whoever may connect keep the disk
busy. They wait for the next transaction of the intake, a second at most, and what is the same is one record with its
count. What whoever reaches the port can do without end (rejections, bytes that are no DICOM, C-ECHO of a stranger) is
recorded at once when it is new, and then summed up (see `repeats`): every one is counted, and has its period.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from cxrnode import metrics
from cxrnode.dicom.commitment import CommitmentReport
from cxrnode.dicom.status import OUT_OF_RESOURCES, PROCESSING_FAILURE
from cxrnode.loops import Loop
from cxrnode.repeats import Repeats, SparseLog, Sum
from cxrnode.store import ledger
from cxrnode.store.database import Database, is_away
from cxrnode.store.trouble import is_trouble
from cxrnode.types import Peer

_FLUSH_S = 1.0
_MOST = 1000  # different ones that wait; of more (a full disk, a flood of made-up names) only the number is kept

log = logging.getLogger(__name__)


def tell_refused(told: SparseLog, peer: Peer, sop_instance_uid: str, status: int, why: str) -> None:
    """Say in the log that an image was refused."""
    if status == OUT_OF_RESOURCES:
        why += "; /readyz says what is wrong: less free space than receive.disk_watermark_mb, the disk, the database?"
    told.warning(
        log, f"refused an image of {peer.calling_aet} at {peer.host} with 0x{status:04X}: {why}", whose=peer,
        kind=f"0x{status:04X}", calling_aet=peer.calling_aet, host=peer.host, status=f"0x{status:04X}",
        sop_instance_uid=sop_instance_uid,
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
    transaction_uid: str = ""
    since: str = ""  # of a sum: when the first was


class Seen:
    """Takes note from any thread; `transaction` writes it down before all else that the caller writes there."""

    def __init__(self, database: Database, *, actor: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._actor = actor
        self._waiting: Counter[_Seen] = Counter()
        self._suspects: deque[tuple[_Seen, int]] = deque()  # of a transaction that could not write them all
        self._lock = threading.Lock()
        self._repeats = Repeats(clock=clock)

    def association(self, peer: Peer, rejected: str) -> None:
        """`rejected`: why it was; empty where it was accepted."""
        if rejected:
            self._sum_up("association_rejected", peer, outcome="rejected", why=rejected)
        else:
            self._note(_seen("association_accepted", peer, outcome="accepted"))

    def echo_only(self, peer: Peer, why: str) -> None:
        """An association was accepted from somebody who may do no more than C-ECHO; `why`: of somebody known."""
        self._sum_up("association_accepted", peer, outcome="accepted", why=why)

    def aborted(self, peer: Peer, why: str) -> None:
        """A connection brought no DICOM, or no TLS."""
        self._sum_up("association_aborted", peer, outcome="aborted", why=why)

    def refused(self, peer: Peer, sop_instance_uid: str, status: int, why: str) -> None:
        """An instance that was not taken, with the status of the answer."""
        more = {"outcome": "refused", "sop_instance_uid": sop_instance_uid, "status": f"0x{status:04X}", "why": why}
        self._note(_seen("refused", peer, **more))

    def report_refused(self, told: SparseLog, report: CommitmentReport, destination: str, why: str) -> None:
        """A report on storage commitment from who was not asked, also in the log. Those of a peer are summed up,
        whatever they name."""
        peer, status = report.peer, f"0x{PROCESSING_FAILURE:04X}"
        told.warning(
            log, f"a storage commitment report of {peer.calling_aet} at {peer.host} does not count: {why}", whose=peer,
            kind="commitment report", calling_aet=peer.calling_aet, host=peer.host, destination=destination,
        )  # fmt: skip
        metrics.report_refused(destination)
        seen = _seen("commitment_report_refused", peer, outcome="refused", status=status, why=why)
        self._repeat(seen, replace(seen, transaction_uid=report.transaction_uid))

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
                came, self._waiting = self._waiting, taken
                for seen, count in came.items():
                    self._count(seen, count)
            raise

    def loop(self, told: SparseLog, name: str = "associations") -> Loop:
        """Writes down what no instance took along, and says in the log what was held back there.

        `flush` everything once more when the listeners are closed.
        """

        def step() -> float:
            told.flush()
            self.flush()
            return _FLUSH_S

        return Loop(name=name, step=step)

    def flush(self, *, everything: bool = False) -> None:
        """`everything`: at the end, also what is summed up until its time."""
        for told in self._repeats.due(everything=everything):
            self._add(told)
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
        except Exception as e:
            if is_trouble(e):
                raise
            log.exception("what the listener saw cannot be recorded: %s", seen.kind, extra={"host": seen.host})
            metrics.thread_survived("associations")
        self._suspects.popleft()

    def _sum_up(self, kind: str, peer: Peer, **more: str) -> None:
        exact = _seen(kind, peer, **more)
        self._repeat(exact, exact)

    def _repeat(self, exact: _Seen, value: _Seen) -> None:
        last = f"{exact.why}; the last of different ones" if exact.why else "the last of different ones"
        whose = (exact.kind, exact.host), replace(value, why=last)
        others = exact.kind, replace(value, why=f"{last}, from different peers")
        if told := self._repeats.note((exact, value), whose, others):
            self._add(told)

    def _add(self, told: Sum) -> None:
        self._note(replace(told.value, since=told.begin if told.count > 1 else ""), told.count)

    def _note(self, seen: _Seen, count: int = 1) -> None:
        with self._lock:
            self._count(seen, count)

    def _count(self, seen: _Seen, count: int) -> None:
        """With the lock in hand."""
        if seen not in self._waiting and len(self._waiting) >= _MOST:
            seen = _Seen(kind=seen.kind, outcome=seen.outcome, why="and others: too many different ones at once")
        self._waiting[seen] += count

    def _append(self, c: Connection, seen: _Seen, count: int) -> None:
        detail = {"called_aet": seen.called_aet, "host": seen.host, "status": seen.status, "why": seen.why,
                  "transaction_uid": seen.transaction_uid, "since": seen.since}  # fmt: skip
        ledger.append(
            c, seen.kind, actor=self._actor, ae_title=seen.calling_aet, sop_instance_uid=seen.sop_instance_uid,
            outcome=seen.outcome, count=count, **{k: v for k, v in detail.items() if v},
        )  # fmt: skip


def _seen(kind: str, peer: Peer, **more: str) -> _Seen:
    return _Seen(kind=kind, calling_aet=peer.calling_aet, called_aet=peer.called_aet, host=peer.host, **more)
