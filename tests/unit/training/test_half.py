"""Half the bytes, the same figures: what is stored as float16 is what torch computed with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import openvino
import pytest
import torch
from torch import nn

from engines.bundle import InputShape
from engines.cpu import INPUT, OUTPUTS
from training.calibrate import Calibration
from training.export import export_onnx, run_torch
from training.half import _LARGE, round_weights, stored_as_half
from training.models.network import Ensemble, Model, Network, make_network
from training.recipe import Recipe, load_recipe

SHAPE = InputShape(channels=3, rows=96, columns=96)


def random_network(name: str, seed: int = 0) -> Network:
    """Random weights, and batch norms that have seen something."""
    network = make_network(load_recipe(name, ["model.weights=none", f"fit.seed={seed}"]))
    for norm in (m for m in network.trunk.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None  # a plain mean
    images = torch.randn(4, 3, SHAPE.rows, SHAPE.columns, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        network.trunk.train()(images)
    return network.eval()


@pytest.fixture(scope="module", params=["resnet50-snapshot", "vgg19-rnn", "ensemble"])
def system(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(system: str) -> Model:
    """The ensemble has two members: it is as good a proof as three, and a third faster."""
    if system == "ensemble":
        return Ensemble([random_network("resnet50-snapshot", seed) for seed in (1, 2)]).eval()
    return random_network(system)


def test_rounding_is_exact_twice_and_spares_what_float16_cannot_hold(recipe: Recipe) -> None:
    network = make_network(recipe)
    network.head.a = nn.Linear(256, 128)
    network.head.b = nn.Linear(128, 128)
    with torch.no_grad():
        network.head.b.weight[0, 0] = 1e5
    before = {name: value.clone() for name, value in network.state_dict().items()}
    round_weights(network)
    once = {name: value.clone() for name, value in network.state_dict().items()}
    round_weights(network)
    for name, value in network.state_dict().items():
        assert torch.equal(value, once[name]), name
        torch.testing.assert_close(value, before[name], rtol=2**-11, atol=2**-24)  # float16's half a step
    assert not torch.equal(once["head.a.weight"], before["head.a.weight"])
    assert torch.equal(once["head.b.weight"], before["head.b.weight"])


def test_the_copy_computes_the_same_and_the_model_stays_as_it_is(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.half._LARGE", 1)
    lstm = recipe.model_copy(update={"model": recipe.model.model_copy(update={"pooling": "lstm", "units": 16})})
    for one in (recipe, lstm):
        network = make_network(one).eval()
        round_weights(network)
        copy = stored_as_half(network)
        assert any(p.dtype == torch.float16 for p in copy.parameters())
        assert all(p.dtype == torch.float32 for p in network.parameters())
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            for want, have in zip(network.explain(images), copy.explain(images), strict=True):
                assert torch.equal(want, have)


@pytest.mark.slow
def test_half_of_the_bytes_and_parity_with_torch(
    system: str, model: Model, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    """export_onnx itself compares with torch, at 1e-5 and at batches of 1, 3 and 5, both times."""
    whole, half = exported(system), tmp_path / "half.onnx"
    round_weights(model)
    rounded = export_onnx(model, SHAPE, Calibration(temperature=1.3, offsets=(0.2, 0.1, -0.3)), half, half=True)
    assert 0.5 < half.stat().st_size / whole.stat().st_size < 0.55
    stored = onnx.load(half).graph.initializer
    assert not [x.name for x in stored if x.data_type == onnx.TensorProto.FLOAT and len(x.raw_data) >= 4 * _LARGE]
    assert operators(whole, tmp_path) == operators(half, tmp_path)  # the widening is done once, when it is loaded
    batch = np.random.default_rng(1).standard_normal((3, 3, SHAPE.rows, SHAPE.columns)).astype(np.float32)
    want = run_torch(rounded, batch)
    compiled = openvino.compile_model(half, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answer = compiled(batch)
    np.testing.assert_allclose(answer["probabilities"], want.probabilities, atol=1e-5)
    np.testing.assert_allclose(answer["cam"], want.cam, atol=1e-3 * float(want.cam.max()))


def operators(path: Path, folder: Path) -> Counter[str]:
    """What onnxruntime runs, after its own optimisation."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert [x.name for x in (*session.get_inputs(), *session.get_outputs())] == [INPUT, *OUTPUTS]
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
