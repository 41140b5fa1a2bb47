"""onnxruntime or OpenVINO on this processor? `python -m tests.bench.engines_cpu [BUNDLE]` prints a table.

Both in float32 (OpenVINO's own default is bfloat16 where the processor has it: asserted off), on the same threads, each
in a process of its own for its memory, in interleaved rounds so that a busy machine disturbs both; the best counts.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psutil

from engines.bundle import load_bundle

BATCHES = (1, 8, 16, 32)
ROUNDS, LEAST_S = 5, 0.4
Run = Callable[[Any], Any]


def _onnxruntime(model: str, threads: int) -> Run:
    import onnxruntime as ort

    from engines.cpu import INPUT, OUTPUTS, _options

    session = ort.InferenceSession(model, _options(threads), providers=["CPUExecutionProvider"])
    return lambda batch: session.run(OUTPUTS, {INPUT: batch})[0]


def _openvino(model: str, threads: int) -> Run:
    import openvino as ov

    wanted = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = ov.Core().compile_model(model, "CPU", wanted)
    if compiled.get_property("INFERENCE_PRECISION_HINT") != ov.Type.f32:
        raise SystemExit("OpenVINO does not run in float32")
    request = compiled.create_infer_request()
    return lambda batch: request.infer([batch])[0].copy()


ENGINES: dict[str, Callable[[str, int], Run]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}


def _serve(pipe: Connection, engine: str, model: str, threads: int) -> None:
    """Answer each batch with (seconds of one run, probabilities, bytes resident)."""
    before = psutil.Process().memory_info().rss
    run = ENGINES[engine](model, threads)
    while (batch := pipe.recv()) is not None:
        p, best, began = run(batch), float("inf"), time.perf_counter()
        while time.perf_counter() - began < LEAST_S:
            t = time.perf_counter()
            run(batch)
            best = min(best, time.perf_counter() - t)
        pipe.send((best, p, psutil.Process().memory_info().rss - before))


def main() -> None:
    bundle = load_bundle(sys.argv[1] if len(sys.argv) > 1 else "default")
    threads, shape = len(os.sched_getaffinity(0)), bundle.manifest.input
    context, pipes = get_context("spawn"), {}
    for engine in ENGINES:
        ours, theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, engine, str(bundle.model_path), threads), daemon=True).start()
        pipes[engine] = ours
    print(f"{bundle.name} {shape.rows}x{shape.columns}, {threads} threads, float32, best of {ROUNDS} rounds")
    print("| batch | " + " | ".join(f"{e} images/s | {e} MiB" for e in ENGINES) + " | largest difference |")
    print("|---" * (2 + 2 * len(ENGINES)) + "|")
    for n in BATCHES:
        batch = np.random.default_rng(n).standard_normal((n, shape.channels, shape.rows, shape.columns), np.float32)
        answers = [_round(pipes, batch) for _ in range(ROUNDS)]
        best = {e: min(a[e][0] for a in answers) for e in ENGINES}
        off = np.ptp([answers[0][e][1] for e in ENGINES], axis=0).max()
        cells = [f"{n / best[e]:.1f} | {answers[-1][e][2] / 2**20:.0f}" for e in ENGINES]
        print(f"| {n} | {' | '.join(cells)} | {off:.1g} |", flush=True)
    for pipe in pipes.values():
        pipe.send(None)


def _round(pipes: dict[str, Any], batch: Any) -> dict[str, Any]:
    answers = {}
    for engine, pipe in pipes.items():
        pipe.send(batch)
        answers[engine] = pipe.recv()
    return answers


if __name__ == "__main__":
    main()
