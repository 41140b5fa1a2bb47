"""make bench-train: images/s of the training loop beside the bare forward and backward step on prepared tensors.

    python -m tests.bench.train [--recipe resnet50-snapshot] [--images 640] [--rounds 3] [--batch 16] [--device cuda]

In one process, interleaved: each round times the bare step (forward, loss, backward, optimiser) on tensors that are
there already, and an epoch of `training.fit` over as many steps, which decodes from its cache, augments, normalises,
penalises, averages and counts as well. Images are made on the spot. Nothing else should run on the machine.
The loop's first epoch warms up and is not counted.
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

from training.checkpoint import read_curves
from training.devices import Device, open_device
from training.fit import fit
from training.models.network import make_network
from training.recipe import Recipe, load_recipe

_PICTURES = 64
_WARM_UP = 3  # steps that choose kernels and take memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", default=["resnet50-snapshot", "cxr3-lite2-base"])
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--batch", type=int, help="in the place of the recipe's, on a machine that is slow")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    a = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    cv2.setNumThreads(1)
    print(f"{cores} cores, torch {torch.__version__}, {a.images} images an epoch, medians of {a.rounds} rounds\n")
    print("| recipe | bare step, images/s | loop, images/s | ratio |\n|---|---|---|---|")
    for name in a.recipe:
        changes = [f"fit.batch_size={a.batch}"] if a.batch else []
        recipe = load_recipe(name, ["model.weights=none", "fit.epochs=2", "fit.cycles=1", *changes])
        with tempfile.TemporaryDirectory() as folder, open_device(a.device) as device:
            data = make_data(Path(folder) / "data", recipe, a.images)
            bare, loop = [], []
            for n in range(a.rounds):
                bare.append(bare_images_per_s(recipe, a.images // recipe.fit.batch_size, device))
                loop.append(loop_images_per_s(recipe, data, Path(folder) / f"run{n}", device))
        one, other = statistics.median(bare), statistics.median(loop)
        print(f"| {name} | {one:.1f} | {other:.1f} | {other / one:.2f} |")


def make_data(folder: Path, recipe: Recipe, images: int) -> Path:
    """As many training images as wanted, and a few for validation, of 224x224; each of a few pictures, often."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = ["image,label,source,group,age,part"]
    for k in range(images + 32):
        label = recipe.fitted_names[k % len(recipe.fitted_names)]
        path = folder / "images" / f"{k}.jpg"
        if k < _PICTURES:
            cv2.imwrite(str(path), rng.integers(0, 256, (224, 224), np.uint8))
        else:
            path.hardlink_to(path.with_stem(str(k % _PICTURES)))
        rows.append(f"{k}.jpg,{label},made,{k},,{'train' if k < images else 'validation'}")
    (folder / "index.csv").write_text("\n".join(rows))
    return folder


def bare_images_per_s(recipe: Recipe, steps: int, device: Device) -> float:
    where = device.torch_device
    network = make_network(recipe).to(where).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    size, shape = recipe.fit.batch_size, recipe.input
    x = torch.randn(size, shape.channels, shape.rows, shape.columns, device=where)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.arange(size, device=where) % len(recipe.labels)
    started = 0.0
    for step in range(steps + _WARM_UP):
        if step == _WARM_UP:
            started = now(where)
        optimiser.zero_grad()
        with device.mixed_precision():
            loss = F.cross_entropy(network(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return steps * size / (now(where) - started)


def now(where: torch.device) -> float:
    """Seconds, when all work is done."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    return time.monotonic()


def loop_images_per_s(recipe: Recipe, data: Path, run: Path, device: Device) -> float:
    return float(read_curves(fit(recipe, data, run, device))[-1]["images_per_s"])


if __name__ == "__main__":
    main()
