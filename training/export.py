"""Network to ONNX: opset 18, dynamic batch, calibration, class and Grad-CAM in the graph; parity with torch."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from engines.base import EngineOutput, FloatArray
from engines.bundle import InputShape
from engines.cpu import INPUT, OUTPUTS
from engines.golden import cam_difference
from training.calibrate import Calibration
from training.half import stored_as_half
from training.models.network import Exported, Model

OPSET = 18
PROBABILITY_PARITY = 1e-5
CAM_PARITY = 1e-3  # of the map's largest value: as far as float32 is from float64 in torch, for a random InceptionV3
_BATCHES = (1, 3, 5)  # none of them is the batch that is traced


class ExportError(Exception):
    """The exported graph does not compute what the network computes."""


def export_onnx(
    model: Model, shape: InputShape, calibration: Calibration, path: Path, *, half: bool = False
) -> Exported:
    """Write `path` and check it against torch; returns what was exported. Raises ExportError.

    half: the large weights, which `training.half.round_weights` must have rounded, are stored as float16.
    """
    numbers = calibration.temperature, calibration.offsets
    exported = Exported(model.eval(), *numbers).eval()
    written = Exported(stored_as_half(model), *numbers).eval() if half else exported
    example = torch.zeros(2, shape.channels, shape.rows, shape.columns)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own internals
        torch.onnx.export(
            written, (example,), path, dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=OUTPUTS,
            dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False,
        )  # fmt: skip
    check_parity(exported, path, shape)
    return exported


@torch.no_grad()
def run_torch(module: nn.Module, batch: FloatArray) -> EngineOutput:
    probabilities, class_index, cam = module(torch.from_numpy(batch))
    return EngineOutput(probabilities=probabilities.numpy(), class_index=class_index.numpy(), cam=cam.numpy())


def check_parity(exported: Exported, path: Path, shape: InputShape) -> None:
    """The graph in onnxruntime against torch at batches 1, 3 and 5. Raises ExportError with the numbers."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for n in _BATCHES:
        batch = rng.standard_normal((n, shape.channels, shape.rows, shape.columns)).astype(np.float32)
        want = run_torch(exported, batch)
        probabilities, class_index, cam = session.run(OUTPUTS, {INPUT: batch})
        off = float(np.abs(probabilities - want.probabilities).max())
        cam_off = cam_difference(cam, want.cam)
        if off > PROBABILITY_PARITY or cam_off > CAM_PARITY or class_index.shape != (n,):
            raise ExportError(f"batch {n}: ONNX differs from torch by {off:.3g} (probabilities), {cam_off:.3g} (map)")
