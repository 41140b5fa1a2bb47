"""Grad-CAM by autograd: the reference that the exported, hand-derived map (`DenseHead.logits_and_cam`) must equal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from training.models.network import Network


def reference_cam(network: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    """(logits [N, K], raw Grad-CAM [N, h, w] of each image's predicted class); one image at a time.

    Source: Selvaraju et al. 2017, equations 1 and 2: the gradient of the class's logit, averaged over the places of the
    last feature map, weighs its channels; what is negative is cut off.
    """
    network.eval()
    logits, maps = zip(*(_one(network, image[None]) for image in images), strict=True)
    return torch.cat(logits), torch.cat(maps)


def _one(network: Network, image: Tensor) -> tuple[Tensor, Tensor]:
    features: Tensor = network.trunk(image).detach().requires_grad_()
    logits = network.head(features)
    (gradient,) = torch.autograd.grad(logits[0, logits[0].argmax()], features)
    weights = gradient.mean((2, 3), keepdim=True)
    return logits.detach(), F.relu((weights * features).sum(1)).detach()
