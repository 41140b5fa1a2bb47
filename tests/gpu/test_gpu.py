"""The TensorRT engine on a real GPU: `make test-gpu`, on any machine with an NVIDIA driver, unattended.

Prints what it measures. The soak lasts CXRNODE_SOAK_S seconds (make test-gpu: half an hour).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("onnx")

from engines.base import EngineOutput
from engines.bundle import Bundle, load_bundle
from engines.cpu import CpuEngine
from engines.cuda_buffers import DoubleBuffer, Gpu, import_pycuda
from engines.golden import cam_difference
from engines.plan import PRECISIONS
from engines.trt_run import TensorRtEngine
from tests.contract.tiny import tiny_batch, tiny_bundle
from tests.support.real_gpu import (
    NETWORKS,
    ON_HOST,
    empty_torchs_cache,
    gpu_engine,
    missing_gpu,
    on_device,
    torch_stream,
)

if missing_gpu():
    pytest.skip(f"no GPU to test on: {missing_gpu()}", allow_module_level=True)

pytestmark = pytest.mark.gpu
LARGEST = 32
DEPTH = 200  # products of matrices: longer than it takes to copy the next images to pinned memory
SOAK_S = float(os.environ.get("CXRNODE_SOAK_S", "5"))
TENSORRT = [("tensorrt", precision) for precision in PRECISIONS]
on_tensorrt = pytest.mark.parametrize("engine", TENSORRT, indirect=True, scope="module", ids=PRECISIONS)
on_either = pytest.mark.parametrize(
    "engine", [*TENSORRT, (ON_HOST, "fp32")], indirect=True, scope="module", ids=[*PRECISIONS, "host"]
)


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle("default")


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, shipped: Bundle) -> Iterator[TensorRtEngine]:
    """The shipped bundle, on one of NETWORKS in one of PRECISIONS, if the bundle states a tolerance for that."""
    network, precision = request.param
    if precision not in shipped.manifest.tolerance:
        pytest.skip(f"bundle {shipped.name} states no tolerance for {precision}")
    made = gpu_engine(network, shipped, largest=LARGEST, precision=precision)
    made.activate()
    print(f"\n{made.name}")
    yield made
    made.deactivate()


def films(bundle: Bundle, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Golden inputs, as many as wanted, none twice the same."""
    golden = bundle.golden().batch
    noise = np.random.default_rng(count).standard_normal((count, *golden.shape[1:]), np.float32)
    return np.resize(golden, noise.shape) + np.float32(0.05) * noise


def assert_alike(got: EngineOutput, want: EngineOutput, bundle: Bundle, precision: str) -> None:
    tolerance = bundle.manifest.tolerance[precision]
    np.testing.assert_allclose(got.probabilities, want.probabilities, atol=tolerance.probabilities, rtol=0)
    assert cam_difference(got.cam, want.cam) <= tolerance.cam
    best = np.sort(want.probabilities, axis=1)
    clear = best[:, -1] - best[:, -2] >= tolerance.tie
    np.testing.assert_array_equal(got.class_index[clear], want.class_index[clear])


@on_either
@pytest.mark.parametrize("count", [1, 3, 8, LARGEST, 2 * LARGEST + 1])
def test_it_says_what_the_cpu_says(engine: TensorRtEngine, shipped: Bundle, count: int) -> None:
    cpu = CpuEngine(shipped)
    cpu.activate()
    batch = films(shipped, count)
    assert_alike(engine.infer(batch), cpu.infer(batch), shipped, engine.name.rsplit(" ", 1)[-1])


@on_tensorrt
@pytest.mark.parametrize("count", [1, 8, LARGEST, 4 * LARGEST])
def test_throughput_and_latency(engine: TensorRtEngine, shipped: Bundle, count: int) -> None:
    """Prints; asserts nothing of speed."""
    batch = films(shipped, count)
    seconds: list[float] = []
    engine.infer(batch)
    began = time.perf_counter()
    while time.perf_counter() - began < 1 or len(seconds) < 3:
        t = time.perf_counter()
        engine.infer(batch)
        seconds.append(time.perf_counter() - t)
    median, worst = np.percentile(seconds, [50, 99]) * 1e3
    rate = count * len(seconds) / sum(seconds)
    print(f"\n{engine.name}: batch {count}: {rate:.0f} images/s, median {median:.2f} ms, 99 % within {worst:.2f} ms")


@on_tensorrt
def test_a_soak_changes_nothing(engine: TensorRtEngine, shipped: Bundle) -> None:
    """The same answers at the end as at the start, in as much memory."""
    sizes = [1, 3, LARGEST, LARGEST + 1, 2 * LARGEST]
    batches = [films(shipped, n) for n in sizes]
    first = [engine.infer(b) for b in batches]
    process, rounds = psutil.Process(), 0
    resident, free = process.memory_info().rss, free_memory()
    end = time.monotonic() + SOAK_S
    while time.monotonic() < end:
        for batch, want in zip(batches, first, strict=True):
            assert_alike(engine.infer(batch), want, shipped, engine.name.rsplit(" ", 1)[-1])
        rounds += 1
    print(f"\n{engine.name}: {rounds * sum(sizes)} images in {SOAK_S:.0f} s")
    assert rounds
    assert process.memory_info().rss < resident + 64 * 2**20
    assert free_memory() >= free - 2**20


