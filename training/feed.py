"""Batches for the loop, made ahead of it: augmented by threads (OpenCV and NumPy let go of the interpreter meanwhile).

Each step has a random generator of its own, so the pictures do not depend on which thread was quicker.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engines.base import FloatArray
from engines.preprocess import normalise
from training.datasets import Sample, sampling_weights
from training.recipe import Recipe
from training.transforms import augment

Images = npt.NDArray[np.uint8]  # [N, H, W]
_THREADS = min(len(os.sched_getaffinity(0)), 8)
_AHEAD = 2 * _THREADS  # batches


def epoch_order(recipe: Recipe, samples: Sequence[Sample], epoch: int) -> npt.NDArray[Any]:
    """Which samples each step takes, [steps, batch]; an epoch's last, incomplete batch is left out."""
    rng = np.random.default_rng([recipe.fit.seed, epoch])
    size = min(recipe.fit.batch_size, len(samples))
    shape = (len(samples) // size, size)
    if recipe.data.sampling == "shuffle":
        return rng.permutation(len(samples))[: shape[0] * size].reshape(shape)
    return rng.choice(len(samples), shape, p=sampling_weights(samples, recipe.data.balance, recipe.auxiliary))


def feed(
    recipe: Recipe, images: Images, targets: npt.NDArray[Any], order: npt.NDArray[Any], seed: tuple[int, ...]
) -> Iterator[tuple[Tensor, Tensor]]:
    """(normalised grey images [N, H, W], labels [N]) of each step of `order`; `spread` makes them the network's."""

    def make(step: int) -> tuple[Tensor, Tensor]:
        rng, chosen = np.random.default_rng([*seed, step]), order[step]
        pictures = [augment(images[i], recipe.augment, rng) for i in chosen]
        return _grey(recipe, pictures), torch.from_numpy(targets[chosen])

    pool = ThreadPoolExecutor(_THREADS)
    waiting: deque[Future[tuple[Tensor, Tensor]]] = deque()
    try:
        for step in range(len(order) + _AHEAD):
            if step < len(order):
                waiting.append(pool.submit(make, step))
            if step >= _AHEAD:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def to_tensor(recipe: Recipe, pictures: Sequence[FloatArray], device: torch.device | None = None) -> Tensor:
    """Grey pictures, float32 0..1, to images [N, C, H, W] by the preprocessing that serving uses."""
    return spread(recipe, _grey(recipe, pictures), device)


def spread(recipe: Recipe, grey: Tensor, device: torch.device | None = None) -> Tensor:
    """Grey copied to each channel, on the device: one channel travels there, not three."""
    channels = grey.to(device or grey.device)[:, None].expand(-1, recipe.input.channels, -1, -1)
    return channels.contiguous(memory_format=torch.channels_last)


def _grey(recipe: Recipe, pictures: Sequence[FloatArray]) -> Tensor:
    shape = recipe.input
    return torch.from_numpy(normalise([shape.prepared(p) for p in pictures]))
