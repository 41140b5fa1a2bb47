"""Storage commitment as SCU: a destination is asked to keep what it took, and what it reports is recorded.

The report may come on the association that asked or, hours later, to our listener (PS3.4 section J.3.3).
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import Connection

from cxrnode import metrics
from cxrnode.dicom.commitment import CommitmentReport
from cxrnode.dicom.requestor import SendError
from cxrnode.dicom.scp import is_among
from cxrnode.dicom.scu import CALLING_AE_TITLE, TIMEOUT_S, StoreScu
from cxrnode.dicom.status import PROCESSING_FAILURE, SUCCESS
from cxrnode.patience import Breaker, Patience
from cxrnode.repeats import SparseLog
from cxrnode.store.database import Database
from cxrnode.store.outbox import ASK_AGAIN_S, Outbox
from cxrnode.types import Destination

_REPORT_WAIT_S = 3.0  # for a commitment report on the association that asked for it
_POLL_S = 1.0
_PAGE = 200  # instances a request

log = logging.getLogger(__name__)
_told = SparseLog()
Refused = Callable[[CommitmentReport, str, str], None]  # a report that does not count: for which destination, and why


def tell_refused(report: CommitmentReport, _destination: str, why: str) -> None:
    log.warning("%s: a storage commitment report does not count: %s", report.peer.calling_aet, why)


@dataclass(slots=True, kw_only=True)
class Committer:
    """Asks one destination to commit to what it took, from one thread. Its report may come to our listener as well."""

    destination: Destination
    database: Database
    outbox: Outbox
    patience: Patience
    calling_ae_title: str = CALLING_AE_TITLE
    timeout_s: float = TIMEOUT_S
    ask_again_s: float = ASK_AGAIN_S
    report_wait_s: float = _REPORT_WAIT_S
    refused: Refused = tell_refused
    page: int = _PAGE
    breaker: Breaker = field(init=False)

    def __post_init__(self) -> None:
        self.breaker = Breaker(patience=self.patience, tell=partial(metrics.tried, self.destination.key, "commitment"))

    def step(self) -> float:
        """Ask once, if there is anything to ask for; returns the seconds until there may be more to do."""
        if wait_s := self.breaker.wait_s:
            return wait_s
        with self.database.read() as c:
            if not self.outbox.uncommitted(c, self.destination.key, now=time.time()):
                return _POLL_S
        scu = StoreScu(
            self.destination, calling_ae_title=self.calling_ae_title, timeout_s=self.timeout_s, on_report=self._report
        )
        try:
            with scu:
                self._ask(scu)
        except SendError as e:
            self.breaker.failed(str(e))
            log.warning("%s: storage commitment: %s (%d in a row)", self.destination, e, self.breaker.failures)
        return self.breaker.wait_s

    def _ask(self, scu: StoreScu) -> None:
        transaction_uid = f"2.25.{uuid.uuid4().int}"  # PS3.5 section B.2
        with self.database.begin() as c:
            asked = self.outbox.requested(
                c, self.destination.key, transaction_uid, now=time.time(), limit=self.page,
                ask_again_s=self.ask_again_s,
            )  # fmt: skip
        if not asked:
            return  # another committer has them
        try:
            answer = scu.request_commitment(
                transaction_uid, [(d.made.sop_class_uid, d.made.sop_instance_uid) for d in asked]
            )
        except SendError as e:
            self._postpone(transaction_uid, str(e), self.patience.wait_s(self.breaker.failures + 1))
            raise
        if answer.accepted:
            self.breaker.succeeded()
            scu.await_report(self.report_wait_s)
        else:
            self._postpone(transaction_uid, answer.text, self.ask_again_s)
            log.error("%s: storage commitment: %s", self.destination, answer.code)

    def _postpone(self, transaction_uid: str, why: str, wait_s: float) -> None:
        with self.database.begin() as c:
            self.outbox.not_asked(
                c, self.destination.key, transaction_uid, now=time.time(), wait_s=wait_s, status=why
            )  # fmt: skip

    def _report(self, report: CommitmentReport) -> int:
        return record_report(self.database, self.outbox, report, of={self.destination.key}, refused=self.refused)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentReports:
    """What peers report on associations of their own: `take` is the listener's handler.

    reporters: by destination, who may report for it (AE title, host).
    """

    database: Database
    outbox: Outbox
    reporters: Mapping[str, Sequence[tuple[str, str]]]
    refused: Refused = tell_refused

    def take(self, report: CommitmentReport) -> int:
        peer = report.peer
        of = {d for d, peers in self.reporters.items() if is_among(peer.calling_aet, peer.host, peers)}
        return record_report(self.database, self.outbox, report, of=of, refused=self.refused)


def record_report(
    database: Database,
    outbox: Outbox,
    report: CommitmentReport,
    *,
    of: Collection[str],
    refused: Refused = tell_refused,
) -> int:
    """Record what a destination says that it keeps, wherever it said it; returns the status to answer with.

    of: the destinations for which its peer may report; on what others were asked it has no say. A report of a
    transaction that is not open (any more) changes nothing. It is a success all the same: to repeat it would help
    nobody. Raises StoreAwayError where the database does not answer in time, StoreError, StorageFullError.
    """
    kept = [uid for _, uid in report.committed]
    lost = [(uid, reason) for (_, uid), reason in report.failed]
    now = time.time()

    def record(c: Connection) -> str | None:
        asked = outbox.asked_by(c, report.transaction_uid)
        if asked in of:
            outbox.answered(c, report.transaction_uid, kept, lost, now=now)
        return asked

    asked = database.answer(record)
    if asked is None and of:
        text = f"{report.peer.calling_aet}: a storage commitment report of no open transaction"
        _told.warning(log, text, whose=report.peer, kind="no open transaction")
    elif asked not in of:
        refused(report, asked or "", _why_not(asked))
        return PROCESSING_FAILURE
    return SUCCESS


def _why_not(asked: str | None) -> str:
    if asked is None:
        return (
            "no destination is called so at this address; if it reports for one, name it in commitment_ae_titles there"
        )
    return f"{asked} was asked; if this peer reports for it, name it in commitment_ae_titles of {asked}"
