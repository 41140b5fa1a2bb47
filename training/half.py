"""Weights stored in half: float16 in the file, widened to float32 where they are used, so that computing stays float32.

The weights are rounded in torch first, so that what is calibrated, checked and shipped is one network and parity with
torch is what it is without. Only the graph then says that they are stored as float16. The exporter would fold a batch
norm into the weights before it, whose products are no float16 numbers; of widened weights it does not, and the runtimes
do it when they load the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from training.models.network import Model

_LARGE = 1 << 14  # numbers of a weight that is worth storing in half; the exporter widens those below 8192 again
_GREATEST = torch.finfo(torch.float16).max


def round_weights(model: Model) -> None:
    """Round each large weight to the nearest float16 number, in place; it stays float32."""
    with torch.no_grad():
        for _, _, weight in _large(model):
            weight.copy_(weight.half())


def stored_as_half(model: Model) -> Model:
    """A copy of a model with rounded weights that computes the same from float16 parameters: what is exported."""
    copy = deepcopy(model)
    for module, name, _ in list(_large(copy)):
        parametrize.register_parametrization(module, name, _Widened(), unsafe=True)  # which lets the type change
    return copy


class _Widened(nn.Module):
    def forward(self, stored: Tensor) -> Tensor:
        return stored.float()

    def right_inverse(self, weight: Tensor) -> tuple[Tensor]:
        return (weight.half(),)  # a tuple, because a single tensor would have to keep its type


def _large(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """(module, name, weight) of each large weight that float16 can hold."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.numel() >= _LARGE and weight.abs().max() <= _GREATEST:
                yield module, name, weight
