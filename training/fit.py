"""Fit one network: one flat loop. Killed and started again, it goes on from the last epoch to the same end."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingWarmRestarts, LRScheduler, OneCycleLR
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from cxrnode.printable import printable
from engines.base import FloatArray
from training import checkpoint
from training.cache import decoded
from training.checkpoint import (
    CHECKPOINT,
    RECIPE,
    SPLIT,
    State,
    Weights,
    load_weights,
    mean_weights,
    network_of,
    read_recipe,
    snapshot,
)
from training.datasets import Part, Sample, left_out, load_index, used
from training.devices import Device
from training.feed import Images, epoch_order, feed, shares, spread, to_tensor
from training.files import whole
from training.frozen import Maps, maps_of, prepare_trunk
from training.models.network import Model, Network, make_network
from training.models.trunks import RUN
from training.recipe import FitSpec, Recipe, RecipeError
from training.rows import LeftOut
from training.transforms import to_grey

LEFT_OUT = "left-out.csv"  # in a run folder: files of the data folder that nobody sees, and why
CACHE = "cache"  # beside the run folders: decoded images, shared by all runs of the same data and input size
_WARM_UP = 0.15  # share of the one-cycle schedule
_BATCH = 64  # of a prediction
_ASK = 16  # steps between two looks at the loss: a GPU that is asked has to end all its work first


class DivergedError(Exception):
    """The loss is not finite: lower the learning rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """The images of one part and their labels; `maps` are a frozen trunk's."""

    samples: list[Sample]
    images: Images  # uint8 [N, H, W]
    targets: npt.NDArray[np.int64]  # [N]
    maps: Maps | None = None  # float16 [N, D, h, w]


def fit(recipe: Recipe, data: Path, run: Path, device: Device | None = None) -> Path:
    """Fit `recipe` on `data` into the folder `run`; returns it. Raises DivergedError, RecipeError."""
    device = device or Device()
    samples = load_index(data, recipe.data)
    check_labels(samples, recipe)
    check_run(run, recipe, samples)
    train, held = (_labelled(recipe, data, samples, part, run) for part in (Part.TRAIN, Part.VALIDATION))
    steps = len(epoch_order(recipe, train.samples, 0))
    state = _begin(recipe, train, steps, device)
    checkpoint.restore(run, state)
    if device.first:
        checkpoint.require_room(run, state, recipe.fit)
        _claim(run, recipe, samples, left_out(data))
    device.wait_for_others()
    if recipe.model.frozen:
        train, held = (
            replace(part, maps=maps_of(state.network, recipe, part.images, run / f"maps-{name}.npy"))
            for name, part in (("train", train), ("held", held))
        )
    fitted = device.shared(state.network.head if recipe.model.frozen else state.network)
    with tqdm(
        total=recipe.fit.epochs * steps, initial=state.epoch * steps, unit="step", disable=not device.first,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    ) as bar:  # fmt: skip
        batches = _batches(recipe, train, device, range(state.epoch, recipe.fit.epochs))
        while state.epoch < recipe.fit.epochs:
            started = time.monotonic()
            row = _one_epoch(recipe, state, fitted, islice(batches, steps), device, bar)
            state.epoch += 1
            row |= validate(recipe, state, held, device) | {"seconds": round(time.monotonic() - started, 1)}
            state.curves.append({"epoch": state.epoch} | {k: round(v, 6) for k, v in row.items()})
            if device.first:
                _keep(run, recipe, state)
                bar.write(_line(recipe, state))
    if device.first and not (run / CHECKPOINT).exists():  # no epochs: the weights as they are
        checkpoint.save(run, state)
    device.wait_for_others()
    return run


# --- before the first epoch -----------------------------------------------------------------------------------------


def check_labels(samples: list[Sample], recipe: Recipe) -> None:
    """Raises RecipeError where a label has nothing to learn from, or nothing to be validated on, or is written in two
    ways."""
    written = {name.casefold(): name for name in recipe.fitted_names}
    for label, n in Counter(s.label for s in samples).items():
        name = written.get(label.casefold(), label)
        if name != label:
            raise RecipeError(f"{n} images are labelled '{label}', and the recipe says '{name}': write them alike")
    count = Counter((s.label, s.part) for s in samples)
    for part, labels in ((Part.TRAIN, recipe.fitted_names), (Part.VALIDATION, recipe.label_names)):
        for label in labels:
            if not count[label, part]:
                known = ", ".join(sorted({s.label for s in samples}))
                raise RecipeError(
                    f"the {part.value} part has no image labelled '{label}' (the data knows: {known}): name the data's "
                    "labels in the recipe, or choose another split_seed"
                )


def _labelled(recipe: Recipe, data: Path, samples: list[Sample], part: Part, run: Path) -> Labelled:
    chosen = used(samples, part, recipe)
    targets = np.array([recipe.fitted_names.index(s.label) for s in chosen], np.int64)
    return Labelled(
        samples=chosen, images=decoded(data, chosen, recipe.input, run.parent / CACHE), targets=targets
    )  # fmt: skip


