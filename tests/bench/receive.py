"""How fast the node takes images in, against DCMTK's storescp (which makes nothing durable) and Orthanc.

python -m tests.bench.receive [ROUNDS]

All three with TCP_NODELAY, one after the other in each round, from the same sender (storescu); medians. The node is the
listener and the intake with SQLite: each image is fsynced, renamed and committed before its answer.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.make_dicom import chest, to_bytes
from tests.support.orthanc import AET, free_port, running_orthanc
from tests.support.receiving import HOST, NODE, PACS

NODELAY = {**os.environ, "TCP_NODELAY": "1"}
LARGE, SMALL = (2048, 2500), (500, 500)  # 10 MB, 0.5 MB
_UID_DIGITS = 20


@dataclass(frozen=True, kw_only=True)
class Peer:
    name: str
    ae_title: str
    port: int
    pid: int = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    shape: tuple[int, int]
    associations: int
    images: int  # of each association
    unit: str


CASES = (
    Case(name="10 MB images, 1 association", shape=LARGE, associations=1, images=30, unit="MB/s"),
    Case(name="10 MB images, 4 associations", shape=LARGE, associations=4, images=10, unit="MB/s"),
    Case(name="0.5 MB images, 1 association", shape=SMALL, associations=1, images=200, unit="images/s"),
    Case(name="0.5 MB images, 4 associations", shape=SMALL, associations=4, images=100, unit="images/s"),
)


def main(rounds: int) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        images = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory)))
        peers = [stack.enter_context(start(folder)) for start in (storescp, orthanc, node)]
        for case in CASES:
            templates = template(case.shape)
            speeds: dict[str, list[float]] = {peer.name: [] for peer in peers}
            for _ in range(rounds):
                for peer in peers:
                    speeds[peer.name].append(measure(case, peer, images, templates))
            show(case, speeds)
        ours = peers[-1]
        measure(Case(name="", shape=LARGE, associations=10, images=4, unit="MB/s"), ours, images, template(LARGE))
        print(f"resident after 10 associations at once: {resident_mb(ours.pid):.0f} MB (at most)")


def show(case: Case, speeds: dict[str, list[float]]) -> None:
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    said = ", ".join(f"{name} {value:.0f}" for name, value in medians.items())
    ratios = ", ".join(f"{medians['node'] / medians[name]:.2f} x {name}" for name in medians if name != "node")
    print(f"{case.name} ({case.unit}): {said}: the node is {ratios}", flush=True)


def measure(case: Case, peer: Peer, folder: Path, template: tuple[bytes, bytes]) -> float:
    """MB/s or images/s of one transfer of images that the peer has not seen."""
    sets = [make_images(folder / str(number), case.images, template) for number in range(case.associations)]
    size = sum(file.stat().st_size for files in sets for file in files)
    os.sync()
    began = time.perf_counter()
    senders = [
        subprocess.Popen(
            ["/usr/bin/storescu", "-aet", PACS, "-aec", peer.ae_title, HOST, str(peer.port), *map(str, files)],
            env=NODELAY, stdout=subprocess.DEVNULL,
        )
        for files in sets
    ]  # fmt: skip
    assert [sender.wait() for sender in senders] == [0] * len(senders)
    seconds = time.perf_counter() - began
    for files in sets:
        shutil.rmtree(files[0].parent)
    return size / 1e6 / seconds if case.unit == "MB/s" else case.images * case.associations / seconds


def template(shape: tuple[int, int]) -> tuple[bytes, bytes]:
    """An image, and the placeholder of its UIDs."""
    digits = b"9" * _UID_DIGITS
    uids = tuple(f"1.2.{kind}.{digits.decode()}" for kind in (1, 2, 3))
    return to_bytes(chest(*shape, kind="DX", uids=(uids[0], uids[1], uids[2]))), digits


def make_images(folder: Path, count: int, template: tuple[bytes, bytes]) -> list[Path]:
    folder.mkdir()
    files = []
    for number in range(count):
        unique = str(time.time_ns()).encode().ljust(_UID_DIGITS, b"1")[:_UID_DIGITS]
        files.append(folder / f"{number}.dcm")
        files[-1].write_bytes(template[0].replace(template[1], unique))
    return files


@contextmanager
def storescp(folder: Path) -> Iterator[Peer]:
    into, port = folder / "storescp", free_port()
    into.mkdir()
    command = ["/usr/bin/storescp", "--fork", "-pdu", "131072", "-od", str(into), str(port)]
    with _process(command, lambda p: Peer(name="storescp", ae_title="ANY", port=port, pid=p.pid)) as peer:
        time.sleep(0.5)
        yield peer


@contextmanager
def orthanc(folder: Path) -> Iterator[Peer]:
    with running_orthanc(folder / "orthanc") as peer:
        yield Peer(name="Orthanc", ae_title=AET, port=peer.dicom_port)


@contextmanager
def node(folder: Path) -> Iterator[Peer]:
    command = [sys.executable, "-m", "tests.support.receiving", str(folder / "node")]

    def ready(process: subprocess.Popen[str]) -> Peer:
        assert process.stdout
        return Peer(name="node", ae_title=NODE, port=int(process.stdout.readline()), pid=process.pid)

    with _process(command, ready) as peer:
        yield peer


@contextmanager
def _process(command: list[str], ready: Callable[[subprocess.Popen[str]], Peer]) -> Iterator[Peer]:
    with subprocess.Popen(command, env=NODELAY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield ready(process)
        finally:
            process.terminate()


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) / 1000


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
