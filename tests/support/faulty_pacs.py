"""A PACS that behaves as its script says: what no real one does on request.

    with faulty_pacs(["0xA700", "ok"]) as pacs:  # the last step repeats
        ...
    assert pacs.stored == {uid: 2}

Steps, one a C-STORE: `ok`, a status in hex, `slow:SECONDS`, `silent` (no answer), `abort`, `lost` (stored, then the
connection breaks before the answer). It stores what it accepts. `associations`, one a request: `ok`, `reject`.

`commitment`: how it answers a request: with a report on the `same` association, `twice` there, `before` the response to
the request, on a `new` association to `report_to` (as `report_as`), `never`; or a status in hex. `release`: how it
answers a release request: `ok`, `never`, with `half` a PDU, or with a `report` first.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, repeat
from typing import Any

from pydicom import Dataset
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, build_role, evt
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)

from cxrnode.types import Destination
from tests.support.orthanc import free_port

AET = "FAULTY"
NO_SUCH_OBJECT = 0x0112


@dataclass(slots=True, kw_only=True)
class FaultyPacs:
    """What it saw."""

    port: int
    commitment: str
    report_to: tuple[str, int]  # host and port of the node's listener, for `new`
    report_as: str
    release: str
    lose: set[str]  # SOP Instance UIDs that it reports as not kept
    steps: Iterator[str]
    greetings: Iterator[str]
    stored: Counter[str] = field(default_factory=Counter)  # how often it took each SOP Instance UID
    asked: list[str] = field(default_factory=list)  # SOP Instance UID of each C-STORE
    echoes: int = 0
    associations: int = 0
    transactions: list[str] = field(default_factory=list)
    reports: list[int | None] = field(default_factory=list)  # what its reports were answered with
    unsent: list[Dataset] = field(default_factory=list)  # reports for the middle of a release
    report_after_s: float = 0.05
    claims: str = ""  # the Transaction UID that it reports on, in the place of that it was asked for
    releases: int = 0  # that it was asked for, or asked for itself
    data_sets: list[Dataset] = field(default_factory=list)
    keeps: bool = True  # the data sets
    poison: dict[str, str] = field(default_factory=dict)  # SOP Instance UID -> its own step, whatever the script says
    server: Any = None
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def destination(self) -> Destination:
        return Destination(ae_title=AET, host="127.0.0.1", port=self.port)

    def greet(self, event: Any) -> None:
        with self.lock:
            self.associations += 1
            step = next(self.greetings)
        if step == "reject":
            event.assoc.acse.send_reject(0x02, 0x03, 0x02)  # transient, presentation: local limit exceeded
            event.assoc.kill()
        answer = event.assoc.acse.send_release
        event.assoc.acse.send_release = lambda is_response=False: self._answer_release(event.assoc, answer, is_response)

    def _answer_release(self, assoc: Any, answer: Any, is_response: bool) -> None:
        self.releases += 1
        if is_response and self.release == "never":
            return
        if is_response and self.release == "half":
            assoc.dul.socket.socket.send(b"\x06\x00\x00")
            return
        if is_response and self.release == "report" and self.unsent:
            report = self.unsent.pop()
            request = N_EVENT_REPORT()
            request.MessageID, request.EventTypeID = 7, 1
            request.AffectedSOPClassUID = StorageCommitmentPushModel
            request.AffectedSOPInstanceUID = StorageCommitmentPushModelInstance
            request.EventInformation = BytesIO(encode(report, True, True) or b"")
            context = next(c for c in assoc.accepted_contexts if c.abstract_syntax == StorageCommitmentPushModel)
            assoc.dimse.send_msg(request, context.context_id)
            self.over.wait(0.3)
        answer(is_response=is_response)

    def echo(self, _: Any) -> int:
        self.echoes += 1
        return 0x0000

    def store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        with self.lock:
            step = self.poison.get(uid) or next(self.steps)
            self.asked.append(uid)
        if step in {"abort", "silent"}:
            self._misbehave(event, step)
            return 0x0110
        if step.startswith("slow:"):
            self.over.wait(float(step[5:]))
        status = int(step, 16) if step.startswith("0x") else 0x0000
        if status == 0x0000 or status & 0xF000 == 0xB000:
            with self.lock:
                self.stored[uid] += 1
                if self.keeps:
                    self.data_sets.append(event.dataset)
        if step == "lost":
            self._misbehave(event, "abort")
        return status

    def _misbehave(self, event: Any, step: str) -> None:
        if step == "silent":
            self.over.wait(60)
        event.assoc.abort()

    def commit(self, event: Any) -> tuple[int, None]:
        information = event.action_information
        self.transactions.append(str(information.TransactionUID))
        if self.commitment.startswith("0x"):
            return int(self.commitment, 16), None
        report = self._report(information)
        if self.release == "report":
            self.unsent.append(report)
        elif self.commitment == "before":
            self._send_report(event.assoc, report)
        elif self.commitment != "never":
            threading.Thread(target=self._send_report, args=(event.assoc, report), daemon=True).start()
        return 0x0000, None

    def _report(self, information: Dataset) -> Dataset:
        report = Dataset()
        report.TransactionUID = self.claims or information.TransactionUID
        kept, lost = [], []
        for item in information.ReferencedSOPSequence:
            uid = item.ReferencedSOPInstanceUID
            if uid in self.lose or uid not in self.stored:
                item.FailureReason = NO_SUCH_OBJECT
                lost.append(item)
            else:
                kept.append(item)
        if kept:
            report.ReferencedSOPSequence = kept
        if lost:
            report.FailedSOPSequence = lost
        return report

    def _send_report(self, assoc: Any, report: Dataset) -> None:
        if self.commitment != "before":
            self.over.wait(self.report_after_s)  # after the N-ACTION response
        kind = 2 if "FailedSOPSequence" in report else 1
        if self.commitment == "new":
            ae = AE(ae_title=self.report_as)
            ae.add_requested_context(StorageCommitmentPushModel)
            host, port = self.report_to
            assoc = ae.associate(
                host, port, ae_title="CXRNODE", ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)]
            )
            if not assoc.is_established:
                self.reports.append(None)
                return
        for _ in range(2 if self.commitment == "twice" else 1):
            if not assoc.is_established:
                self.reports.append(None)
                return
            status, _ = assoc.send_n_event_report(
                report, kind, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
            )
            self.reports.append(status.get("Status"))
        if self.commitment == "new":
            assoc.release()


@contextmanager
def faulty_pacs(
    steps: Sequence[str] = ("ok",),
    *,
    port: int | None = None,
    associations: Sequence[str] = ("ok",),
    commitment: str = "never",
    report_to: tuple[str, int] = ("127.0.0.1", 0),
    report_as: str = AET,
    release: str = "ok",
    lose: Sequence[str] = (),
    syntaxes: Sequence[UID] = (ExplicitVRLittleEndian, ImplicitVRLittleEndian),
    sop_classes: Sequence[UID] = (Comprehensive3DSRStorage, SecondaryCaptureImageStorage),
) -> Iterator[FaultyPacs]:
    """AE title FAULTY on a free port of the loopback (or `port`)."""
    pacs = FaultyPacs(
        port=port or free_port(), commitment=commitment, report_to=report_to, report_as=report_as, release=release,
        lose=set(lose),
        steps=chain(steps, repeat(steps[-1])), greetings=chain(associations, repeat(associations[-1])),
    )  # fmt: skip
    ae = AE(ae_title=AET)
    ae.maximum_associations = 50
    for sop_class in sop_classes:
        ae.add_supported_context(sop_class, list(syntaxes))
    ae.add_supported_context(Verification)
    ae.add_supported_context(StorageCommitmentPushModel)
    pacs.server = ae.start_server(
        ("127.0.0.1", pacs.port), block=False,
        evt_handlers=[
            (evt.EVT_REQUESTED, pacs.greet), (evt.EVT_C_ECHO, pacs.echo), (evt.EVT_C_STORE, pacs.store),
            (evt.EVT_N_ACTION, pacs.commit),
        ],
    )  # fmt: skip
    try:
        yield pacs
    finally:
        pacs.over.set()
        pacs.server.shutdown()


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    """Until `condition()` holds. Raises AssertionError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
