"""Storage commitment as SCP: a peer asks whether we keep what it sent; it is told on an association of our own.

The request is durable before it is taken; the answer says, of each instance, whether its file is in the spool.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cxrnode.dicom.commit_report import report_commitment
from cxrnode.dicom.commitment import CommitmentRequest
from cxrnode.dicom.scu import SendError
from cxrnode.dicom.status import PROCESSING_FAILURE, SUCCESS
from cxrnode.store.commitments import Commitments, OpenRequest
from cxrnode.store.database import Database
from cxrnode.types import Destination

NO_SUCH_OBJECT_INSTANCE = 0x0112  # failure reason, PS3.3 section C.14.1.1
_POLL_S = 0.5
_FIRST_WAIT_S, _LONGEST_WAIT_S = 2.0, 1800.0  # doubled with each attempt

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentAnswers:
    """`requested` is the listener's handler; `run` answers, on a thread of its own."""

    database: Database
    commitments: Commitments
    root: Path  # paths in the store are relative to it
    calling_ae_title: str
    peers: Mapping[tuple[str, str], Destination]  # (AE title, host) -> where its answers go

    def requested(self, asked: CommitmentRequest) -> int:
        who = (asked.peer.calling_aet, asked.peer.host)
        if who not in self.peers:
            log.error("%s at %s asks for storage commitment: give receive.allow its port, for the answer", *who)
            return PROCESSING_FAILURE
        with self.database.begin() as c:
            self.commitments.ask(c, asked.transaction_uid, *who, asked.instances)
        return SUCCESS

    def run(self, stopping: threading.Event) -> None:
        while not stopping.wait(_POLL_S):
            with self.database.begin(shared=True) as c:
                due = self.commitments.due(c, now=time.time())
            for asked in due:
                self._answer(asked)

    def _answer(self, asked: OpenRequest) -> None:
        with self.database.begin(shared=True) as c:
            held = self.commitments.held(c, asked.instances)
        kept = [i for i in asked.instances if any((self.root / path).is_file() for path in held.get(i, ()))]
        missing = [(i, NO_SUCH_OBJECT_INSTANCE) for i in asked.instances if i not in set(kept)]
        peer = self.peers.get((asked.calling_aet, asked.host))
        try:
            if peer is None:
                raise SendError("receive.allow no longer says where its answers go")
            report_commitment(peer, asked.transaction_uid, kept, missing, calling_ae_title=self.calling_ae_title)
        except SendError as e:
            wait = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(asked.attempts, 20))
            log.warning("%s at %s: storage commitment report: %s", asked.calling_aet, asked.host, e)
            with self.database.begin() as c:
                self.commitments.postponed(c, asked, not_before=time.time() + wait)
            return
        with self.database.begin() as c:
            self.commitments.answered(c, asked, now=time.time(), kept=len(kept), missing=len(missing))
