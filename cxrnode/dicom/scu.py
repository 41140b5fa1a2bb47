"""Storage and storage commitment SCU: sends result objects, asks that they be kept, and says what the peer answered.

PS3.4 annex B (C-STORE) and annex J (storage commitment push model); PS3.7 annex C (status codes).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from pydicom import Dataset, dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.presentation import PresentationContext, build_context

from cxrnode.dicom.commitment import PUSH_MODEL_INSTANCE, CommitmentOperation, CommitmentReport, references
from cxrnode.dicom.dimse import N_EVENT_REPORT_RQ, Command
from cxrnode.dicom.negotiation import COMMITMENT, MAX_PDU_BYTES, VERIFICATION, Context
from cxrnode.dicom.requestor import (
    CONNECT_TIMEOUT_S,
    NoAssociationError,
    SendError,
    TidyAE,
    bounded,
    end,
    tear_down,
    why_not,
)
from cxrnode.dicom.status import PROCESSING_FAILURE, SUCCESS, UNRECOGNISED_OPERATION
from cxrnode.logs import words
from cxrnode.types import Destination, Peer

CALLING_AE_TITLE = "CXRNODE"
TIMEOUT_S = 60.0  # for an answer, and for the peer to take the next bytes
_SYNTAXES_NOT_SUPPORTED = 0x04  # result of a presentation context (PS3.8 table 9-18)
_RESOURCE_LIMITATION = 0x0213
_RECORD_S = 30.0  # for a report to be recorded: longer than the store waits for its database
_MOST_REPORTS = 16  # of one association, at a time

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A DIMSE status, or None where the request could not even be put, and what it means in words."""

    status: int | None
    text: str

    @property
    def code(self) -> str:
        """What a log may say of it: the peer's own words, which the text has, may quote a patient."""
        return self.text if self.status is None else f"0x{self.status:04X}"

    @property
    def accepted(self) -> bool:
        """Success, or a warning: the peer took it."""
        return self.status is not None and (self.status == SUCCESS or self.status & 0xF000 == 0xB000)

    @property
    def out_of_resources(self) -> bool:
        """The peer has no room just now, for this or anything else."""
        return self.status is not None and (self.status & 0xFF00 == 0xA700 or self.status == _RESOURCE_LIMITATION)

    @property
    def transient(self) -> bool:
        """The peer could not just now: no resources, or a failure of its own, perhaps with this object alone."""
        return self.out_of_resources or self.status == PROCESSING_FAILURE


