"""Seventeen destinations that misbehave, each in its way, beside one that is well: that one gets everything in time."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRBigEndian

from tests.support.faulty_pacs import AET, faulty_pacs
from tests.support.orthanc import free_port
from tests.trouble.account import Account, account, rows, seconds_to_ready
from tests.trouble.scene import Scene, scene

_LOAD_S = 60.0
_SETTLE_S = 300.0
# name -> the steps of its C-STOREs, how it greets, how it commits
_SCRIPTED: dict[str, tuple[list[str], list[str], str]] = {
    "failure": (["0x0110"], ["ok"], "never"),
    "now-and-then": (["ok", "0x0110"], ["ok"], "never"),
    "full": (["0xA700"], ["ok"], "never"),
    "refusing": (["0xC000"], ["ok"], "never"),
    "not-authorised": (["0x0124"], ["ok"], "never"),
    "warning": (["0xB000"], ["ok"], "never"),
    "aborting": (["abort"], ["ok"], "never"),
    "silent": (["silent"], ["ok"], "never"),
    "slow": (["slow:2"], ["ok"], "never"),
    "losing": (["lost"], ["ok"], "never"),
    "rejecting": (["ok"], ["reject"], "never"),
    "uncommitted": (["ok"], ["ok"], "0x0110"),
}
WELL = "pacs"


def seventeen_destinations(folder: Path) -> Account:
    with ExitStack() as stack:
        peers = [*_scripted(stack), *_unscripted(stack)]
        play = stack.enter_context(scene(folder, destinations=peers))
        with play.load.going_on():
            time.sleep(_LOAD_S)
        return _judged(play, f"{len(peers)} destinations that misbehave", peers)


def _judged(play: Scene, name: str, peers: list[tuple[str, str, int]]) -> Account:
    """As ever, but what is for the misbehaving ones stays open: only the one that is well must have all."""
    ready_s = seconds_to_ready(play.node)
    until = time.monotonic() + _SETTLE_S
    while time.monotonic() < until and not (arrived := _arrived(play)):
        time.sleep(1.0)
    found = account(name, play.node, play.load, ready_s=ready_s)
    if not arrived:
        found.wrong.append(f"the destination that is well waits for its results: {_states(play)[WELL]}")
    if doubles := [uid for uid, n in play.pacs.stored.items() if n > 1]:
        found.wrong.append(f"{len(doubles)} results came twice to the destination that is well")
    if silent := {peer for peer, *_ in peers} - set(_states(play)):
        found.wrong.append(f"nothing is recorded for {', '.join(sorted(silent))}")
    return found


def _states(play: Scene) -> dict[str, Counter[str]]:
    query = "SELECT destination, state, count(*) FROM delivery GROUP BY destination, state"
    found: dict[str, Counter[str]] = {}
    for destination, state, n in rows(play.node, query):
        found.setdefault(destination, Counter())[state] = n
    return found


def _arrived(play: Scene) -> bool:
    (open_jobs,) = rows(play.node, "SELECT count(*) FROM job WHERE state <> 'reported'")[0]
    return not open_jobs and set(_states(play).get(WELL, {})) == {"committed"}


def _scripted(stack: ExitStack) -> Iterator[tuple[str, str, int]]:
    for name, (steps, greetings, commitment) in _SCRIPTED.items():
        peer = stack.enter_context(faulty_pacs(steps, associations=greetings, commitment=commitment))
        yield name, AET, peer.port


def _unscripted(stack: ExitStack) -> Iterator[tuple[str, str, int]]:
    yield "nobody", AET, free_port()
    yield "mute", AET, stack.enter_context(_answering(b""))
    yield "web-server", AET, stack.enter_context(_answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    captures = stack.enter_context(faulty_pacs(sop_classes=[Comprehensive3DSRStorage]))
    yield "no-captures", AET, captures.port
    old = stack.enter_context(faulty_pacs(syntaxes=[ExplicitVRBigEndian]))
    yield "big-endian", AET, old.port


@contextmanager
def _answering(what: bytes) -> Iterator[int]:
    """A server that takes connections and says just this; with nothing to say it keeps them."""
    kept: list[socket.socket] = []
    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as server:

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                    kept.append(peer)
                    if what:
                        peer.sendall(what)
                        peer.close()
                except OSError:
                    if server.fileno() < 0:
                        return

        threading.Thread(target=serve, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
    for peer in kept:
        peer.close()


SCENES = (seventeen_destinations,)
