"""Trunk and head as a recipe names them, with the Grad-CAM of the predicted class as an output of the same pass.

Head: Sakib et al. 2020 (paper 1): average pooling, dropout 0.5, a ReLU layer, dropout 0.5, softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name)

from training.models.trunks import feature_channels, make_trunk
from training.recipe import Recipe


class DenseHead(nn.Module):
    """Features [N, D, h, w] to logits [N, K]."""

    def __init__(self, channels: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.a = nn.Linear(channels, hidden)
        self.b = nn.Linear(hidden, classes)
        self.drop = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        pooled = self.drop(features.mean((2, 3)))
        logits: Tensor = self.b(self.drop(F.relu(self.a(pooled))))
        return logits

    def cam(self, features: Tensor, chosen: Tensor) -> Tensor:
        """Raw Grad-CAM [N, h, w] of the classes in `chosen` (one-hot [N, K]), without autograd, so that it exports.

        The gradient of a logit reaches every place of a channel alike (average pooling), so the channel's Grad-CAM
        weight (Selvaraju et al. 2017, eq. 1) is the back-propagated row divided by h*w.
        """
        z = self.a(features.mean((2, 3)))
        gradient = ((chosen @ self.b.weight) * (z > 0).to(features.dtype)) @ self.a.weight
        weights = gradient / (features.shape[2] * features.shape[3])
        return F.relu((weights[:, :, None, None] * features).sum(1))


class Network(nn.Module):
    """Images [N, C, H, W] to logits [N, K]; `mirror`: outside training, the mean with the mirror images' logits."""

    def __init__(self, trunk: nn.Module, head: DenseHead, *, mirror: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.mirror = mirror

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            logits: Tensor = self.head(self.trunk(images))
            return logits
        return self._views(self.head(self.trunk(self._with_mirrored(images)))).mean(0)

    def explain(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [N, K], raw Grad-CAM [N, h, w] of the predicted class) in one pass; mirrored maps turned back."""
        features = self.trunk(self._with_mirrored(images))
        logits = self._views(self.head(features)).mean(0)
        chosen = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(features.dtype)
        views = 2 if self.mirror else 1
        cam = self._views(self.head.cam(features, chosen.repeat(views, 1)))
        return logits, (cam[0] + cam[1].flip(-1)) / 2 if self.mirror else cam[0]

    def _with_mirrored(self, images: Tensor) -> Tensor:
        return torch.cat([images, images.flip(-1)]) if self.mirror else images

    def _views(self, x: Tensor) -> Tensor:
        """[V*N, ...] to [V, N, ...]."""
        return x.reshape(2 if self.mirror else 1, -1, *x.shape[1:])


class Exported(nn.Module):
    """What a bundle runs: images to (calibrated probabilities [N, K], class index [N], raw Grad-CAM [N, h, w])."""

    def __init__(self, network: Network, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, cam = self.network.explain(images)
        return (logits / self.temperature).softmax(-1), logits.argmax(-1), cam


def make_network(recipe: Recipe, *, weights: bool = True) -> Network:
    """The recipe's network. weights=False: random, for a state dict that is loaded next."""
    torch.manual_seed(recipe.fit.seed)
    trunk = make_trunk(recipe.model, weights=weights)
    head = DenseHead(feature_channels(trunk), recipe.model.hidden, len(recipe.labels), recipe.model.dropout)
    return Network(trunk, head, mirror=recipe.model.mirror)
