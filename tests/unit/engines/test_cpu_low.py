"""The CPU engine in lower precisions: what it shares with the other engines is in tests/contract/test_engine.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")
pytest.importorskip("onnx")

import openvino
from onnx import TensorProto, helper

from engines.base import EngineError
from engines.bundle import MODEL, Bundle, load_bundle
from engines.cpu import CpuEngine
from engines.cpu_low import LowCpuEngine, LowPrecision
from engines.load import make_engine
from tests.contract.tiny import accepted, seal, tiny_batch, tiny_bundle

BF16, INT8 = LowPrecision.BF16, LowPrecision.INT8


def calibrated(bundle: Bundle, largest: dict[str, float]) -> Bundle:
    """As if the trial in int8 had recorded these scales."""
    before = accepted(bundle, INT8).manifest
    record = before.accepted["int8"].model_copy(update={"largest": largest})
    seal(bundle.folder, before.model_copy(update={"accepted": {"int8": record}}))
    return load_bundle(str(bundle.folder))


@pytest.mark.parametrize("precision", LowPrecision)
def test_only_what_was_accepted_runs(tmp_path: Path, precision: LowPrecision) -> None:
    bundle = tiny_bundle(tmp_path)
    with pytest.raises(EngineError, match=f"accepted trial of {precision}: run python -m training accept tiny --prec"):
        make_engine(f"cpu-{precision}", bundle)
    (other,) = set(LowPrecision) - {precision}
    with pytest.raises(EngineError, match=f"no accepted trial of {precision}"):
        make_engine(f"cpu-{precision}", accepted(bundle, other))


def test_int8_is_near_float32_and_is_not_float32(tmp_path: Path) -> None:
    bundle, batch = accepted(tiny_bundle(tmp_path), INT8), tiny_batch(9)
    whole, low = CpuEngine(bundle), LowCpuEngine(bundle, INT8)
    whole.activate()
    low.activate()
    off = np.abs(low.infer(batch).probabilities - whole.infer(batch).probabilities).max()
    assert 1e-5 < off < 0.01
    assert low.name.startswith("cpu openvino 20")


@pytest.mark.skipif(
    "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), reason="this processor has bfloat16"
)
def test_a_processor_without_bfloat16_is_told_so(tmp_path: Path) -> None:
    engine = LowCpuEngine(accepted(tiny_bundle(tmp_path), BF16), BF16)
    with pytest.raises(EngineError, match=r"computes f32 on this processor .*, not bf16: that wants AVX-512 BF16 or"):
        engine.activate()
    with pytest.raises(EngineError, match="not active"):
        engine.infer(tiny_batch(1))


def test_what_openvino_really_computes_in_is_read_back(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"computes f32 on this processor .*, not int8"):
        LowCpuEngine(calibrated(tiny_bundle(tmp_path), {}), INT8).activate()


def test_scales_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"recorded of other, .*which the model has not: .* accept again"):
        LowCpuEngine(calibrated(tiny_bundle(tmp_path), {"other": 1.0}), INT8).activate()


@pytest.mark.parametrize("module", ["openvino", "onnx"])
def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    engine = LowCpuEngine(accepted(tiny_bundle(tmp_path), INT8), INT8)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    monkeypatch.delitem(__import__("sys").modules, "engines.precision", raising=False)
    with pytest.raises(EngineError, match=rf"{module} is not installed: pip install openvino onnx"):
        engine.activate()


@pytest.mark.parametrize("precision", LowPrecision)
def test_a_model_that_cannot_be_run_is_refused(tmp_path: Path, precision: LowPrecision) -> None:
    bundle = accepted(tiny_bundle(tmp_path), precision)
    output = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Nonesuch", [], ["x"])], "g", [], [output])
    (bundle.folder / MODEL).write_bytes(helper.make_model(graph).SerializeToString())
    seal(bundle.folder, bundle.manifest)
    with pytest.raises(EngineError, match="cannot load"):
        LowCpuEngine(load_bundle(str(bundle.folder)), precision).activate()


def test_other_output_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="export the bundle again"):
        LowCpuEngine(accepted(tiny_bundle(tmp_path, output="map"), INT8), INT8).activate()
