"""make bench-train: images/s of the training loop beside the bare forward and backward step on prepared tensors.

    python -m tests.bench.train [--recipe resnet50-snapshot] [--images 640] [--rounds 3]

In one process, interleaved: each round times the bare step (forward, loss, backward, optimiser) on tensors that are
there already, and an epoch of `training.fit` over as many steps, which decodes from its cache, augments, normalises,
penalises, averages and counts as well. Images are made on the spot. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from training.checkpoint import CHECKPOINT
from training.fit import fit
from training.models.network import make_network
from training.recipe import Recipe, load_recipe

_WARM_UP = 3  # steps that choose kernels and take memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", default=["resnet50-snapshot", "cxr3-lite2-base"])
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    cv2.setNumThreads(1)
    print(f"{cores} cores, torch {torch.__version__}, {a.images} images an epoch, medians of {a.rounds} rounds\n")
    print("| recipe | bare step, images/s | loop, images/s | ratio |\n|---|---|---|---|")
    for name in a.recipe:
        recipe = load_recipe(name, ["model.weights=none", f"fit.epochs={a.rounds}", "fit.cycles=1"])
        with tempfile.TemporaryDirectory() as folder:
            data = make_data(Path(folder) / "data", recipe, a.images)
            bare, loop = [], []
            for n in range(a.rounds):
                bare.append(bare_images_per_s(recipe, a.images // recipe.fit.batch_size))
                loop.append(loop_images_per_s(recipe, data, Path(folder) / f"run{n}"))
        one, other = statistics.median(bare), statistics.median(loop)
        print(f"| {name} | {one:.1f} | {other:.1f} | {other / one:.2f} |")


def make_data(folder: Path, recipe: Recipe, images: int) -> Path:
    """As many training images as wanted, and a few for validation, of 224x224."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = ["image,label,source,group,age,part"]
    for k in range(images + 32):
        label = recipe.fitted_names[k % len(recipe.fitted_names)]
        cv2.imwrite(str(folder / "images" / f"{k}.jpg"), rng.integers(0, 256, (224, 224), np.uint8))
        rows.append(f"{k}.jpg,{label},made,{k},,{'train' if k < images else 'validation'}")
    (folder / "index.csv").write_text("\n".join(rows))
    return folder


def bare_images_per_s(recipe: Recipe, steps: int) -> float:
    network = make_network(recipe).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    size, shape = recipe.fit.batch_size, recipe.input
    x = torch.randn(size, shape.channels, shape.rows, shape.columns).contiguous(memory_format=torch.channels_last)
    y = torch.arange(size) % len(recipe.labels)
    started = 0.0
    for step in range(steps + _WARM_UP):
        if step == _WARM_UP:
            started = time.monotonic()
        optimiser.zero_grad()
        F.cross_entropy(network(x), y).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return steps * size / (time.monotonic() - started)


def loop_images_per_s(recipe: Recipe, data: Path, run: Path) -> float:
    one = recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"epochs": 1})})
    curves = torch.load(fit(one, data, run) / CHECKPOINT, weights_only=True)["curves"]
    return float(curves[0]["images_per_s"])


if __name__ == "__main__":
    main()
