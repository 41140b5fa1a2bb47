"""Audit messages over syslog: RFC 5424 (the message), RFC 5425 (TLS, octet counting), as PS3.15 section A.6 wants it.

Syslog acknowledges nothing. What comes nearest is the end of a connection: a receiver answers our close_notify with its
own (RFC 5425 section 4.4), and to do so it must have read all that we wrote before.
"""

from __future__ import annotations

import errno
import fcntl
import re
import socket
import ssl
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from cxrnode.types import AuditEvent

_PRI = 10 * 8 + 5  # security/authorization messages, normal but significant condition (A.6)
_BOM = b"\xef\xbb\xbf"
_MSGID = "DICOM+RFC3881"  # A.6
_NOT_PRINTABLE = re.compile(r"[^\x21-\x7e]")


class SyslogError(Exception):
    """The server cannot be reached, or did not take what it was sent: worth another try."""


def syslog_message(event: AuditEvent, message: bytes, *, host: str) -> bytes:
    """A record's message in its frame; its time is the record's, however late it is sent."""
    at = event.at.isoformat(timespec="milliseconds")
    header = f"<{_PRI}>1 {at} {_token(host, 255)} cxrnode {_token(event.actor, 128)} {_MSGID} - "
    whole = header.encode("ascii") + _BOM + message
    return b"%d %b" % (len(whole), whole)


def _token(text: str, longest: int) -> str:
    return _NOT_PRINTABLE.sub("?", text)[:longest] or "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class SyslogServer:
    """An audit record repository."""

    host: str
    port: int
    tls: Callable[[], ssl.SSLContext]  # what is in force when a connection is opened
    timeout_s: float = 10.0  # for a connection, for the server to take the next bytes, and for its goodbye

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def connect(self) -> SyslogConnection:
        """Raises SyslogError."""
        try:
            raw = socket.create_connection((self.host, self.port), self.timeout_s)
        except OSError as e:
            raise SyslogError(f"no connection to {self} ({e.strerror or e}): is the syslog server up?") from e
        try:
            return SyslogConnection(self, self.tls().wrap_socket(raw, server_hostname=self.host))
        except OSError as e:
            raw.close()
            raise SyslogError(self._why_no_tls(e)) from e

    def _why_no_tls(self, e: OSError) -> str:
        if isinstance(e, ssl.SSLCertVerificationError):
            return (
                f"{self} is not trusted ({e.verify_message}): audit.syslog.ca must hold who signed its certificate, "
                f"and the certificate name {self.host}"
            )
        return f"no TLS with {self} ({_said(e)}): is this the port of a syslog server with TLS (RFC 5425)?"


class SyslogConnection:
    def __init__(self, server: SyslogServer, sock: ssl.SSLSocket) -> None:
        self._server = server
        self._sock = sock

    def send(self, frames: bytes) -> None:
        """Raises SyslogError. That it does not means nothing: see `confirm`."""
        try:
            self._sock.sendall(frames)
        except OSError as e:
            raise SyslogError(f"{self._server} took no more ({_said(e)}): is the syslog server well?") from e

    def confirm(self) -> None:
        """End the connection; the server has then read all that was sent. Raises SyslogError where that is not sure."""
        try:
            self._end()
        except OSError as e:
            raise SyslogError(
                f"{self._server} did not confirm ({_said(e)}): a syslog server with TLS (RFC 5425) reads all, says "
                "nothing, and answers the end of a connection. Does it want a client certificate?"
            ) from e
        finally:
            self.abandon()

    def _end(self) -> None:
        """Their end must follow ours: had they gone before they had read all, they would answer what we wrote with a
        reset, and not with an acknowledgement (RFC 9293 section 3.6.1). That also takes in who forgets close_notify.
        """
        with suppress(ssl.SSLEOFError):
            self._sock.unwrap()
        if socket.socket.recv(self._sock, 1) or self._unacknowledged():
            raise ConnectionResetError(errno.ECONNRESET, "it did not read all")

    def abandon(self) -> None:
        with suppress(OSError):
            self._sock.close()

    def _unacknowledged(self) -> int:
        """Bytes that the other machine has not acknowledged (SIOCOUTQ, tcp(7))."""
        return int(struct.unpack("i", fcntl.ioctl(self._sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])


def _said(e: OSError) -> str:
    """OpenSSL's word for it, or the system's."""
    if isinstance(e, TimeoutError):
        return "not in time"
    if isinstance(e, ssl.SSLEOFError):
        return "it ended the connection"
    reason = e.reason if isinstance(e, ssl.SSLError) else None
    return (reason or e.strerror or type(e).__name__).replace("_", " ").lower()
