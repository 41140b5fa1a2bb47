"""One association, acceptor side: the state machine of PS3.8 section 9.2 on one thread, without timers or queues.

Sta2 (await the request) is `run`, Sta3 `_negotiate`, Sta6 (data transfer) `_serve`, Sta13 (await the close)
`Wire.linger`; every other state belongs to a requestor or to a release that we would ask for.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from cxrnode import metrics
from cxrnode.dicom.dimse import (
    C_STORE_RQ,
    COMMAND_BYTES_MAX,
    P_DATA_TF,
    Command,
    decode_command,
    encode_response,
    fragments,
)
from cxrnode.dicom.negotiation import (
    ASSOCIATE_RQ,
    MAX_PDU_BYTES,
    NO_REASON,
    VERIFICATION,
    Context,
    Offer,
    Refusal,
    Request,
    accept,
    declined,
    parse_request,
)
from cxrnode.dicom.sockets import ABORT_REASONS, INVALID_PARAMETER, UNEXPECTED_PDU, Malformed, PeerGone, Wire, pdu
from cxrnode.dicom.status import OUT_OF_RESOURCES, PROCESSING_FAILURE
from cxrnode.errors import CxrnodeError
from cxrnode.types import Peer

_RELEASE_RQ, _RELEASE_RP, _ABORT = 0x05, 0x06, 0x07
_SOURCE_USER, _SOURCE_PROVIDER = 0, 2
_BEFORE = {ASSOCIATE_RQ: 1 << 18, _ABORT: 64}  # bytes: 128 presentation contexts with every transfer syntax fit
_WITHIN = {P_DATA_TF: MAX_PDU_BYTES + 1024, _RELEASE_RQ: 64, _ABORT: 64}  # some count the headers out

log = logging.getLogger(__name__)


class Operation(Protocol):
    """One DIMSE request being received."""

    def write(self, fragment: memoryview) -> None:
        """Take the next bytes of the data set, which are valid during the call only."""

    def finish(self) -> int:
        """Everything is there: do it, and return the status of the response."""

    def discard(self) -> None:
        """Leave nothing behind: called always, after `finish` or instead of it."""


class Policy(Protocol):
    """What the acceptor asks its owner."""

    def admit(self, request: Request, host: str) -> Offer | Refusal:
        """What this peer is offered, or why nothing."""

    def answered(self, peer: Peer, refusal: Refusal | None) -> None:
        """The association was accepted, or rejected; of one that could not be read, the AE titles are empty."""

    def aborted(self, peer: Peer, why: str) -> None:
        """What the peer sent is no DICOM."""

    def warn(self, text: str, kind: str, **extra: str) -> None:
        """Say it in the log, where it is not said all the time; kind: one of few."""

    def begin(self, peer: Peer, context: Context, command: Command) -> Operation:
        """What receives the data set of `command`, if it has one, and carries it out."""


class Acceptor:
    """Serves one connection; `run` returns when it is over, whatever the peer did."""

    def __init__(self, wire: Wire, host: str, policy: Policy, closing: Callable[[], bool]) -> None:
        self._wire = wire
        self._host = host
        self._policy = policy
        self._closing = closing
        self._peer = Peer(calling_aet="", called_aet="", host=host)
        self._contexts: dict[int, Context] = {}
        self._raw = bytearray()  # command fragments so far
        self._current: tuple[int, Command, Operation] | None = None

    @property
    def busy(self) -> bool:
        """True while a message is under way: its sender waits for the answer."""
        return bool(self._raw) or self._current is not None

    def run(self) -> None:
        try:
            if self._negotiate():
                self._serve()
        except Malformed as malformed:
            self._policy.warn(f"{malformed}: association aborted", "aborted", host=self._host)
            self._policy.aborted(self._peer, str(malformed))
            metrics.connection_aborted(ABORT_REASONS[malformed.reason])
            self._abort(_SOURCE_PROVIDER, malformed.reason)
        except PeerGone as gone:
            if self._contexts:  # else nobody of ours: a health check, a port scan
                log.info("%s: connection lost (%s)", self._host, gone)
                self._abort(_SOURCE_PROVIDER, 0)
        finally:
            if self._current is not None:
                self._current[2].discard()

    def _negotiate(self) -> bool:
        pdu_type, content = self._wire.read_pdu(_BEFORE)
        if pdu_type == _ABORT:
            return False
        request = self._parse(bytes(content))
        if isinstance(request, Refusal):
            return self._refuse(self._peer, request)
        self._peer = Peer(calling_aet=request.calling_aet, called_aet=request.called_aet, host=self._host)
        verdict = self._policy.admit(request, self._host)
        if isinstance(verdict, Refusal):
            return self._refuse(self._peer, verdict)
        self._contexts, answer = accept(request, verdict.contexts)
        if not self._contexts:
            return self._refuse(self._peer, replace(NO_REASON, detail=declined(request, self._contexts)))
        no_more = {cx.abstract_syntax for cx in self._contexts.values()} == {VERIFICATION}
        if no_more and (verdict.tell or request.abstract_syntaxes != {VERIFICATION}):
            why = verdict.detail or f"not offered to it: {declined(request, self._contexts)}"
            text = f"{request.calling_aet!r} may do no more than C-ECHO here: {why}"
            self._policy.warn(text, "echo", host=self._host, calling_aet=request.calling_aet)
        self._policy.answered(self._peer, None)
        self._max_length = request.max_length
        self._wire.set_timeout(verdict.idle_timeout_s)
        self._wire.send(answer)
        return True

    def _parse(self, content: bytes) -> Request | Refusal:
        try:
            return parse_request(content)
        except Exception as error:  # noqa: BLE001 (pynetdicom's parser raises anything on damaged bytes)
            raise Malformed(INVALID_PARAMETER, f"no A-ASSOCIATE-RQ ({type(error).__name__})") from None

    def _refuse(self, peer: Peer, refusal: Refusal) -> bool:
        who = f" of {peer.calling_aet!r} to {peer.called_aet!r}" if peer.calling_aet else ""
        self._policy.answered(peer, refusal)
        why = f"{refusal.text} ({refusal.detail})" if refusal.detail else refusal.text
        self._policy.warn(f"association{who} rejected: {why}", refusal.text, host=self._host, reason=refusal.text)
        metrics.association_rejected(refusal.text)
        self._wire.send(refusal.encode())
        self._wire.linger()
        return False

    def _serve(self) -> None:
        while not self._closing() or self.busy:
            pdu_type, content = self._wire.read_pdu(_WITHIN)
            if pdu_type == _ABORT:
                return
            if pdu_type == _RELEASE_RQ:
                self._wire.send(pdu(_RELEASE_RP, bytes(4)))
                self._wire.linger()
                return
            for context_id, control, fragment in fragments(content):
                if control & 1:
                    self._take_command(context_id, fragment, last=bool(control & 2))
                else:
                    self._take_data(context_id, fragment, last=bool(control & 2))
        self._abort(_SOURCE_USER, 0)

    def _take_command(self, context_id: int, fragment: memoryview, *, last: bool) -> None:
        if self._current is not None:
            raise Malformed(UNEXPECTED_PDU, "a command inside a data set")
        self._raw += fragment
        if len(self._raw) > COMMAND_BYTES_MAX:
            raise Malformed(INVALID_PARAMETER, "a command set without end")
        if not last:
            return
        context = self._contexts.get(context_id)
        if context is None:
            raise Malformed(INVALID_PARAMETER, "a presentation context that was not accepted")
        command = decode_command(bytes(self._raw))
        self._current = context_id, command, self._policy.begin(self._peer, context, command)
        self._raw.clear()
        if not command.has_data_set:
            self._finish(*self._current)

    def _take_data(self, context_id: int, fragment: memoryview, *, last: bool) -> None:
        if self._current is None or self._current[0] != context_id:
            raise Malformed(UNEXPECTED_PDU, "a data set without its command")
        self._current[2].write(fragment)
        if last:
            self._finish(*self._current)

    def _finish(self, context_id: int, command: Command, operation: Operation) -> None:
        try:
            status = self._carry_out(command, operation)
        finally:
            operation.discard()
        if command.expects_response:
            self._wire.send(encode_response(command, status, context_id, self._max_length))
        self._current = None

    def _carry_out(self, command: Command, operation: Operation) -> int:
        try:
            return operation.finish()
        except Exception as error:  # noqa: BLE001 (the edge of the association's loop)
            log.error("%s: request failed: %s", self._host, _said(error))  # noqa: TRY400 (as `_said` says)
            return OUT_OF_RESOURCES if command.field == C_STORE_RQ else PROCESSING_FAILURE  # both: try again

    def _abort(self, source: int, reason: int) -> None:
        try:
            self._wire.send(pdu(_ABORT, bytes((0, 0, source, reason))))
        except PeerGone:
            return
        self._wire.linger()


def _said(error: Exception) -> str:
    """Of one that is not ours the place and not the message, which may quote a value."""
    if isinstance(error, CxrnodeError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {where.filename}:{where.lineno}"
