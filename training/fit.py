"""Fit one network: one flat loop. Killed and started again, it goes on from the last epoch to the same end."""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from engines.preprocess import prepare, to_batch
from training.datasets import Part, load_images, load_index, sampling_weights, select
from training.models.network import Network, make_network
from training.models.trunks import RUN
from training.recipe import FitSpec, Recipe, RecipeError
from training.transforms import augment, to_grey

CHECKPOINT, CURVES, RECIPE, SPLIT = "checkpoint.pt", "curves.csv", "recipe.json", "split.csv"
_WARM_UP = 0.15  # share of the one-cycle schedule
_SAY_EVERY_S = 15.0


class DivergedError(Exception):
    """The loss is not finite: lower the learning rate."""


@dataclass(slots=True, kw_only=True)
class State:
    """Everything that a resumed fit needs; `average` holds the exponentially averaged weights."""

    network: Network
    average: dict[str, Tensor]
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    epoch: int = 0


def fit(recipe: Recipe, data: Path, run: Path) -> Path:
    """Fit `recipe` on `data` into the folder `run`; returns it. Raises DivergedError, RecipeError."""
    _claim(run, recipe)
    samples = load_index(data, recipe.data)
    _write_split(run, recipe, samples)
    train = select(samples, Part.TRAIN, recipe.label_names)
    held = select(samples, Part.VALIDATION, recipe.label_names)
    images, held_images = load_images(data, train), load_images(data, held)
    targets = np.array([recipe.label_names.index(s.label) for s in train])
    held_targets = np.array([recipe.label_names.index(s.label) for s in held])
    weights = sampling_weights(train, recipe.data.balance)
    steps = max(1, len(train) // recipe.fit.batch_size)
    state = _begin_or_resume(recipe, run, steps)
    while state.epoch < recipe.fit.epochs:
        rng = np.random.default_rng([recipe.fit.seed, state.epoch])
        torch.manual_seed(recipe.fit.seed * 1000 + state.epoch)
        order = rng.choice(len(train), (steps, recipe.fit.batch_size), p=weights)
        loss = _one_epoch(recipe, state, images, targets, order, rng)
        state.epoch += 1
        accuracy = float((predict(averaged(recipe, state), recipe, held_images).argmax(1) == held_targets).mean())
        _checkpoint(run, state, loss, accuracy)
        print(
            f"epoch {state.epoch}/{recipe.fit.epochs}: loss {loss:.4f}, validation accuracy {accuracy:.4f}", flush=True
        )
    if not (run / CHECKPOINT).exists():  # no epochs: the weights as they are
        _checkpoint(run, state, float("nan"), float("nan"))
    return run


def _claim(run: Path, recipe: Recipe) -> None:
    """A run folder is of one recipe: going on with another would be neither."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / RECIPE
    if path.exists() and Recipe.model_validate_json(path.read_text()) != recipe:
        raise RecipeError(f"{run} holds a run of another recipe: choose another --run, or remove the folder")
    path.write_text(recipe.model_dump_json(indent=2))


def _one_epoch(
    recipe: Recipe,
    state: State,
    images: list[npt.NDArray[np.uint8]],
    targets: npt.NDArray[Any],
    order: npt.NDArray[Any],
    rng: np.random.Generator,
) -> float:
    """Returns the mean loss."""
    state.network.train()
    started = said = time.monotonic()
    losses = []
    for step, chosen in enumerate(order, start=1):
        pictures = [augment(images[i], recipe.augment, rng) for i in chosen]
        x, y = to_tensor(recipe, pictures), torch.from_numpy(targets[chosen])
        loss = _mixed_loss(state.network, x, y, recipe.fit, rng)
        if not torch.isfinite(loss):
            raise DivergedError(f"loss {loss.item()} in epoch {state.epoch + 1}: lower the recipe's learning_rate")
        state.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimiser.step()
        state.schedule.step()
        _average(state, recipe.fit.ema, done=state.epoch * len(order) + step)
        losses.append(loss.item())
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            left = (said - started) / step * (len(order) * (recipe.fit.epochs - state.epoch) - step)
            print(f"  step {step}/{len(order)}: loss {losses[-1]:.3f}, about {left / 60:.0f} min left", flush=True)
    return float(np.mean(losses))


def _mixed_loss(network: Network, x: Tensor, y: Tensor, spec: FitSpec, rng: np.random.Generator) -> Tensor:
    """Cross-entropy; with mixup (Zhang et al. 2018) of each image with another of its batch."""
    share = float(rng.beta(spec.mixup, spec.mixup)) if spec.mixup else 1.0
    other = torch.from_numpy(rng.permutation(len(y)))
    logits = network(share * x + (1 - share) * x[other] if spec.mixup else x)
    loss = F.cross_entropy(logits, y, label_smoothing=spec.label_smoothing)
    if spec.mixup:
        loss = share * loss + (1 - share) * F.cross_entropy(logits, y[other], label_smoothing=spec.label_smoothing)
    return loss


def to_tensor(recipe: Recipe, pictures: list[npt.NDArray[np.float32]]) -> Tensor:
    """Grey pictures, float32 0..1, to images [N, C, H, W] by the preprocessing that serving uses."""
    shape = recipe.input
    prepared = [prepare(p, shape.rows, shape.columns) for p in pictures]
    return torch.from_numpy(to_batch(prepared, shape.channels)).contiguous(memory_format=torch.channels_last)


def predict(network: Network, recipe: Recipe, images: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
    """Logits [N, K] of uint8 images."""
    return predict_grey(network, recipe, [to_grey(image) for image in images])


@torch.no_grad()
def predict_grey(network: Network, recipe: Recipe, images: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Logits [N, K] of grey images, float32 [H, W] in 0..1."""
    network.eval()
    batches = [images[i : i + 64] for i in range(0, len(images), 64)]
    logits = [network(to_tensor(recipe, batch)).numpy() for batch in batches]
    return np.concatenate(logits) if logits else np.zeros((0, len(recipe.labels)), np.float32)


def averaged(recipe: Recipe, state: State) -> Network:
    network = make_network(recipe, weights=False)
    network.load_state_dict(state.average)
    return network


def load_run(run: Path) -> tuple[Recipe, Network]:
    """The recipe and the averaged network of a finished (or unfinished) run."""
    if not (run / RECIPE).is_file() or not (run / CHECKPOINT).is_file():
        raise RecipeError(f"{run} is no run with a finished epoch: make one with `python -m training fit`")
    recipe = Recipe.model_validate_json((run / RECIPE).read_text())
    network = make_network(recipe, weights=False)
    network.load_state_dict(averaged_weights(run))
    return recipe, network.eval()


def averaged_weights(run: Path) -> dict[str, Tensor]:
    """Raises RecipeError where the run has no checkpoint."""
    if not (run / CHECKPOINT).is_file():
        raise RecipeError(f"no run at {run} (it has no {CHECKPOINT}): fit it first, or name another folder")
    saved: dict[str, Tensor] = torch.load(run / CHECKPOINT, map_location="cpu", weights_only=True)["average"]
    return saved


def mean_weights(runs: list[str]) -> dict[str, Tensor]:
    """The mean of the runs' averaged weights (model soup, Wortsman et al. 2022); of one run, its own."""
    states = [averaged_weights(Path(run)) for run in runs]
    return {
        name: torch.stack([s[name] for s in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }


def _average(state: State, decay: float, *, done: int) -> None:
    decay = min(decay, (1 + done) / (10 + done))  # the first steps must not weigh for ever
    with torch.no_grad():
        for name, value in state.network.state_dict().items():
            if value.is_floating_point():
                state.average[name].lerp_(value, 1 - decay)
            else:
                state.average[name].copy_(value)


def _begin_or_resume(recipe: Recipe, run: Path, steps: int) -> State:
    network = make_network(recipe).to(memory_format=torch.channels_last)
    if recipe.model.weights.startswith(RUN):
        network.load_state_dict(mean_weights(recipe.model.weights.removeprefix(RUN).split(",")))
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    spec = recipe.fit
    groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=spec.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, spec.learning_rate, total_steps=spec.epochs * steps + 1, pct_start=_WARM_UP
    )
    average = {name: value.clone() for name, value in network.state_dict().items()}
    state = State(network=network, average=average, optimiser=optimiser, schedule=schedule)
    if (run / CHECKPOINT).exists():
        saved = torch.load(run / CHECKPOINT, map_location="cpu", weights_only=True)
        network.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        state.average, state.epoch = saved["average"], saved["epoch"]
    return state


def _checkpoint(run: Path, state: State, loss: float, accuracy: float) -> None:
    """Written whole: a kill leaves the last one."""
    saved = {
        "network": state.network.state_dict(),
        "average": state.average,
        "optimiser": state.optimiser.state_dict(),
        "schedule": state.schedule.state_dict(),
        "epoch": state.epoch,
    }
    torch.save(saved, run / f"{CHECKPOINT}.part")
    (run / f"{CHECKPOINT}.part").replace(run / CHECKPOINT)
    with (run / CURVES).open("a", newline="") as f:
        csv.writer(f).writerow([state.epoch, f"{loss:.5f}", f"{accuracy:.5f}"])


def _write_split(run: Path, recipe: Recipe, samples: list[Any]) -> None:
    with (run / SPLIT).open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["image", "label", "source", "group", "part"])
        chosen = (s for s in samples if s.label in recipe.label_names)
        writer.writerows([s.image, s.label, s.source, s.group, s.part.value] for s in chosen)
