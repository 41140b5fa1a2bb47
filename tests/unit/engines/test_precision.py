"""A graph in another precision says what the fp32 graph says; what stays float32 and what does not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from engines.base import EngineError, EngineOutput, FloatArray  # noqa: E402
from engines.bundle import Bundle, load_bundle  # noqa: E402
from engines.cpu import INPUT, OUTPUTS  # noqa: E402
from engines.cpu_low import LowPrecision  # noqa: E402
from engines.golden import cam_difference  # noqa: E402
from engines.precision import convert, folded, in_half, largest_magnitudes  # noqa: E402
from engines.trunk import find_trunk  # noqa: E402
from tests.contract.tiny import accepted, tiny_batch, tiny_bundle  # noqa: E402


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle("default")


def run(model: bytes, batch: FloatArray) -> EngineOutput:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    types = {v.name: v.type for v in (*session.get_inputs(), *session.get_outputs())}
    floats = dict.fromkeys((INPUT, "probabilities", "cam"), "tensor(float)")
    assert types == {**floats, "class_index": "tensor(int64)"}
    probabilities, class_index, cam = session.run(OUTPUTS, {INPUT: batch})
    return EngineOutput(probabilities=probabilities, class_index=class_index, cam=cam)


def network(*, pairs: int = 2, weight_of: float = 1.0, stored: str = "whole", norm: bool = False) -> Any:
    """A few convolutions, of which each pair's second map is both pooled into the classes and multiplied into the map.

    pairs: members of an ensemble; stored: "half" has Cast nodes as training.half makes them; norm: a batch norm that no
    convolution stands before.
    """
    rng = np.random.default_rng(3)
    nodes, constants = [], {"axes": np.array([2, 3]), "one": np.array([1]), "k": np.array([3])}
    logits, maps = [], []
    for i in range(pairs):
        value = INPUT
        for j, (of, to) in enumerate(((3, 8), (8, 6))):
            weight = f"w{i}{j}"
            array = (rng.standard_normal((to, of, 3, 3)) * 0.2 * weight_of).astype(np.float32)
            if stored == "half":
                constants[f"{weight}s"] = array.astype(np.float16)
                nodes.append(helper.make_node("Cast", [f"{weight}s"], [weight], to=TensorProto.FLOAT))
            else:
                constants[weight] = array
            nodes.append(helper.make_node("Conv", [value, weight], [f"c{i}{j}"], pads=[1] * 4))
            nodes.append(helper.make_node("Relu", [f"c{i}{j}"], [f"r{i}{j}"]))
            value = f"r{i}{j}"
            if norm:
                statistics = {"s": np.ones(to), "b": rng.random(to), "m": rng.random(to), "v": np.full(to, 1e-7)}
                constants |= {f"{value}{k}": v.astype(np.float32) for k, v in statistics.items()}
                ends = [value, *(f"{value}{k}" for k in statistics)]
                nodes.append(helper.make_node("BatchNormalization", ends, [f"n{i}{j}"], epsilon=1e-3))
                value = f"n{i}{j}"
        constants[f"h{i}"] = rng.standard_normal((6, 3)).astype(np.float32)
        nodes += [
            helper.make_node("ReduceMean", [value, "axes"], [f"p{i}"], keepdims=0),
            helper.make_node("MatMul", [f"p{i}", f"h{i}"], [f"l{i}"]),
            helper.make_node("Unsqueeze", [f"p{i}", "axes"], [f"g{i}"]),
            helper.make_node("Mul", [f"g{i}", value], [f"m{i}"]),
        ]
        logits.append(f"l{i}")
        maps.append(f"m{i}")
    nodes += [
        helper.make_node("Sum", logits, ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        helper.make_node("ArgMax", ["logits"], ["class_index"], axis=-1, keepdims=0),
        helper.make_node("Cast", ["class_index"], ["chosen"], to=TensorProto.FLOAT),  # the map is of the class
        helper.make_node("Unsqueeze", ["chosen", "axes0"], ["scale"]),
        helper.make_node("Sum", maps, ["summed"]),
        helper.make_node("ReduceSum", ["summed", "one"], ["flat"], keepdims=0),
        helper.make_node("Add", ["flat", "scale"], ["of_class"]),
        helper.make_node("Relu", ["of_class"], ["cam"]),
    ]
    constants["axes0"] = np.array([1, 2])
    value_info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "network", [value_info(INPUT, TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [value_info("probabilities", TensorProto.FLOAT, ["batch", 3]),
         value_info("class_index", TensorProto.INT64, ["batch"]),
         value_info("cam", TensorProto.FLOAT, ["batch", 16, 16])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def saved(model: Any, folder: Path) -> Path:
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def test_the_shipped_trunk_ends_at_its_last_map(shipped: Bundle) -> None:
    graph = folded(shipped.model_path).graph
    trunk = find_trunk(graph)
    outside = {n.op_type for i, n in enumerate(graph.node) if i not in trunk.nodes}
    assert len(trunk.maps) == 1
    assert graph.node[trunk.nodes[-1]].op_type == "Clip"  # EfficientNet-Lite's ReLU6
    assert not outside & {"Conv", "Clip"}
    assert {"ReduceMean", "Softmax", "ArgMax"} <= outside


def whole_size(bundle: Bundle) -> int:
    """Bytes of the network's numbers in float32, however they are stored."""
    return sum(4 * math.prod(x.dims) for x in onnx.load(bundle.model_path).graph.initializer)


