"""Real and unreal audit record repositories: rsyslog with TLS, and servers that misbehave."""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cxrnode.audit.syslog import SyslogServer
from cxrnode.dicom.tls import client_context, server_context
from tests.support.certificates import Authority

_RSYSLOGD = shutil.which("rsyslogd", path="/usr/sbin:/sbin:/usr/bin")
START_SECONDS = 20.0


def missing_rsyslog() -> list[str]:
    drivers = list(Path("/usr/lib").glob("*/rsyslog/lmnsd_ossl.so"))
    return [name for name, there in (("rsyslogd", _RSYSLOGD), ("rsyslog-openssl", drivers)) if not there]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


class Rsyslog:
    """An rsyslogd of our own, that demands a client certificate and appends what it gets to a file, frame by frame.

    Its queue is direct: what it has read it has written, and what it holds in memory dies with no process.
    """

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.port = free_port()
        self._authority, self._folder, self._got = authority, folder, folder / "got"
        own = authority.issue("rsyslog", rsa=True)
        self._conf = folder / "rsyslog.conf"
        self._conf.write_text(f"""
global(workDirectory="{folder}" maxMessageSize="64k" defaultNetstreamDriver="ossl"
  defaultNetstreamDriverCAFile="{authority.ca}" defaultNetstreamDriverCertFile="{own.certificate}"
  defaultNetstreamDriverKeyFile="{own.key}")
main_queue(queue.type="Direct")
module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
input(type="imtcp" address="127.0.0.1" port="{self.port}")
template(name="raw" type="string" string="%rawmsg%\\n")
action(type="omfile" file="{self._got}" template="raw")
""")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(_RSYSLOGD), "-n", "-f", str(self._conf), "-i", str(self._folder / "pid")]
        with (self._folder / "log").open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out)
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, "rsyslogd does not listen"
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process:
            self._process.send_signal(how)
            self._process.wait(timeout=20)
            self._process = None

    def server(self) -> SyslogServer:
        """As a node with a certificate of its own calls it."""
        node = self._authority.issue("node")
        tls = client_context(ca=self._authority.ca, certificate=node.certificate, key=node.key)
        return SyslogServer(host="127.0.0.1", port=self.port, tls=lambda: tls, timeout_s=5.0)

    def lines(self) -> list[str]:
        return self._got.read_bytes().decode().split("\n")[:-1] if self._got.exists() else []


# --- servers that misbehave -----------------------------------------------------------------------------------------

Behaviour = Callable[[socket.socket, ssl.SSLContext], None]


class BadServer:
    """Does `behave` with each connection, one after the other, and counts them."""

    def __init__(
        self, authority: Authority, behave: Behaviour, listener: socket.socket, hosts: tuple[str, ...]
    ) -> None:
        own = authority.issue("bad", *hosts)
        self.connections = 0
        self._context = server_context(
            certificate=own.certificate, key=own.key, ca=authority.ca, require_client_certificate=False
        )
        self._behave, self._listener = behave, listener

    def serve(self) -> None:
        with suppress(OSError):  # closed: the end
            while True:
                raw, _ = self._listener.accept()
                self.connections += 1
                raw.settimeout(10)
                with raw, suppress(OSError):
                    self._behave(raw, self._context)

    def server(self, authority: Authority, timeout_s: float = 0.5) -> SyslogServer:
        port = self._listener.getsockname()[1]
        tls = client_context(ca=authority.ca)
        return SyslogServer(host="127.0.0.1", port=port, tls=lambda: tls, timeout_s=timeout_s)


@contextmanager
def bad_server(authority: Authority, behave: Behaviour, hosts: tuple[str, ...] = ()) -> Iterator[BadServer]:
    """hosts: whom its certificate names, if not loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bad = BadServer(authority, behave, listener, hosts)
        thread = threading.Thread(target=bad.serve)
        thread.start()
        try:
            yield bad
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def no_tls(raw: socket.socket, _tls: ssl.SSLContext) -> None:
    raw.sendall(b"220 mail.example ESMTP\r\n" * 100)
    raw.recv(1 << 16)


def closes(raw: socket.socket, _tls: ssl.SSLContext) -> None:
    """At once, before a word."""


def closes_after_handshake(raw: socket.socket, tls: ssl.SSLContext) -> None:
    tls.wrap_socket(raw, server_side=True).close()


def says_goodbye_unread(raw: socket.socket, tls: ssl.SSLContext) -> None:
    """close_notify, and then the end, of what was sent nothing read."""
    sock = tls.wrap_socket(raw, server_side=True)
    sock.setblocking(False)
    with suppress(OSError):
        sock.unwrap()
    time.sleep(0.2)
    sock.close()


def answers(raw: socket.socket, tls: ssl.SSLContext) -> None:
    """As a web server on this port would."""
    with tls.wrap_socket(raw, server_side=True) as sock:
        sock.recv(1 << 16)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n\xff\x00garbage")
        while sock.recv(1 << 16):  # unread bytes would make its end a reset
            pass


def never_reads(raw: socket.socket, tls: ssl.SSLContext) -> None:
    with tls.wrap_socket(raw, server_side=True):
        time.sleep(1.5)


def dies_unread(raw: socket.socket, tls: ssl.SSLContext) -> None:
    """As a process that is killed: bytes that its machine had acknowledged are gone."""
    with tls.wrap_socket(raw, server_side=True) as sock:
        sock.recv(100)
        time.sleep(0.2)


def forgets_close_notify(raw: socket.socket, tls: ssl.SSLContext) -> None:
    """Reads all, and ends the connection without a word: impolite, and nothing is lost."""
    with tls.wrap_socket(raw, server_side=True) as sock, suppress(ssl.SSLError):
        while sock.recv(1 << 16):
            pass
