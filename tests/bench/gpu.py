"""Images a second on this machine's GPU: `python -m tests.bench.gpu [BUNDLE]` (make bench-gpu) prints a table.

For each precision that the bundle states a tolerance for and each largest batch: the network alone, on images that lie
on the device; the engine, with its copies, on batches eight times as large; and end to end from films as the decoder
leaves them (2048x2048), one thread preparing them. The best of three rounds counts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from engines.bundle import Bundle, load_bundle
from engines.cuda_buffers import import_pycuda
from engines.plan import PRECISIONS
from engines.preprocess import to_batch
from engines.trt_run import TensorRtEngine
from tests.support.real_gpu import gpu_engine, missing_gpu

LARGEST = (1, 8, 32, 128)
CHUNKS, ROUNDS, LEAST_S = 8, 3, 0.5
FILM = (2048, 2048)


def main() -> None:
    if missing_gpu():
        raise SystemExit(f"no GPU: {missing_gpu()}")
    cuda = import_pycuda()
    cuda.init()
    bundle = load_bundle(sys.argv[1] if len(sys.argv) > 1 else "default")
    print(f"{bundle.name}, {cuda.Device(0).name()}, driver for CUDA {cuda.get_driver_version()}")
    print("| engine | batch | network alone, images/s | with copies | end to end |\n|---|---|---|---|---|")
    for precision in (p for p in PRECISIONS if p in bundle.manifest.tolerance):
        for largest in LARGEST:
            engine = gpu_engine("tensorrt", bundle, largest=largest, precision=precision)
            engine.activate()
            cells = (network_alone(engine, largest), with_copies(engine, bundle, largest), end_to_end(engine, bundle))
            print(f"| {engine.name} | {largest} | {' | '.join(f'{c:.0f}' for c in cells)} |", flush=True)
            engine.deactivate()


def network_alone(engine: TensorRtEngine, largest: int) -> float:
    gpu, buffers = engine._gpu, engine._buffers
    if gpu is None or buffers is None:
        raise SystemExit("the engine is not active")
    addresses = {name: int(at) for name, at in buffers._slots[0].device.items()}

    def run() -> int:
        with gpu.current():
            for _ in range(CHUNKS):
                engine._enqueue(addresses, largest, buffers._compute.handle)
            buffers._compute.synchronize()
        return CHUNKS * largest

    return best_rate(run)


def with_copies(engine: TensorRtEngine, bundle: Bundle, largest: int) -> float:
    shape = bundle.manifest.input
    batch = np.random.default_rng(0).standard_normal(
        (CHUNKS * largest, shape.channels, shape.rows, shape.columns), np.float32
    )
    return best_rate(lambda: len(engine.infer(batch)))


def end_to_end(engine: TensorRtEngine, bundle: Bundle) -> float:
    shape = bundle.manifest.input
    films = [np.random.default_rng(i).random(FILM, np.float32) for i in range(8)]

    def run() -> int:
        images = [shape.prepared(film) for film in films]
        return len(engine.infer(to_batch(images, shape.channels)))

    return best_rate(run)


def best_rate(run: Callable[[], int]) -> float:
    """Images a second of the best round; `run` returns how many it did."""
    run()
    rates = []
    for _ in range(ROUNDS):
        images, began = 0, time.perf_counter()
        while time.perf_counter() - began < LEAST_S:
            images += run()
        rates.append(images / (time.perf_counter() - began))
    return max(rates)


if __name__ == "__main__":
    main()
