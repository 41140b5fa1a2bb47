"""Grad-CAM by hooks and autograd: the reference that the exported, hand-derived map (`explain`) must equal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from training.models.network import Ensemble, Model, Network


def reference_cam(model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """(logits [N, K], raw Grad-CAM [N, h, w] of each image's predicted class); one image at a time."""
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(image[None]) for image in images])
    maps = [cam_of(model, image[None], int(row.argmax())) for image, row in zip(images, logits, strict=True)]
    return logits, torch.cat(maps)


def cam_of(model: Model, image: Tensor, k: int) -> Tensor:
    """Raw Grad-CAM [1, h, w] of class `k`; an ensemble's is the mean of its members', a mirrored view's is turned back.

    Source: Selvaraju et al. 2017, equations 1 and 2: the gradient of the class's logit, averaged over the places of the
    last feature map, weighs its channels; what is negative is cut off.
    """
    if isinstance(model, Ensemble):
        return torch.stack([cam_of(m, image, k) for m in model.members if isinstance(m, Network)]).mean(0)
    if model.mirror:
        return (_map(model, image, k) + _map(model, image.flip(-1), k).flip(-1)) / 2
    return _map(model, image, k)


def _map(network: Network, image: Tensor, k: int) -> Tensor:
    maps: list[Tensor] = []
    hook = network.trunk.register_forward_hook(lambda _module, _arguments, output: maps.append(output))
    with torch.backends.cudnn.flags(enabled=False):  # whose LSTM has no gradient outside training
        try:
            logits = network.head(network.trunk(image.requires_grad_()))  # a frozen trunk too needs one to its map
        finally:
            hook.remove()
        (gradient,) = torch.autograd.grad(logits[0, k], maps)
    return F.relu((gradient.mean((2, 3), keepdim=True) * maps[0]).sum(1)).detach()