def free_memory() -> int:
    """Of the GPU, in bytes; of a machine where nothing else uses it."""
    gpu = Gpu(0)
    with gpu.current():
        free = int(import_pycuda().mem_get_info()[0])
    gpu.close(lambda: None)
    return free


@pytest.mark.parametrize("network", NETWORKS)
def test_deactivate_gives_all_memory_back(network: str, tmp_path: Path) -> None:
    """Somebody else holds the primary context meanwhile: it is not its end that frees."""
    bundle = tiny_bundle(tmp_path)
    life(gpu_engine(network, bundle, largest=256))  # what libraries keep for good, they have by now
    holder = Gpu(0)
    before = free_memory()
    for _ in range(5):
        life(gpu_engine(network, bundle, largest=256))
    assert free_memory() >= before - 2**21  # the driver counts in blocks of 2 MiB; each life has 3 MiB
    holder.close(lambda: None)


def life(engine: TensorRtEngine) -> None:
    engine.activate()
    engine.infer(tiny_batch(20))
    engine.deactivate()
    empty_torchs_cache()


@pytest.mark.parametrize("network", NETWORKS)
def test_memory_is_flat_over_ten_thousand_batches(network: str, tmp_path: Path) -> None:
    engine = gpu_engine(network, tiny_bundle(tmp_path))
    engine.activate()
    batch, process = tiny_batch(12), psutil.Process()
    resident, free = 0, 0
    for i in range(10_000):
        if i == 1_000:
            resident, free = process.memory_info().rss, free_memory()
        engine.infer(batch)
    assert process.memory_info().rss < resident + 8 * 2**20
    assert free_memory() >= free - 2**20
    engine.deactivate()


@pytest.mark.parametrize("network", NETWORKS)
def test_engines_on_threads_of_their_own(network: str, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    gpu_engine(network, bundle)  # builds, or skips, on this thread

    def work(seed: int) -> list[float]:
        engine = gpu_engine(network, bundle)
        engine.activate()
        found = [float(engine.infer(tiny_batch(20, seed=i)).cam.sum()) for i in range(200)]
        engine.deactivate()
        return found

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(work, (1, 2))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_copies_overlap_computing() -> None:
    """By the GPU's own clock: images of the next chunk go up while the network works on this one."""
    torch = pytest.importorskip("torch")
    shape, largest, chunks = (3, 512, 512), 16, 6
    torch.zeros(1, device="cuda")  # torch's own start
    uploads: list[tuple[Any, Any]] = []
    computes: list[tuple[Any, Any]] = []

    def timed(kept: list[tuple[Any, Any]], handle: int, work: Callable[[], None]) -> None:
        stream = torch_stream(handle)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(stream)
        work()
        end.record(stream)
        kept.append((start, end))

    factor = torch.linalg.qr(torch.randn(512, 512, device="cuda"))[0]  # so that nothing grows or vanishes

    def enqueue(address: dict[str, int], count: int, handle: int) -> None:
        def network() -> None:
            with torch.cuda.stream(torch_stream(handle)):
                images = on_device(address["images"], (count, *shape))
                for _ in range(DEPTH):
                    images = images @ factor
                on_device(address["sums"], (count,)).copy_(images.abs().mean((1, 2, 3)))

        timed(computes, handle, network)

    cuda = import_pycuda()

    def upload(to: Any, what: Any, stream: Any) -> None:
        timed(uploads, stream.handle, lambda: cuda.memcpy_htod_async(to, what, stream))

    batch = np.random.default_rng(0).standard_normal((largest * chunks, *shape), np.float32)
    gpu = Gpu(0)
    with gpu.current():
        buffers = DoubleBuffer(
            inputs={"images": (shape, np.float32)}, outputs={"sums": ((), np.float32)}, largest=largest
        )
        buffers.run(batch, enqueue)
        uploads.clear()
        computes.clear()
        origin = torch.cuda.Event(enable_timing=True)
        origin.record()
        names = ("memcpy_dtoh_async", "Error")
        buffers._cuda = SimpleNamespace(memcpy_htod_async=upload, **{n: getattr(cuda, n) for n in names})
        got = buffers.run(batch, enqueue)["sums"]
    torch.cuda.synchronize()
    spans = [[(origin.elapsed_time(a), origin.elapsed_time(b)) for a, b in kept] for kept in (uploads, computes)]
    gpu.close(buffers.close)
    for name, kept in zip(("up", "computing"), spans, strict=True):
        print(f"\n{name}: " + ", ".join(f"{a:.2f}-{b:.2f} ms" for a, b in kept), end="")
    shared = sum(max(0.0, min(e, g) - max(s, f)) for s, e in spans[0] for f, g in spans[1])
    print(f"\n{shared:.2f} ms of {sum(e - s for s, e in spans[0]):.2f} ms of copying passed while computing")
    assert shared > 0
    want = torch.from_numpy(batch[:1]).cuda()
    for _ in range(DEPTH):
        want = want @ factor
    np.testing.assert_allclose(got[0], float(want.abs().mean()), rtol=1e-3)
