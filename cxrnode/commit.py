"""Storage commitment as SCP: a peer asks whether we keep what it sent; it is told on an association of our own.

The request is durable before it is taken; the answer says, of each instance, whether its file is in the spool.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cxrnode import metrics
from cxrnode.dicom.commit_report import report_commitment
from cxrnode.dicom.commitment import CommitmentRequest
from cxrnode.dicom.requestor import NoAssociationError, SendError
from cxrnode.dicom.status import PROCESSING_FAILURE, SUCCESS
from cxrnode.logs import words
from cxrnode.loops import Loop
from cxrnode.store.commitments import Commitments, OpenRequest
from cxrnode.store.database import Database
from cxrnode.store.trouble import is_trouble
from cxrnode.types import Destination

NO_SUCH_OBJECT_INSTANCE = 0x0112  # failure reason, PS3.3 section C.14.1.1
_POLL_S = 0.5
_FIRST_WAIT_S, _LONGEST_WAIT_S = 2.0, 1800.0  # doubled with each attempt
_PEER_AWAY_S = 60.0  # until another request of a peer is tried that does not answer
_MOST_ERRORS = 5  # attempts that end in an error of ours; a peer that is away is tried for ever
_HANGS_S = 300.0  # an association takes four waits of up to 30 s, and a hundred thousand files are looked for before

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentAnswers:
    """`requested` is the listener's handler; `loop` answers, on a thread of its own."""

    database: Database
    commitments: Commitments
    root: Path  # paths in the store are relative to it
    calling_ae_title: str
    peers: Mapping[tuple[str, str], Destination]  # (AE title, host) -> where its answers go
    check: Callable[[], None] = lambda: None  # raises DataDirAwayError where `root` is not there just now

    def requested(self, asked: CommitmentRequest) -> int:
        """Raises StoreAwayError where the database does not answer in time, StoreError, StorageFullError."""
        who = (asked.peer.calling_aet, asked.peer.host)
        if who not in self.peers:
            log.error("%s at %s asks for storage commitment: give receive.allow its port, for the answer", *who)
            return PROCESSING_FAILURE
        self.database.answer(lambda c: self.commitments.ask(c, asked.transaction_uid, *who, asked.instances))
        return SUCCESS

    def loop(self) -> Loop:
        return Loop(name="commitment answers", step=self.step, hangs_s=_HANGS_S)

    def step(self) -> float:
        """Answer one request, if one is due."""
        with self.database.read() as c:
            asked = self.commitments.due(c, now=time.time())
        if asked is None:
            return _POLL_S
        try:
            self._answer(asked)
        except Exception as e:
            if is_trouble(e):  # not this one's fault
                raise
            log.exception("%s at %s: storage commitment cannot be answered", asked.calling_aet, asked.host)
            metrics.thread_survived("commitment answers")
            self._set_aside(asked, words(e))
        return 0.0

    def _set_aside(self, asked: OpenRequest, why: str) -> None:
        """The others go on; this one is tried a few times more."""
        with self.database.begin() as c:
            if asked.attempts + 1 >= _MOST_ERRORS:
                self.commitments.given_up(c, asked, now=time.time(), why=why)
                log.error("%s at %s: a storage commitment request is given up", asked.calling_aet, asked.host)
            else:
                self.commitments.postponed(c, asked, now=time.time(), wait_s=_wait_s(asked))

    def _answer(self, asked: OpenRequest) -> None:
        instances = asked.instances
        with self.database.read() as c:
            held = self.commitments.held(c, instances)
        there = {i for i, paths in held.items() if any((self.root / path).is_file() for path in paths)}
        kept = [i for i in instances if i in there]
        missing = [(i, NO_SUCH_OBJECT_INSTANCE) for i in instances if i not in there]
        if missing:
            self.check()  # else its sender would take them for lost
        peer = self.peers.get((asked.calling_aet, asked.host))
        try:
            if peer is None:
                raise NoAssociationError("receive.allow no longer says where its answers go")
            report_commitment(peer, asked.transaction_uid, kept, missing, calling_ae_title=self.calling_ae_title)
        except SendError as e:
            log.warning("%s at %s: storage commitment report: %s", asked.calling_aet, asked.host, e)
            now = time.time()
            with self.database.begin() as c:
                self.commitments.postponed(c, asked, now=now, wait_s=_wait_s(asked))
                if isinstance(e, NoAssociationError):
                    self.commitments.peer_postponed(c, asked, now=now, wait_s=min(_wait_s(asked), _PEER_AWAY_S))
            return
        with self.database.begin() as c:
            self.commitments.answered(c, asked, now=time.time(), kept=len(kept), missing=len(missing))


def _wait_s(asked: OpenRequest) -> float:
    return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(asked.attempts, 20))