def test_the_shipped_bundle_in_half(shipped: Bundle) -> None:
    golden = shipped.golden()
    model = convert(shipped, "fp16")
    assert len(model) < 0.55 * whole_size(shipped)
    for rows in ([0], [4, 1, 2], range(6)):
        out = run(model, golden.batch[list(rows)])
        np.testing.assert_allclose(out.probabilities, golden.output.probabilities[list(rows)], atol=0.005)
        assert cam_difference(out.cam, golden.output.cam[list(rows)]) < shipped.manifest.tolerance["fp16"].cam
        np.testing.assert_array_equal(out.class_index, golden.output.class_index[list(rows)])


def test_the_shipped_bundle_in_int8(shipped: Bundle) -> None:
    """The golden pictures are no films, and six are few to calibrate on: a class that is clear must not change."""
    golden = shipped.golden()
    model = convert(shipped, "int8", [golden.batch[:3], golden.batch[3:]])
    assert len(model) < 0.35 * whole_size(shipped)
    out = run(model, golden.batch)
    best = np.sort(golden.output.probabilities, axis=1)
    clear = best[:, -1] - best[:, -2] > 0.4
    assert clear.sum() >= 2
    np.testing.assert_array_equal(out.class_index[clear], golden.output.class_index[clear])
    assert (out.class_index == golden.output.class_index).mean() >= 5 / 6
    weights = [x for x in onnx.load_from_string(model).graph.initializer if len(x.dims) == 4]
    assert all(x.data_type == (TensorProto.FLOAT if x.dims[1] == 1 else TensorProto.INT8) for x in weights)
    assert all(np.abs(numpy_helper.to_array(x)).max() == 63 for x in weights if x.dims[1] > 1)


@pytest.mark.parametrize("stored", ["whole", "half"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_each_member_has_a_trunk(tmp_path: Path, pairs: int, norm: bool, stored: str) -> None:
    path = saved(network(pairs=pairs, norm=norm, stored=stored), tmp_path)
    bundle = load_bundle("default")
    assert len(find_trunk(folded(path).graph).maps) == pairs
    batch = tiny_batch(5)
    want = run(path.read_bytes(), batch)
    half = in_half(folded(path))
    onnx.checker.check_model(half)
    types = {x.name: x.data_type for x in half.graph.initializer}
    assert all(types[n.input[1]] == TensorProto.FLOAT16 for n in half.graph.node if n.op_type == "Conv")
    assert all(types[n.input[1]] == TensorProto.FLOAT for n in half.graph.node if n.op_type == "MatMul")
    assert "BatchNormalization" not in {n.op_type for n in half.graph.node}
    out = run(half.SerializeToString(), batch)
    np.testing.assert_allclose(out.probabilities, want.probabilities, atol=0.02)
    assert cam_difference(out.cam, want.cam) < 0.01
    quantised = run(convert(_at(bundle, path), "int8", [batch]), batch)
    np.testing.assert_allclose(quantised.probabilities, want.probabilities, atol=0.1)
    assert cam_difference(quantised.cam, want.cam) < 0.1


def test_a_weight_that_half_cannot_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"weight w\d\d holds values beyond float16's 65504: use precision fp32"):
        in_half(folded(saved(network(weight_of=1e6), tmp_path)))


def test_a_network_without_such_a_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no map that both its classes and its Grad-CAM are made of"):
        convert(tiny_bundle(tmp_path, trunk=False), "fp16")


def test_fp32_is_the_bundles_own_graph(shipped: Bundle) -> None:
    assert convert(shipped, "fp32") == shipped.model_path.read_bytes()


def test_int8_scales_may_be_those_that_the_bundle_records(tmp_path: Path) -> None:
    bundle, images = tiny_bundle(tmp_path), [np.full((1, 3, 16, 16), -5, np.float32)]
    assert largest_magnitudes(folded(bundle.model_path), images) == {"images": 5.0}
    recorded = accepted(bundle, LowPrecision.INT8)
    assert convert(recorded, "int8") == convert(bundle, "int8", images)


def test_int8_without_images_is_refused(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    for images in (None, [], [np.full((1, 3, 16, 16), np.nan, np.float32)]):
        with pytest.raises(EngineError, match="int8 is calibrated on images"):
            convert(bundle, "int8", images)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(EngineError, match="onnxruntime cannot load"):
        folded(tmp_path / "m.onnx")


def _at(bundle: Bundle, path: Path) -> Bundle:
    """That bundle with another graph: only its path is read."""
    path.rename(path.with_name("model.onnx"))
    return Bundle(folder=path.parent, manifest=bundle.manifest, digest=bundle.digest)
