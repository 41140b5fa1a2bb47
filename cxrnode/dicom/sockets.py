"""The transport under an association: whole PDUs of a bounded size within a bounded time (PS3.8 section 9.3.1).

pynetdicom's own (AssociationSocket and the DUL reactor above it) reads 4096 bytes a call, believes any PDU length, and
waits for ever for the rest of a PDU; so the acceptor side reads its PDUs here.
"""

from __future__ import annotations

import mmap
import socket
import ssl
import struct
import time
from collections.abc import Mapping
from contextlib import suppress

_HEADER = struct.Struct(">BBL")
HEADER_BYTES = _HEADER.size
_BUFFER_BYTES = 1 << 19  # several PDUs a read
_LINGER_S = 1.0
# what other protocols begin with, where a PDU's type should stand
_FOREIGN = {
    0x16: "it speaks TLS, and this port does not: send to the TLS port (receive.tls.port), or switch TLS off there",
    **dict.fromkeys(b"GHPO", "it speaks HTTP, it seems, and this is a DICOM port"),
}

# A-ABORT reasons of the provider (PS3.8 section 9.3.8)
UNRECOGNISED_PDU = 1
UNEXPECTED_PDU = 2
INVALID_PARAMETER = 6
ABORT_REASONS = {
    UNRECOGNISED_PDU: "unrecognised PDU", UNEXPECTED_PDU: "unexpected PDU", INVALID_PARAMETER: "invalid PDU parameter",
}  # fmt: skip


class PeerGone(Exception):  # noqa: N818 (the peer's doing, not an error of ours)
    """The connection ended, or the peer said nothing for too long."""


class Malformed(Exception):  # noqa: N818
    """What the peer sent is no DICOM; `reason` goes into the A-ABORT."""

    def __init__(self, reason: int, what: str) -> None:
        super().__init__(what)
        self.reason = reason


class Wire:
    """PDUs over a connected socket. Nobody waits longer than `timeout_s` seconds, twice that inside a PDU."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._sock = sock
        self._view = memoryview(mmap.mmap(-1, _BUFFER_BYTES))  # given back to the system, which a heap is slow to do
        self._start = self._end = 0
        self.set_timeout(timeout_s)

    def set_timeout(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._sock.settimeout(timeout_s)

    def read_pdu(self, limits: Mapping[int, int]) -> tuple[int, memoryview]:
        """The next PDU: its type and its content, which is valid until the next call.

        limits: the types that may come now, and the length in bytes that each may have. Raises PeerGone; Malformed
        for another type or a larger length, before anything of it is read.
        """
        self._need(HEADER_BYTES)
        pdu_type, _, length = _HEADER.unpack_from(self._view, self._start)
        if pdu_type not in limits:
            known = 1 <= pdu_type <= 7
            what = _FOREIGN.get(pdu_type, f"PDU type 0x{pdu_type:02X}")
            raise Malformed(UNEXPECTED_PDU if known else UNRECOGNISED_PDU, what)
        if length > limits[pdu_type]:
            raise Malformed(INVALID_PARAMETER, f"a PDU of {length} bytes")
        self._need(HEADER_BYTES + length)
        at = self._start + HEADER_BYTES
        self._start = at + length
        return pdu_type, self._view[at : self._start]

    def send(self, data: bytes) -> None:
        """All of `data`. Raises PeerGone."""
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise PeerGone(type(error).__name__) from None

    def linger(self) -> None:
        """Wait a moment for the peer to close: closing first, with bytes unread, would take our last words back."""
        deadline = time.monotonic() + _LINGER_S
        try:
            self._sock.settimeout(_LINGER_S)
            if not isinstance(self._sock, ssl.SSLSocket):
                self._sock.shutdown(socket.SHUT_WR)
            while time.monotonic() < deadline and self._sock.recv_into(self._view):
                pass
        except OSError:
            pass  # gone already

    def _need(self, count: int) -> None:
        """Have `count` unread bytes in the buffer."""
        if self._start + count > len(self._view) or self._start == self._end:
            self._view[: self._end - self._start] = self._view[self._start : self._end]
            self._start, self._end = 0, self._end - self._start
        deadline = time.monotonic() + self._timeout_s
        while self._end - self._start < count:
            try:
                got = self._sock.recv_into(self._view[self._end :])
            except OSError as error:
                raise PeerGone(type(error).__name__) from None
            if not got:
                raise PeerGone("closed")
            self._end += got
            if self._end - self._start < count and time.monotonic() > deadline:
                raise PeerGone("stalled inside a PDU")


def force_down(sock: socket.socket) -> None:
    """End a connection that another thread is using: its reads and writes return at once.

    At the level of the file descriptor, also for TLS: SSLSocket.shutdown would pull its state from under that thread.
    """
    with suppress(OSError):  # closed already
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def pdu(pdu_type: int, content: bytes) -> bytes:
    """A whole PDU (PS3.8 section 9.3.1)."""
    return _HEADER.pack(pdu_type, 0, len(content)) + content
