"""A bundle's fp32 graph in another precision, for engines that compute in the types that the graph states.

fp16: the trunk in half. int8: the trunk's convolutions between explicit quantise and dequantise nodes, with scales
calibrated on images, or those that the bundle records; TensorRT and OpenVINO run the same graph. In both precisions the
head stays in float32 (see engines.trunk), as do the graph's inputs and outputs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from engines.base import EngineError, FloatArray
from engines.bundle import Bundle
from engines.cpu import INPUT
from engines.plan import Precision
from engines.trunk import find_trunk

_GREATEST = float(np.finfo(np.float16).max)
_INT8 = 127  # symmetric: -128 is not used
# Of weights. A processor without VNNI adds two products of uint8 and int8 in 16 bits and cuts off what does not fit: a
# weight of 7 bits always fits. With 8, 12 of 328 films changed their class on such a processor; with 7, 4 did.
_INT8_WEIGHT = 63
_LEAST = 1e-12  # a scale must not be 0


def convert(bundle: Bundle, precision: Precision, images: Iterable[FloatArray] | None = None) -> bytes:
    """The bundle's graph in that precision, as bytes of ONNX.

    images: for int8, prepared batches, float32 [N, C, H, W] as `preprocess.to_batch` makes them, of films such as the
    node will see; a few hundred films are enough. None: the scales that the bundle records. Raises EngineError.
    """
    if precision == "fp32":
        return bundle.model_path.read_bytes()
    model = folded(bundle.model_path)
    if precision == "fp16":
        return bytes(in_half(model).SerializeToString())
    if images is not None:
        return bytes(in_int8(model, largest_magnitudes(model, images)).SerializeToString())
    if recorded := bundle.manifest.accepted.get("int8"):
        return bytes(in_int8(model, recorded.largest).SerializeToString())
    raise EngineError(
        f"int8 is calibrated on images, and bundle {bundle.name} records no scales: give a folder of films such as the "
        "node will see, or run python -m training accept"
    )


def folded(path: Path) -> Any:
    """The ModelProto with constants folded: weights stored as float16 widened, batch norms put into convolutions."""
    with tempfile.TemporaryDirectory() as folder:
        options = _quiet()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # standard operators only
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        try:
            ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime's exceptions share no base class
            raise EngineError(f"onnxruntime cannot load {path}: {e}") from e
        return onnx.load(options.optimized_model_filepath)


def in_half(model: Any) -> Any:
    """A copy of the folded `model` whose trunk computes in float16. Raises EngineError where a weight does not fit."""
    model = _copy(model)
    graph = model.graph
    trunk = find_trunk(graph)
    inside = [graph.node[i] for i in trunk.nodes]
    outside = [node for i, node in enumerate(graph.node) if i not in set(trunk.nodes)]
    inside = _without_batch_norms(graph, inside)
    names = {x.name: _half(x.name) for x in graph.initializer if x.data_type == TensorProto.FLOAT}
    names |= {name: _half(name) for name in (INPUT, *trunk.maps)}
    used = {name for node in inside for name in node.input}
    graph.initializer.extend(_halved(x) for x in list(graph.initializer) if x.name in names and x.name in used)
    for node in inside:
        _rename(node, names)
        _retype(node)
    first = helper.make_node("Cast", [INPUT], [_half(INPUT)], to=TensorProto.FLOAT16)
    last = [helper.make_node("Cast", [_half(name)], [name], to=TensorProto.FLOAT) for name in trunk.maps]
    _replace_nodes(graph, [first, *inside, *last, *outside])
    return model


def in_int8(model: Any, largest: Mapping[str, float]) -> Any:
    """A copy of the folded `model` in which those of the trunk's convolutions read int8 whose input `largest` names.

    Such an input passes a quantise and a dequantise node, symmetric, where `largest` is the magnitude that becomes 127;
    the convolution's weight is stored as int8 with a scale a channel. Biases and sums stay float32. Raises EngineError.
    (onnxruntime's own quantize_static writes the same nodes, but takes up to 40 s a network: it loops over channels.)
    """
    model = _copy(model)
    graph = model.graph
    weights = {x.name: x for x in graph.initializer}
    convolutions = {n.output[0]: n for n in _quantisable(graph) if n.input[0] in largest}
    if lost := largest.keys() - {n.input[0] for n in convolutions.values()}:
        raise EngineError(
            f"int8 scales are recorded of {min(lost)}, ..., which the model has not: another onnxruntime may name "
            "its values otherwise: run python -m training accept again"
        )
    for name, value in largest.items():
        _store(graph, {f"{name}__scale": np.float32(value / _INT8), f"{name}__zero": np.int8(0)})
    out = _quantised(INPUT) if INPUT in largest else []
    for node in graph.node:
        if node.output[0] in convolutions:
            out.append(_int8_weight(graph, node, weights[node.input[1]]))
            node.input[0] = f"{node.input[0]}__dequantised"
        out.append(node)
        out += [q for name in node.output if name in largest for q in _quantised(name)]
    _replace_nodes(graph, out)
    return model


def largest_magnitudes(model: Any, images: Iterable[FloatArray]) -> dict[str, float]:
    """Of the folded model's values that int8 quantises, over all `images`: what in_int8 takes. Raises EngineError.

    They are taken in the graph, so that no whole map is ever kept.
    """
    watched = _copy(model)
    graph = watched.graph
    order = sorted({node.input[0] for node in _quantisable(graph)})
    for name in order:
        graph.node.append(helper.make_node("Abs", [name], [f"{name}__abs"]))
        graph.node.append(helper.make_node("ReduceMax", [f"{name}__abs"], [f"{name}__max"], keepdims=0))
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(f"{name}__max", TensorProto.FLOAT, []) for name in order)
    session = ort.InferenceSession(watched.SerializeToString(), _quiet(), providers=["CPUExecutionProvider"])
    largest = np.zeros(len(order), np.float32)
    for batch in images:
        largest = np.maximum(largest, session.run(None, {INPUT: batch}))
    if not (np.isfinite(largest).all() and (largest > 0).any()):
        raise EngineError("int8 is calibrated on images, and these show nothing: give films such as the node will see")
    return {name: max(float(value), _LEAST) for name, value in zip(order, largest, strict=True)}


def _quantisable(graph: Any) -> list[Any]:
    """The trunk's convolutions but those with groups: depthwise, these are little work and lose most by rounding."""
    weights = {x.name for x in graph.initializer}
    nodes = [graph.node[i] for i in find_trunk(graph).nodes]
    return [n for n in nodes if n.op_type == "Conv" and n.input[1] in weights and _groups(n) == 1]


def _groups(node: Any) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "group"), 1)


