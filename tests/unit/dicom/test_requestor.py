"""Associations that the node asks for: why there is none, in which pieces it sends, how long it waits, how it ends."""

from __future__ import annotations

import gc
import queue
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from cxrnode.dicom import requestor
from cxrnode.dicom.requestor import SendError, TidyAE, bounded, end, tear_down
from cxrnode.dicom.scu import StoreScu
from cxrnode.dicom.sockets import pdu
from cxrnode.dicom.tls import client_context, server_context
from cxrnode.types import Destination
from tests.support.answering import VERIFICATION, Listening, accepting, film, pacs
from tests.support.awaiting import await_true
from tests.support.certificates import Authority
from tests.support.faulty_pacs import faulty_pacs
from tests.support.orthanc import free_port
from tests.support.raw import silent_port
from tests.support.receiving import HOST, NODE, running_node


def scu(there: Destination, **how: Any) -> StoreScu:
    return StoreScu(there, on_report=lambda _: 0, **how)


# -- why there is no association


def refused(there: Destination, **how: Any) -> str:
    with pytest.raises(SendError) as caught:
        scu(there, **how).open()
    return str(caught.value)


def test_a_peer_that_is_not_there_is_named() -> None:
    port = free_port()
    assert refused(Destination(ae_title="PACS", host=HOST, port=port)) == f"no connection: refused by {HOST}:{port}"
    assert refused(Destination(ae_title="PACS", host="::1", port=port)) == f"no connection: refused by [::1]:{port}"
    nowhere = refused(Destination(ae_title="PACS", host="no-such-host.invalid", port=104))
    assert nowhere.startswith("no connection: no-such-host.invalid: ")
    assert "None" not in nowhere
    broadcast = refused(Destination(ae_title="PACS", host="255.255.255.255", port=104))
    assert broadcast.startswith("no connection: 255.255.255.255:104: ")
    assert broadcast.rpartition(": ")[2] in {"Network is unreachable", "Permission denied"}


def test_a_peer_that_takes_nothing_or_hangs_up_is_said() -> None:
    with pacs(takes=("1.2.840.10008.5.1.4.1.1.2",)) as (there, _):
        assert refused(there) == (
            "none of the node's SOP classes is accepted: enable Comprehensive 3D SR and Secondary Capture for it"
        )
    with faulty_pacs(associations=["reject"]) as rejecting:
        assert refused(rejecting.destination).startswith("association rejected: ")
    for reset in (False, True):
        with hanging_up(reset=reset) as port:
            said = f"no answer: {HOST}:{port} ended the connection; it may not know our AE title, or want TLS"
            assert refused(Destination(ae_title="PACS", host=HOST, port=port)) == said


@contextmanager
def hanging_up(*, reset: bool = False) -> Iterator[int]:
    """Reads the request, and ends the connection, the rude way or the polite one."""
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(1 << 16)
                if reset:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def test_tls_that_does_not_come_to_terms_is_said(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path), Authority(tmp_path, "theirs")
    client = client_context(ca=ours.ca)
    foreign, own = theirs.issue("peer"), ours.issue("peer")

    def tls(port: int, context: ssl.SSLContext = client) -> Destination:
        return Destination(ae_title=NODE, host=HOST, port=port, tls=lambda: context)

    with running_node(tmp_path / "plain") as plain:
        where = f"{HOST}:{plain.port}"
        assert refused(tls(plain.port)) in {
            f"no connection: {where} does not speak TLS",
            f"no connection: the TLS handshake with {where} failed: unexpected eof while reading",
        }
    server = server_context(certificate=foreign.certificate, key=foreign.key, ca=theirs.ca)
    with running_node(tmp_path / "foreign", ssl_context=server) as node:
        said = f"no connection: the certificate of {HOST}:{node.port} is not good: self-signed certificate in"
        assert refused(tls(node.port)).startswith(said)
    server = server_context(certificate=own.certificate, key=own.key, ca=ours.ca)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    with running_node(tmp_path / "older", ssl_context=server) as node:
        newest = client_context(ca=ours.ca)
        newest.minimum_version = ssl.TLSVersion.TLSv1_3
        said = f"no connection: the TLS handshake with {HOST}:{node.port} failed: tlsv1 alert protocol version"
        assert refused(tls(node.port, newest)) == said
    server.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    with running_node(tmp_path / "certificate", ssl_context=server) as node:  # wants one of ours, and hangs up
        assert "TLS" in refused(tls(node.port))


