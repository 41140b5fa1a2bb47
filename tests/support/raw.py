"""A peer that speaks in bytes, right or wrong."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress


def exchange(port: int, *parts: bytes) -> bytes:
    """Send each part once the one before is answered; what the node said until it, or the last answer, was over."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as peer, suppress(ConnectionError):
        for part in parts:
            peer.sendall(part)
            if not (answer := peer.recv(65536)):
                break
            said += answer
    return said


@contextmanager
def silent_port(*, connects: bool) -> Iterator[int]:
    """A peer that says nothing: to who is connected, or (its queue of connections is full) even before."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(0 if connects else 4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield server.getsockname()[1]
