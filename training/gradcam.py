"""Grad-CAM by autograd: the reference that the exported, hand-derived map (`Network.explain`) must equal."""

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
    with torch.no_grad():
        logits = network(image)
    k = int(logits.argmax())
    cam = _map(network, image, k)
    if network.mirror:
        cam = (cam + _map(network, image.flip(-1), k).flip(-1)) / 2
    return logits, cam


def _map(network: Network, image: Tensor, k: int) -> Tensor:
    features: Tensor = network.trunk(image).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network.head(features)[0, k], features)
    return F.relu((gradient.mean((2, 3), keepdim=True) * features).sum(1)).detach()
