"""A TCP proxy on the loopback that can be told to fail: `with flaky_proxy(port) as proxy: proxy.refuse()`."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_RST = struct.pack("ii", 1, 0)  # SO_LINGER of no time: closing resets


class FlakyProxy:
    """Forwards what comes to `port`, as long as it is up. Every change of mode but `up` breaks what is connected."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._live: set[socket.socket] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._cut_after: int | None = None
        self._bytes = 0
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def up(self) -> None:
        self._refusing = False
        self._flowing.set()

    def refuse(self) -> None:
        """Connections end with a reset, at once."""
        self._refusing = True
        self._flowing.set()
        self._reset_all()

    def blackhole(self) -> None:
        """Connections stay; nothing arrives any more, either way."""
        self._flowing.clear()

    def cut(self, after: int) -> None:
        """Reset the connection that sends the byte after so many, once."""
        with self._lock:
            self._bytes, self._cut_after = 0, after

    def close(self) -> None:
        self._listener.close()
        self.refuse()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self._refusing:
            _reset(client)
            return
        self._flowing.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            _reset(client)
            return
        server.settimeout(None)
        for s in (client, server):
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._live |= {client, server}
        back = threading.Thread(target=self._pump, args=(server, client, False), daemon=True)
        back.start()
        self._pump(client, server, True)
        back.join()
        with self._lock:
            self._live -= {client, server}
        client.close()
        server.close()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                if counted and self._is_cut(len(data)):
                    self._reset_all()
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _is_cut(self, count: int) -> bool:
        with self._lock:
            self._bytes += count
            if self._cut_after is None or self._bytes < self._cut_after:
                return False
            self._cut_after = None
            return True

    def _reset_all(self) -> None:
        with self._lock:
            for s in self._live:
                with suppress(OSError):
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
                    s.shutdown(socket.SHUT_RDWR)


def _reset(s: socket.socket) -> None:
    with suppress(OSError):
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    s.close()


@contextmanager
def flaky_proxy(target: int) -> Iterator[FlakyProxy]:
    proxy = FlakyProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
