"""The kept maps of a frozen trunk are of these images and these weights, or are made anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import training.frozen as module
from training.feed import to_tensor
from training.frozen import maps_of
from training.models.network import make_network
from training.recipe import Recipe
from training.transforms import to_grey


def test_maps_are_made_once_and_anew_of_what_changed(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, path = make_network(recipe).eval(), tmp_path / "maps-train.npy"
    images = np.random.default_rng(0).integers(0, 255, (20, 32, 32), dtype=np.uint8)
    first = maps_of(network, recipe, images, path)
    with torch.no_grad():
        batch = to_tensor(recipe, [to_grey(image) for image in images])
        np.testing.assert_allclose(first, network.trunk(batch).numpy(), atol=2e-3)
    with monkeypatch.context() as m:
        m.delattr(module, "_batch")
        np.testing.assert_array_equal(maps_of(network, recipe, images, path), first)
    other = images.copy()
    other[7] = 255 - other[7]
    again = maps_of(network, recipe, other, path)
    assert [k for k in range(20) if not np.array_equal(again[k], first[k])] == [7]
    with torch.no_grad():
        network.trunk.get_parameter("conv_stem.weight").mul_(-1)
    assert not np.array_equal(maps_of(network, recipe, images, path), first)
