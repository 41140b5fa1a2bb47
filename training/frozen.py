"""A trunk that is not fitted sees each image once: its maps are kept, and the head is fitted on them.

What makes the networks of paper 2 possible without a GPU. Nothing is augmented: a changed picture has another map.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from engines.preprocess import PREPROCESS_VERSION
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
            network.trunk(_batch(network, recipe, images, sorted(chosen[i : i + _BATCH])))
    network.trunk.eval()


@torch.no_grad()
def maps_of(network: Network, recipe: Recipe, images: Images, path: Path) -> Maps:
    """The trunk's maps of every image, mapped from a file beside `path` that is made if it is not there.

    A digest of the images and of the trunk's weights is in the file's name, so that other ones have other maps.
    """
    path = path.with_stem(f"{path.stem}-{_digest(network, recipe, images)}")
    if not path.is_file():
        network.trunk.eval()
        maps = []
        for i in tqdm(range(0, len(images), _BATCH), desc="maps of the trunk", mininterval=30):
            batch = _batch(network, recipe, images, range(i, min(i + _BATCH, len(images))))
            maps.append(network.trunk(batch).half().cpu().numpy())
        with whole(path) as part, part.open("wb") as f:
            np.save(f, np.concatenate(maps))
    mapped: Maps = np.load(path, mmap_mode="r")
    return mapped


def _digest(network: Network, recipe: Recipe, images: Images) -> str:
    digest = sha256(f"{PREPROCESS_VERSION} {recipe.model.trunk} {recipe.input} {images.shape}".encode())
    digest.update(np.ascontiguousarray(images).reshape(-1).data)
    for name, value in network.trunk.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:20]


def _batch(network: Network, recipe: Recipe, images: Images, chosen: Iterable[int]) -> Tensor:
    device = next(network.parameters()).device
    return to_tensor(recipe, [to_grey(images[k]) for k in chosen], device)
