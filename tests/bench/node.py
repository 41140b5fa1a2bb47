"""make bench-node: how long a STAT study waits behind a backlog, what a day's load costs, and what the node holds.

    python -m tests.bench.node [--backlog 1000] [--stat 25] [--load-s 60]

A real node and a real Orthanc, which takes the results and commits to them; both with TCP_NODELAY. First the backlog is
stored (routine films of 1000x1200x12, JPEG lossless, each a study of its own), then, while it is worked off, STAT films
of 2048x2500x14 come one at a time, at random moments. A STAT study's latency goes from the moment at which its sender
has the last C-STORE response (this process's UTC clock) to the "delivered" record of its SR in the node's ledger (the
same machine's UTC clock, ms, read when Orthanc has answered the C-STORE of the SR with success), less study_quiet_s.
Then, on a fresh node, the CPU time of the process tree: with nothing to do, and at 0.6 films of 2048x2500x14 a second.
Memory is the proportional set size (shared pages once). Prints tables in Markdown; nothing else should run.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import psutil

from cxrnode import __version__
from tests.support.make_dicom import chest, to_bytes
from tests.support.node import Node, running_node, send
from tests.support.orthanc import AET, free_port, running_orthanc

CORES = len(os.sched_getaffinity(0))
STAT_AE, ROUTINE_AE = "ER", "PACS"
QUIET_S = 0.5  # short: what is done within it is not counted, and the default of 5 s would hide all the analysis
ROUTINE, FILM = (1200, 1000), (2500, 2048)  # rows, columns
PICTURES = 6
STORERS = 2  # associations that store the backlog
GAP_S = (0.3, 2.5)  # between a STAT study's SR and the next STAT study
WAIT_S = 120.0  # for one STAT study, for the last of the load
IDLE_S = 20.0
RATE = 0.6  # images a second: 50,000 a day
_DIGITS = "9" * 18  # of a template's UIDs; each copy has its own in their place
_serial = count(10**17)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """One STAT study: seconds from the last C-STORE response (its sender's clock) to each step, quiet_s included."""

    analysed: float
    reported: float
    stored: float
    waiting: int  # routine images that were not analysed when it was acknowledged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backlog", type=int, default=1000)
    parser.add_argument("--stat", type=int, default=25)
    parser.add_argument("--load-s", type=float, default=60.0)
    a = parser.parse_args()
    print(f"{platform.machine()}, {CORES} cores, Python {platform.python_version()}, cxrnode {__version__}")
    with tempfile.TemporaryDirectory() as folder:
        with node_and_orthanc(Path(folder) / "stat") as node:
            behind_backlog(node, Path(folder) / "routine", Path(folder) / "er", backlog=a.backlog, stat=a.stat)
        with node_and_orthanc(Path(folder) / "load") as node:
            load(node, Path(folder) / "films", seconds=a.load_s)


@contextmanager
def node_and_orthanc(folder: Path) -> Iterator[Node]:
    node_port = free_port()
    back = {"cxrnode": {"AET": "CXRNODE", "Host": "127.0.0.1", "Port": node_port}}
    with running_orthanc(folder / "orthanc", back) as orthanc:
        node = Node(
            folder=folder / "node", destinations=[("pacs", AET, orthanc.dicom_port)], port=node_port, quiet_s=QUIET_S
        )
        with running_node(node):
            yield node


# --- STAT behind a backlog


def behind_backlog(node: Node, routine: Path, er: Path, *, backlog: int, stat: int) -> None:
    files = copies(routine, templates(ROUTINE, bits=12), backlog)
    size_mb = sum(f.stat().st_size for f in files) / backlog / 1e6
    seconds = store(node, files)
    print(f"\nbacklog: {backlog} routine images of {size_mb:.1f} MB, acknowledged in {seconds:.0f} s")
    while waiting(node) == backlog:  # analysis is under way
        time.sleep(0.1)
    urgent = copies(er, templates(FILM, bits=14), stat)
    began, before = time.monotonic(), waiting(node)
    moments = random.Random(7)
    found = []
    for path in urgent:
        time.sleep(moments.uniform(*GAP_S))
        if not waiting(node):
            break
        found.append(one_stat(node, path))
        print(f"STAT {len(found)}: {found[-1].stored - QUIET_S:.2f} s", file=sys.stderr, flush=True)
    rate = (before - waiting(node)) / (time.monotonic() - began)
    if not found:
        raise RuntimeError("the backlog was worked off before the first STAT study: give a larger --backlog")
    left = min(f.waiting for f in found)
    print(
        f"{len(found)} of {stat} STAT studies while {before} to {left} routine images waited, {rate:.1f} of them done/s"
    )
    print(f"s, study_quiet_s ({QUIET_S}) taken off:\n")
    print("| to | median | p95 | max |\n|---|---|---|---|")
    show("SR stored in the PACS", [f.stored - QUIET_S for f in found])
    print("\n| step, s (quiet time included) | median | p95 | max |\n|---|---|---|---|")
    show("C-STORE response to analysed", [f.analysed for f in found])
    show("analysed to SR made", [f.reported - f.analysed for f in found])
    show("SR made to SR stored", [f.stored - f.reported for f in found])
    memory(node)


def one_stat(node: Node, path: Path) -> Latency:
    study = path.stem
    assert send(node.port, path, ae_title=STAT_AE) == [0]
    responded = time.time()
    left, deadline = waiting(node), time.monotonic() + WAIT_S
    while "delivered" not in (steps := ledger_times(node, study)):
        if time.monotonic() > deadline:
            raise RuntimeError(f"no SR of a STAT study within {WAIT_S:.0f} s: it came to {sorted(steps)}")
        time.sleep(0.25)
    return Latency(
        analysed=steps["analysed"] - responded,
        reported=steps["report_made"] - responded,
        stored=steps["delivered"] - responded,
        waiting=left,
    )


def ledger_times(node: Node, study: str) -> dict[str, float]:
    """Seconds since 1970 of what was recorded of a study of one image: its analysis, its SR made, its SR delivered."""
    found = rows(
        node,
        "SELECT l.kind, l.at FROM ledger l LEFT JOIN result r ON r.sop_instance_uid = "
        "l.sop_instance_uid WHERE l.study_instance_uid = "
        f"'{study}' AND (l.kind = 'analysed' OR (l.kind IN ('report_made', 'delivered') AND r.kind = 'sr'))",
    )
    return {kind: datetime.fromisoformat(at).timestamp() for kind, at in found}


def waiting(node: Node) -> int:
    """Routine images that are not analysed yet."""
    found = rows(node, "SELECT count(*) FROM job WHERE priority = 1 AND state IN ('received', 'claimed')")
    return int(found[0][0])


def rows(node: Node, query: str) -> list[tuple[Any, ...]]:
    """Read only: it takes no lock, so it costs the node nothing."""
    with closing(sqlite3.connect(f"file:{node.data_dir / 'ledger.sqlite'}?mode=ro", uri=True)) as c:
        return c.execute(query).fetchall()


def show(name: str, seconds: Sequence[float]) -> None:
    ordered = sorted(seconds)
    p95 = ordered[max(0, -(-len(ordered) * 95 // 100) - 1)]  # nearest rank
    print(f"| {name} | {statistics.median(ordered):.2f} | {p95:.2f} | {ordered[-1]:.2f} |")


# --- a day's load


def load(node: Node, folder: Path, *, seconds: float) -> None:
    films = copies(folder, templates(FILM, bits=14), round(seconds * RATE))
    time.sleep(5)  # the start is over
    idle = tree_cpu_s(node)
    time.sleep(IDLE_S)
    idle = (tree_cpu_s(node) - idle) / IDLE_S / CORES
    before, began = tree_cpu_s(node), time.monotonic()
    for n, film in enumerate(films):
        time.sleep(max(0.0, began + n / RATE - time.monotonic()))
        assert send(node.port, film, ae_title=ROUTINE_AE) == [0]
    late = time.monotonic() - began - (len(films) - 1) / RATE
    while open_studies(node) and time.monotonic() < began + seconds + WAIT_S:
        time.sleep(0.5)
    wall = time.monotonic() - began
    used = tree_cpu_s(node) - before
    own = used - idle * wall * CORES
    print(f"\n{len(films)} films of 2048x2500x14 at {RATE}/s over {wall:.0f} s (the last {late:.1f} s late):\n")
    print(f"| CPU of the process tree | % of {CORES} cores |\n|---|---|")
    print(f"| with nothing to do, {IDLE_S:.0f} s | {100 * idle:.1f} |")
    print(f"| at {RATE} images/s | {100 * used / wall / CORES:.1f} |")
    print(f"\n{1000 * own / len(films):.0f} ms of CPU an image on top of that; {open_studies(node)} studies left")
    memory(node)


def open_studies(node: Node) -> int:
    """Studies that have a film without its report, or a result that is not committed."""
    query = "SELECT (SELECT count(*) FROM job WHERE state != 'reported'), "
    found = rows(node, query + "(SELECT count(*) FROM delivery WHERE state != 'committed')")
    return int(found[0][0]) + int(found[0][1])


def tree(node: Node) -> list[psutil.Process]:
    assert node.process is not None
    root = psutil.Process(node.process.pid)
    return [root, *root.children(recursive=True)]


def tree_cpu_s(node: Node) -> float:
    """CPU seconds of the node's processes so far, those that have ended and were waited for included."""
    return sum(sum(p.cpu_times()[:4]) for p in tree(node))


def memory(node: Node) -> None:
    print("\n| memory | MB (PSS) | with its children |\n|---|---|---|")
    assert node.process is not None
    for name, process in {"supervisor": psutil.Process(node.process.pid), **node.stages()}.items():
        own = process.memory_full_info().pss / 2**20
        children = [] if name == "supervisor" else process.children(recursive=True)
        print(f"| {name} | {own:.0f} | {own + sum(c.memory_full_info().pss for c in children) / 2**20:.0f} |")


# --- films


def templates(shape: tuple[int, int], *, bits: int) -> list[bytes]:
    """A few different films whose UIDs end in _DIGITS."""
    uids = (f"1.2.826.0.1.1.{_DIGITS}", f"1.2.826.0.1.2.{_DIGITS}", f"1.2.826.0.1.3.{_DIGITS}")
    films = [
        chest(*shape, seed=seed, kind=kind, bits_stored=bits, syntax="jpeg_lossless", uids=uids)
        for seed, kind in zip(range(PICTURES), ("CR", "DX") * PICTURES, strict=False)
    ]
    return [to_bytes(ds) for ds in films]


def copies(folder: Path, films: Sequence[bytes], number: int) -> list[Path]:
    """So many files, each a study of its own that its name says."""
    folder.mkdir(parents=True)
    paths = []
    for n in range(number):
        digits = str(next(_serial))
        paths.append(folder / f"1.2.826.0.1.1.{digits}.dcm")
        paths[-1].write_bytes(films[n % len(films)].replace(_DIGITS.encode(), digits.encode()))
    return paths


def store(node: Node, files: Sequence[Path]) -> float:
    """Seconds until the node has acknowledged them all."""
    command = ["/usr/bin/storescu", "-xs", "-aet", ROUTINE_AE, "-aec", "CXRNODE", "127.0.0.1", str(node.port)]
    began = time.monotonic()
    senders = [
        subprocess.Popen(
            [*command, *map(str, files[n::STORERS])], env={**os.environ, "TCP_NODELAY": "1"}, stdout=subprocess.DEVNULL
        )
        for n in range(STORERS)
    ]
    assert [sender.wait() for sender in senders] == [0] * STORERS
    return time.monotonic() - began


if __name__ == "__main__":
    main()
