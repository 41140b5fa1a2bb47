"""The listener at its edges: who is let in as what, what is told of the others, how it ends. Peers of bytes."""

from __future__ import annotations

import errno
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from cxrnode import metrics
from cxrnode.dicom import scp
from cxrnode.dicom.negotiation import COMMITMENT, LIMIT_EXCEEDED, VERIFICATION
from cxrnode.dicom.scp import Handlers, Listener, ListenerOptions, start_listener
from cxrnode.dicom.tls import client_context, server_context
from cxrnode.repeats import SparseLog
from cxrnode.types import Peer
from tests.support.awaiting import await_true
from tests.support.certificates import Authority
from tests.support.receiving import HOST, NODE, PACS, associate_rq, c_store_rq, command, p_data

CR = "1.2.840.10008.5.1.4.1.1.1"
IMPLICIT = str(ImplicitVRLittleEndian)
ECHO = command({0x0002: VERIFICATION.encode() + b"\0", 0x0100: b"\x30\0", 0x0110: b"\7\0", 0x0800: b"\1\1"})
ECHO_RQ = associate_rq((1, VERIFICATION, IMPLICIT), calling="STRANGER")
STORE_RQ = associate_rq((1, VERIFICATION, IMPLICIT), (3, CR, str(ExplicitVRLittleEndian)))
NOBODY = Peer(calling_aet="", called_aet="", host=HOST)
ACCEPTED, REJECTED, DATA, RELEASED, ABORTED = 2, 3, 4, 6, 7


class Said(SparseLog):
    """Notes what would be logged."""

    lines: list[tuple[str, Any, str, dict[str, str]]]

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "lines", [])

    def warning(self, log: logging.Logger, text: str, *, whose: Any, kind: str, **extra: str) -> None:
        assert log.name == "cxrnode.dicom.scp"
        self.lines.append((text, whose, kind, extra))


@dataclass
class Owner:
    """What the listener told."""

    listener: Listener
    log: Said
    associations: list[tuple[Peer, str]] = field(default_factory=list)
    echo_only: list[Peer] = field(default_factory=list)
    aborted: list[tuple[Peer, str]] = field(default_factory=list)


@contextmanager
def listening(
    folder: Path, *, store: Callable[[Any], int] = lambda _: 0, grace_s: float = 10.0, **options: Any
) -> Iterator[Owner]:
    told: dict[str, list[Any]] = {"associations": [], "echo_only": [], "aborted": []}
    log = Said()
    handlers = Handlers(
        store=store, has_room=lambda: True, commit_requested=lambda _: 0, commit_reported=lambda _: 0, log=log,
        association=lambda *what: told["associations"].append(what),
        echo_only=lambda peer, *_: told["echo_only"].append(peer),
        aborted=lambda *what: told["aborted"].append(what),
    )  # fmt: skip
    given: dict[str, Any] = {
        "ae_title": NODE, "bind": HOST, "port": 0, "incoming": folder, "allow": ((PACS, HOST),), **options,
    }  # fmt: skip
    listener = start_listener(ListenerOptions(**given), handlers)
    try:
        yield Owner(listener=listener, log=log, **told)
    finally:
        listener.close(grace_s)


@contextmanager
def peer(port: int, first: bytes = b"", host: str = HOST) -> Iterator[socket.socket]:
    with socket.create_connection((host, port), 30) as raw:
        raw.sendall(first)
        yield raw


def read(raw: socket.socket) -> tuple[int, bytes]:
    """The next PDU; 0 where the connection is over."""
    head = take(raw, 6)
    return (head[0], take(raw, int.from_bytes(head[2:6], "big"))) if len(head) == 6 else (0, b"")


def take(raw: socket.socket, count: int) -> bytes:
    data = b""
    with suppress(ConnectionError):
        while len(data) < count and (part := raw.recv(count - len(data))):
            data += part
    return data


def status(raw: socket.socket) -> int:
    kind, content = read(raw)
    assert kind == DATA
    at = content.index(struct.pack("<HHL", 0, 0x0900, 2)) + 8
    return int.from_bytes(content[at : at + 2], "little")


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith(("listener:", "peer:"))]


# -- the listener


def test_what_holds_where_nothing_else_is_said(tmp_path: Path) -> None:
    options = ListenerOptions(ae_title=NODE, bind=HOST, port=104, incoming=tmp_path, allow=())
    assert (options.max_associations, options.max_associations_per_host, options.idle_timeout_s) == (50, 20, 30.0)
    assert (options.bound, options.commitment_peers, options.tls) == ({}, (), None)
    assert scp._SILENCE_S == 5.0  # for a handshake, a request, a stranger


