"""A fit that was killed ends where an undisturbed one ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import training.fit as module
from training import checkpoint
from training.checkpoint import CHECKPOINT, CURVES, SPLIT, load_run, snapshot
from training.fit import DivergedError, fit
from training.models.network import Ensemble, make_network
from training.recipe import Recipe, RecipeError


def changed(recipe: Recipe, part: str, **values: Any) -> Recipe:
    """The recipe with other values in its table `part`."""
    return recipe.model_copy(update={part: getattr(recipe, part).model_copy(update=values)})


class KilledError(Exception):
    """Stands for the signal."""


def test_resumed_equals_uninterrupted(
    recipe: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(recipe, data, tmp_path / "whole")
    real = module._one_epoch

    def killed_in_the_second(recipe: Recipe, state: Any, *rest: Any) -> dict[str, float]:
        row = real(recipe, state, *rest)
        if state.epoch == 1:
            raise KilledError
        return row

    with monkeypatch.context() as m:
        m.setattr(module, "_one_epoch", killed_in_the_second)
        with pytest.raises(KilledError):
            fit(recipe, data, tmp_path / "cut")
    cut = fit(recipe, data, tmp_path / "cut")
    one, other = (torch.load(run / CHECKPOINT, weights_only=True) for run in (whole, cut))
    assert one["epoch"] == other["epoch"] == 2
    for name, value in one["average"].items():
        assert torch.equal(value, other["average"][name]), name
    assert [untimed(row) for row in one["curves"]] == [untimed(row) for row in other["curves"]]
    assert len((cut / CURVES).read_text().splitlines()) == 3
    assert (whole / SPLIT).read_text() == (cut / SPLIT).read_text()
    assert not list(whole.glob("*.part"))


def untimed(row: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in row.items() if k not in ("seconds", "images_per_s")}


def test_the_snapshot_schedule_jumps_back_and_keeps_each_cycles_end(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    """Paper 1: the rate starts at the top, falls to nearly nothing, and starts again; an ensemble of the ends."""
    spec = {"epochs": 4, "cycles": 2, "schedule": "snapshot", "optimiser": "adam", "ema": 0.0, "l2": 0.02}
    run = fit(changed(recipe, "fit", **spec), data, tmp_path / "run")
    saved = torch.load(run / CHECKPOINT, weights_only=True)
    rates = [row["rate"] for row in saved["curves"]]
    assert rates[0] == rates[2] == pytest.approx(1e-3)
    assert rates[1] == rates[3] == pytest.approx(0.5e-3)
    model = load_run(run)[1]
    assert isinstance(model, Ensemble)
    one, two = (load_run(run, member=k)[1].state_dict() for k in (1, 2))
    assert any(not torch.equal(one[name], two[name]) for name in one)
    for name, value in saved["average"].items():
        assert torch.equal(two[name], value), name
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        mean = torch.stack([load_run(run, member=k)[1](images).softmax(-1) for k in (1, 2)]).mean(0)
        torch.testing.assert_close(model(images).softmax(-1), mean)
    snapshot(run, 1).unlink()
    with pytest.raises(RecipeError, match="no snapshot 1"):
        load_run(run, member=1)


def test_a_killed_cycle_ends_in_the_same_snapshots(
    recipe: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the snapshot and the checkpoint: the epoch is repeated, and its snapshot is written again."""
    spec = changed(recipe, "fit", epochs=2, cycles=2, schedule="snapshot", ema=0.0)
    whole = fit(spec, data, tmp_path / "whole")
    with monkeypatch.context() as m:
        m.setattr(checkpoint, "save", lambda *_: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            fit(spec, data, tmp_path / "cut")
    fit(spec, data, tmp_path / "cut")
    for cycle in (1, 2):
        one, other = (torch.load(snapshot(run, cycle), weights_only=True) for run in (whole, tmp_path / "cut"))
        for name, value in one["network"].items():
            assert torch.equal(value, other["network"][name]), name


def test_the_l2_term_shrinks_the_heads_layers(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    sizes = []
    for l2 in (0.0, 1.0):
        run = fit(changed(recipe, "fit", l2=l2, ema=0.0, learning_rate=1e-2), data, tmp_path / f"l2-{l2}")
        model = load_run(run)[1]
        assert not isinstance(model, Ensemble)
        sizes.append(float(model.head.penalty().detach()))
    assert sizes[1] < 0.8 * sizes[0]


@pytest.mark.parametrize("optimiser", ["adamw", "adam", "rmsprop"])
@pytest.mark.parametrize("pooling", ["mean", "lstm"])
def test_every_optimiser_fits_either_head(
    recipe: Recipe, data: Path, tmp_path: Path, optimiser: str, pooling: str
) -> None:
    spec = changed(changed(recipe, "fit", optimiser=optimiser, schedule="constant", epochs=1), "model", pooling=pooling)
    before = make_network(spec).state_dict()
    after = load_run(fit(changed(spec, "fit", ema=0.0), data, tmp_path / "run"))[1].state_dict()
    for name in ("head.a.weight", "trunk.conv_stem.weight"):
        assert not torch.equal(before[name], after[name])
    assert all(torch.isfinite(value).all() for value in after.values())


def test_a_frozen_trunk_stays_and_its_head_is_fitted_on_its_maps(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    spec = changed(changed(recipe, "model", frozen=True, pooling="lstm"), "fit", ema=0.0, mixup=0.0)
    once, twice = (
        load_run(fit(changed(spec, "fit", epochs=n), data, tmp_path / f"run{n}"))[1].state_dict() for n in (1, 2)
    )
    for name, value in once.items():
        if name.startswith("trunk."):
            assert torch.equal(value, twice[name]), name
    assert not torch.equal(once["head.a.weight"], twice["head.a.weight"])
    moved = [v for k, v in once.items() if k.endswith("running_var")]
    assert any(not torch.equal(v, torch.ones_like(v)) for v in moved)  # random batch norms have seen images


@pytest.mark.slow
def test_two_processes_fit_one_network(data: Path, tmp_path: Path) -> None:
    """torchrun, on the CPU: each takes half of every batch, the gradients are averaged, one of them writes the run."""
    recipe = Path(__file__).with_name("tiny.toml")
    command = ["torchrun", "--nproc-per-node", "2", "-m", "training", "fit", str(recipe), "--data", str(data)]
    command += ["--out", str(tmp_path / "run"), "--device", "cpu"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "run" / CURVES).read_text().splitlines()) == 3
    assert done.stderr.count("epoch 2/2") + done.stdout.count("epoch 2/2") == 1
    load_run(tmp_path / "run")


def test_a_loss_that_is_not_finite_raises(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    wild = recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"learning_rate": 1e30})})
    with pytest.raises(DivergedError, match="lower the recipe's learning_rate"):
        fit(wild, data, tmp_path / "run")
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def test_a_run_folder_is_of_one_recipe(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    once = recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"epochs": 1})})
    run = fit(once, data, tmp_path / "run")
    with pytest.raises(RecipeError, match="another recipe"):
        fit(recipe, data, run)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no run with a finished epoch"):
        load_run(tmp_path)


def test_a_fit_starts_from_another_runs_averaged_weights(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    """And not, without a word, from random ones."""
    once = recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"epochs": 1})})
    base = fit(once, data, tmp_path / "base")
    model = recipe.model.model_copy(update={"weights": f"run:{base}"})
    still = once.fit.model_copy(update={"learning_rate": 1e-12, "ema": 0.0})
    after = fit(once.model_copy(update={"model": model, "fit": still}), data, tmp_path / "after")
    one, other = load_run(base)[1], load_run(after)[1]
    torch.testing.assert_close(dict(other.named_parameters()), dict(one.named_parameters()))
    gone = once.model_copy(update={"model": recipe.model.model_copy(update={"weights": "run:/no/such"})})
    with pytest.raises(RecipeError, match="no run at /no/such"):
        fit(gone, data, tmp_path / "gone")
