"""The TensorRT engine when its GPU fails, on a simulated GPU: every fault is an EngineError and leaves nothing behind.

What is simulated, and what this cannot prove: tests/support/simulated_gpu.py.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("onnx")

import engines.trt_run
from engines.base import EngineError
from engines.bundle import Bundle, load_bundle
from engines.check import UnusableEngineError
from engines.load import make_engine
from engines.trt_run import TensorRtEngine, context_opener
from tests.contract.tiny import seal, tiny_batch, write_tiny
from tests.support.execution_context import OnnxContext
from tests.support.simulated_gpu import ELSEWHERE, Simulation, simulated, simulated_engine, simulation

if not simulated():
    pytest.skip(ELSEWHERE, allow_module_level=True)

UNKNOWN, LAUNCH_FAILED, ILLEGAL_ADDRESS = 999, 719, 700  # CUresult
NOTHING = dict.fromkeys(("device", "host", "stream", "event", "context"), 0)
LARGEST, CHUNKS = 2, 3


@pytest.fixture(params=["eager", "lazy"])
def sim(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    sim = simulation()
    sim.lazy(request.param == "lazy")
    yield sim
    sim.fail(0, 0)
    sim.memory(0)
    sim.lazy(False)
    assert held(sim) == NOTHING


def held(sim: Simulation) -> dict[str, int]:
    return {name: sim.live()[name] for name in NOTHING}


def life(engine: TensorRtEngine) -> None:
    engine.activate()
    engine.infer(tiny_batch(LARGEST * CHUNKS))
    engine.deactivate()


def calls_of(sim: Simulation, bundle: Bundle) -> tuple[list[str], int]:
    """The driver calls of one life without a fault, and how many of them come before deactivate()."""
    engine = simulated_engine(bundle, largest=LARGEST)
    before = sim.called()
    engine.activate()
    engine.infer(tiny_batch(LARGEST * CHUNKS))
    working = sim.called() - before
    engine.deactivate()
    return sim.calls(before), working


@pytest.mark.parametrize("loses_context", [False, True], ids=["once", "context-lost"])
def test_each_call_that_fails_is_an_error_and_leaves_nothing(
    sim: Simulation, bundle: Bundle, loses_context: bool
) -> None:
    calls, working = calls_of(sim, bundle)
    assert {"cuMemAlloc_v2", "cuMemcpyHtoDAsync_v2", "cuEventSynchronize", "cuCtxPushCurrent_v2"} < set(calls)
    for nth, name in enumerate(calls, 1):
        engine = simulated_engine(bundle, largest=LARGEST)
        sim.fail(nth, LAUNCH_FAILED if loses_context else UNKNOWN, loses_context=loses_context)
        if nth <= working:
            with pytest.raises(EngineError, match="simulated error"):
                life(engine)
        else:
            life(engine)  # letting go tells of nothing: there is nothing left to do about it
        engine.deactivate()
        assert held(sim) == NOTHING, f"call {nth}, {name}"
        with pytest.raises(EngineError, match="not active"):
            engine.infer(tiny_batch(1))
    life(simulated_engine(bundle))  # and the next engine is well


def test_a_batch_that_fails_once_does_not_spoil_the_next(sim: Simulation, bundle: Bundle) -> None:
    engine = simulated_engine(bundle, largest=LARGEST)
    engine.activate()
    batch = tiny_batch(LARGEST * CHUNKS)
    want = engine.infer(batch)
    before = sim.called()
    engine.infer(batch)
    for nth in range(1, sim.called() - before + 1):
        sim.fail(nth, UNKNOWN)
        with pytest.raises(EngineError):
            engine.infer(tiny_batch(LARGEST * CHUNKS, seed=nth))
        np.testing.assert_array_equal(engine.infer(batch).probabilities, want.probabilities)
    engine.deactivate()


def test_a_lost_context_makes_the_engine_unusable_until_it_is_activated_anew(sim: Simulation, bundle: Bundle) -> None:
    engine = simulated_engine(bundle, largest=LARGEST)
    engine.activate()
    sim.fail(5, ILLEGAL_ADDRESS, loses_context=True)
    with pytest.raises(UnusableEngineError, match=r"context is lost.*Start the process again"):
        engine.infer(tiny_batch(5))
    with pytest.raises(UnusableEngineError, match="context is lost"):
        engine.infer(tiny_batch(1))
    engine.deactivate()
    engine.activate()
    assert len(engine.infer(tiny_batch(5))) == 5
    engine.deactivate()


@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.99])
def test_too_little_memory_says_so(sim: Simulation, bundle: Bundle, share: float) -> None:
    needed = 2 * 64 * (3 * 16 * 16 * 4 + 3 * 4 + 8 + 4 * 4 * 4)
    sim.memory(int(needed * share) or 1)
    with pytest.raises(EngineError, match="too little memory is free"):
        simulated_engine(bundle, largest=64).activate()
    assert held(sim) == NOTHING
    sim.memory(needed)
    life(simulated_engine(bundle, largest=64))


def test_nothing_is_left_after_a_clean_life(sim: Simulation, bundle: Bundle) -> None:
    before = sim.live()
    for _ in range(3):
        life(simulated_engine(bundle))
    assert sim.live() == before  # nor was anything freed only because its context went, nor any copy not from pinned


def test_chunks_of_every_size_answer_as_the_cpu_does(sim: Simulation, bundle: Bundle) -> None:
    cpu, gpu = make_engine("cpu", bundle), simulated_engine(bundle, largest=4)
    cpu.activate()
    gpu.activate()
    for count in range(1, 15):
        batch = tiny_batch(count, seed=count)
        want, got = cpu.infer(batch), gpu.infer(batch)
        np.testing.assert_allclose(got.probabilities, want.probabilities, atol=1e-6)
        np.testing.assert_array_equal(got.class_index, want.class_index)
        np.testing.assert_allclose(got.cam, want.cam, atol=1e-6)
        order = np.random.default_rng(count).permutation(count)
        np.testing.assert_allclose(gpu.infer(batch[order]).cam, got.cam[order], atol=1e-6)
    gpu.deactivate()


def test_another_thread_is_refused(sim: Simulation, bundle: Bundle) -> None:
    engine = simulated_engine(bundle)
    engine.activate()
    calls: tuple[Callable[[], Any], ...] = (lambda: engine.infer(tiny_batch(1)), engine.activate, engine.deactivate)
    with ThreadPoolExecutor(1) as other:
        for call in calls:
            with pytest.raises(EngineError, match="another thread"):
                other.submit(call).result()
    assert len(engine.infer(tiny_batch(1))) == 1
    engine.deactivate()
    with ThreadPoolExecutor(1) as other:
        other.submit(life, engine).result()  # whichever activates it has it


def test_an_engine_that_was_dropped_is_let_go_wherever_it_is_collected(sim: Simulation, bundle: Bundle) -> None:
    """As after a test that failed, whose traceback held it: another thread of another engine's collects it."""

    def drop() -> None:
        engine = simulated_engine(bundle)
        engine.activate()
        engine.infer(tiny_batch(3))
        cycle: list[Any] = [engine]
        cycle.append(cycle)

    def collect() -> None:
        engine = simulated_engine(bundle, prepare=contexts.append)
        engine.activate()
        shaped = contexts[0].set_input_shape  # called with this engine's context current
        contexts[0].set_input_shape = lambda *a: bool(gc.collect() or True) and shaped(*a)  # type: ignore[method-assign]
        engine.infer(tiny_batch(3))
        engine.deactivate()

    contexts: list[OnnxContext] = []
    gc.collect()
    gc.disable()
    try:
        drop()
        assert held(sim) != NOTHING
        with ThreadPoolExecutor(1) as other, pytest.warns(ResourceWarning, match=r"call deactivate\(\)") as warned:
            other.submit(collect).result()
    finally:
        gc.enable()
    assert len(warned) == 1  # and none of pycuda's
    assert held(sim) == NOTHING


