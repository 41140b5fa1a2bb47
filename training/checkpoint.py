"""What a run folder keeps: the state that a killed fit goes on from, the snapshots, and the curves."""

from __future__ import annotations

import csv
import pickle
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.files import whole
from training.models.network import Ensemble, Model, Network, make_network
from training.recipe import FitSpec, Recipe, RecipeError

CHECKPOINT, CURVES, RECIPE, SPLIT = "checkpoint.pt", "curves.csv", "recipe.json", "split.csv"
Weights = dict[str, Tensor]


@dataclass(slots=True, kw_only=True)
class State:
    """Everything that a resumed fit needs; `average` holds the exponentially averaged weights."""

    network: Network
    average: Weights
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    epoch: int = 0
    curves: list[dict[str, float]] = field(default_factory=list)


def save(run: Path, state: State) -> None:
    """Written whole: a kill, or a full disk, leaves the last one."""
    saved = {
        "network": state.network.state_dict(),
        "average": state.average,
        "optimiser": state.optimiser.state_dict(),
        "schedule": state.schedule.state_dict(),
        "epoch": state.epoch,
        "curves": state.curves,
    }
    write(run / CHECKPOINT, saved)
    with whole(run / CURVES) as part, part.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(state.curves[0]) if state.curves else [])
        writer.writeheader()
        writer.writerows(state.curves)


def read_curves(run: Path) -> list[dict[str, float]]:
    """A row an epoch: rate, losses, accuracies, seconds."""
    with (run / CURVES).open(newline="") as f:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(f)]


def write(path: Path, saved: dict[str, Any]) -> None:
    """Raises RecipeError where there is no room; what stood there before still stands."""
    with whole(path) as part:
        torch.save(saved, part)


def require_room(run: Path, state: State, spec: FitSpec) -> None:
    """Raises RecipeError where the disk cannot hold what the fit will write: a new checkpoint is whole before the old
    one goes, and the snapshots stay."""
    weights = _bytes(state.network.state_dict().values())
    fitted = _bytes(p for p in state.network.parameters() if p.requires_grad)
    moments = fitted if spec.optimiser == "rmsprop" else 2 * fitted
    snapshots = [snapshot(run, cycle) for cycle in range(1, spec.cycles + 1) if spec.cycles > 1]
    there = sum(path.stat().st_size for path in (run / CHECKPOINT, *snapshots) if path.is_file())
    need = min(max(spec.epochs, 1), 2) * (2 * weights + moments) + len(snapshots) * weights - there
    free = shutil.disk_usage(next(p for p in (run.resolve(), *run.resolve().parents) if p.exists())).free
    if free < need:
        mib = f"{need / 2**20:.0f} MiB for its checkpoints, and {free / 2**20:.0f} are free"
        raise RecipeError(f"{run} needs {mib}: make room, or choose another --run")


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def restore(run: Path, state: State) -> None:
    """Take up where the run's checkpoint, if there is one, left off. Raises RecipeError where it is damaged."""
    if not (run / CHECKPOINT).exists():
        return
    saved = _load(run / CHECKPOINT)
    load_weights(state.network, saved["network"], run)
    state.optimiser.load_state_dict(saved["optimiser"])
    state.schedule.load_state_dict(saved["schedule"])
    for name, value in state.average.items():  # which lies on the fit's device
        value.copy_(saved["average"][name])
    state.epoch, state.curves = saved["epoch"], saved["curves"]


def snapshot(run: Path, cycle: int) -> Path:
    """The weights at the end of the snapshot schedule's cycle 1, 2, ..."""
    return run / f"snapshot-{cycle}.pt"


def load_recipe_of(run: Path) -> Recipe:
    if not (run / RECIPE).is_file() or not (run / CHECKPOINT).is_file():
        raise RecipeError(f"{run} is no run with a finished epoch: make one with `python -m training fit`")
    return read_recipe(run)


def read_recipe(run: Path) -> Recipe:
    """What the run was begun with. Raises RecipeError where it is no recipe, or one of another version."""
    try:
        return Recipe.model_validate_json((run / RECIPE).read_text(encoding="utf-8"))
    except ValueError as e:
        raise RecipeError(f"{run / RECIPE} is no recipe of this version: name another folder, or fit it anew") from e


def load_run(run: Path, *, member: int | None = None) -> tuple[Recipe, Model]:
    """The recipe and the model of a finished (or unfinished) run: the averaged network, or the snapshots' ensemble.

    `member` takes one snapshot, 1, 2, ..., of the ensemble. Raises RecipeError.
    """
    recipe = load_recipe_of(run)
    if recipe.fit.cycles == 1:
        return recipe, network_of(recipe, averaged_weights(run)).eval()
    cycles = range(1, recipe.fit.cycles + 1) if member is None else [member]
    done = [cycle for cycle in cycles if snapshot(run, cycle).is_file()]
    if not done or (member and member not in done):
        raise RecipeError(f"{run} has no snapshot {member or 1} yet: a cycle ends every "
                          f"{recipe.fit.epochs // recipe.fit.cycles} epochs")  # fmt: skip
    members = [network_of(recipe, _load(snapshot(run, cycle))["network"]) for cycle in done]
    return recipe, (members[0] if member else Ensemble(members)).eval()


def network_of(recipe: Recipe, weights: Weights) -> Network:
    network = make_network(recipe, weights=False)
    network.load_state_dict(weights)
    return network


def averaged_weights(run: Path) -> Weights:
    """Raises RecipeError where the run has no checkpoint."""
    if not (run / CHECKPOINT).is_file():
        raise RecipeError(f"no run at {run} (it has no {CHECKPOINT}): fit it first, or name another folder")
    weights: Weights = _load(run / CHECKPOINT)["average"]
    return weights


def mean_weights(runs: list[str]) -> Weights:
    """The mean of the runs' averaged weights (model soup, Wortsman et al. 2022); of one run, its own."""
    states = [averaged_weights(Path(run)) for run in runs]
    return {
        name: torch.stack([s[name] for s in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }


def load_weights(network: Network, weights: Weights, where: object) -> None:
    """Raises RecipeError where they are another network's."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as e:
        first = str(e).splitlines()[1:2] or [str(e)]
        raise RecipeError(f"the weights of {where} do not fit the recipe's network: {first[0].strip()[:200]}") from e


def _load(path: Path) -> dict[str, Any]:
    """Raises RecipeError that names the file where it cannot be read."""
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, pickle.UnpicklingError) as e:
        raise RecipeError(f"{path} is damaged ({type(e).__name__}): put a copy in its place, or remove it and fit "
                          "from the beginning with the same command") from e  # fmt: skip
    return saved