def test_it_listens_where_it_is_told_and_its_threads_keep_no_process_alive(tmp_path: Path) -> None:
    with listening(tmp_path, bind="::1", allow=((PACS, "::1"),)) as node:
        with peer(node.listener.port, STORE_RQ, "::1") as raw:
            assert read(raw)[0] == ACCEPTED
            assert {t.daemon for t in threads()} == {True}
            assert {t.name for t in threads()} == {f"listener:{node.listener.port}", "peer:::1"}
            (connection,) = node.listener._connections
            assert connection._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await_true(lambda: not node.listener._connections)
    with pytest.raises(OSError, match=r"\[Errno"):
        listening(tmp_path, bind="192.0.2.1").__enter__()


def test_closing_ends_the_idle_at_once_and_leaves_no_thread(tmp_path: Path) -> None:
    began = time.monotonic()
    with listening(tmp_path, grace_s=60.0) as node:
        raw = socket.create_connection((HOST, node.listener.port), 30)
        raw.sendall(STORE_RQ)
        assert read(raw)[0] == ACCEPTED
    assert time.monotonic() - began < 30
    assert read(raw)[0] in {ABORTED, 0}
    raw.close()
    assert not threads()
    assert not node.listener._connections


def test_closing_waits_for_a_message_as_long_as_it_is_told(tmp_path: Path) -> None:
    """Until the peer has sent the rest of it, or the grace is over."""
    with listening(tmp_path, grace_s=0.3) as node:
        raw = socket.create_connection((HOST, node.listener.port), 30)
        raw.sendall(STORE_RQ)
        assert read(raw)[0] == ACCEPTED
        raw.sendall(p_data(3, 3, command(c_store_rq(CR, b"1.2.3"))) + p_data(3, 0, b"half"))
        await_true(lambda: [c for c in node.listener._connections if c.busy])
        began = time.monotonic()
    assert 0.3 <= time.monotonic() - began < 20
    raw.close()
    assert not threads()
    assert not list(tmp_path.iterdir())  # nothing of it


def test_closing_lets_what_is_under_way_come_to_its_end(tmp_path: Path) -> None:
    with listening(tmp_path, grace_s=60.0) as node, peer(node.listener.port, STORE_RQ) as raw:
        assert read(raw)[0] == ACCEPTED
        raw.sendall(p_data(3, 3, command(c_store_rq(CR, b"1.2.3"))) + p_data(3, 0, b"half"))
        await_true(lambda: [c for c in node.listener._connections if c.busy])
        closing = threading.Thread(target=node.listener.close, args=(60.0,))
        closing.start()
        await_true(lambda: node.listener.closing)
        raw.sendall(p_data(3, 2, b"whole"))
        assert status(raw) == 0
        assert read(raw)[0] == ABORTED
        raw.close()
        closing.join()


def test_a_connection_that_cannot_be_accepted_is_said_and_the_next_one_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of file descriptors, for instance: tried again, but not all the time."""
    errors = [OSError(errno.EMFILE, "Too many open files")] * 3
    real = socket.socket.accept

    def accept(server: socket.socket) -> Any:
        if errors:
            raise errors.pop()
        return real(server)

    monkeypatch.setattr(socket.socket, "accept", accept)
    began = time.monotonic()
    with listening(tmp_path) as node, peer(node.listener.port, STORE_RQ) as raw:
        assert read(raw)[0] == ACCEPTED
        assert time.monotonic() - began >= 0.3
    assert node.log.lines == [("cannot accept connections: Too many open files", "listener", "accept", {})] * 3


def test_many_may_come_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the system lets wait by default, while none is accepted."""
    real, go_on = socket.socket.accept, threading.Event()

    def accept(server: socket.socket) -> Any:
        go_on.wait(60)
        return real(server)

    monkeypatch.setattr(socket.socket, "accept", accept)
    with listening(tmp_path) as node, ExitStack() as stack:
        stack.callback(go_on.set)
        for _ in range(200):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(20)
            waiting.connect((HOST, node.listener.port))


def test_a_connection_that_gets_no_thread_is_ended_and_the_next_one_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, refused = threading.Thread.start, [1]

    def none_left(thread: threading.Thread) -> None:
        if thread.name.startswith("peer:") and refused:
            refused.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", none_left)
    with listening(tmp_path, max_associations=1) as node:
        with peer(node.listener.port, STORE_RQ) as raw:
            assert read(raw)[0] == 0
        assert not node.listener._connections
        with peer(node.listener.port, STORE_RQ) as raw:
            assert read(raw)[0] == ACCEPTED
    assert node.log.lines == [(f"{HOST}: connection refused: no more threads", "listener", "threads", {})]