def _quantised(name: str) -> list[Any]:
    scale = [f"{name}__scale", f"{name}__zero"]
    return [
        helper.make_node("QuantizeLinear", [name, *scale], [f"{name}__int8"]),
        helper.make_node("DequantizeLinear", [f"{name}__int8", *scale], [f"{name}__dequantised"]),
    ]


def _int8_weight(graph: Any, node: Any, weight: Any) -> Any:
    """Store a convolution's weight [O, I, h, w] as int8 and let the node read it; returns what widens it."""
    value = numpy_helper.to_array(weight)
    scale = np.maximum(np.abs(value).max(axis=(1, 2, 3)) / _INT8_WEIGHT, _LEAST).astype(np.float32)
    stored = np.clip(np.rint(value / scale[:, None, None, None]), -_INT8_WEIGHT, _INT8_WEIGHT).astype(np.int8)
    name = f"{node.output[0]}__weight"
    parts = {name: stored, f"{name}_scale": scale, f"{name}_zero": np.zeros(len(scale), np.int8)}
    _store(graph, parts)
    node.input[1] = f"{name}_dequantised"
    return helper.make_node("DequantizeLinear", list(parts), [node.input[1]], axis=0)


def _store(graph: Any, arrays: Mapping[str, Any]) -> None:
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items())


def _without_batch_norms(graph: Any, nodes: list[Any]) -> list[Any]:
    """Each batch norm that is left becomes a product and a sum: its variance need not fit float16."""
    values = {x.name: x for x in graph.initializer}
    out = []
    for node in nodes:
        if node.op_type != "BatchNormalization":
            out.append(node)
            continue
        scale, bias, mean, variance = (numpy_helper.to_array(values[n]).astype(np.float64) for n in node.input[1:5])
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        name = node.output[0]
        made = {f"{name}__factor": factor, f"{name}__offset": bias - mean * factor}
        _store(graph, {k: v.astype(np.float32).reshape(-1, 1, 1) for k, v in made.items()})
        out.append(helper.make_node("Mul", [node.input[0], f"{name}__factor"], [f"{name}__scaled"]))
        out.append(helper.make_node("Add", [f"{name}__scaled", f"{name}__offset"], [name]))
    return out


def _halved(tensor: Any) -> Any:
    value = numpy_helper.to_array(tensor)
    finite = value[np.isfinite(value)]
    if finite.size and np.abs(finite).max() > _GREATEST:
        raise EngineError(f"weight {tensor.name} holds values beyond float16's {_GREATEST:.0f}: use precision fp32")
    return numpy_helper.from_array(value.astype(np.float16), _half(tensor.name))


def _retype(node: Any) -> None:
    """A value that the node itself makes, or casts to, as float32 is made as float16."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_halved(attribute.t))


def _rename(node: Any, names: dict[str, str]) -> None:
    for ends in (node.input, node.output):
        for i, name in enumerate(ends):
            ends[i] = names.get(name, name)


def _replace_nodes(graph: Any, nodes: list[Any]) -> None:
    """`nodes` in the place of the graph's, with the initialisers that they read; the old nodes' types are dropped."""
    read = {name for node in nodes for name in node.input}
    kept = [x for x in graph.initializer if x.name in read]
    for field, values in (("node", nodes), ("initializer", kept), ("value_info", [])):
        copies = list(values)
        del getattr(graph, field)[:]
        getattr(graph, field).extend(copies)


def _copy(model: Any) -> Any:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _half(name: str) -> str:
    return f"{name}__half"


def _quiet() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    return options