def check_run(run: Path, recipe: Recipe, samples: list[Sample]) -> None:
    """A run folder is of one recipe and one split: going on with another would be neither. Raises RecipeError."""
    if (run / RECIPE).exists() and read_recipe(run) != recipe:
        raise RecipeError(f"{run} holds a run of another recipe: choose another --run, or remove the folder")
    if (run / CHECKPOINT).exists() and (run / SPLIT).read_bytes() != _split(recipe, samples):
        raise RecipeError(f"{run} was begun with other data ({SPLIT} says which): choose another --run, or remove it")


def _claim(run: Path, recipe: Recipe, samples: list[Sample], left: list[LeftOut]) -> None:
    """Write down what the fit is made of. Raises RecipeError where the folder cannot be written."""
    files = {RECIPE: recipe.model_dump_json(indent=2).encode(), SPLIT: _split(recipe, samples)}
    if left:
        files[LEFT_OUT] = _table(("image", "reason"), ((x.image, x.reason) for x in left))
    for name, content in files.items():
        with whole(run / name) as part:
            part.write_bytes(content)
    unused = Counter(s.label for s in samples if s.label not in recipe.fitted_names)
    if names := ", ".join(f"{label} ({n})" for label, n in sorted(unused.items())):
        tqdm.write(printable(f"labels of the data that the recipe does not name: {names}"))


def _split(recipe: Recipe, samples: list[Sample]) -> bytes:
    """split.csv: which image is in which part."""
    chosen = [s for part in Part for s in used(samples, part, recipe)]
    return _table(
        ("image", "label", "source", "group", "part"), ((s.image, s.label, s.source, s.group, s.part) for s in chosen)
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """A CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")


def _begin(recipe: Recipe, train: Labelled, steps: int, device: Device) -> State:
    """On the device from the start: the optimiser's moments and the averages lie where the weights do."""
    network = make_network(recipe).to(device.torch_device).to(memory_format=torch.channels_last)
    if recipe.model.weights.startswith(RUN):
        runs = recipe.model.weights.removeprefix(RUN)
        load_weights(network, _of_labels(mean_weights(runs.split(",")), network), runs)
    if recipe.model.frozen:
        prepare_trunk(network, recipe, train.images)
    optimiser = _optimiser(network, recipe.fit)
    average = {name: value.clone() for name, value in network.state_dict().items()}
    return State(
        network=network, average=average, optimiser=optimiser, schedule=_schedule(optimiser, recipe.fit, steps)
    )  # fmt: skip


def _of_labels(weights: Weights, network: Network) -> Weights:
    """Without the auxiliary findings that an earlier run learnt beside the labels, and this one does not: they come
    last."""
    rows = network.head.b.out_features
    return weights | {name: weights[name][:rows] for name in ("head.b.weight", "head.b.bias") if name in weights}


def _optimiser(network: Network, spec: FitSpec) -> torch.optim.Optimizer:
    parameters = [p for p in network.parameters() if p.requires_grad]
    if spec.optimiser == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=spec.learning_rate)
    if spec.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=spec.learning_rate)
    matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=spec.learning_rate)


