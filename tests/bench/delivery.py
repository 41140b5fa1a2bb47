"""Delivery beside analysis: how many results a second are made, and how many arrive at each of two destinations.

    python -m tests.bench.delivery [--backlog 800] [--seconds 60]

A real node whose analysis always has work (routine films of 1000x1200x12, JPEG lossless, each its own study, stored
beforehand), and two peers (DCMTK's storescp, which throws away what it takes). Counted over so many seconds, some time
after the start; the figures are the node's own tables'. Prints tables in Markdown; nothing else should run.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cxrnode import __version__
from tests.bench.node import CORES, QUIET_S, ROUTINE, copies, rows, store, templates, waiting
from tests.support.faulty_pacs import wait_for
from tests.support.node import Node, running_node
from tests.support.orthanc import free_port

NAMES = ("first", "second")
WARM_UP_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What the node's tables hold at a moment, and the CPU seconds of its stages so far."""

    at: float
    made: int
    sent: dict[str, int]
    cpu_s: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backlog", type=int, default=800)
    parser.add_argument("--seconds", type=float, default=60.0)
    a = parser.parse_args()
    print(f"{platform.machine()}, {CORES} cores, Python {platform.python_version()}, cxrnode {__version__}")
    with tempfile.TemporaryDirectory() as folder, two_peers() as ports:
        node = Node(
            folder=Path(folder) / "node", quiet_s=QUIET_S, commitment=False,
            destinations=[(name, "STORESCP", port) for name, port in zip(NAMES, ports, strict=True)],
        )  # fmt: skip
        intake_alone(node, copies(Path(folder) / "films", templates(ROUTINE, bits=12), a.backlog))
        with running_node(node):
            beside_analysis(node, seconds=a.seconds)


@contextmanager
def two_peers() -> Iterator[list[int]]:
    ports = [free_port() for _ in NAMES]
    command = ["/usr/bin/storescp", "--ignore", "-aet", "STORESCP"]
    peers = [subprocess.Popen([*command, str(port)], env=os.environ | {"TCP_NODELAY": "1"}) for port in ports]
    try:
        yield ports
    finally:
        for peer in peers:
            peer.terminate()
            peer.wait()


def intake_alone(node: Node, films: list[Path]) -> None:
    node.start("--only", "intake", ready=False)
    try:
        wait_for(lambda: "listening on" in node.log)
        print(f"{len(films)} films stored in {store(node, films):.0f} s")
    finally:
        node.stop()


def beside_analysis(node: Node, *, seconds: float) -> None:
    time.sleep(WARM_UP_S)
    before = count(node)
    time.sleep(seconds)
    after, left = count(node), waiting(node)
    if not left:
        raise RuntimeError("the analysis ran out of work: give a larger --backlog, or fewer --seconds")
    wall = after.at - before.at
    made = (after.made - before.made) / wall
    print(f"\nover {wall:.0f} s; {left} images still waited:\n")
    print("| destination | results made/s | delivered/s | share | backlog before | backlog after |")
    print("|---|---|---|---|---|---|")
    for name in NAMES:
        sent = (after.sent[name] - before.sent[name]) / wall
        waits = [c.made - c.sent[name] for c in (before, after)]
        print(f"| {name} | {made:.2f} | {sent:.2f} | {sent / made:.2f} | {waits[0]} | {waits[1]} |")
    for line in [line for line in node.log.splitlines() if " WARNING " in line or " ERROR " in line][:20]:
        print(line, file=sys.stderr)
    print("\n| stage | cores used |\n|---|---|")
    for stage, used in after.cpu_s.items():
        print(f"| {stage} | {(used - before.cpu_s[stage]) / wall:.2f} |")


def count(node: Node) -> Count:
    (made,) = rows(node, "SELECT count(*) FROM delivery")[0]
    sent = dict(rows(node, "SELECT destination, count(*) FROM delivery WHERE state = 'sent' GROUP BY destination"))
    cpu = {name: sum(sum(p.cpu_times()[:4]) for p in [stage, *stage.children(recursive=True)])
           for name, stage in node.stages().items()}  # fmt: skip
    return Count(
        at=time.monotonic(), made=made // len(NAMES), sent={name: sent.get(name, 0) for name in NAMES}, cpu_s=cpu
    )


if __name__ == "__main__":
    main()
