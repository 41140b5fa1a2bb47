"""Sends the ledger to a syslog server, record by record, in order, as DICOM audit messages.

The ledger is the buffer: a setting says up to which record the server has read, and after an outage of whatever length
it goes on from there. Nothing is lost on this side; what was sent and not confirmed is sent again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, select

from cxrnode import metrics
from cxrnode.audit.atna import Known, Source, known, xml
from cxrnode.audit.syslog import SyslogConnection, SyslogError, SyslogServer, syslog_message
from cxrnode.errors import CxrnodeError
from cxrnode.loops import Loop
from cxrnode.patience import FOR_EVER, Patience
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.queue import Queue
from cxrnode.store.schema import ledger as table
from cxrnode.types import AuditEvent

_NAME = "audit messages"
SENT = "syslog_sent"  # setting: the last record that the server confirmed
_PAGE = 200  # records read and sent at a time
_UNCONFIRMED = 1000  # records at most that are sent again after a failure
_CONFIRM_S = 30.0  # so old may what is not confirmed become: a connection lasts so long
_POLL_S = 1.0

log = logging.getLogger(__name__)


def sent_up_to(c: Connection) -> int:
    """The last record that the syslog server confirmed; 0: none."""
    return int(Queue("audit").get_setting(c, SENT) or 0)


def unconfirmed_since(c: Connection) -> datetime | None:
    """When the oldest record was written that the syslog server has not confirmed; None: it has them all."""
    first = select(table.c.at).where(table.c.seq > sent_up_to(c)).order_by(table.c.seq).limit(1)
    at = c.execute(first).scalar_one_or_none()
    return datetime.fromisoformat(at) if at else None


@dataclass(slots=True, kw_only=True)
class Forwarder:
    """`reader`: the same database, read-only, so that reading a long ledger holds nobody up."""

    database: Database
    reader: Database
    server: SyslogServer
    source: Source
    patience: Patience = FOR_EVER
    confirm_s: float = _CONFIRM_S
    _open: SyslogConnection | None = field(default=None, init=False)
    _opened_at: float = field(default=0.0, init=False)  # monotonic, s
    _confirmed: int = field(default=0, init=False)
    _sent: int = field(default=0, init=False)
    _told: set[str] = field(default_factory=set, init=False)  # the reasons that this outage was logged with

    def loop(self) -> Loop:
        """At its end what is on its way is confirmed; the rest waits for the next start."""
        return Loop(
            name=_NAME, step=lambda: 0.0 if self.step() else _POLL_S, close=self._confirm,
            patience=self.patience, on_error=self._failed,
        )  # fmt: skip

    def step(self) -> bool:
        """Send a page, confirm what is due; False: nothing waits. Raises SyslogError, CxrnodeError."""
        if self._open is None:
            with self.reader.begin() as c:
                self._sent = self._confirmed = sent_up_to(c)
        page, frames = self._page()
        if page:
            self._send(frames)
            self._sent = page[-1].seq
        due = time.monotonic() - self._opened_at >= self.confirm_s
        if self._open and (due or self._sent - self._confirmed >= _UNCONFIRMED):
            self._confirm()
        return len(page) == _PAGE

    def _page(self) -> tuple[Sequence[AuditEvent], bytes]:
        query = select(*table.c).where(table.c.seq > self._sent).order_by(table.c.seq).limit(_PAGE)
        with self.reader.begin() as c:
            page = list(ledger.events(c, query))
            context = known(c, page) if page else None
        if context is None:
            return (), b""
        return page, b"".join(self._frame(event, context) for event in page)

    def _frame(self, event: AuditEvent, context: Known) -> bytes:
        """The record's message; one of which none can be made keeps no other from its way."""
        try:
            return syslog_message(event, xml(event, self.source, context), host=self.source.host)
        except Exception:
            log.exception("record %d of the ledger cannot be made an audit message: it is left out", event.seq)
            metrics.thread_survived(_NAME)
            return b""

    def _send(self, frames: bytes) -> None:
        if self._open is None:
            self._open, self._opened_at = self.server.connect(), time.monotonic()
        self._open.send(frames)

    def _confirm(self) -> None:
        """End the connection, and keep in mind how far the server has read."""
        if self._open is None:
            return
        self._open.confirm()
        self._open = None
        with self.database.begin() as c:
            Queue("audit").set_setting(c, SENT, self._sent)
        self._confirmed = self._sent
        if self._told:
            log.info("audit messages are sent to %s again, up to record %d", self.server, self._sent)
        self._told.clear()

    def _failed(self, error: Exception) -> None:
        if self._open:
            self._open.abandon()
            self._open = None
        ours = isinstance(error, SyslogError | CxrnodeError)
        why = str(error) if ours else type(error).__name__
        if why not in self._told:  # once, however often it is tried
            log.error("audit messages wait in the ledger, from record %d on: %s", self._confirmed + 1, why,
                      exc_info=None if ours else error)  # fmt: skip
        self._told.add(why)
