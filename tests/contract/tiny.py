"""A bundle whose network is a few operators, made without torch: quick to load, and its outputs are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.bundle import (
    CARD,
    GOLDEN,
    MANIFEST,
    MODEL,
    Accepted,
    Bundle,
    InputShape,
    Manifest,
    Tolerance,
    load_bundle,
    sha256_file,
)
from engines.cpu_low import LowPrecision
from tests.support.bundles import make_bundle

SHAPE = InputShape(channels=3, rows=16, columns=16)


def tiny_batch(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((count, 3, 16, 16)).astype(np.float32)


def write_tiny(folder: Path, *, spoil: str = "", output: str = "cam", trunk: bool = True) -> Path:
    """Write the bundle. spoil: which golden output is made wrong; output: the name of the graph's third output.

    trunk: whether a convolution, which changes nothing, stands before the rest: what a lower precision computes in.
    """
    folder.mkdir(parents=True)
    onnx.save(_graph(output, trunk=trunk), folder / MODEL)
    _write_golden(folder, spoil)
    (folder / CARD).write_text("# tiny\n")
    seal(folder, make_bundle().manifest.model_copy(update={"name": "tiny", "input": SHAPE}))
    return folder


def seal(folder: Path, manifest: Manifest) -> None:
    files = {name: sha256_file(folder / name) for name in (MODEL, GOLDEN, CARD)}
    (folder / MANIFEST).write_text(manifest.model_copy(update={"files": files}).model_dump_json())


def tiny_bundle(folder: Path, *, spoil: str = "", output: str = "cam", trunk: bool = True) -> Bundle:
    return load_bundle(str(write_tiny(folder / "tiny", spoil=spoil, output=output, trunk=trunk)))


def accepted(bundle: Bundle, precision: LowPrecision) -> Bundle:
    """That bundle, tiny, as it is after a trial of `precision` that cost nothing."""
    record = Accepted(accuracy=(1, 1), auc=(1, 1), images=1, engine="none", largest={"images": 5.0})
    tolerance = bundle.manifest.tolerance | {precision: Tolerance(probabilities=0.01, cam=0.04, tie=0.02)}
    seal(bundle.folder, bundle.manifest.model_copy(update={"accepted": {precision: record}, "tolerance": tolerance}))
    return load_bundle(str(bundle.folder))


WEIGHT = np.array([[3, -2, 1], [-1, 4, 2], [2, 1, -3]], np.float32)


def _graph(output: str, *, trunk: bool) -> onnx.ModelProto:
    """Mean of each channel times a matrix, softmax; class; rectified 4x4 averages of the first channel."""
    nodes = [
        helper.make_node("Conv" if trunk else "Identity", ["images", "same"] if trunk else ["images"], ["features"]),
        helper.make_node("ReduceMean", ["features", "axes"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        helper.make_node("ArgMax", ["logits"], ["class_index"], axis=-1, keepdims=0),
        helper.make_node("AveragePool", ["features"], ["blocks"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Gather", ["blocks", "first"], ["plane"], axis=1),
        helper.make_node("Relu", ["plane"], [output]),
    ]
    same = np.eye(3, dtype=np.float32)[..., None, None]
    constants = {"axes": np.array([2, 3]), "weight": WEIGHT, "first": np.array(0)} | ({"same": same} if trunk else {})
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "tiny", [value("images", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [value("probabilities", TensorProto.FLOAT, ["batch", 3]), value("class_index", TensorProto.INT64, ["batch"]),
         value(output, TensorProto.FLOAT, ["batch", 4, 4])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _write_golden(folder: Path, spoil: str) -> None:
    """The reference outputs, computed by numpy."""
    batch = tiny_batch(6, seed=1)
    logits = batch.mean((2, 3)) @ WEIGHT
    e = np.exp(logits - logits.max(1, keepdims=True))
    outputs = {
        "probabilities": (e / e.sum(1, keepdims=True)).astype(np.float32),
        "class_index": logits.argmax(1).astype(np.int64),
        "cam": np.maximum(batch[:, 0].reshape(6, 4, 4, 4, 4).mean((2, 4)), 0).astype(np.float32),
    }
    if spoil == "class_index":
        outputs[spoil] = (outputs[spoil] + 1) % 3
    elif spoil:
        outputs[spoil] = outputs[spoil] + np.float32(0.1)
    np.savez_compressed(folder / GOLDEN, batch=batch, **outputs)