class StoreScu:
    """One association to one destination, used as a context manager or with `open` and `close`. Raises SendError."""

    def __init__(
        self,
        destination: Destination,
        *,
        calling_ae_title: str = CALLING_AE_TITLE,
        on_report: Callable[[CommitmentReport], int] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`on_report` gets the reports that come on this association and returns the status to answer with.

        Without it storage commitment is not proposed.
        """
        self._destination = destination
        self._calling_ae_title = calling_ae_title
        self._on_report = on_report
        self._timeout_s = timeout_s
        self._reported = threading.Event()
        self._answering = threading.Lock()  # a report: one at a time, and no release meanwhile
        self._reports = threading.BoundedSemaphore(_MOST_REPORTS)
        self._closing = False
        self._assoc: Association | None = None

    @property
    def is_open(self) -> bool:
        return self._assoc is not None and bool(self._assoc.is_established)

    def open(self) -> StoreScu:
        d = self._destination
        ae = TidyAE(ae_title=self._calling_ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = self._timeout_s
        ae.connection_timeout = min(CONNECT_TIMEOUT_S, self._timeout_s)
        try:
            assoc = ae.associate(
                d.host, d.port, contexts=_contexts(commitment=d.storage_commitment and self._on_report is not None),
                ae_title=d.ae_title, max_pdu=MAX_PDU_BYTES, tls_args=d.tls_args,
                evt_handlers=[(evt.EVT_CONN_OPEN, self._take_reports)],
            )  # fmt: skip
        except OSError as e:  # the host has no address
            raise SendError(f"no connection: {d.host}: {e.strerror}") from e
        if not assoc.is_established:
            raise SendError(why_not(assoc, d))
        self._assoc = assoc
        return self

    def close(self) -> None:
        """In a bounded time, whatever the peer does. A report that is being recorded has its answer before."""
        assoc, self._assoc = self._assoc, None
        if assoc is None:
            return
        recorded = self._answering.acquire(timeout=_RECORD_S)
        self._closing = True
        if recorded:
            self._answering.release()
            end(assoc)
        else:
            tear_down(assoc)

    def __enter__(self) -> StoreScu:
        return self.open()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def echo(self) -> None:
        """C-ECHO: the peer answers. One that accepted the association but not Verification is taken to be there."""
        try:
            answer = self._ask(lambda assoc: assoc.send_c_echo())
        except ValueError:
            return
        if "Status" not in answer:
            raise SendError("no answer to C-ECHO")

    def send(self, path: Path) -> Answer:
        """C-STORE one file, as it is where the peer takes its transfer syntax."""
        try:
            try:
                answer = self._ask(lambda assoc: assoc.send_c_store(path))
            except ValueError:  # the peer takes implicit VR alone
                answer = self._ask(lambda assoc: assoc.send_c_store(dcmread(path)))
        except ValueError as e:  # no presentation context for it was accepted
            return Answer(status=None, text=f"not accepted: {self._why_not(path) or e}")
        return _answer(answer, "C-STORE")

    def _why_not(self, path: Path) -> str:
        """What is to be done at the peer; empty where its contexts are not at fault."""
        sop_class = UID(str(read_file_meta_info(path).MediaStorageSOPClassUID))
        if any(cx.abstract_syntax == sop_class for cx in self._association().accepted_contexts):
            return ""
        named = f"{sop_class.name} ({sop_class})"
        where = f"for the AE title {self._calling_ae_title} at {self._destination.ae_title}"
        results = {cx.result for cx in self._association().rejected_contexts if cx.abstract_syntax == sop_class}
        if results == {_SYNTAXES_NOT_SUPPORTED}:
            return (
                f"of {named} the destination takes neither explicit nor implicit VR little endian: enable one {where}"
            )
        return f"the destination does not take {named}: enable this SOP class {where}"

    def request_commitment(self, transaction_uid: str, instances: Sequence[tuple[str, str]]) -> Answer:
        """N-ACTION: ask that these (SOP Class UID, SOP Instance UID) be kept. The answer proper is the report."""
        self._reported.clear()
        try:
            answer, _ = self._ask(
                lambda assoc: assoc.send_n_action(
                    _action_information(transaction_uid, instances), 1, COMMITMENT, PUSH_MODEL_INSTANCE
                )
            )
        except ValueError:
            return Answer(status=None, text="storage commitment is not accepted by this destination")
        return _answer(answer, "N-ACTION")

    def await_report(self, seconds: float) -> bool:
        """Wait for a report on this association, until its answer is on the way.

        It may come on another one, and hours later (PS3.4 J.3.3).
        """
        return self._reported.wait(seconds)

    def _association(self) -> Association:
        if self._assoc is None or not self._assoc.is_established:
            raise NoAssociationError("the association is gone")
        return self._assoc

    def _ask(self, request: Callable[[Association], T]) -> T:
        """The answer to a request, or none in time: then the association is gone."""
        assoc = self._association()
        try:
            with bounded(assoc, self._timeout_s):
                return request(assoc)
        except RuntimeError as e:  # it ended between the two
            raise NoAssociationError("the association is gone") from e

    # -- reports

    def _take_reports(self, event: Any) -> None:
        """pynetdicom serves a report on a thread that takes part in the pausing of its reactor, and so may leave it
        such that the next request or release waits for ever."""
        event.assoc._serve_request = partial(self._serve, event.assoc, event.assoc._serve_request)

    def _serve(self, assoc: Association, others: Callable[[Any, int], None], message: Any, context_id: int) -> None:
        """What the peer asks of us; a report is on a thread of its own."""
        if not isinstance(message, N_EVENT_REPORT):
            others(message, context_id)
        elif self._reports.acquire(blocking=False):
            try:
                with self._answering:
                    self._answer(assoc, message, context_id)
            finally:
                self._reports.release()
        else:
            tear_down(assoc)

    def _answer(self, assoc: Association, message: N_EVENT_REPORT, context_id: int) -> None:
        """Record a report, then answer it. One that comes in the middle of our release counts, too, but an answer is
        not allowed any more (PS3.8 section 7.2.2): its peer may repeat it."""
        try:
            status = self._record(assoc, message, context_id)
        except Exception as e:  # noqa: BLE001 (the edge of its thread)
            log.error("%s: a storage commitment report: %s", self._destination, words(e))  # noqa: TRY400 (says all)
            status = PROCESSING_FAILURE
        if self._closing:
            return
        answer = N_EVENT_REPORT()
        answer.MessageIDBeingRespondedTo, answer.Status = message.MessageID, status
        answer.AffectedSOPClassUID = message.AffectedSOPClassUID
        answer.AffectedSOPInstanceUID = message.AffectedSOPInstanceUID
        answer.EventTypeID = message.EventTypeID
        assoc.dimse.send_msg(answer, context_id)
        if status == SUCCESS:
            self._reported.set()  # what is sent from now on goes after the answer: there is one queue for all

    def _record(self, assoc: Association, message: N_EVENT_REPORT, context_id: int) -> int:
        d, context = self._destination, assoc._accepted_cx.get(context_id)
        if context is None or self._on_report is None or message.AffectedSOPClassUID != COMMITMENT:
            return UNRECOGNISED_OPERATION
        operation = CommitmentOperation(
            Peer(calling_aet=d.ae_title, called_aet=self._calling_ae_title, host=d.host),
            Context(abstract_syntax=COMMITMENT, transfer_syntax=str(context.transfer_syntax[0])),
            Command(
                field=N_EVENT_REPORT_RQ, message_id=message.MessageID or 0, has_data_set=True,
                sop_class_uid=COMMITMENT, sop_instance_uid=str(message.AffectedSOPInstanceUID),
                type_id=message.EventTypeID or 0,
            ),
            requested=lambda _: PROCESSING_FAILURE, reported=self._on_report,
        )  # fmt: skip
        operation.write(memoryview(message.EventInformation.getvalue() if message.EventInformation else b""))
        return operation.finish()


def _contexts(*, commitment: bool) -> list[PresentationContext]:
    """A context a transfer syntax: a peer that takes both leaves us the one that the file has."""
    contexts = [build_context(VERIFICATION)]
    for sop_class in (Comprehensive3DSRStorage, SecondaryCaptureImageStorage):
        contexts += [build_context(sop_class, syntax) for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)]
    if commitment:
        contexts.append(build_context(COMMITMENT))
    return contexts


def _action_information(transaction_uid: str, instances: Sequence[tuple[str, str]]) -> Dataset:
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    ds.ReferencedSOPSequence = references(instances)
    return ds


def _answer(ds: Dataset, to: str) -> Answer:
    if "Status" not in ds:  # pynetdicom's sign of a broken association or a time-out
        raise SendError(f"no answer to {to}")
    status = int(cast(int, ds.Status))
    return Answer(status=status, text=f"0x{status:04X} {ds.get('ErrorComment', '')}".strip())
