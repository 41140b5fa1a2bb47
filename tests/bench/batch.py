"""make bench-batch: run-batch beside the loop a user would write, its distance from the ideal, and its memory.

    python -m tests.bench.batch [--count 200] [--rounds 3] [--large 1000] [--work DIR]

Interleaved: each round runs the loop, run-batch and the stages over the same files, each in a process of its own,
started cold. The ideal is the CPU seconds of decoding, of inference and of report writing, each alone in one process,
added up and divided by the cores; they are measured a second time with such a process on every core at once, which
shows what the cores take from each other. Memory is the sum over the process tree of the proportional set size (shared
pages once). Prints a table in Markdown; nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cxrnode import __version__
from cxrnode.dicom.header import instance_header
from cxrnode.dicom.read import read_header
from cxrnode.report.context import ReportContext
from cxrnode.types import InstanceHeader, Prediction, StoredImage, Study
from cxrnode.workers import Decoded, Output, decode, make_capture, make_sr
from engines.bundle import load_bundle
from engines.load import make_engine
from engines.preprocess import to_batch
from tests.bench.archive import make_archive, paths

CORES = len(os.sched_getaffinity(0))
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, default=1000, help="files of a longer run; 0: none")
    parser.add_argument("--work", type=Path, default=Path("bench-out"))
    a = parser.parse_args()
    archives = {n: make_archive(a.work / f"archive-{n}", n) for n in (a.count, a.large) if n}
    peer: list[float] = []
    ours: dict[int, list[float]] = {n: [] for n in archives}
    alone, together = [], []
    for n in range(a.rounds):
        loop = [sys.executable, "-m", "tests.bench.peer", str(archives[a.count]), fresh(a.work / "peer")]
        peer.append(seconds_of(loop))
        for count, archive in archives.items():
            ours[count].append(seconds_of(run_batch(archive, a.work / "out")))
        alone += stages(archives[a.count], a.work, processes=1)
        together += stages(archives[a.count], a.work, processes=CORES)
        said = ", ".join(f"{count} files {runs[-1]:.1f} s" for count, runs in ours.items())
        print(f"round {n + 1}: loop {peer[-1]:.1f} s, run-batch {said}", file=sys.stderr)
    memory = {n: peak_mb(run_batch(archive, a.work / "out")) for n, archive in archives.items()}
    print(f"\n{platform.machine()}, {CORES} cores, Python {platform.python_version()}, cxrnode {__version__}")
    print(f"2048x2500x16, medians of {a.rounds} interleaved rounds, {datetime.now():%Y-%m-%d}\n")
    print(f"| CPU ms an image | one process | {CORES} at once |\n|---|---|---|")
    for name in alone[0]:
        ms = [1000 * statistics.median(r[name] for r in runs) / a.count for runs in (alone, together)]
        print(f"| {name} | {ms[0]:.1f} | {ms[1]:.1f} |")
    ideal, crowded = (statistics.median(sum(r.values()) for r in runs) / a.count / CORES for runs in (alone, together))
    reference = statistics.median(peer) / a.count
    print(f"| ideal wall, {CORES} cores | {1000 * ideal:.1f} | {1000 * crowded:.1f} |\n")
    print("| | wall s | images/s | ratio | share of the ideal | of the ideal, cores busy | peak memory MB |")
    print("|---|---|---|---|---|---|---|")
    print(f"| the loop, {a.count} | {statistics.median(peer):.1f} | {1 / reference:.1f} | 1.00 | | | |")
    for count, runs in ours.items():
        each = statistics.median(runs) / count
        print(
            f"| run-batch, {count} | {each * count:.1f} | {1 / each:.1f} | {reference / each:.2f} | {ideal / each:.2f} "
            f"| {crowded / each:.2f} | {memory[count]:.0f} ({memory[count] / memory[a.count]:.2f} x) |"
        )


def run_batch(archive: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "cxrnode", "run-batch", str(archive), "--out", fresh(out), "--quiet"]


def fresh(folder: Path) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    return str(folder)


def seconds_of(command: list[str]) -> float:
    """Wall seconds, with nothing of an earlier run left to be written."""
    os.sync()
    started = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - started


def peak_mb(command: list[str]) -> float:
    """Of the process tree; in a run of its own, for looking costs 4 % of the time."""
    peak, process = 0.0, psutil.Popen(command)
    while process.poll() is None:
        peak = max(peak, tree_mb(process))
        time.sleep(0.25)
    assert process.returncode == 0, command
    return peak


def tree_mb(process: psutil.Process) -> float:
    total = 0
    try:
        for p in (process, *process.children(recursive=True)):
            total += p.memory_full_info().pss
    except psutil.Error:  # it ended while we looked
        return 0.0
    return total / 2**20


def stages(archive: Path, work: Path, *, processes: int) -> list[dict[str, float]]:
    """What `stage_seconds` gives in each of so many fresh processes that run at once."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(stage_seconds, [archive] * processes, [work / f"ideal-{n}" for n in range(processes)]))


def stage_seconds(archive: Path, out: Path) -> dict[str, float]:
    """CPU seconds of each stage alone, over every file of the archive."""
    bundle = load_bundle("default")
    shape = bundle.manifest.input
    locations = [{"container": str(p), "kind": "file", "offset": 0} for p in paths(archive)]
    headers = [read_kept(path) for path in paths(archive)]
    decoded: list[Decoded] = []
    decoding, _ = cpu_seconds(lambda: decoded.extend(decode(at, shape) for at in locations))
    engine = make_engine("cpu", bundle)
    engine.activate()
    images = [d.image for d in decoded if d.image]
    assert len(images) == len(decoded)
    batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    inferring, outputs = cpu_seconds(lambda: [engine.infer(to_batch([i.pixels for i in b])) for b in batches])
    cams = np.concatenate([o.cam for o in outputs])
    probabilities = np.concatenate([o.probabilities for o in outputs])
    context = ReportContext(bundle=bundle, analysed_at=datetime.now().astimezone(), software_version=__version__)
    output = Output(root=Path(fresh(out)))

    def write() -> None:
        for header, d, cam, p in zip(headers, decoded, cams, probabilities, strict=True):
            assert d.image
            assert d.pixel_digest
            said = Prediction(
                probabilities=tuple(p.tolist()),
                class_index=int(p.argmax()),
                cam_max=float(cam.max()),
                engine=engine.name,
            )
            image = StoredImage(kept_header=header.kept, pixel_digest=d.pixel_digest, prediction=said)
            make_capture(output, context, image, d.image.preview, cam)
            uid = header.study_instance_uid
            study = Study(
                study_instance_uid=uid, job_ids=(), images=(image,), last_received_at=0.0, stat=False, earlier=()
            )
            make_sr(output, context, study)

    reporting, _ = cpu_seconds(write)
    return {"decode": decoding, "inference": inferring, "report": reporting}


def read_kept(path: Path) -> InstanceHeader:
    with path.open("rb") as f:
        return instance_header(read_header(f))


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


if __name__ == "__main__":
    main()
