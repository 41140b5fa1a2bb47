"""A TCP proxy before a real storage SCP that has it announce another maximum PDU length, as some PACS do:

with announcing(port, 16383) as other_port: ...
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_MAXIMUM_LENGTH = re.compile(rb"\x51\x00\x00\x04(.{4})", re.DOTALL)  # PS3.8 section D.1.1


@contextmanager
def announcing(target: int, length: int) -> Iterator[int]:
    """Yields its port on the loopback."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", target))
                threading.Thread(target=_pump, args=(client, server, None), daemon=True).start()
                threading.Thread(target=_pump, args=(server, client, length), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.close()


def _pump(source: socket.socket, sink: socket.socket, length: int | None) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            if length is not None:  # the first that an SCP sends is its A-ASSOCIATE-AC
                data = _MAXIMUM_LENGTH.sub(b"\x51\x00\x00\x04" + struct.pack(">L", length), data, count=1)
                length = None
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
