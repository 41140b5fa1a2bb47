"""Storage and storage commitment SCU: sends result objects, asks that they be kept, and says what the peer answered.

PS3.4 annex B (C-STORE) and annex J (storage commitment push model); PS3.7 annex C (status codes).
"""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydicom import Dataset, dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ
from pynetdicom.pdu_items import MaximumLengthSubItem
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.transport import AddressInformation, AssociationSocket

from cxrnode.dicom.commitment import PUSH_MODEL_INSTANCE, CommitmentOperation, CommitmentReport, references
from cxrnode.dicom.dimse import N_EVENT_REPORT_RQ, Command, even
from cxrnode.dicom.negotiation import COMMITMENT, MAX_PDU_BYTES, VERIFICATION, Context
from cxrnode.dicom.status import PROCESSING_FAILURE, SUCCESS
from cxrnode.types import Destination, Peer

CALLING_AE_TITLE = "CXRNODE"
CONNECT_TIMEOUT_S = 10.0
TIMEOUT_S = 60.0  # for an answer, and for the peer to take the next bytes
_SYNTAXES_NOT_SUPPORTED = 0x04  # result of a presentation context (PS3.8 table 9-18)
_LEAST_PDU_BYTES = 8  # of a P-DATA-TF with a fragment of two bytes
_TRANSIENT = {PROCESSING_FAILURE, 0x0213}  # 0x0213 resource limitation

# send_c_store(path) then sends the data set as it lies in the file; it has no other switch for that
_config.STORE_SEND_CHUNKED_DATASET = True


class SendError(Exception):
    """The destination cannot be reached, refused the association, or broke it: worth another try."""


class NoAssociationError(SendError):
    """Nothing could be said at all: what else there is for this peer would fare no better."""


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
                max_pdu=MAX_PDU_BYTES, tls_args=d.tls_args,
                evt_handlers=[(evt.EVT_CONN_OPEN, self._limit_wait), (evt.EVT_N_EVENT_REPORT, self._receive_report)],
            )  # fmt: skip
        except OSError as e:  # the host has no address
            raise SendError(f"no connection: {d.host}: {e.strerror}") from e
        if not assoc.is_established:
            raise SendError(why_not(assoc, d))
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
        if not self._is_connected and isinstance(self.assoc.ae, TidyAE):
            self.assoc.ae.failure = self.assoc.ae.failure or sys.exception()  # which `connect` is about to swallow
        super()._shutdown_socket()
        if raw is not None:
            raw.close()


class TidyAE(AE):
    """pynetdicom's AE, with what a requestor needs mended: its sockets are closed, a rejection is known as one, and
    `failure` is why there was no connection. For one association."""

    failure: BaseException | None = None

    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: tuple[ssl.SSLContext, str] | None
    ) -> AssociationSocket:
        sock = _Socket(assoc, address=address)
        sock.tls_args = tls_args
        assoc.bind(evt.EVT_PDU_RECV, _mend_answer)
        return sock

    def associate(self, *args: Any, **options: Any) -> Association:
        """As pynetdicom does it. Raises SendError where the peer takes no PDU that could hold anything."""
        assoc = super().associate(*args, **options)
        most = assoc.acceptor.maximum_length if assoc.is_established else 0
        if 0 < (most or 0) < _LEAST_PDU_BYTES:
            assoc.abort()
            raise SendError(f"the destination announces a maximum PDU length of {most} bytes, which holds no data")
        return assoc


def why_not(assoc: Association, peer: Destination) -> str:
    """Why there is no association, in words."""
    if assoc.is_rejected:
        refusal = assoc.acceptor.primitive
        return f"association rejected: {refusal.reason_str if refusal else 'no reason given'}"
    if assoc.rejected_contexts:  # pynetdicom aborts where it may do nothing
        return "none of the node's SOP classes is accepted: enable Comprehensive 3D SR and Secondary Capture for it"
    where = f"[{peer.host}]:{peer.port}" if ":" in peer.host else f"{peer.host}:{peer.port}"
    if isinstance(assoc.ae, TidyAE) and isinstance(assoc.ae.failure, OSError):
        return f"no connection: {_in_words(assoc.ae.failure, where)}"
    wants = "speak another TLS, or want a client certificate" if peer.tls else "want TLS"
    return f"no answer: {where} ended the connection; it may not know our AE title, or {wants}"


def _in_words(error: OSError, where: str) -> str:
    match error:
        case ConnectionRefusedError():
            return f"refused by {where}"
        case TimeoutError():
            return f"{where} does not answer"
        case ssl.SSLCertVerificationError():
            return f"the certificate of {where} is not good: {error.verify_message}"
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER"):
            return f"{where} does not speak TLS"
        case ssl.SSLError():
            reason = (error.reason or "it ended it").replace("_", " ").lower()
            return f"the TLS handshake with {where} failed: {reason}"
    return f"{where}: {error.strerror or type(error).__name__}"


def _mend_answer(event: Any) -> None:
    """A peer that rejects closes at once: the caller's thread, when it comes to look, would see a connection that
    failed and never read the answer.

    One that accepts may announce an odd maximum length, by which pynetdicom would cut fragments of odd length; they
    shall be even (PS3.8 section E.1), and DCMTK aborts at an odd one.
    """
    if isinstance(event.pdu, A_ASSOCIATE_RJ):
        event.assoc.acceptor.primitive = event.pdu.to_primitive()
        event.assoc.is_rejected = True
    elif isinstance(event.pdu, A_ASSOCIATE_AC) and event.pdu.user_information is not None:
        for item in event.pdu.user_information.user_data:
            if isinstance(item, MaximumLengthSubItem) and item.maximum_length_received is not None:
                item.maximum_length_received = even(item.maximum_length_received)


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
