"""A trunk that is not fitted sees each image once: its maps are kept, and the head is fitted on them.

What makes the networks of paper 2 possible without a GPU. Nothing is augmented: a changed picture has another map.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from tqdm import tqdm

from training.feed import Images, to_tensor
from training.files import whole
from training.models.network import Network
from training.recipe import Recipe
from training.transforms import to_grey

Maps = npt.NDArray[np.float16]  # [N, D, h, w]
_BATCH = 16
_STATISTICS = 8  # batches that set the batch norms of a trunk whose weights are random


def prepare_trunk(network: Network, recipe: Recipe, images: Images) -> None:
    """Random batch norms divide by nothing they have seen: let them see some images first."""
    network.trunk.requires_grad_(False)
    norms = [m for m in network.trunk.modules() if isinstance(m, nn.BatchNorm2d)]
    if recipe.model.weights != "none" or not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    chosen = np.random.default_rng(recipe.fit.seed).permutation(len(images))[: _STATISTICS * _BATCH]
    network.trunk.train()
    with torch.no_grad():
        for i in range(0, len(chosen), _BATCH):
            network.trunk(to_tensor(recipe, [to_grey(images[k]) for k in sorted(chosen[i : i + _BATCH])]))
    network.trunk.eval()


@torch.no_grad()
def maps_of(network: Network, recipe: Recipe, images: Images, path: Path) -> Maps:
    """The trunk's maps of every image, mapped from `path`, which is made if it is not there."""
    if not path.is_file():
        network.trunk.eval()
        maps = []
        for i in tqdm(range(0, len(images), _BATCH), desc="maps of the trunk", mininterval=30):
            batch = to_tensor(recipe, [to_grey(image) for image in images[i : i + _BATCH]])
            maps.append(network.trunk(batch).half().numpy())
        with whole(path) as part, part.open("wb") as f:
            np.save(f, np.concatenate(maps))
    mapped: Maps = np.load(path, mmap_mode="r")
    return mapped
