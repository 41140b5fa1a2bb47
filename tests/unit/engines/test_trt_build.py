"""Engines built by the real TensorRT for RTX, which needs no GPU to build for one. None is run here."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx is not installed: no engine is built")
onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

from engines.base import EngineError  # noqa: E402
from engines.bundle import Bundle, InputShape, load_bundle  # noqa: E402
from engines.cpu import INPUT  # noqa: E402
from engines.cpu_low import LowPrecision  # noqa: E402
from engines.plan import PRECISIONS, Machine, Precision, read_plan  # noqa: E402
from engines.trt_build import BuildOptions, build_engine, build_plan  # noqa: E402
from tests.contract.tiny import SHAPE, accepted, tiny_bundle  # noqa: E402
from tests.support.trt_stubs import ROOT, check_types, make_stubs  # noqa: E402

GPUS = ("8.0", "8.6", "8.9", "12.0")  # A100, A10, L4, RTX 50: one build for all four takes no longer than for one
OPTIONS = BuildOptions(optimal=4, largest=16, compute_capabilities=GPUS)
MACHINE = Machine(
    gpu="NVIDIA A10", compute_capability="8.6", driver="580.82", module="tensorrt_rtx", version=trt.__version__
)


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle("default")


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return onnx.load(tiny_bundle(tmp_path).model_path)


def build(model: Any, **options: Any) -> bytes:
    return build_plan(trt, model.SerializeToString(), SHAPE, dataclasses.replace(OPTIONS, **options))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_shipped_bundle_builds_and_is_read_again(shipped: Bundle, tmp_path: Path, precision: Precision) -> None:
    images = [shipped.golden().batch]
    plan = build_engine(trt, shipped, MACHINE, precision, tmp_path, options=OPTIONS, images=images)
    assert read_plan(tmp_path, shipped, MACHINE, precision) == plan
    assert (plan.sidecar.optimal, plan.sidecar.largest) == (4, 16)
    sizes = {"fp32": 14e6, "fp16": 7e6, "int8": 4e6}
    assert len(plan.data) > sizes[precision]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["cxr3-lite2", "resnet50-snapshot", "ensemble", "vgg19-rnn", "densenet121-rnn", "inceptionv3-rnn",
     "inceptionresnetv2-rnn"],
)  # fmt: skip
def test_every_system_builds_in_every_precision(
    name: str, shipped: Bundle, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    """Half says what float32 says, too; random weights make no class clear enough to ask that of int8."""
    pytest.importorskip("torch")
    (tmp_path / "model.onnx").symlink_to(exported(name))
    shape = InputShape(channels=3, rows=96, columns=96)
    bundle = dataclasses.replace(
        shipped, folder=tmp_path, manifest=shipped.manifest.model_copy(update={"input": shape})
    )
    batch = np.random.default_rng(0).standard_normal((3, 3, 96, 96)).astype(np.float32)
    from engines.precision import convert

    said, sizes = {}, {}
    for precision in PRECISIONS:
        graph = convert(bundle, precision, [batch])
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        said[precision] = session.run(["probabilities", "cam"], {INPUT: batch})
        sizes[precision] = len(build_plan(trt, graph, shape, OPTIONS))
    for precision in PRECISIONS:
        assert np.isfinite(said[precision][0]).all()
        assert np.isfinite(said[precision][1]).all()
    np.testing.assert_allclose(said["fp16"][0], said["fp32"][0], atol=0.02)
    assert sizes["fp16"] < sizes["fp32"]  # int8 plans are not always smaller


def test_int8_with_the_scales_that_a_bundle_records(tmp_path: Path) -> None:
    bundle = accepted(tiny_bundle(tmp_path), LowPrecision.INT8)
    assert build_engine(trt, bundle, MACHINE, "int8", tmp_path, options=OPTIONS).sidecar.precision == "int8"


def test_the_builders_timings_are_kept_and_junk_in_them_is_no_harm(model: Any, tmp_path: Path) -> None:
    timings = tmp_path / "cache" / "timings"
    for before in (None, b"junk", b""):
        if before is not None:
            timings.write_bytes(before)
        assert build_plan(trt, model.SerializeToString(), SHAPE, OPTIONS, timings)
        assert timings.stat().st_size > 100


def test_an_operator_that_is_not_supported_is_named(model: Any) -> None:
    relu = next(n for n in model.graph.node if n.op_type == "Relu")
    relu.op_type, relu.domain, relu.name = "Stain", "org.example", "stained"
    model.opset_import.append(helper.make_opsetid("org.example", 1))
    with pytest.raises(EngineError, match=r"cannot read the model.*Stain.*: run the bundle on the CPU engine"):
        build(model)


def test_types_that_disagree_are_named(model: Any) -> None:
    """Strongly typed: nothing is cast that the graph does not cast."""
    weight = next(x for x in model.graph.initializer if x.name == "weight")
    half = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(np.float16), "weight")
    weight.CopyFrom(half)
    with pytest.raises(EngineError, match=r"TensorRT cannot .*(?i:type|half|float)"):
        build(model)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("name", r"takes pictures FLOAT \[-1, 3, 16, 16\], wanted images FLOAT \[-1, 3, 16, 16\]"),
        ("batch", r"takes images FLOAT \[2, 3, 16, 16\], wanted"),
        ("type", r"takes images HALF"),
        ("second", r"takes images FLOAT .*, other FLOAT"),
        ("output", "gives probabilities, class_index, wanted probabilities, class_index, cam"),
    ],
)
def test_a_graph_with_other_ends_is_refused(model: Any, spoil: str, words: str) -> None:
    graph = model.graph
    if spoil == "name":
        graph.input[0].name = "pictures"
        for node in graph.node:
            node.input[:] = ["pictures" if x == INPUT else x for x in node.input]
    elif spoil == "batch":
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    elif spoil == "type":
        graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
        for node in graph.node:
            node.input[:] = ["wide" if x == INPUT else x for x in node.input]
        graph.node.insert(0, helper.make_node("Cast", [INPUT], ["wide"], to=TensorProto.FLOAT))
    elif spoil == "second":
        graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))
    else:
        del graph.output[2]
    with pytest.raises(EngineError, match=words):
        build(model)


def test_what_is_no_model_is_refused(shipped: Bundle) -> None:
    whole = shipped.model_path.read_bytes()
    for junk in (b"junk", whole[: len(whole) // 2]):
        with pytest.raises(EngineError, match=r"TensorRT cannot read the model: .*Failed to parse the ONNX model"):
            build_plan(trt, junk, shipped.manifest.input, OPTIONS)
    with pytest.raises(EngineError, match="takes nothing, wanted images"):
        build_plan(trt, b"", shipped.manifest.input, OPTIONS)


def test_too_little_workspace_says_so(shipped: Bundle) -> None:
    options = dataclasses.replace(OPTIONS, workspace_mib=1)
    with pytest.raises(EngineError, match=r"cannot build an engine: .*OutOfMemory.*: give it more workspace"):
        build_plan(trt, shipped.model_path.read_bytes(), shipped.manifest.input, options)


def test_a_profile_is_never_missing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the builder would say of one that is."""
    monkeypatch.setattr("engines.trt_build._add_profile", lambda *_: None)
    with pytest.raises(EngineError, match=r"cannot build an engine: .*profile"):
        build(model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimal": 17}, "give 1 <= optimal <= largest"),
        ({"optimal": 0}, "give 1 <= optimal <= largest"),
        ({"workspace_mib": 0}, "a workspace of 0 MiB"),
        ({"compute_capabilities": ("9.9",)}, f"TensorRT {trt.__version__} builds for no GPU of compute capability 9.9"),
        (
            {"hardware_compatibility": "ampere_plus"},
            "refuses hardware compatibility AMPERE_PLUS.*leave that option out",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(model: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        build(model, **options)


def test_an_empty_plan_is_no_plan(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trt.Builder

    class Silent:
        def __init__(self, logger: object) -> None:
            self._builder = real(logger)

        def __getattr__(self, name: str) -> object:
            return getattr(self._builder, name)

        def build_serialized_network(self, *_: object) -> bytes:
            return b""

    monkeypatch.setattr(trt, "Builder", Silent)
    with pytest.raises(EngineError, match="TensorRT cannot build an engine"):
        build(model)


def test_nothing_is_left_of_a_build_that_fails(shipped: Bundle, tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, workspace_mib=1)
    with pytest.raises(EngineError):
        build_engine(trt, shipped, MACHINE, "fp32", tmp_path / "cache", options=options)
    assert not (tmp_path / "cache").exists() or os.listdir(tmp_path / "cache") == []


@pytest.mark.slow
def test_types_are_those_of_the_real_bindings(tmp_path: Path) -> None:
    """mypy --strict against stubs made from the bindings, and that it knows what TensorRT 11 removed."""
    pytest.importorskip(
        "pybind11_stubgen", reason="pybind11-stubgen is not installed: TensorRT's types are not checked"
    )
    pytest.importorskip("mypy")
    stubs = make_stubs(tmp_path / "stubs")
    sources = sorted((ROOT / "engines").glob("trt_*.py"))
    status, said = check_types(stubs, *sources)
    assert status == 0, said
    removed = {
        "config.set_flag(trt.BuilderFlag.FP16)": '"FP16"',
        "config.set_flag(trt.BuilderFlag.INT8)": '"INT8"',
        "context.execute_async_v2([], 0)": '"execute_async_v2"',
        "print(engine.device_memory_size)": '"device_memory_size"',
        "print(tensor.dynamic_range)": '"dynamic_range"',
        "print(layer.precision)": '"precision"',
        "print(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)": '"EXPLICIT_BATCH"',
        "print(trt.IInt8EntropyCalibrator2)": '"IInt8EntropyCalibrator2"',
        "config.set_flag('TF32')": 'incompatible type "str"',
    }
    source = tmp_path / "old.py"
    source.write_text(
        "import tensorrt_rtx as trt\n\n\n"
        "def old(config: trt.IBuilderConfig, context: trt.IExecutionContext, engine: trt.ICudaEngine,\n"
        "        tensor: trt.ITensor, layer: trt.ILayer) -> None:\n"
        "    config.set_flag(trt.BuilderFlag.TF32)\n" + "".join(f"    {line}\n" for line in removed)
    )
    status, said = check_types(stubs, source)
    assert status == 1
    faults = [line for line in said.splitlines() if "error:" in line]
    assert len(faults) == len(removed)
    for number, (fault, word) in enumerate(zip(faults, removed.values(), strict=True), start=7):
        assert fault.startswith(f"{source}:{number}:")
        assert word in fault
