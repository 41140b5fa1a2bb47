"""Storage and storage commitment SCU: sends result objects, asks that they be kept, and says what the peer answered.

PS3.4 annex B (C-STORE) and annex J (storage commitment push model); PS3.7 annex C (status codes).
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydicom import Dataset, dcmread
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.transport import AddressInformation, AssociationSocket

from cxrnode.dicom.commitment import PUSH_MODEL_INSTANCE, CommitmentOperation, CommitmentReport, references
from cxrnode.dicom.dimse import N_EVENT_REPORT_RQ, Command
from cxrnode.dicom.negotiation import COMMITMENT, MAX_PDU_BYTES, VERIFICATION, Context
from cxrnode.dicom.status import PROCESSING_FAILURE, SUCCESS
from cxrnode.types import Destination, Peer

CALLING_AE_TITLE = "CXRNODE"
CONNECT_TIMEOUT_S = 10.0
TIMEOUT_S = 60.0  # for an answer, and for the peer to take the next bytes
_TRANSIENT = {PROCESSING_FAILURE, 0x0213}  # 0x0213 resource limitation

# send_c_store(path) then sends the data set as it lies in the file; it has no other switch for that
_config.STORE_SEND_CHUNKED_DATASET = True


class SendError(Exception):
    """The destination cannot be reached, refused the association, or broke it: worth another try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A DIMSE status, or None where the request could not even be put, and what it means in words."""

    status: int | None
    text: str

    @property
    def code(self) -> str:
        """What a log may say of it: the peer's own words, which the text has, may quote a patient."""
        return "not accepted" if self.status is None else f"0x{self.status:04X}"

    @property
    def accepted(self) -> bool:
        """Success, or a warning: the peer took it."""
        return self.status is not None and (self.status == SUCCESS or self.status & 0xF000 == 0xB000)

    @property
    def transient(self) -> bool:
        """The peer could not just now: out of resources (0xA7xx), or a failure of its own."""
        return self.status is not None and (self.status & 0xFF00 == 0xA700 or self.status in _TRANSIENT)


class StoreScu:
    """One association to one destination, used as a context manager or with `open` and `close`. Raises SendError."""

    def __init__(
        self,
        destination: Destination,
        *,
        calling_ae_title: str = CALLING_AE_TITLE,
        on_report: Callable[[CommitmentReport], int] = lambda _: PROCESSING_FAILURE,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`on_report` gets the reports that come on this association and returns the status to answer with."""
        self._destination = destination
        self._calling_ae_title = calling_ae_title
        self._on_report = on_report
        self._timeout_s = timeout_s
        self._reported = threading.Event()
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
                d.host, d.port, contexts=_contexts(commitment=d.storage_commitment), ae_title=d.ae_title,
                max_pdu=MAX_PDU_BYTES, tls_args=(d.tls, d.host) if d.tls else None,
                evt_handlers=[(evt.EVT_CONN_OPEN, self._limit_wait), (evt.EVT_N_EVENT_REPORT, self._receive_report)],
            )  # fmt: skip
        except OSError as e:  # the host has no address
            raise SendError(f"no connection: {e.strerror}") from e
        if not assoc.is_established:
            none = "no connection, or the TLS handshake failed" if d.tls else "no connection"
            raise SendError("association rejected" if assoc.is_rejected else none)
        self._assoc = assoc
        return self

    def close(self) -> None:
        if self._assoc and self._assoc.is_established:
            self._assoc.release()
        self._assoc = None

    def __enter__(self) -> StoreScu:
        return self.open()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def echo(self) -> None:
        """C-ECHO: the peer answers. One that accepted the association but not Verification is taken to be there."""
        try:
            answer = self._association().send_c_echo()
        except ValueError:
            return
        if "Status" not in answer:
            raise SendError("no answer to C-ECHO")

    def send(self, path: Path) -> Answer:
        """C-STORE one file, as it is where the peer takes its transfer syntax."""
        assoc = self._association()
        try:
            try:
                answer = assoc.send_c_store(path)
            except ValueError:  # the peer takes implicit VR alone
                answer = assoc.send_c_store(dcmread(path))
        except ValueError as e:  # no presentation context for it was accepted
            return Answer(status=None, text=f"not accepted: {e}")
        return _answer(answer, "C-STORE")

    def request_commitment(self, transaction_uid: str, instances: Sequence[tuple[str, str]]) -> Answer:
        """N-ACTION: ask that these (SOP Class UID, SOP Instance UID) be kept. The answer proper is the report."""
        self._reported.clear()
        try:
            answer, _ = self._association().send_n_action(
                _action_information(transaction_uid, instances), 1, COMMITMENT, PUSH_MODEL_INSTANCE
            )
        except ValueError:
            return Answer(status=None, text="storage commitment is not accepted by this destination")
        return _answer(answer, "N-ACTION")

    def await_report(self, seconds: float) -> bool:
        """Wait for a report on this association. It may come on another one, and hours later (PS3.4 J.3.3)."""
        return self._reported.wait(seconds)

    def _association(self) -> Association:
        if self._assoc is None or not self._assoc.is_established:
            raise SendError("the association is gone")
        return self._assoc

    def _limit_wait(self, event: Any) -> None:
        """pynetdicom's socket waits for ever: a peer that stops reading would hold the sender, abort and all."""
        event.assoc.dul.socket.socket.settimeout(self._timeout_s)

    def _receive_report(self, event: Any) -> tuple[int, None]:
        d, request = self._destination, event.request
        operation = CommitmentOperation(
            Peer(calling_aet=d.ae_title, called_aet=self._calling_ae_title, host=d.host),
            Context(abstract_syntax=COMMITMENT, transfer_syntax=str(event.context.transfer_syntax)),
            Command(
                field=N_EVENT_REPORT_RQ, message_id=request.MessageID, has_data_set=True, sop_class_uid=COMMITMENT,
                sop_instance_uid=str(request.AffectedSOPInstanceUID), type_id=int(event.event_type),
            ),
            requested=lambda _: PROCESSING_FAILURE, reported=self._on_report,
        )  # fmt: skip
        operation.write(memoryview(request.EventInformation.getvalue() if request.EventInformation else b""))
        status = operation.finish()
        if status == SUCCESS:
            self._reported.set()
        return status, None


class _Socket(AssociationSocket):
    """pynetdicom 3.0 closes only what it could shut down: of a connection that failed or was reset, the descriptor
    would stay open until the garbage collector finds it."""

    def _shutdown_socket(self) -> None:
        raw = self.socket
        super()._shutdown_socket()
        if raw is not None:
            raw.close()


class TidyAE(AE):
    """pynetdicom's AE, with what a requestor needs mended: its sockets are closed, and a rejection is known as one."""

    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: tuple[ssl.SSLContext, str] | None
    ) -> AssociationSocket:
        sock = _Socket(assoc, address=address)
        sock.tls_args = tls_args
        assoc.bind(evt.EVT_PDU_RECV, _note_rejection)
        return sock


def _note_rejection(event: Any) -> None:
    """A peer that rejects closes at once: the caller's thread, when it comes to look, would see a connection that
    failed and never read the answer."""
    if isinstance(event.pdu, A_ASSOCIATE_RJ):
        event.assoc.acceptor.primitive = event.pdu.to_primitive()
        event.assoc.is_rejected = True


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