# -- in which pieces


def test_it_asks_for_even_fragments_that_just_fit(tmp_path: Path) -> None:
    for announced, most in ((8, 8), (17, 16), (0, 1 << 20)):
        parts: list[int] = []

        def sizes(event: Any, parts: list[int] = parts) -> None:
            items = getattr(event.pdu, "presentation_data_value_items", [])
            parts.extend(len(item.presentation_data_value) - 1 for item in items)

        with pacs(max_pdu=announced) as (there, seen), scu(there) as sender:
            await_true(lambda seen=seen: seen)  # type: ignore[misc]
            seen[0].assoc.bind(evt.EVT_PDU_RECV, sizes)
            assert sender.send(film(tmp_path)).status == 0
        assert all(size % 2 == 0 and size + 6 <= most for size in parts)
        assert max(parts) == most - 6 or most > 100


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_connections_that_fail_leave_no_descriptor_open() -> None:
    gc.collect()
    gc.disable()
    try:
        before = descriptors()
        for _ in range(3):
            with pytest.raises(SendError):
                scu(Destination(ae_title="PACS", host=HOST, port=free_port())).open()
        assert descriptors() == before
    finally:
        gc.enable()


# -- how long it waits


@pytest.mark.parametrize("stage", ["connection", "association", "answer"])
def test_a_peer_that_says_nothing_holds_it_up_no_longer_than_it_is_told(stage: str) -> None:
    """Long before pynetdicom's own half minute is over, or the system's two."""
    over = threading.Event()
    began = time.monotonic()
    with ExitStack() as stack:
        if stage == "answer":
            there, _ = stack.enter_context(pacs(echo=lambda _: over.wait(60) and 0))
            sender = stack.enter_context(scu(there, timeout_s=0.2))
            with pytest.raises(SendError, match="no answer to C-ECHO"):
                sender.echo()
        else:
            port = stack.enter_context(silent_port(connects=stage == "association"))
            said = refused(Destination(ae_title="PACS", host=HOST, port=port), timeout_s=0.2)
            assert stage == "association" or said == f"no connection: {HOST}:{port} does not answer"
        over.set()
    assert time.monotonic() - began < 20


def test_a_peer_that_stops_reading_holds_it_up_no_longer_than_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it keep the sender from giving up: pynetdicom's own socket waits for ever."""
    monkeypatch.setattr(requestor, "_GRACE_S", 60.0)  # after which it would be torn down anyway
    path, over = film(tmp_path, filler=30_000_000), threading.Event()
    began = time.monotonic()
    with accepting(lambda _: over.wait(60)) as there:
        with scu(there, timeout_s=0.5) as sender, pytest.raises(SendError, match="no answer to C-STORE"):
            sender.send(path)
        assert time.monotonic() - began < 20
        over.set()


# -- how it ends, whatever the peer does

RELEASE_RQ, RELEASE_RP, ABORT = pdu(5, bytes(4)), pdu(6, bytes(4)), pdu(7, bytes(4))


def associate(there: Destination, *, acse_s: float = 60.0, connect_s: float = 10.0) -> Association:
    ae = TidyAE(ae_title=NODE)
    ae.dimse_timeout = ae.network_timeout = 60.0
    ae.acse_timeout, ae.connection_timeout = acse_s, connect_s
    return ae.associate(there.host, there.port, contexts=[build_context(VERIFICATION)], ae_title="PACS")


def over(assoc: Association) -> bool:
    """Nothing of it is left."""
    return not (assoc.is_established or assoc.is_alive() or assoc.dul.is_alive())


def test_the_times_are_those_stated() -> None:
    """Of ours beyond pynetdicom's: a connection, a release, anything else, a thread that is to end."""
    assert (requestor.CONNECT_TIMEOUT_S, requestor.RELEASE_S, requestor._GRACE_S, requestor._END_S) == (10, 5, 5, 2)


def test_a_release_that_is_answered_is_all_that_the_peer_hears() -> None:
    peer = Listening(RELEASE_RP)
    with accepting(peer) as there:
        assoc = associate(there)
        assert assoc.dul.daemon
        end(assoc)
        assert over(assoc)
    assert peer.heard == RELEASE_RQ


