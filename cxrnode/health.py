"""/healthz, /readyz and /metrics over HTTP, for the machines that watch the node. No patient data, ever.

    asked = Asked({"reasons": {"database": ..., "disk": ...}, "warnings": {"destination pacs": ...}})
    with HealthServer("127.0.0.1", 8080, asked=asked, metrics=measures):
        ...

/healthz: the process lives, whatever else. /readyz: 200, or 503 with the reasons; either with the warnings. /metrics:
Prometheus' text format.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Generic, Self, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, Metric, generate_latest
from prometheus_client.registry import Collector

from cxrnode.checks import Asked
from cxrnode.config_here import why_no_listener

_PATIENCE_S = 5.0  # for a peer to send its whole request, and again to take the answer
_METRICS_S = 5.0  # for the metrics before; after that the answer is that they do not answer
_MAX_HEAD = 8192  # bytes of a request's head
_MAX_PEERS = 64  # connections at a time; the next one ends the oldest
_log = logging.getLogger(__name__)
T = TypeVar("T")


class HealthServer:
    """Answers in threads of its own from construction until `stop`; also a context manager.

    asked: gives the "reasons" for which the node is not ready, and "warnings", in words that may be shown. `metrics`
    is asked in those threads, one request at a time. Raises ConfigError where it cannot listen.
    """

    def __init__(self, bind: str, port: int, *, asked: Asked, metrics: Callable[[], Iterable[Metric]]) -> None:
        try:
            self._server = _Server(bind, port)
        except OSError as e:
            raise why_no_listener("http.port", bind, port, e) from e
        self._server.asked = asked
        self._server.metrics = _OneAtATime(lambda: generate_latest(_Collected(metrics)))
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The one it listens on: where 0 was asked for, the one it got."""
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Stop listening and end every connection; returns when their threads have ended, or hang in a check."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


class _OneAtATime(Generic[T]):
    """Asks for one caller at a time. Others wait for the one before, but a question that hangs holds up no one."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._ask, self._lock, self._since = ask, threading.Lock(), 0.0

    def __call__(self) -> T:
        """Raises TimeoutError where an earlier call has been going on for too long."""
        patience = _METRICS_S
        if self._lock.locked():
            patience = max(0.0, self._since + _METRICS_S - time.monotonic())
        if not self._lock.acquire(timeout=patience):
            raise TimeoutError
        try:
            self._since = time.monotonic()
            return self._ask()
        finally:
            self._lock.release()


class _Collected(Collector):
    """What `metrics` says, as prometheus_client wants to be told."""

    def __init__(self, metrics: Callable[[], Iterable[Metric]]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics()


class _Handler(BaseHTTPRequestHandler):
    """One request, one answer, then the end of the connection."""

    server: _Server
    protocol_version = "HTTP/1.1"
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = BytesIO(self._head())

    def _head(self) -> bytes:
        """The request up to its blank line; nothing from a peer that is too slow, or has too much to say.

        The time is for the whole of it: a socket's own time-out begins anew with every byte.
        """
        deadline = time.monotonic() + _PATIENCE_S
        head = b""
        while b"\r\n\r\n" not in head:
            left = deadline - time.monotonic()
            if left <= 0 or len(head) > _MAX_HEAD:
                return b""
            self.connection.settimeout(left)
            try:
                more = self.connection.recv(4096)
            except OSError:  # too slow, or gone
                return b""
            if not more:
                return b""
            head += more
        self.connection.settimeout(_PATIENCE_S)
        return head

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/healthz":
                self._answer(HTTPStatus.OK, "text/plain; charset=utf-8", b"ok\n")
            case "/readyz":
                self._answer_ready()
            case "/metrics":
                self._answer_metrics()
            case _:
                self.send_error(HTTPStatus.NOT_FOUND, "here are /healthz, /readyz and /metrics")

    do_HEAD = do_GET  # noqa: N815 (the base class's name)

    def _not_allowed(self) -> None:
        body = b"GET and HEAD only\n"
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", body, Allow="GET, HEAD")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _not_allowed  # noqa: N815

    def _answer_ready(self) -> None:
        found = self.server.asked()
        ready = not found["reasons"]
        body = json.dumps({"ready": ready, **found}).encode() + b"\n"
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, "application/json", body)

    def _answer_metrics(self) -> None:
        try:
            body = self.server.metrics()
        except Exception as e:  # noqa: BLE001 (the edge: the next scrape may do better)
            _log.warning("no metrics: %s", type(e).__name__)
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, f"no metrics: {type(e).__name__}")
        else:
            self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, body)

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        common = {"Content-Type": content_type, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        for name, value in (common | {"Connection": "close"} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "cxrnode"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: probes come every second."""


class _Server(ThreadingMixIn, TCPServer):
    """A thread a connection, and a bound on them: a peer that stalls costs its own connection, never another's."""

    allow_reuse_address = True
    request_queue_size = 128
    asked: Asked
    metrics: _OneAtATime[bytes]

    def __init__(self, bind: str, port: int) -> None:
        self.address_family, *_, address = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0]
        self._peers: dict[Any, threading.Thread] = {}  # by connection, oldest first
        self._changed = threading.Condition()
        super().__init__((str(address[0]), port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            if len(self._peers) >= _MAX_PEERS:
                self._end_oldest()
                self._changed.wait_for(lambda: len(self._peers) < _MAX_PEERS, timeout=0.1)
            if len(self._peers) >= _MAX_PEERS:  # its thread is not waiting for the peer, but in a check
                self.shutdown_request(request)
                return
            thread = threading.Thread(
                target=self.process_request_thread, args=(request, client_address), name="health-peer", daemon=True
            )
            thread.start()
            self._peers[request] = thread

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._changed:
                del self._peers[request]
                self._changed.notify_all()

    def server_close(self) -> None:
        super().server_close()
        with self._changed:
            for _ in range(len(self._peers)):
                self._end_oldest()
            threads = list(self._peers.values())
        for thread in threads:
            thread.join(_PATIENCE_S)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A peer that broke off is no event; anything else is for the log."""
        _log.debug("health request ended", exc_info=True)

    def _end_oldest(self) -> None:
        request = next(iter(self._peers))
        self._peers[request] = self._peers.pop(request)  # now the last to be ended again
        with suppress(OSError):  # the peer was faster
            request.shutdown(socket.SHUT_RDWR)  # its thread wakes up, and closes it
