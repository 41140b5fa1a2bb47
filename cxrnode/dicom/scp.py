"""The listener: Verification, Storage and Storage Commitment as SCP (PS3.4 annexes A, B, J). No policy of its own.

What is pynetdicom's here: the A-ASSOCIATE PDUs and the rules of negotiation (`negotiation`). What is not: its reactor
threads, queues and sockets. They let one peer stall, crash or starve the others, and cost more than the transfer.
One thread serves one connection from the first byte (or the TLS handshake) to the last.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cxrnode import metrics
from cxrnode.dicom.association import Acceptor, Operation
from cxrnode.dicom.client_certificate import identities
from cxrnode.dicom.commitment import CommitmentOperation, CommitmentReport, CommitmentRequest
from cxrnode.dicom.dimse import C_ECHO_RQ, C_STORE_RQ, N_ACTION_RQ, N_EVENT_REPORT_RQ, Command
from cxrnode.dicom.limits import Gate
from cxrnode.dicom.negotiation import (
    CALLED_NOT_RECOGNISED,
    CALLING_NOT_RECOGNISED,
    COMMITMENT,
    FROM_ANOTHER_ADDRESS,
    LIMIT_EXCEEDED,
    NOT_ITS_CERTIFICATE,
    STORAGE,
    VERIFICATION,
    WITHOUT_TLS,
    Context,
    Offer,
    Refusal,
    Request,
    supported,
)
from cxrnode.dicom.sockets import Wire, force_down
from cxrnode.dicom.status import NOT_AUTHORISED, SUCCESS, UNRECOGNISED_OPERATION
from cxrnode.dicom.storing import IncomingInstance, StoreOperation
from cxrnode.dicom.tls import handshake_fault
from cxrnode.loops import lives
from cxrnode.repeats import SparseLog
from cxrnode.types import Peer

__all__ = [
    "CommitmentReport", "CommitmentRequest", "Handlers", "IncomingInstance", "Listener", "ListenerOptions",
    "start_listener",
]  # fmt: skip

_SILENCE_S = 5.0  # for a TLS handshake, for the A-ASSOCIATE-RQ, and between the requests of a stranger
_BACKLOG = 1024
_BEAT_S, _HANGS_S = 5.0, 60.0  # of the thread that accepts connections

_LOOK_UPS = SparseLog()

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerOptions:
    """Where to listen, for whom. Peers are (AE title, host name or IP address).

    bound: of `allow`, who must show a client certificate of these identities (see `client_certificate`). Who calls
    itself by such an AE title and does not is rejected, whatever it asks for.
    """

    ae_title: str
    bind: str
    port: int  # 0: a free one, see Listener.port
    incoming: Path  # existing folder for data sets that are arriving; the same file system as where `store` keeps them
    allow: tuple[tuple[str, str], ...]  # may store and ask for commitment
    bound: Mapping[tuple[str, str], Collection[str]] = field(default_factory=dict)
    commitment_peers: tuple[tuple[str, str], ...] = ()  # may report on commitments that we asked for
    max_associations: int = 50
    max_associations_per_host: int = 20
    idle_timeout_s: float = 30.0
    tls: Callable[[], ssl.SSLContext] | None = None  # what is in force when a connection comes


@dataclass(frozen=True, slots=True, kw_only=True)
class Handlers:
    """What the owner does, on the association's thread. An int is the status of the response."""

    store: Callable[[IncomingInstance], int]
    has_room: Callable[[], bool]  # False: data sets are turned away with 0xA700
    commit_requested: Callable[[CommitmentRequest], int]
    commit_reported: Callable[[CommitmentReport], int]  # from whoever may connect: whose counts is the owner's to say
    # told, and not asked: of an association, and why it was rejected ("" where it was not); of an instance that the
    # listener itself turned away, its SOP Instance UID, the status and why
    association: Callable[[Peer, str], None] = lambda _peer, _why: None
    refused: Callable[[Peer, str, int, str], None] = lambda _peer, _uid, _status, _why: None
    # in the place of `association`: somebody may do no more than C-ECHO, and why where it is somebody known from
    # another address; what came was no DICOM, or no TLS, and why
    echo_only: Callable[[Peer, str], None] = lambda _peer, _why: None
    aborted: Callable[[Peer, str], None] = lambda _peer, _why: None
    log: SparseLog = field(default_factory=SparseLog)


def start_listener(options: ListenerOptions, handlers: Handlers) -> Listener:
    """Listen from now on, on a thread. Raises OSError (the port is taken, the address is not ours)."""
    return Listener(options, handlers)