def test_two_engines_on_two_threads(sim: Simulation, bundle: Bundle) -> None:
    """They share the primary context, and it outlives the one that is let go first."""
    meet = threading.Barrier(2, timeout=30)

    def work(count: int) -> list[float]:
        engine = simulated_engine(bundle, largest=LARGEST)
        engine.activate()
        meet.wait()
        found = [float(engine.infer(tiny_batch(7, seed=i)).probabilities.sum()) for i in range(count)]
        engine.deactivate()
        return found

    with ThreadPoolExecutor(2) as pool:
        short, long = pool.map(work, (20, 60))
    assert short == long[:20]


@pytest.mark.parametrize("sim", ["eager"], indirect=True)
def test_memory_is_flat_over_ten_thousand_batches(sim: Simulation, bundle: Bundle) -> None:
    engine = simulated_engine(bundle, largest=LARGEST)
    engine.activate()
    batch, process = tiny_batch(3), psutil.Process()
    for i in range(10_000):
        if i == 1_000:
            alive, resident = sim.live(), process.memory_info().rss
        engine.infer(batch)
    assert sim.live() == alive
    assert process.memory_info().rss < resident + 2**20
    engine.deactivate()


def test_an_engine_that_begins_to_err_is_found_and_stays_silent(
    sim: Simulation, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.trt_run, "RECHECK_EVERY", 10)
    contexts: list[OnnxContext] = []
    engine = simulated_engine(bundle, prepare=contexts.append)
    engine.activate()
    for _ in range(25):
        engine.infer(tiny_batch(1))
    contexts[0].off = 0.01
    for _ in range(5):
        engine.infer(tiny_batch(1))
    for _ in range(2):
        with pytest.raises(UnusableEngineError, match="no longer passes its golden check"):
            engine.infer(tiny_batch(1))
    engine.deactivate()
    engine.activate()  # its new context is well
    assert len(engine.infer(tiny_batch(1))) == 1
    engine.deactivate()


