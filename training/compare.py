"""The table of paper 2: networks, their figures with intervals, and the computing time; folds as mean and deviation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from training.checkpoint import load_recipe_of, read_curves, snapshot
from training.metrics import FIGURES
from training.models.network import make_network
from training.pages import html, table
from training.recipe import Recipe, RecipeError
from training.report import JSON, in_words

SUFFIXES = (".md", ".html", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run: what it was to be, what became of it, and its figures on the test part."""

    name: str
    recipe: Recipe
    test: dict[str, Any]  # as `evaluate` makes it
    curves: list[dict[str, float]]  # a row an epoch
    members: int  # networks of the ensemble; 1 where it is none
    parameters: int  # of all members

    @property
    def seconds(self) -> float:
        """Of all epochs done, validation included."""
        return sum(c["seconds"] for c in self.curves)

    @property
    def seconds_per_epoch(self) -> float:
        return self.seconds / max(1, len(self.curves))

    def summary(self) -> dict[str, Any]:
        """As JSON can hold it."""
        model, fit = self.recipe.model, self.recipe.fit
        return {
            "run": self.name, "recipe": self.recipe.name, "fold": self.recipe.data.fold, "network": network_of(self),
            "initialisation": initialisation(self.recipe), "trunk_fitted": not model.frozen,
            "input": [self.recipe.input.rows, self.recipe.input.columns, self.recipe.input.channels],
            "epochs": len(self.curves), "epochs_planned": fit.epochs, "parameters": self.parameters,
            "seconds_per_epoch": round(self.seconds_per_epoch, 1), "seconds": round(self.seconds, 1),
            "test": {k: self.test[k] for k in ("images", "accuracy", "per_label")},
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Folds:
    """Runs whose recipes differ in nothing but which fold validates."""

    rows: tuple[Row, ...]

    def spread(self, label: str | None = None, metric: str = "accuracy") -> tuple[float, float] | None:
        """(mean, standard deviation) of the accuracy, or of a label's metric; None where a fold has no such figure."""
        tests = [row.test if label is None else row.test["per_label"].get(label, {}) for row in self.rows]
        values = [test[metric]["value"] for test in tests if test.get(metric)]
        return (fmean(values), stdev(values)) if len(values) == len(self.rows) else None

    def summary(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "recipe": self.rows[0].recipe.name, "folds": [row.recipe.data.fold for row in self.rows],
            "accuracy": self.spread(),
            "per_label": {k: {m: self.spread(k, m) for m in FIGURES} for k in self.rows[0].recipe.label_names},
        }  # fmt: skip


def read_rows(runs: Sequence[Path]) -> list[Row]:
    """Raises RecipeError where one is no run, or was not evaluated."""
    short = len({run.name for run in runs}) == len(runs)
    return [read_row(run, run.name if short else str(run)) for run in runs]


def read_row(run: Path, name: str) -> Row:
    """Raises RecipeError."""
    recipe, path = load_recipe_of(run), run / JSON
    if not path.is_file():
        raise RecipeError(f"{run} has no {JSON}: make it with `python -m training evaluate {run} --data DATA`")
    members = max(1, sum(snapshot(run, k).is_file() for k in range(1, recipe.fit.cycles + 1)))
    return Row(
        name=name, recipe=recipe, test=json.loads(path.read_text(encoding="utf-8"))["test"], curves=read_curves(run),
        members=members, parameters=members * _parameters(recipe),
    )  # fmt: skip


def find_folds(rows: Sequence[Row]) -> list[Folds]:
    """Rows of one recipe and several folds, together."""
    alike: dict[str, dict[int, Row]] = {}
    for row in rows:
        data = row.recipe.data.model_copy(update={"fold": None})
        if row.recipe.data.fold is not None:
            key = row.recipe.model_copy(update={"data": data}).model_dump_json()
            alike.setdefault(key, {}).setdefault(row.recipe.data.fold, row)
    return [Folds(rows=tuple(folds[k] for k in sorted(folds))) for folds in alike.values() if len(folds) > 1]


def comparison(rows: Sequence[Row]) -> str:
    """The tables, in Markdown."""
    sections = [networks(rows), verdict(rows), classes(rows), folds_table(find_folds(rows))]
    return "\n\n".join(s for s in sections if s) + "\n"


def write_comparison(rows: Sequence[Row], path: Path) -> None:
    """As the suffix says: .md, .html or .json. Raises RecipeError for any other."""
    text = f"# Comparison of {len(rows)} runs\n\nResearch use, not for diagnosis.\n\n{comparison(rows)}"
    made = {
        ".md": lambda: text,
        ".html": lambda: html("Comparison", text),
        ".json": lambda: json.dumps(
            {"runs": [row.summary() for row in rows], "folds": [folds.summary() for folds in find_folds(rows)]},
            indent=1,
        ),
    }
    if path.suffix not in made:
        raise RecipeError(f"cannot write {path}: give a name that ends in {', '.join(SUFFIXES)}")
    path.write_text(made[path.suffix](), encoding="utf-8")


def networks(rows: Sequence[Row]) -> str:
    """Networks, accuracy, computing time and what the fit began from."""
    head = ["run", "network", "test images", "accuracy", "s / epoch", "min in all", "epochs", "parameters", "start",
            "input"]  # fmt: skip
    return table(head, [
        (row.name, network_of(row), row.test["images"], in_words(row.test["accuracy"]), f"{row.seconds_per_epoch:.0f}",
         f"{row.seconds / 60:.1f}", f"{len(row.curves)} of {row.recipe.fit.epochs}",
         f"{row.parameters / 1e6:.1f} M", initialisation(row.recipe),
         f"{row.recipe.input.rows}x{row.recipe.input.columns}")
        for row in rows
    ])  # fmt: skip


def verdict(rows: Sequence[Row]) -> str:
    """Which is best by accuracy and by time (paper 2 chooses by both), and what forbids the comparison."""
    best = max(rows, key=lambda row: float(row.test["accuracy"]["value"]))
    level = [row for row in rows if row.test["accuracy"]["high"] >= best.test["accuracy"]["value"]]
    quickest = min(level, key=lambda row: row.seconds_per_epoch)
    text = f"The greatest accuracy has `{best.name}`."
    if len(level) > 1:
        others = ", ".join(f"`{row.name}`" for row in level if row is not best)
        text += f" The intervals of {others} reach it; the quickest of these, an epoch, is `{quickest.name}`."
    if (
        len({(row.recipe.data.model_copy(update={"fold": None}).model_dump_json(), row.test["images"]) for row in rows})
        > 1
    ):
        text += " **The runs were not all tested on the same images**: their figures cannot be compared as they stand."
    return text


def classes(rows: Sequence[Row]) -> str:
    """Each class's figures."""
    return table(["run", "class", "images", *FIGURES], [
        (row.name, label, of["n"], *(in_words(of[m]) for m in FIGURES))
        for row in rows
        for label, of in row.test["per_label"].items()
    ])  # fmt: skip


def folds_table(groups: Iterable[Folds]) -> str:
    """Mean and standard deviation over the folds."""
    lines = [
        (group.rows[0].recipe.name, len(group.rows), _spread(group.spread()), label,
         *(_spread(group.spread(label, m)) for m in FIGURES))
        for group in groups
        for label in group.rows[0].recipe.label_names
    ]  # fmt: skip
    if not lines:
        return ""
    head = ["recipe", "folds", "accuracy", "class", *FIGURES]
    return f"Mean and standard deviation over the folds, all on the same test part:\n\n{table(head, lines)}"


def network_of(row: Row) -> str:
    """In words."""
    spec = row.recipe.model
    text = spec.trunk.partition(":")[2] + (" + LSTM" if spec.pooling == "lstm" else "")
    return f"{row.members} snapshots of {text}" if row.members > 1 else text


def initialisation(recipe: Recipe) -> str:
    """What the fit began from, in words."""
    words = {"imagenet": "ImageNet", "none": "random"}.get(recipe.model.weights, recipe.model.weights)
    return words + (", trunk not fitted" if recipe.model.frozen else "")


def _parameters(recipe: Recipe) -> int:
    with torch.device("meta"):  # shapes alone
        return sum(p.numel() for p in make_network(recipe, weights=False).parameters())


def _spread(value: tuple[float, float] | None) -> str:
    return "n/a" if value is None else f"{value[0]:.3f} ± {value[1]:.3f}"