# -- who is let in, and as what


def test_an_association_makes_room_for_the_next_when_it_is_over(tmp_path: Path) -> None:
    with listening(tmp_path, max_associations=5, max_associations_per_host=1) as node:
        with peer(node.listener.port, STORE_RQ) as first:
            assert read(first)[0] == ACCEPTED
            with peer(node.listener.port, STORE_RQ) as second:
                assert read(second) == (REJECTED, LIMIT_EXCEEDED.encode()[6:])
        us = Peer(calling_aet=PACS, called_aet=NODE, host=HOST)
        await_true(lambda: not node.listener._connections)
        with peer(node.listener.port, STORE_RQ) as third:
            assert read(third)[0] == ACCEPTED
    assert node.associations == [(us, ""), (us, "too many associations"), (us, "")]


def test_there_are_no_more_associations_than_in_all(tmp_path: Path) -> None:
    with (
        listening(tmp_path, max_associations=1, max_associations_per_host=5) as node,
        peer(node.listener.port, STORE_RQ) as first,
    ):
        assert read(first)[0] == ACCEPTED
        with peer(node.listener.port, STORE_RQ) as second:
            assert read(second)[0] == REJECTED
        assert [line[2] for line in node.log.lines] == ["too many associations"]


def test_an_ae_title_is_compared_without_its_padding(tmp_path: Path) -> None:
    with listening(tmp_path, ae_title=f" {NODE} ", allow=((f" {PACS} ", HOST),)) as node:
        with peer(node.listener.port, STORE_RQ) as raw:
            assert read(raw)[0] == ACCEPTED
        with peer(node.listener.port, associate_rq((1, VERIFICATION, IMPLICIT), called="OTHER")) as raw:
            assert read(raw)[0] == REJECTED
    text, whose, kind, extra = node.log.lines[-1]
    assert text == (
        f"{HOST}: association of 'PACS' to 'OTHER' rejected: called AE title not recognised "
        "(this node is CXRNODE, see node.ae_title)"
    )
    reason = "called AE title not recognised"
    assert (whose, kind, extra) == (HOST, reason, {"host": HOST, "reason": reason})


def test_a_stranger_may_ask_whether_we_are_there(tmp_path: Path) -> None:
    with listening(tmp_path) as node:
        with peer(node.listener.port, ECHO_RQ) as raw:
            assert read(raw)[0] == ACCEPTED
            raw.sendall(p_data(1, 3, ECHO))
            assert status(raw) == 0
        with peer(node.listener.port, associate_rq((1, CR, IMPLICIT), calling="STRANGER")) as raw:
            assert read(raw)[0] == REJECTED
    stranger = Peer(calling_aet="STRANGER", called_aet=NODE, host=HOST)
    assert node.echo_only == [stranger]
    assert node.associations == [(stranger, "calling AE title not recognised")]


@pytest.mark.parametrize(("where", "taken"), [("localhost", True), ("127.0.0.1", True), ("192.0.2.7", False)])
def test_a_peer_is_known_by_its_address_or_by_a_name_of_it(tmp_path: Path, where: str, taken: bool) -> None:
    with (
        listening(tmp_path, allow=((PACS, where),)) as node,
        peer(node.listener.port, associate_rq((1, CR, IMPLICIT))) as raw,
    ):
        assert read(raw)[0] == (ACCEPTED if taken else REJECTED)


def test_a_name_that_cannot_be_looked_up_is_said_and_keeps_nobody_else_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Said()
    monkeypatch.setattr(scp, "_LOOK_UPS", log)
    with (
        listening(tmp_path, allow=((PACS, "no-such-host.invalid"), (PACS, HOST))) as node,
        peer(node.listener.port, associate_rq((1, CR, IMPLICIT))) as raw,
    ):
        assert read(raw)[0] == ACCEPTED
    text, whose, kind, extra = log.lines[0]
    assert text.startswith("cannot look up the host no-such-host.invalid of the allow list: ")
    assert not text.endswith("None")
    assert (whose, kind, extra) == ("no-such-host.invalid", "look-up", {})


PUSH_RQ = associate_rq((1, VERIFICATION, IMPLICIT), (3, CR, IMPLICIT), (5, COMMITMENT, IMPLICIT))


