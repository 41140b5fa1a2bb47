"""Heads: features [N, D, h, w] to logits [N, K], and what Grad-CAM needs of their gradient, without autograd.

`torch.autograd` inside `forward` does not export to ONNX; these derivatives, written out, do. `training.gradcam` is the
reference that they are tested against.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name)

Step = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # i, f, g, o, the cell before, tanh of the cell


class MeanPooling(nn.Module):
    """Average over the map's places. Source: Sakib et al. 2020 (paper 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_features = channels

    def forward(self, features: Tensor) -> Tensor:
        """[N, D, h, w] to [N, D]."""
        return features.mean((2, 3))

    def explain(self, features: Tensor) -> tuple[Tensor, list[Step]]:
        return self(features), []

    def channel_weights(self, gradient: Tensor, places: int, _: list[Step]) -> Tensor:
        """[N, D]: each of a channel's places gets the same share of the pooled value's gradient [N, D]."""
        return gradient / places


class LstmPooling(nn.Module):
    """The last state of an LSTM that reads the map row by row. Source: Islam et al. 2020 (paper 2)."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, units, batch_first=True)
        self.out_features = units

    def forward(self, features: Tensor) -> Tensor:
        """[N, D, h, w] to [N, units]."""
        _, (state, _) = self.lstm(_sequence(features))
        last: Tensor = state[0]
        return last

    def explain(self, features: Tensor) -> tuple[Tensor, list[Step]]:
        """The same, step by step (it exports everywhere, and half precision allows it); what each step was made of."""
        weight, recurrent, *biases = self.lstm.all_weights[0]
        inputs = F.linear(_sequence(features), weight, biases[0] + biases[1])
        h = torch.zeros_like(inputs[:, 0, : self.lstm.hidden_size])
        c, steps = h, []
        for t in range(inputs.shape[1]):
            i, f, g, o = (inputs[:, t] + h @ recurrent.t()).chunk(4, -1)
            i, f, g, o, before = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid(), c
            c = f * before + i * g
            squashed = c.tanh()
            h = o * squashed
            steps.append((i, f, g, o, before, squashed))
        return h, steps

    def channel_weights(self, gradient: Tensor, places: int, steps: list[Step]) -> Tensor:
        """[N, D]: the gradient [N, units] of the last state, back through every step, averaged over the places."""
        weight, recurrent, *_ = self.lstm.all_weights[0]
        dh, dc = gradient, torch.zeros_like(gradient)
        total = torch.zeros_like(torch.cat([gradient] * 4, -1))
        for i, f, g, o, before, squashed in reversed(steps):
            dc = dc + dh * o * (1 - squashed * squashed)
            gates = [dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g * g), dh * squashed * o * (1 - o)]
            step = torch.cat(gates, -1)
            total = total + step
            dh, dc = step @ recurrent, dc * f
        return total @ weight / places


class Head(nn.Module):
    """Pooling, dropout, a ReLU layer `a`, dropout, the classes' layer `b` (softmax is the loss's and the export's).

    The first `classes` logits are what the network says; the `auxiliary` ones after them exist while it is fitted.
    """

    def __init__(
        self, pooling: MeanPooling | LstmPooling, hidden: int, classes: int, dropout: float, *, auxiliary: int = 0
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.a = nn.Linear(pooling.out_features, hidden)
        self.b = nn.Linear(hidden, classes + auxiliary)
        self.drop = nn.Dropout(dropout)
        self.classes = classes

    def forward(self, features: Tensor) -> Tensor:
        pooled = self.drop(self.pooling(features))
        logits: Tensor = self.b(self.drop(F.relu(self.a(pooled))))
        return logits if self.training else logits[:, : self.classes]

    def cam(self, features: Tensor, chosen: Tensor) -> Tensor:
        """Raw Grad-CAM [N, h, w] of the classes in `chosen` (one-hot [N, K]): Selvaraju et al. 2017, equations 1, 2."""
        pooled, trace = self.pooling.explain(features)
        gradient = ((chosen @ self.b.weight[: self.classes]) * (self.a(pooled) > 0).to(features.dtype)) @ self.a.weight
        weights = self.pooling.channel_weights(gradient, features.shape[2] * features.shape[3], trace)
        return F.relu((weights[:, :, None, None] * features).sum(1))

    def penalty(self) -> Tensor:
        """Sum of squares of both layers' weights: what paper 1's L2 term multiplies."""
        return self.a.weight.square().sum() + self.b.weight.square().sum()


def _sequence(features: Tensor) -> Tensor:
    """[N, D, h, w] to [N, h*w, D]."""
    return features.flatten(2).transpose(1, 2)
