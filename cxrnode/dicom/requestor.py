"""An association that we ask for: pynetdicom's, with what a requestor needs mended, and an end in time.

pynetdicom 3.0 waits without end where a thread of its own does not pause or stop: who releases while a report comes in,
or a peer that answers with half a PDU, hold their caller for good. Here everything has a bound of ours, after which the
association is torn down, threads and connection, whatever the peer does.
"""

from __future__ import annotations

import logging
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any

from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ
from pynetdicom.pdu_items import MaximumLengthSubItem
from pynetdicom.pdu_primitives import A_P_ABORT
from pynetdicom.transport import AddressInformation, AssociationSocket

from cxrnode.dicom.dimse import even
from cxrnode.dicom.sockets import force_down, pdu
from cxrnode.types import Destination

CONNECT_TIMEOUT_S = 10.0
RELEASE_S = 5.0  # for the peer to answer a release; then it is aborted
_GRACE_S = 5.0  # beyond pynetdicom's own time-outs, which come first where they work
_END_S = 2.0  # for a thread whose connection is down to end
_LEAST_PDU_BYTES = 8  # of a P-DATA-TF with a fragment of two bytes
_ABORT = pdu(0x07, bytes(4))

# send_c_store(path) then sends the data set as it lies in the file; it has no other switch for that
_config.STORE_SEND_CHUNKED_DATASET = True

log = logging.getLogger(__name__)


class SendError(Exception):
    """The destination cannot be reached, refused the association, or broke it: worth another try."""


class NoAssociationError(SendError):
    """Nothing could be said at all: what else there is for this peer would fare no better."""


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
    `failure` is why there was no connection. For one association, which `end` ends."""

    failure: BaseException | None = None
    _assoc: Association | None = None

    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: tuple[ssl.SSLContext, str] | None
    ) -> AssociationSocket:
        sock = _Socket(assoc, address=address)
        sock.tls_args = tls_args
        assoc.bind(evt.EVT_PDU_RECV, _mend_answer)
        assoc.bind(evt.EVT_CONN_OPEN, _set_socket)
        assoc._serve_request = partial(_serve, assoc, assoc._serve_request)  # type: ignore[method-assign]
        assoc.dul.daemon = True  # none keeps the process from its end
        self._assoc = assoc
        return sock

    def associate(self, *args: Any, **options: Any) -> Association:
        """As pynetdicom does it, in a bounded time.

        Raises OSError where the host has no address, SendError where the peer takes no PDU that could hold anything.
        """
        waits = (self.connection_timeout or 0.0) + (self.acse_timeout or 0.0)
        with _in_time(self._give_up, waits + _GRACE_S):
            assoc = super().associate(*args, **options)
        if not assoc.is_established:
            tear_down(assoc)
        most = assoc.acceptor.maximum_length if assoc.is_established else 0
        if 0 < (most or 0) < _LEAST_PDU_BYTES:
            tear_down(assoc)
            raise SendError(f"the destination announces a maximum PDU length of {most} bytes, which holds no data")
        return assoc

    def _give_up(self) -> None:
        if self._assoc:
            tear_down(self._assoc)


def bounded(assoc: Association, seconds: float) -> AbstractContextManager[None]:
    """Around a request whose answer is waited for so long: whatever holds it up ends soon after."""
    return _in_time(lambda: tear_down(assoc), seconds + _GRACE_S)


def end(assoc: Association) -> None:
    """Release it, or abort it where the peer does not answer in time; then nothing of it is left."""
    with _in_time(lambda: tear_down(assoc), RELEASE_S):
        assoc.release()
    tear_down(assoc)


def tear_down(assoc: Association) -> None:
    """End it in whatever state it is: its connection, its threads, and the wait of whoever waits for it.

    A peer that is still there is told by an A-ABORT; over TLS, where only the connection's own thread may write, by the
    end of the connection.
    """
    raw = assoc.dul.socket.socket if assoc.dul.socket else None
    assoc.is_established = False
    assoc._kill = assoc._is_paused = assoc.dul._kill_thread = True
    assoc._reactor_checkpoint.set()
    if raw is not None:
        if not isinstance(raw, ssl.SSLSocket):
            with suppress(OSError):
                raw.send(_ABORT, socket.MSG_DONTWAIT)
        force_down(raw)
    for thread in (assoc.dul, assoc):
        if thread.is_alive() and thread is not threading.current_thread():
            thread.join(_END_S)
            if thread.is_alive():
                log.warning("a thread of an association that is over still runs: %s", thread.name)
    # only now, when no thread of its own is there to take them from who waits: for a response, for the answer to a
    # release or to the association's request
    assoc.dimse.msg_queue.put((None, None))
    assoc.dul.to_user_queue.put(A_P_ABORT())
    assoc._is_paused = True  # its thread may have taken it back
    if raw is not None and not assoc.dul.is_alive():
        raw.close()


@contextmanager
def _in_time(otherwise: Callable[[], object], seconds: float) -> Iterator[None]:
    """What goes on for longer is ended by `otherwise`, from another thread."""
    timer = threading.Timer(seconds, otherwise)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _serve(assoc: Association, others: Callable[[Any, int], None], message: Any, context_id: int) -> None:
    """pynetdicom's reactor says that it pauses while a request is put, and may yet go on for a moment: on a busy
    machine it takes the answer as if it were a request, and who waits for it waits until the time-out (60 s)."""
    awaited = not assoc._reactor_checkpoint.is_set()
    if awaited and getattr(message, "MessageIDBeingRespondedTo", None) is not None:
        assoc.dimse.msg_queue.put((context_id, message))
    else:
        others(message, context_id)


def _set_socket(event: Any) -> None:
    """pynetdicom's socket waits for ever: a peer that stops reading would hold the sender, abort and all. And a command
    is a PDU of its own, after which Nagle's algorithm would hold back the data set until it is acknowledged (40 ms).
    """
    raw = event.assoc.dul.socket.socket
    raw.settimeout(event.assoc.network_timeout)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


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