@pytest.mark.parametrize("answer", [b"", RELEASE_RP[:3], pdu(4, bytes(6))[:8]], ids=["none", "half", "other"])
def test_a_release_that_is_not_answered_is_aborted(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(requestor, "RELEASE_S", 0.2)
    peer = Listening(answer)
    with accepting(peer) as there:
        assoc = associate(there)
        began = time.monotonic()
        end(assoc)
        assert 0.2 <= time.monotonic() - began < 20
        assert over(assoc)
    assert peer.heard == RELEASE_RQ + ABORT


def test_what_is_torn_down_tells_its_peer_and_leaves_nothing() -> None:
    peer = Listening()
    gc.collect()
    gc.disable()
    try:
        with accepting(peer) as there:
            before = descriptors()
            assoc = associate(there)
            tear_down(assoc)
            assert over(assoc)
            tear_down(assoc)
        assert descriptors() < before  # the listening one, too, is closed
    finally:
        gc.enable()
    assert peer.heard == ABORT


def test_what_is_no_longer_established_leaves_nothing_either() -> None:
    peer = Listening()
    with accepting(peer) as there:
        assoc = associate(there)
        assoc.is_established = False  # and so there is nothing to release
        end(assoc)
        assert over(assoc)
    assert peer.heard == ABORT


def test_a_request_that_hangs_ends_soon_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a PDU, which pynetdicom waits for the rest of, and longer than it is told."""
    monkeypatch.setattr(requestor, "_GRACE_S", 0.2)
    with accepting(Listening(pdu(4, bytes(20))[:10])) as there:
        assoc = associate(there)
        began = time.monotonic()
        with bounded(assoc, 0.2):
            assert "Status" not in assoc.send_c_echo()
        assert 0.4 <= time.monotonic() - began < 20
        await_true(lambda: over(assoc), seconds=20)


def test_a_request_that_is_answered_in_time_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requestor, "_GRACE_S", 0.1)
    with pacs() as (there, _):
        assoc = associate(there)
        with bounded(assoc, 20.0):
            assert assoc.send_c_echo().Status == 0
        time.sleep(0.3)
        assert assoc.is_established
        end(assoc)


def test_half_an_answer_to_the_request_for_an_association_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requestor, "_GRACE_S", 0.2)
    with accepting(Listening(), lambda ac: ac[:20]) as there:
        began = time.monotonic()
        assoc = associate(there, acse_s=0.2, connect_s=0.2)
        assert 0.6 <= time.monotonic() - began < 20
        assert over(assoc)


def test_an_answer_to_the_request_for_an_association_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requestor, "_GRACE_S", 0.1)

    def dawdle(ac: bytes) -> bytes:
        time.sleep(1.0)
        return ac

    with accepting(Listening(RELEASE_RP), dawdle) as there:
        assoc = associate(there, acse_s=20.0, connect_s=20.0)
        assert assoc.is_established
        end(assoc)


def test_over_tls_the_connection_ends_without_a_word(tmp_path: Path) -> None:
    """Only its own thread may write."""
    authority = Authority(tmp_path)
    theirs = authority.issue("peer")
    server = server_context(certificate=theirs.certificate, key=theirs.key, ca=authority.ca)
    client = client_context(ca=authority.ca, certificate=theirs.certificate, key=theirs.key)
    with running_node(tmp_path / "var", ssl_context=server) as node:
        sender = scu(Destination(ae_title=NODE, host=HOST, port=node.port, tls=lambda: client)).open()
        assoc = sender._assoc
        assert assoc
        tear_down(assoc)
        assert over(assoc)
        await_true(lambda: not node.listener._connections)


class Drowsy(queue.Queue[Any]):
    """As on a busy machine: what comes is taken late, by who waits for it later than by who only looks."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        until = time.monotonic() + (timeout or 60.0)
        while block and not self.queue and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.5 if block else 0.05)
        return super().get(block, max(until - time.monotonic(), 0.0))


def test_no_thread_of_the_association_takes_away_what_its_waiting_caller_is_woken_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(requestor, "RELEASE_S", 0.2)
    monkeypatch.setattr(requestor, "_GRACE_S", 0.2)
    for ask in (end, echo_in_time):
        with accepting(Listening()) as there:
            assoc = associate(there)
            assoc.dul.to_user_queue, assoc.dimse.msg_queue = Drowsy(), Drowsy()
            began = time.monotonic()
            ask(assoc)
            assert time.monotonic() - began < 20


def echo_in_time(assoc: Association) -> None:
    with bounded(assoc, 0.2):
        assoc.send_c_echo()
