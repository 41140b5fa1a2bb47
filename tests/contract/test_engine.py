"""What every engine must do, whatever runs the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark.structures import ParameterSet

pytest.importorskip("onnx")

from engines.base import Engine, EngineError
from engines.bundle import Bundle
from engines.cpu_low import LowPrecision
from engines.load import make_engine
from tests.contract.tiny import accepted, tiny_batch, tiny_bundle
from tests.support.real_gpu import NETWORKS, gpu_engine, missing_gpu
from tests.support.simulated_gpu import simulated, simulated_engine, simulation

Make = Callable[[Bundle], Engine]
ENGINES: dict[str, Make] = {
    "cpu": lambda bundle: make_engine("cpu", bundle),
    "auto": lambda bundle: make_engine("auto", bundle),
    "cpu-int8": lambda bundle: make_engine("cpu-int8", accepted(bundle, LowPrecision.INT8)),
}
# In the process that test_simulated_gpu.py starts, where the device works at once or as late as it may.
SIMULATED: dict[str, Make] = {"tensorrt, eager streams": simulated_engine, "tensorrt, lazy streams": simulated_engine}
# Where the processor has it.
BF16: dict[str, Make] = {"cpu-bf16": lambda bundle: make_engine("cpu-bf16", accepted(bundle, LowPrecision.BF16))}
# On a machine with a GPU (tests/gpu says where there is none, and why).
ON_GPU: dict[str, Make] = {f"gpu, {network}": partial(gpu_engine, network) for network in NETWORKS}


def missing_bf16() -> str:
    """Why the processor cannot run it; "" where it can."""
    openvino = pytest.importorskip("openvino")
    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "" if "BF16" in able else f"this processor computes in {', '.join(able)} and not in bfloat16"


def kinds() -> Iterator[str | ParameterSet]:
    if simulated():
        yield from SIMULATED
        return
    yield from ENGINES
    yield pytest.param("cpu-bf16", marks=pytest.mark.skipif(bool(missing_bf16()), reason=missing_bf16()))
    if not missing_gpu():
        yield from (pytest.param(name, marks=pytest.mark.gpu) for name in ON_GPU)


@pytest.fixture(params=kinds())
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    if simulated():
        simulation().lazy("lazy" in request.param)
        yield SIMULATED[request.param]
        simulation().lazy(False)
    else:
        yield (ENGINES | BF16 | ON_GPU)[request.param]


@pytest.fixture
def engine(make: Make, tmp_path: Path) -> Iterator[Engine]:
    engine = make(tiny_bundle(tmp_path))
    engine.activate()
    yield engine
    engine.deactivate()


@pytest.mark.parametrize("count", [1, 3, 16, 33])
def test_one_answer_for_each_image(engine: Engine, count: int) -> None:
    out = engine.infer(tiny_batch(count))
    assert len(out) == count
    assert out.probabilities.shape == (count, 3)
    assert out.probabilities.dtype == np.float32
    assert out.class_index.shape == (count,)
    assert out.class_index.dtype == np.int64
    assert out.cam.shape == (count, 4, 4)
    assert out.cam.dtype == np.float32
    assert out.cam.min() >= 0
    np.testing.assert_allclose(out.probabilities.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(out.class_index, out.probabilities.argmax(1))


def test_an_image_has_the_same_answer_in_every_batch(engine: Engine) -> None:
    batch = tiny_batch(7)
    together = engine.infer(batch)
    for i in range(len(batch)):
        alone = engine.infer(batch[i : i + 1])
        np.testing.assert_allclose(alone.probabilities[0], together.probabilities[i], atol=1e-5)
        np.testing.assert_allclose(alone.cam[0], together.cam[i], atol=1e-5)


def test_outputs_are_the_callers_own(engine: Engine) -> None:
    first = engine.infer(tiny_batch(2))
    kept = first.probabilities.copy()
    engine.infer(tiny_batch(2, seed=5))
    np.testing.assert_array_equal(first.probabilities, kept)
    first.probabilities[:] = 0  # writable, and nobody else's
    np.testing.assert_array_equal(engine.infer(tiny_batch(2)).probabilities, kept)


@pytest.mark.parametrize(
    "batch",
    [
        tiny_batch(2).astype(np.float64),
        tiny_batch(2).astype(np.float16),
        tiny_batch(2)[0],
        tiny_batch(2)[:, :1],
        tiny_batch(2)[:, :, :8],
        tiny_batch(2)[:0],
    ],
    ids=["float64", "float16", "no-batch", "one-channel", "size", "empty"],
)
def test_a_wrong_input_is_refused(engine: Engine, batch: np.ndarray) -> None:
    with pytest.raises(EngineError, match=r"float32 \[N >= 1, 3, 16, 16\]"):
        engine.infer(batch)


def test_a_view_that_is_not_contiguous_is_taken(engine: Engine) -> None:
    batch = tiny_batch(4)
    want = engine.infer(batch).probabilities[::-1]
    np.testing.assert_allclose(engine.infer(batch[::-1]).probabilities, want, atol=1e-6)


def test_only_an_active_engine_infers(make: Make, tmp_path: Path) -> None:
    engine = make(tiny_bundle(tmp_path))
    with pytest.raises(EngineError, match="not active"):
        engine.infer(tiny_batch(1))
    engine.activate()
    engine.deactivate()
    engine.deactivate()
    with pytest.raises(EngineError, match="not active"):
        engine.infer(tiny_batch(1))
    engine.activate()
    assert len(engine.infer(tiny_batch(1))) == 1
    engine.deactivate()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [("probabilities", "ties differ by 0.1"), ("cam", "Grad-CAM differs by"), ("class_index", "classes")],
)
def test_an_engine_that_fails_the_golden_check_does_not_start(
    make: Make, tmp_path: Path, spoil: str, words: str
) -> None:
    engine = make(tiny_bundle(tmp_path, spoil=spoil))
    with pytest.raises(EngineError, match=words):
        engine.activate()
    with pytest.raises(EngineError, match="not active"):
        engine.infer(tiny_batch(1))


def test_a_name_says_what_ran(engine: Engine) -> None:
    assert engine.name.split()[-1] in {"fp32", "bf16", "int8"}
    assert any(c.isdigit() for c in engine.name)
