"""Trunk and head as a recipe names them, with the Grad-CAM of the predicted class as an output of the same pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name)

from training.models.heads import Head, LstmPooling, MeanPooling
from training.models.trunks import feature_channels, make_trunk
from training.recipe import Recipe


class Network(nn.Module):
    """Images [N, C, H, W] to logits [N, K]; `mirror`: outside training, the mean with the mirror images' logits."""

    def __init__(self, trunk: nn.Module, head: Head, *, mirror: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.mirror = mirror

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            logits: Tensor = self.head(self.trunk(images))
            return logits
        return self._views(self.head(self.features(images))).mean(0)

    def features(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to the trunk's last map [V*N, D, h, w], of V views."""
        features: Tensor = self.trunk(torch.cat([images, images.flip(-1)]) if self.mirror else images)
        return features

    def of_features(self, features: Tensor) -> Tensor:
        """Logits [N, K] of what `features` made."""
        return self._views(self.head(features)).mean(0)

    def cam(self, features: Tensor, chosen: Tensor) -> Tensor:
        """Raw Grad-CAM [N, h, w] of the classes in `chosen` (one-hot [N, K]); mirrored maps are turned back."""
        cam = self._views(self.head.cam(features, chosen.repeat(2 if self.mirror else 1, 1)))
        return (cam[0] + cam[1].flip(-1)) / 2 if self.mirror else cam[0]

    def explain(self, images: Tensor, offsets: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """(logits [N, K] with `offsets` [K] added, raw Grad-CAM [N, h, w] of the class that they give) in one pass."""
        features = self.features(images)
        logits = self.of_features(features) + offsets
        return logits, self.cam(features, _one_hot(logits))

    def _views(self, x: Tensor) -> Tensor:
        """[V*N, ...] to [V, N, ...]."""
        return x.reshape(2 if self.mirror else 1, -1, *x.shape[1:])


class Ensemble(nn.Module):
    """The mean of its members' softmax (paper 1; Huang et al. 2017), given as its logarithm: softmax gives it back."""

    def __init__(self, members: Sequence[Network]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        return _log_mean([member(images) for member in self.members])

    def explain(self, images: Tensor, offsets: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """(logits [N, K] with `offsets` added, the mean of the members' raw Grad-CAMs [N, h, w] of that class)."""
        networks = [m for m in self.members if isinstance(m, Network)]
        features = [m.features(images) for m in networks]
        logits = _log_mean([m.of_features(f) for m, f in zip(networks, features, strict=True)]) + offsets
        chosen = _one_hot(logits)
        maps = [m.cam(f, chosen) for m, f in zip(networks, features, strict=True)]
        return logits, torch.stack(maps).mean(0)


Model = Network | Ensemble


class Exported(nn.Module):
    """What a bundle runs: images to (calibrated probabilities [N, K], class index [N], raw Grad-CAM [N, h, w])."""

    def __init__(self, model: Model, temperature: float = 1.0, offsets: Sequence[float] = ()) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.offsets: Tensor
        self.register_buffer("offsets", torch.tensor(offsets or 0.0))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, cam = self.model.explain(images, self.offsets)
        return (logits / self.temperature).softmax(-1), logits.argmax(-1), cam


def make_network(recipe: Recipe, *, weights: bool = True) -> Network:
    """The recipe's network. weights=False: random, for a state dict that is loaded next."""
    torch.manual_seed(recipe.fit.seed)
    spec = recipe.model
    trunk = make_trunk(spec, weights=weights)
    channels = feature_channels(trunk)
    pooling = LstmPooling(channels, spec.units) if spec.pooling == "lstm" else MeanPooling(channels)
    head = Head(pooling, spec.hidden, len(recipe.labels), spec.dropout, auxiliary=len(recipe.auxiliary))
    return Network(trunk, head, mirror=spec.mirror)


def _log_mean(logits: Sequence[Tensor]) -> Tensor:
    return torch.stack([z.softmax(-1) for z in logits]).mean(0).clamp_min(torch.finfo(torch.float32).tiny).log()


def _one_hot(logits: Tensor) -> Tensor:
    return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