def test_an_engine_that_errs_from_the_start_does_not_start(sim: Simulation, bundle: Bundle) -> None:
    engine = simulated_engine(bundle, prepare=lambda context: setattr(context, "off", 0.01))
    with pytest.raises(EngineError, match=r"probabilities differ by 0\.01"):
        engine.activate()
    assert held(sim) == NOTHING


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("refuse", "set_tensor_address", "does not take an address for images"),
        ("refuse", "set_input_shape", "does not take a batch of 1"),
        ("refuse", "execute_async_v3", "did not start on a batch of 1"),
        ("least", 4, "no batch of fewer than 4"),
        ("dtypes", dict.fromkeys(("images", "probabilities", "class_index", "cam"), "HALF"), "images is HALF"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    sim: Simulation, bundle: Bundle, name: str, value: object, words: str
) -> None:
    with pytest.raises(EngineError, match=rf"{words}.*cxrnode engine build"):
        simulated_engine(bundle, prepare=lambda context: setattr(context, name, value)).activate()
    assert held(sim) == NOTHING


def test_a_plan_of_another_network_is_refused(sim: Simulation, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other", output="heat")
    with pytest.raises(EngineError, match=r"has the tensors.*heat"):
        simulated_engine(load_bundle(str(other))).activate()
    wide = load_bundle(str(write_tiny(tmp_path / "wide")))
    shape = wide.manifest.input.model_copy(update={"rows": 32})
    seal(wide.folder, wide.manifest.model_copy(update={"input": shape}))
    with pytest.raises(EngineError, match=r"images is FLOAT \[3, 16, 16\].*not the bundle's"):
        simulated_engine(load_bundle(str(wide.folder))).activate()


def test_the_class_may_be_int32(sim: Simulation, bundle: Bundle) -> None:
    engine = simulated_engine(bundle, prepare=lambda context: context.dtypes.update(class_index="INT32"))
    engine.activate()
    assert engine.infer(tiny_batch(5)).class_index.dtype == np.int64
    engine.deactivate()


def test_a_precision_without_a_tolerance_is_refused(sim: Simulation, bundle: Bundle) -> None:
    engine = simulated_engine(bundle)
    engine._precision = "fp8"
    with pytest.raises(EngineError, match="states no tolerance for fp8"):
        engine.activate()


def test_without_pycuda_the_error_says_what_to_install(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(EngineError, match=r"pycuda cannot be used.*pip install pycuda"):
        simulated_engine(bundle).activate()


def test_a_plan_that_tensorrt_does_not_take_is_refused_in_its_words() -> None:
    """A stand-in for the module: the real one crashes where there is no driver."""
    severity = IntEnum("severity", [("INTERNAL_ERROR", 0), ("ERROR", 1)])

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> None:
            self.logger.log(severity.ERROR, "magic tag does not match")

    base: type = type("ILogger", (), {"Severity": severity})
    trt: Any = SimpleNamespace(ILogger=base, Runtime=Runtime, __name__="tensorrt", __version__="11.4")
    with pytest.raises(EngineError, match=r"TensorRT 11\.4 cannot load the plan: magic tag.*cxrnode engine build"):
        context_opener(trt)(b"")