@pytest.mark.parametrize(
    ("context", "field"), [(3, 0x0030), (5, 0x0030), (1, 0x0001), (5, 0x0001), (1, 0x0130), (3, 0x0130), (3, 0x0100),
                           (1, 0x0020), (3, 0x0020), (5, 0x0150)],
)  # fmt: skip
def test_an_operation_of_another_sop_class_is_refused_and_its_data_set_let_pass(
    tmp_path: Path, context: int, field: int
) -> None:
    asked = command({0x0100: struct.pack("<H", field), 0x0110: b"\7\0", 0x0800: b"\0\0"})
    with listening(tmp_path) as node, peer(node.listener.port, PUSH_RQ) as raw:
        assert read(raw)[0] == ACCEPTED
        raw.sendall(p_data(context, 3, asked) + p_data(context, 0, b"some") + p_data(context, 2, b"data"))
        assert status(raw) == 0x0211
        raw.sendall(p_data(1, 3, ECHO))
        assert status(raw) == 0
    assert not list(tmp_path.iterdir())


# -- how long who is waited for


@pytest.mark.parametrize("tls", [False, True], ids=["request", "handshake"])
def test_a_connection_that_stays_silent_ends_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    monkeypatch.setattr(scp, "_SILENCE_S", 0.1)
    counted: list[str] = []
    monkeypatch.setattr(metrics, "connection_aborted", counted.append)
    context = secure(tmp_path)[1] if tls else None
    with (
        listening(tmp_path, idle_timeout_s=60.0, tls=(lambda: context) if tls else None) as node,
        peer(node.listener.port) as raw,
    ):
        raw.settimeout(20)
        assert read(raw) == (0, b"")
        await_true(lambda: not node.listener._connections)
    assert (counted, node.log.lines, node.aborted, node.associations) == ([], [], [], [])


def associate(
    node: Owner, raw: socket.socket, request: bytes, monkeypatch: pytest.MonkeyPatch, silence_s: float
) -> None:
    """With another patience of the listener from the request on."""
    await_true(lambda: [c for c in node.listener._connections if c._acceptor])
    monkeypatch.setattr(scp, "_SILENCE_S", silence_s)
    raw.settimeout(20)
    raw.sendall(request)
    assert read(raw)[0] == ACCEPTED


@pytest.mark.parametrize(("silence_s", "idle_s"), [(0.1, 60.0), (60.0, 0.1)])
def test_a_stranger_is_waited_for_no_longer_than_who_says_nothing_and_no_longer_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silence_s: float, idle_s: float
) -> None:
    with listening(tmp_path, idle_timeout_s=idle_s) as node, peer(node.listener.port) as raw:
        associate(node, raw, ECHO_RQ, monkeypatch, silence_s)
        assert read(raw)[0] == ABORTED


def test_who_is_known_has_the_time_that_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(tmp_path, idle_timeout_s=60.0) as node, peer(node.listener.port) as raw:
        associate(node, raw, STORE_RQ, monkeypatch, 0.1)
        time.sleep(0.5)
        raw.sendall(p_data(1, 3, ECHO))
        assert status(raw) == 0


# -- TLS


def secure(folder: Path) -> tuple[Authority, Any]:
    authority = Authority(folder.parent)
    ours = authority.issue("node")
    return authority, server_context(certificate=ours.certificate, key=ours.key, ca=authority.ca)


def test_who_does_not_come_to_terms_is_told_of_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    monkeypatch.setattr(metrics, "connection_aborted", counted.append)
    folder = tmp_path / "in"
    folder.mkdir()
    _, context = secure(folder)
    with listening(folder, tls=lambda: context) as node:
        with peer(node.listener.port, STORE_RQ) as raw:
            assert read(raw)[0] not in {ACCEPTED, REJECTED}
        await_true(lambda: node.aborted)
    ((_, why),) = node.aborted
    assert why.startswith("no TLS connection: it does not speak TLS, and this port does")
    assert node.aborted == [(NOBODY, why)]
    assert node.log.lines == [(f"{HOST}: {why}", HOST, "TLS", {"host": HOST})]
    assert counted == ["no TLS"]


def test_over_tls_the_same_is_served(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    authority, context = secure(folder)
    theirs = authority.issue("peer")
    client = client_context(ca=authority.ca, certificate=theirs.certificate, key=theirs.key)
    with (
        listening(folder, tls=lambda: context) as node,
        peer(node.listener.port) as plain,
        client.wrap_socket(plain, server_hostname=HOST) as raw,
    ):
        raw.sendall(STORE_RQ)
        assert read(raw)[0] == ACCEPTED
        raw.sendall(p_data(1, 3, ECHO))
        assert status(raw) == 0
