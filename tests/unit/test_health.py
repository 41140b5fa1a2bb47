"""The health endpoint: what it says, and that no peer can keep it from saying it."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import pytest
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from cxrnode import health
from cxrnode.checks import Asked
from cxrnode.errors import ConfigError
from cxrnode.health import HealthServer

RECEIVED = CounterMetricFamily("cxrnode_received_total", "Instances received.", labels=["peer"])
RECEIVED.add_metric(['A"B\\C\n'], 3.0)
WITHIN_S = 0.3
MEASURES = (RECEIVED, GaugeMetricFamily("cxrnode_waiting", "Jobs that wait.", 7.0))


def fine() -> None:
    return None


def serve(
    checks: Mapping[str, Callable[[], str | None]] | None = None,
    metrics: Callable[[], Iterator[Metric]] = lambda: iter(MEASURES),
    warnings: Mapping[str, Callable[[], str | None]] | None = None,
) -> HealthServer:
    asked = Asked({"reasons": checks or {"database": fine}, "warnings": warnings or {}}, within_s=WITHIN_S)
    return HealthServer("127.0.0.1", 0, asked=asked, metrics=metrics)


@pytest.fixture(scope="module")
def server() -> Iterator[HealthServer]:
    with serve() as running:
        yield running


def ask(server: HealthServer, path: str, method: str = "GET") -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def peers() -> int:
    return sum(t.name == "health-peer" for t in threading.enumerate())


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def half_a_request(server: HealthServer) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
    return peer


def test_it_lives(server: HealthServer) -> None:
    status, headers, body = ask(server, "/healthz?verbose")
    assert (status, body) == (200, b"ok\n")
    assert headers["Server"] == "cxrnode"  # no versions for who looks for weak ones


def test_ready_or_why_not() -> None:
    reasons: dict[str, str | None] = {"database": None, "disk": None}
    checks = {name: (lambda name=name: reasons[name]) for name in reasons}
    with serve(checks) as server:
        assert ask(server, "/readyz")[0] == 200
        reasons["disk"] = "12 MB free, the watermark is 2048 MB"
        status, headers, body = ask(server, "/readyz")
        assert ask(server, "/healthz")[0] == 200
    assert status == 503
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {"ready": False, "reasons": {"disk": reasons["disk"]}, "warnings": {}}


def test_a_warning_does_not_make_it_unready() -> None:
    def check() -> str:
        return "3 failures in a row"

    with serve(warnings={"destination pacs": check, "fallback": fine}) as server:
        status, _, body = ask(server, "/readyz")
    assert status == 200
    assert json.loads(body) == {"ready": True, "reasons": {}, "warnings": {"destination pacs": check()}}


def test_a_check_that_raises_is_a_reason_without_its_text() -> None:
    def check() -> str | None:
        raise OSError("password=geheim")

    with serve({"database": check}) as server:
        status, _, body = ask(server, "/readyz")
    assert (status, json.loads(body)["reasons"]) == (503, {"database": "the check failed: OSError"})


def test_metrics_are_what_prometheus_reads(server: HealthServer) -> None:
    status, headers, body = ask(server, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    received, waiting = text_string_to_metric_families(body.decode())
    assert (received.type, received.documentation) == ("counter", "Instances received.")
    assert [(s.name, s.labels, s.value) for s in received.samples] == [
        ("cxrnode_received_total", {"peer": 'A"B\\C\n'}, 3.0)
    ]
    assert [(s.name, s.value) for s in waiting.samples] == [("cxrnode_waiting", 7.0)]


def test_metrics_that_fail_are_none_and_the_next_are_there() -> None:
    outcomes = iter([RuntimeError("DOE^JANE"), None])

    def metrics() -> Iterator[Metric]:
        if (e := next(outcomes)) is not None:
            raise e
        yield from MEASURES

    with serve(metrics=metrics) as server:
        status, _, body = ask(server, "/metrics")
        assert (status, b"DOE" in body) == (503, False)
        assert ask(server, "/metrics")[0] == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/nothing"])
def test_head_is_get_without_the_body(path: str, server: HealthServer) -> None:
    got, head = ask(server, path), ask(server, path, "HEAD")
    assert head[0] == got[0]
    assert head[1]["Content-Length"] == got[1]["Content-Length"] == str(len(got[2]))
    assert head[2] == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(method: str, server: HealthServer) -> None:
    status, headers, _ = ask(server, "/healthz", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_other_paths_are_not_found_and_not_repeated(server: HealthServer) -> None:
    status, _, body = ask(server, "/DOE-JANE")
    assert (status, b"DOE" in body) == (404, False)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # a TLS client
        b"\x01\x00\x00\x00\x00\xcd\x00\x01" + bytes(200) + b"\r\n\r\n",  # an A-ASSOCIATE-RQ
        b"GET /healthz\r\n\r\n",  # HTTP/0.9
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 2000 + b"\r\n",
        b"POST /healthz HTTP/1.1\r\nContent-Length: 9\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_request_costs_its_own_connection(said: bytes, server: HealthServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as peer:
        try:
            peer.sendall(said)
            peer.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: peer.recv(65536), b""))
        except (ConnectionError, OSError):
            answer = b""
    assert len(re.findall(rb"^HTTP/", answer, re.MULTILINE)) <= 1  # never a second answer to what follows
    wait_until(lambda: peers() == 0)
    assert ask(server, "/healthz")[0] == 200


def test_stalled_peers_are_ended_and_hold_up_no_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_PATIENCE_S", 0.5)
    with serve() as server:
        stalled = [half_a_request(server) for _ in range(20)]
        assert ask(server, "/readyz")[0] == 200
        for peer in stalled:
            assert peer.recv(1) == b""  # ended by the server
            peer.close()
        wait_until(lambda: peers() == 0)


def test_a_peer_that_drips_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_PATIENCE_S", 0.5)
    with serve() as server, half_a_request(server) as peer:

        def drip() -> bool:
            try:
                peer.sendall(b"x")
            except ConnectionError:
                return True
            time.sleep(0.05)
            return False

        wait_until(drip)
        wait_until(lambda: peers() == 0)


def test_more_stalled_peers_than_it_has_threads_for_lock_no_one_out() -> None:
    with serve() as server:
        stalled = [half_a_request(server) for _ in range(3 * health._MAX_PEERS)]
        for path in ("/healthz", "/readyz", "/metrics"):
            assert ask(server, path)[0] == 200
        wait_until(lambda: peers() <= health._MAX_PEERS)
        for peer in stalled:
            peer.close()
        wait_until(lambda: peers() == 0)


def test_a_check_that_hangs_leaves_the_rest_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_PATIENCE_S", 0.5)
    entered, release = threading.Event(), threading.Event()

    def check() -> None:
        entered.set()
        release.wait(20)

    server = serve({"database": check})
    try:
        with half_a_request(server) as first:
            first.sendall(b"\r\n")  # of /healthz: answered
            assert first.recv(65536).startswith(b"HTTP/1.1 200")
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as hung:
            hung.sendall(b"GET /readyz HTTP/1.1\r\n\r\n")
            assert entered.wait(10)
            for _ in range(3):
                status, _, body = ask(server, "/readyz")
                assert (status, list(json.loads(body)["reasons"])) == (503, ["database"])
            assert ask(server, "/healthz")[0] == 200
            assert ask(server, "/metrics")[0] == 200
            assert hung.recv(65536).startswith(b"HTTP/1.1 503")
            release.set()
        wait_until(lambda: ask(server, "/readyz")[0] == 200)
    finally:
        release.set()
        server.stop()


def test_stopping_ends_every_connection_and_thread() -> None:
    before = threading.active_count()
    server = serve()
    stalled = [half_a_request(server) for _ in range(5)]
    wait_until(lambda: peers() == 5)
    server.stop()
    wait_until(lambda: threading.active_count() == before)
    for peer in stalled:
        with peer:
            assert peer.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        ask(server, "/healthz")


def test_a_taken_port_is_said() -> None:
    with serve() as server, pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{server.port}.*http\.port"):
        HealthServer("127.0.0.1", server.port, asked=Asked({"reasons": {}, "warnings": {}}), metrics=lambda: ())


def test_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        server = HealthServer("::1", 0, asked=Asked({"reasons": {}, "warnings": {}}), metrics=lambda: ())
    except ConfigError as e:
        pytest.skip(f"no IPv6 loopback here: {e}")
    with server, socket.create_connection(("::1", server.port), timeout=10) as peer:
        peer.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert peer.recv(65536).startswith(b"HTTP/1.1 200")