class Listener:
    """A running SCP; also a context manager that closes it."""

    def __init__(self, options: ListenerOptions, handlers: Handlers) -> None:
        self.options = options
        self.handlers = handlers
        self.gate = Gate(options.max_associations, options.max_associations_per_host)
        self.closing = False
        family = socket.getaddrinfo(options.bind, options.port, type=socket.SOCK_STREAM)[0][0]
        self._server = socket.create_server((options.bind, options.port), family=family, backlog=_BACKLOG)
        self.port = int(self._server.getsockname()[1])
        self._connections: set[_Connection] = set()
        self._thread = threading.Thread(target=self._accept, name=f"listener:{self.port}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self, grace_s: float = 10.0) -> None:
        """No new connections; associations end after the message under way, or after `grace_s` seconds."""
        self.closing = True
        force_down(self._server)
        self._thread.join(grace_s)
        self._server.close()
        left = list(self._connections)
        for connection in left:
            if not connection.busy:
                connection.force_down()
        _join(left, grace_s)
        for connection in left:
            connection.force_down()
        _join(left, grace_s)

    def _accept(self) -> None:
        self._server.settimeout(_BEAT_S)
        while not self.closing:
            lives(self._thread.name, _HANGS_S)
            try:
                sock, address = self._server.accept()
            except TimeoutError:
                continue
            except OSError as error:
                if not self.closing:  # for instance EMFILE: others will close
                    self._warn(f"cannot accept connections: {error.strerror}", "accept")
                    time.sleep(0.1)
                continue
            connection = _Connection(self, sock, str(address[0]))
            self._connections.add(connection)
            self.gate.enter(connection)
            try:
                connection.thread.start()
            except RuntimeError:  # the system has no more threads for us
                self._warn(f"{connection.host}: connection refused: no more threads", "threads")
                self.forget(connection)
                sock.close()

    def _warn(self, text: str, kind: str) -> None:
        self.handlers.log.warning(log, text, whose="listener", kind=kind)

    def forget(self, connection: _Connection) -> None:
        self.gate.leave(connection)
        self._connections.discard(connection)


class _Connection:
    """One connection, its thread, and what its peer may do."""

    def __init__(self, listener: Listener, sock: socket.socket, host: str) -> None:
        self.host = host
        self._listener = listener
        self._sock = sock
        self._acceptor: Acceptor | None = None
        self._stranger: Refusal | None = None  # why it may do no more than C-ECHO
        self._shown: list[str] = []  # who its client certificate says that it is
        self.thread = threading.Thread(target=self._run, name=f"peer:{host}", daemon=True)

    @property
    def busy(self) -> bool:
        return self._acceptor is not None and self._acceptor.busy

    def force_down(self) -> None:
        force_down(self._sock)

    def _run(self) -> None:
        try:
            self._secure()
            wire = Wire(self._sock, _SILENCE_S)
            self._acceptor = Acceptor(wire, self.host, self, lambda: self._listener.closing)
            self._acceptor.run()
        except OSError as error:  # of the handshake
            if why := handshake_fault(error):
                self.warn(f"no TLS connection: {why}", "TLS", host=self.host)
                metrics.connection_aborted("no TLS")
                self.aborted(Peer(calling_aet="", called_aet="", host=self.host), f"no TLS connection: {why}")
            else:  # it went away: a health check (our own, too), a port scan
                log.debug("%s: no TLS connection: %s", self.host, type(error).__name__)
        finally:
            self._sock.close()
            self._listener.forget(self)

    def _secure(self) -> None:
        """The TLS handshake, here and not where connections are accepted: a silent peer holds up nobody else."""
        self._sock.settimeout(_SILENCE_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls := self._listener.options.tls:
            self._sock = tls().wrap_socket(self._sock, server_side=True, do_handshake_on_connect=False)
            self._sock.do_handshake()
            if certificate := self._sock.getpeercert(binary_form=True):
                self._shown = identities(certificate)

    def admit(self, request: Request, host: str) -> Offer | Refusal:
        options = self._listener.options
        if request.called_aet != options.ae_title.strip():
            return replace(CALLED_NOT_RECOGNISED, detail=f"this node is {options.ae_title.strip()}, see node.ae_title")
        storage = self._may_store(request.calling_aet)
        if not storage and (refusal := self._no_certificate(request.calling_aet)):
            return refusal
        commitment = storage or self._reports(request.calling_aet)
        if not commitment and VERIFICATION not in request.abstract_syntaxes:
            return _unknown(request.calling_aet, host, options)
        if not self._listener.gate.establish(self):
            return LIMIT_EXCEEDED
        if storage or commitment:
            offered = supported(storage=storage, commitment=commitment)
            return Offer(contexts=offered, idle_timeout_s=options.idle_timeout_s)
        self._stranger = why = _unknown(request.calling_aet, host, options)
        return Offer(
            contexts=supported(storage=False, commitment=False), detail=why.detail, tell=bool(why.recorded),
            idle_timeout_s=min(_SILENCE_S, options.idle_timeout_s),
        )  # fmt: skip

    def _may_store(self, ae_title: str) -> bool:
        options = self._listener.options
        peers = [peer for peer in options.allow if is_among(ae_title, self.host, [peer])]
        return any(self._shows(options.bound.get(peer, ())) for peer in peers)

    def _reports(self, ae_title: str) -> bool:
        return is_among(ae_title, self.host, self._listener.options.commitment_peers)

    def _shows(self, wanted: Collection[str]) -> bool:
        return not wanted or any(identity in wanted for identity in self._shown)

    def _no_certificate(self, ae_title: str) -> Refusal | None:
        """Of an AE title that a client certificate stands for, and that may not store: why it is not believed."""
        options = self._listener.options
        wanted = {i for (title, _), bound in options.bound.items() if title.strip() == ae_title for i in bound}
        if not wanted:
            return None
        if options.tls is None:
            return replace(WITHOUT_TLS, detail="[receive] allow names its certificate: let it send to receive.tls.port")
        if self._shows(wanted):  # but from elsewhere
            return None if self._reports(ae_title) else _unknown(ae_title, self.host, options)
        shown = ", ".join(self._shown)
        return replace(
            NOT_ITS_CERTIFICATE, recorded=f"SHA-256 {self._shown[0]}" if shown else "it shows none",
            detail=f"[receive] allow wants {' or '.join(sorted(wanted))}; it shows {shown or 'none'}",
        )  # fmt: skip

    def answered(self, peer: Peer, refusal: Refusal | None) -> None:
        handlers = self._listener.handlers
        why = refusal or self._stranger
        if why and why.text == FROM_ANOTHER_ADDRESS.text:
            metrics.wrong_address()
        if refusal is None and self._stranger:
            handlers.echo_only(peer, _recorded(self._stranger) if self._stranger.recorded else "")
        else:
            handlers.association(peer, _recorded(refusal) if refusal else "")

    def aborted(self, peer: Peer, why: str) -> None:
        self._listener.handlers.aborted(peer, why)

    def warn(self, text: str, kind: str, **extra: str) -> None:
        self._listener.handlers.log.warning(log, f"{self.host}: {text}", whose=self.host, kind=kind, **extra)

    def begin(self, peer: Peer, context: Context, command: Command) -> Operation:
        options, handlers = self._listener.options, self._listener.handlers
        field, uid = command.field, context.abstract_syntax
        if field == C_ECHO_RQ and uid == VERIFICATION:
            return _Answer(SUCCESS)
        if field == C_STORE_RQ and uid in STORAGE:
            return StoreOperation(
                peer, context, command, folder=options.incoming, has_room=handlers.has_room, store=handlers.store,
                refused=handlers.refused,
            )  # fmt: skip
        if field in (N_ACTION_RQ, N_EVENT_REPORT_RQ) and uid == COMMITMENT:
            if field == N_ACTION_RQ and not self._may_store(peer.calling_aet):
                return _Answer(NOT_AUTHORISED)
            return CommitmentOperation(
                peer, context, command,
                requested=handlers.commit_requested, reported=handlers.commit_reported,
            )  # fmt: skip
        return _Answer(UNRECOGNISED_OPERATION)


class _Answer:
    """An operation whose answer is known from the start; its data set, if any, is let pass."""

    def __init__(self, status: int) -> None:
        self._status = status

    def write(self, fragment: memoryview) -> None:
        pass

    def finish(self) -> int:
        return self._status

    def discard(self) -> None:
        pass


def is_among(ae_title: str, host: str, peers: Iterable[tuple[str, str]]) -> bool:
    """Whether who calls itself so, at this address, is one of the peers (AE title, host name or IP address)."""
    return any(title.strip() == ae_title and _is_at(host, where) for title, where in peers)


def _unknown(ae_title: str, host: str, options: ListenerOptions) -> Refusal:
    """An AE title from another address than it should come from is told apart from one unheard of: it may be ours,
    behind a NAT or on a second network card. The peer hears the same of both.
    """
    for peers, where in (
        (options.allow, "[receive] allow has it from"),
        (options.commitment_peers, "[[destination]] has it at"),
    ):
        if hosts := ", ".join(dict.fromkeys(at for title, at in peers if title.strip() == ae_title)):
            seen = f"{hosts}, and this is {host}"
            mend = f'a NAT, or another network card? If it is the same system, allow it with host = "{host}" as well'
            return replace(FROM_ANOTHER_ADDRESS, detail=f"{where} {seen}: {mend}", recorded=seen)
    detail = (
        f'not in [receive] allow: to take its images, add it there with host = "{host}"; if it reports on storage '
        "commitment, name it in commitment_ae_titles of the [[destination]] that it reports for"
    )
    return replace(CALLING_NOT_RECOGNISED, detail=detail)


def _recorded(refusal: Refusal) -> str:
    return f"{refusal.text}: {refusal.recorded}" if refusal.recorded else refusal.text


def _is_at(host: str, where: str) -> bool:
    """Whether the address `host` is the address, or one of the addresses of the name, `where`."""
    try:
        return ipaddress.ip_address(where) == ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return host in {str(entry[4][0]) for entry in socket.getaddrinfo(where, None)}
    except OSError as error:
        text = f"cannot look up the host {where} of the allow list: {error.strerror}"
        _LOOK_UPS.warning(log, text, whose=where, kind="look-up")
        return False


def _join(connections: list[_Connection], grace_s: float) -> None:
    deadline = time.monotonic() + grace_s
    for connection in connections:
        connection.thread.join(max(0.0, deadline - time.monotonic()))
