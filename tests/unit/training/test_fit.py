"""A fit that was killed ends where an undisturbed one ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import training.fit as module
from training.fit import CHECKPOINT, CURVES, SPLIT, DivergedError, fit, load_run
from training.recipe import Recipe, RecipeError


class KilledError(Exception):
    """Stands for the signal."""


def test_resumed_equals_uninterrupted(
    recipe: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(recipe, data, tmp_path / "whole")
    real = module._one_epoch

    def killed_in_the_second(recipe: Recipe, state: Any, *rest: Any) -> float:
        loss = real(recipe, state, *rest)
        if state.epoch == 1:
            raise KilledError
        return loss

    with monkeypatch.context() as m:
        m.setattr(module, "_one_epoch", killed_in_the_second)
        with pytest.raises(KilledError):
            fit(recipe, data, tmp_path / "cut")
    cut = fit(recipe, data, tmp_path / "cut")
    one, other = (torch.load(run / CHECKPOINT, weights_only=True) for run in (whole, cut))
    assert one["epoch"] == other["epoch"] == 2
    for name, value in one["average"].items():
        assert torch.equal(value, other["average"][name]), name
    assert (whole / CURVES).read_text() == (cut / CURVES).read_text()
    assert (whole / SPLIT).read_text() == (cut / SPLIT).read_text()
    assert not list(whole.glob("*.part"))


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
