"""Which engine on this processor? `python -m tests.bench.engines_cpu [BUNDLE]` prints a table.

onnxruntime and OpenVINO in float32 (OpenVINO's own default is bfloat16 where the processor has it: asserted off), and
OpenVINO in each precision that the bundle accepts: on the same threads, each in a process of its own for its memory, in
interleaved rounds so that a busy machine disturbs all of them; the best counts.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psutil

from engines.base import EngineError
from engines.bundle import Bundle, load_bundle
from engines.cpu import CpuEngine
from engines.cpu_low import LowCpuEngine, LowPrecision

BATCHES = (1, 8, 32)
ROUNDS, LEAST_S = 2, 1.0
Run = Callable[[Any], Any]


def _onnxruntime(bundle: Bundle, threads: int) -> Run:
    engine = CpuEngine(bundle, threads=threads)
    engine.activate()
    return lambda batch: engine.infer(batch).probabilities


def _openvino(bundle: Bundle, threads: int) -> Run:
    import openvino as ov

    wanted = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = ov.Core().compile_model(bundle.model_path, "CPU", wanted)
    if compiled.get_property("INFERENCE_PRECISION_HINT") != ov.Type.f32:
        raise EngineError("OpenVINO does not run in float32")
    request = compiled.create_infer_request()
    return lambda batch: request.infer([batch])[0].copy()


def _low(precision: LowPrecision, bundle: Bundle, threads: int) -> Run:
    engine = LowCpuEngine(bundle, precision, threads=threads)
    engine.activate()
    return lambda batch: engine.infer(batch).probabilities


ENGINES: dict[str, Callable[[Bundle, int], Run]] = {
    "onnxruntime": _onnxruntime,
    "OpenVINO": _openvino,
    **{f"OpenVINO {precision}": partial(_low, precision) for precision in LowPrecision},
}


def _serve(pipe: Connection, engine: str, name: str, threads: int) -> None:
    """Say "" or why it cannot run; then answer each batch with (seconds of one run, probabilities, bytes resident)."""
    before = psutil.Process().memory_info().rss
    try:
        run = ENGINES[engine](load_bundle(name), threads)
    except EngineError as e:
        pipe.send(str(e))
        return
    pipe.send("")
    while (batch := pipe.recv()) is not None:
        p, best, began = run(batch), float("inf"), time.perf_counter()
        while time.perf_counter() - began < LEAST_S:
            t = time.perf_counter()
            run(batch)
            best = min(best, time.perf_counter() - t)
        pipe.send((best, p, psutil.Process().memory_info().rss - before))


def _started(name: str, threads: int) -> dict[str, Connection]:
    """A pipe to each engine that runs here; the others say why not."""
    context, pipes = get_context("spawn"), {}
    for engine in ENGINES:
        ours, theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, engine, name, threads), daemon=True).start()
        if why := ours.recv():
            print(f"{engine} is not measured: {why}")
        else:
            pipes[engine] = ours
    return pipes


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "default"
    bundle, threads = load_bundle(name), len(os.sched_getaffinity(0))
    shape, pipes = bundle.manifest.input, _started(name, threads)
    print(
        f"{bundle.name} {shape.rows}x{shape.columns}, {threads} threads, float32 or as named, best of {ROUNDS} rounds"
    )
    print("| batch | " + " | ".join(f"{e} images/s | x | MiB" for e in pipes) + " | largest differences |")
    print("|---" * (2 + 3 * len(pipes)) + "|")
    for n in BATCHES:
        batch = np.random.default_rng(n).standard_normal((n, shape.channels, shape.rows, shape.columns), np.float32)
        answers = [_round(pipes, batch) for _ in range(ROUNDS)]
        best = {e: min(a[e][0] for a in answers) for e in pipes}
        first = next(iter(pipes))
        off = (f"{np.abs(answers[0][e][1] - answers[0][first][1]).max():.1g}" for e in pipes if e != first)
        cells = [f"{n / best[e]:.1f} | {best[first] / best[e]:.2f} | {answers[-1][e][2] / 2**20:.0f}" for e in pipes]
        print(f"| {n} | {' | '.join(cells)} | {', '.join(off)} |", flush=True)
    for pipe in pipes.values():
        pipe.send(None)


def _round(pipes: dict[str, Connection], batch: Any) -> dict[str, Any]:
    answers = {}
    for engine, pipe in pipes.items():
        pipe.send(batch)
        answers[engine] = pipe.recv()
    return answers


if __name__ == "__main__":
    main()