def _schedule(optimiser: torch.optim.Optimizer, spec: FitSpec, steps: int) -> LRScheduler:
    """Step by step. `snapshot`: the rate falls along a cosine, and jumps back at a cycle's end (Huang et al. 2017)."""
    if spec.schedule == "snapshot":
        return CosineAnnealingWarmRestarts(optimiser, T_0=max(1, spec.epochs // spec.cycles * steps))
    if spec.schedule == "constant":
        return ConstantLR(optimiser, factor=1.0)
    return OneCycleLR(optimiser, spec.learning_rate, total_steps=spec.epochs * steps + 1, pct_start=_WARM_UP)


# --- the loop -------------------------------------------------------------------------------------------------------


def _one_epoch(
    recipe: Recipe, state: State, fitted: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: Device,
    bar: tqdm[Any],
) -> dict[str, float]:  # fmt: skip
    """Mean loss, accuracy on what was fitted (augmented, with dropout), and the rate at the epoch's start."""
    seed, rate = (recipe.fit.seed, state.epoch, device.rank), float(state.schedule.get_last_lr()[0])
    torch.manual_seed(sum(k * n for k, n in zip(seed, (1_000_000, 1000, 1), strict=True)))
    rng = np.random.default_rng(seed)
    state.network.train()
    if recipe.model.frozen:
        state.network.trunk.eval()
    average = _averaging(state, recipe.fit.ema)
    total = hits = torch.zeros((), device=device.torch_device)
    step, seen, started = 0, 0, time.monotonic()
    for step, (x, labels) in enumerate(batches, 1):
        with device.mixed_precision():
            loss, logits = _loss(fitted, x, labels, recipe.fit, rng)
            loss = loss + recipe.fit.l2 * state.network.head.penalty()
        state.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimiser.step()
        state.schedule.step()
        average()
        total = total + loss.detach()
        hits = hits + (logits.argmax(1) == labels).sum()
        seen += len(labels)
        bar.update()
        if step % _ASK == 0:
            _finite(total, state)
    _take_counters(state)
    mean, speed = _finite(total, state) / step, seen / (time.monotonic() - started)
    return {"rate": rate, "loss": mean, "accuracy": float(hits) / seen, "images_per_s": speed}


def _finite(loss: Tensor, state: State) -> float:
    """Raises DivergedError where it is not."""
    if not math.isfinite(value := float(loss)):
        raise DivergedError(f"loss {value} in epoch {state.epoch + 1}: lower the recipe's learning_rate")
    return value


def _batches(recipe: Recipe, part: Labelled, device: Device, epochs: range) -> Iterator[tuple[Tensor, Tensor]]:
    """(what is fitted's input: images, or the maps of a frozen trunk; labels) of each step, on the device."""
    there, steps = device.torch_device, shares(recipe, part.samples, device, epochs)
    if part.maps is None:
        for grey, labels in feed(recipe, part.images, part.targets, steps, device):
            yield spread(recipe, grey, there), labels.to(there, non_blocking=labels.is_pinned())
        return
    for _, chosen in steps:
        maps = torch.from_numpy(part.maps[chosen].astype(np.float32))
        yield maps.to(there), torch.from_numpy(part.targets[chosen]).to(there)


def _loss(fitted: nn.Module, x: Tensor, y: Tensor, spec: FitSpec, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """(cross-entropy, logits); with mixup (Zhang et al. 2018) of each image with another of its batch."""
    if not spec.mixup:
        logits = fitted(x)
        return F.cross_entropy(logits, y, label_smoothing=spec.label_smoothing), logits
    share = float(rng.beta(spec.mixup, spec.mixup))
    other = torch.from_numpy(rng.permutation(len(y))).to(x.device, non_blocking=True)
    logits = fitted(share * x + (1 - share) * x[other])
    one, two = (F.cross_entropy(logits, target, label_smoothing=spec.label_smoothing) for target in (y, y[other]))
    return share * one + (1 - share) * two, logits


def _averaging(state: State, decay: float) -> Callable[[], None]:
    """What a step does to the averages of the weights."""
    weights = state.network.state_dict()
    names = [name for name, value in weights.items() if value.is_floating_point()]
    averages, values = ([of[name] for name in names] for of in (state.average, weights))

    def average() -> None:
        done = state.schedule.last_epoch  # steps
        soon = min(decay, (1 + done) / (10 + done))  # the first steps must not weigh for ever
        get_ema_multi_avg_fn(soon)(averages, values, done)  # type: ignore[no-untyped-call]

    return average


def _take_counters(state: State) -> None:
    """Of what counts, the averages keep the newest."""
    for name, value in state.network.state_dict().items():
        if not value.is_floating_point():
            state.average[name].copy_(value)


def validate(recipe: Recipe, state: State, held: Labelled, device: Device) -> dict[str, float]:
    """Loss and accuracy of the averaged weights on the validation part."""
    network = network_of(recipe, state.average).to(device.torch_device).eval()
    if held.maps is None:
        logits = predict(network, recipe, held.images)
    else:
        with torch.no_grad():
            parts = [held.maps[i : i + _BATCH].astype(np.float32) for i in range(0, len(held.maps), _BATCH)]
            logits = np.concatenate([network.head(torch.from_numpy(p).to(device.torch_device)).cpu() for p in parts])
    loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(held.targets))
    return {"validation_loss": float(loss), "validation_accuracy": float((logits.argmax(1) == held.targets).mean())}


def _keep(run: Path, recipe: Recipe, state: State) -> None:
    """The snapshot first: a kill between the two repeats the cycle's last epoch, and writes it again."""
    spec = recipe.fit
    if spec.cycles > 1 and state.epoch % (spec.epochs // spec.cycles) == 0:
        cycle = state.epoch // (spec.epochs // spec.cycles)
        checkpoint.write(snapshot(run, cycle), {"network": state.average})
    checkpoint.save(run, state)


def _line(recipe: Recipe, state: State) -> str:
    c = state.curves[-1]
    return (
        f"epoch {state.epoch}/{recipe.fit.epochs}: loss {c['loss']:.4f}, accuracy {c['accuracy']:.4f}; validation loss "
        f"{c['validation_loss']:.4f}, accuracy {c['validation_accuracy']:.4f}; {c['seconds']:.0f} s"
    )


# --- predictions ----------------------------------------------------------------------------------------------------


def predict(model: Model, recipe: Recipe, images: Images | list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
    """Logits [N, K] of uint8 images."""
    return predict_grey(model, recipe, [to_grey(image) for image in images])


@torch.no_grad()
def predict_grey(model: Model, recipe: Recipe, images: list[FloatArray]) -> npt.NDArray[np.float32]:
    """Logits [N, K] of grey images, float32 [H, W] in 0..1."""
    model.eval()
    device = next(model.parameters()).device
    batches = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
    logits = [model(to_tensor(recipe, batch, device)).float().cpu().numpy() for batch in batches]
    return np.concatenate(logits) if logits else np.zeros((0, len(recipe.labels)), np.float32)
