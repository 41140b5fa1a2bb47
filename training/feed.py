"""Batches for the loop, made ahead of it by processes: augmenting holds Python's lock too long for threads.

Each step has a random generator of its own, so the pictures do not depend on who makes them, or when.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engines.base import FloatArray
from engines.preprocess import normalise
from training.datasets import Sample, sampling_weights
from training.devices import Device
from training.recipe import Recipe
from training.transforms import augment

Images = npt.NDArray[np.uint8]  # [N, H, W]
Share = tuple[tuple[int, ...], npt.NDArray[Any]]  # of a step: its random generator's seed, and which samples it takes
_AHEAD = 2  # batches that wait in each process
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where batches pass between processes; in a container often 64 MB)


def epoch_order(recipe: Recipe, samples: Sequence[Sample], epoch: int) -> npt.NDArray[Any]:
    """Which samples each step takes, [steps, batch]; an epoch's last, incomplete batch is left out."""
    rng = np.random.default_rng([recipe.fit.seed, epoch])
    size = min(recipe.fit.batch_size, len(samples))
    shape = (len(samples) // size, size)
    if recipe.data.sampling == "shuffle":
        return rng.permutation(len(samples))[: shape[0] * size].reshape(shape)
    return rng.choice(len(samples), shape, p=sampling_weights(samples, recipe.data.balance, recipe.auxiliary))


def shares(recipe: Recipe, samples: Sequence[Sample], device: Device, epochs: range) -> Iterator[Share]:
    """What each step of `epochs` takes; of several processes that share a fit, each has its part of every batch."""
    for epoch in epochs:
        for step, batch in enumerate(epoch_order(recipe, samples, epoch)):
            yield (recipe.fit.seed, epoch, device.rank, step), batch[device.rank :: device.world]


def feed(
    recipe: Recipe, images: Images, targets: npt.NDArray[Any], steps: Iterable[Share], device: Device
) -> Iterator[tuple[Tensor, Tensor]]:
    """(normalised grey images [N, H, W], labels [N]) of each of `steps`; `spread` makes them the network's."""
    cv2.setNumThreads(1)  # before the processes begin: a pool of threads does not outlive a fork
    processes = _processes(device, recipe.fit.batch_size * images[0].size * np.dtype(np.float32).itemsize)
    yield from DataLoader(
        _Augmented(recipe, images, targets), batch_size=None, sampler=steps,
        num_workers=processes, prefetch_factor=_AHEAD if processes else None,
        multiprocessing_context="fork" if processes else None,  # which copies no images
        pin_memory=device.torch_device.type == "cuda",
        generator=torch.Generator(),  # else it draws from the one that dropout draws from
    )  # fmt: skip


class _Augmented(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, recipe: Recipe, images: Images, targets: npt.NDArray[Any]) -> None:
        self._recipe, self._images, self._targets = recipe, images, targets

    def __getitem__(self, share: Share) -> tuple[Tensor, Tensor]:
        seed, chosen = share
        rng = np.random.default_rng(seed)
        pictures = [augment(self._images[i], self._recipe.augment, rng) for i in chosen]
        return _grey(self._recipe, pictures), torch.from_numpy(self._targets[chosen])


def _processes(device: Device, batch_bytes: int) -> int:
    """As many as feed a GPU; on a CPU, whose cores fit, few: its steps take long. 0: the loop makes its batches."""
    cores = len(os.sched_getaffinity(0)) // device.world
    wanted = cores if device.torch_device.type == "cuda" else max(1, cores // 8)
    room = shutil.disk_usage(_SHARED_MEMORY).free // device.world if _SHARED_MEMORY.is_dir() else 0
    return min(wanted, room // (2 * _AHEAD * batch_bytes))


def to_tensor(recipe: Recipe, pictures: Sequence[FloatArray], device: torch.device | None = None) -> Tensor:
    """Grey pictures, float32 0..1, to images [N, C, H, W] by the preprocessing that serving uses."""
    return spread(recipe, _grey(recipe, pictures), device)


def spread(recipe: Recipe, grey: Tensor, device: torch.device | None = None) -> Tensor:
    """Grey copied to each channel, on the device: one channel travels there, not three."""
    there = grey.to(device or grey.device, non_blocking=grey.is_pinned())
    return there[:, None].expand(-1, recipe.input.channels, -1, -1).contiguous(memory_format=torch.channels_last)


def _grey(recipe: Recipe, pictures: Sequence[FloatArray]) -> Tensor:
    shape = recipe.input
    return torch.from_numpy(normalise([shape.prepared(p) for p in pictures]))
