"""Reading and lingering against the clock: no peer holds a connection longer than it may."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from cxrnode.dicom import sockets
from cxrnode.dicom.sockets import PeerGone, Wire, pdu


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


class Dripping:
    """A socket from which a part comes every so many seconds."""

    def __init__(self, clock: Clock, sent: bytes, size: int, every_s: float) -> None:
        self._clock, self._every_s = clock, every_s
        self._parts = [sent[at : at + size] for at in range(0, len(sent), size)]

    def settimeout(self, _seconds: float) -> None:
        pass

    def recv_into(self, view: memoryview) -> int:
        self._clock.now += self._every_s
        part = self._parts.pop(0)
        view[: len(part)] = part
        return len(part)


@pytest.mark.parametrize(
    ("size", "every_s", "whole"),
    [(3, 4.0, True), (3, 6.0, True), (2, 5.0, True), (2, 5.1, False), (1, 4.0, False)],
    ids=["in-time", "late-but-whole", "just", "stalled", "byte-by-byte"],
)
def test_a_pdu_comes_within_twice_the_time(
    monkeypatch: pytest.MonkeyPatch, size: int, every_s: float, whole: bool
) -> None:
    """Ten seconds for its head, ten for its content; what is there whole is taken."""
    clock: Any = Clock()
    monkeypatch.setattr(sockets, "time", clock)
    sock: Any = Dripping(clock, pdu(4, b"123456"), size, every_s)
    wire = Wire(sock, 10.0)
    if whole:
        assert bytes(wire.read_pdu({4: 10})[1]) == b"123456"
    else:
        with pytest.raises(PeerGone, match="stalled inside a PDU"):
            wire.read_pdu({4: 10})


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_each_pdu_has_the_whole_buffer(ends: tuple[socket.socket, socket.socket]) -> None:
    """Half a MiB a connection, wherever the last PDU ended."""
    ours, theirs = ends
    wire, size = Wire(ours, 30.0), (1 << 19) - 6
    assert len(wire._view) == 1 << 19
    for n in range(3):
        sender = threading.Thread(target=theirs.sendall, args=(pdu(4, bytes([n]) * size),))
        sender.start()
        assert bytes(wire.read_pdu({4: size})[1]) == bytes([n]) * size
        sender.join()


def test_the_beginning_of_a_pdu_is_kept_where_the_buffer_ends_inside_it() -> None:
    contents = [bytes([n]) * 400_000 for n in range(1, 6)]
    sock: Any = Dripping(Clock(), b"".join(pdu(4, content) for content in contents), 100_000, 0.0)
    wire = Wire(sock, 30.0)
    assert [bytes(wire.read_pdu({4: 400_000})[1]) for _ in contents] == contents


def test_a_wait_may_be_set_anew(ends: tuple[socket.socket, socket.socket]) -> None:
    wire = Wire(ends[0], 60.0)
    wire.set_timeout(0.05)
    began = time.monotonic()
    with pytest.raises(PeerGone, match="TimeoutError"):
        wire.read_pdu({4: 10})
    assert time.monotonic() - began < 20


# -- the last words


def test_the_last_words_arrive_though_the_peer_still_talks(ends: tuple[socket.socket, socket.socket]) -> None:
    """It hears them, and that they were the last, and has a moment to close."""
    ours, theirs = ends
    wire = Wire(ours, 30.0)
    wire.send(b"last")
    theirs.sendall(bytes(1000))
    thread = threading.Thread(target=wire.linger)
    thread.start()
    assert (theirs.recv(10), theirs.recv(10)) == (b"last", b"")
    theirs.close()
    thread.join()
    assert not ours.recv(10)  # all of it was taken


def test_a_peer_that_never_closes_has_a_second(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sockets._LINGER_S == 1.0
    monkeypatch.setattr(sockets, "_LINGER_S", 0.2)
    began = time.monotonic()
    Wire(ends[0], 60.0).linger()
    assert 0.2 <= time.monotonic() - began < 20


def test_nor_has_one_that_never_stops_talking(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = ends
    monkeypatch.setattr(sockets, "_LINGER_S", 0.2)
    over = threading.Event()

    def talk() -> None:
        with suppress(OSError):
            while not over.wait(0.02):
                theirs.sendall(b"x")

    talker = threading.Thread(target=talk)
    talker.start()
    limit = threading.Timer(20.0, over.set)
    limit.start()
    began = time.monotonic()
    Wire(ours, 60.0).linger()
    over.set()
    limit.cancel()
    talker.join()
    assert time.monotonic() - began < 15


def test_a_connection_that_is_over_has_no_last_words() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    wire = Wire(ours, 30.0)
    wire.linger()
    ours.close()
    wire.linger()
