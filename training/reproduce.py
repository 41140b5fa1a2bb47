"""A paper's runs made again, and its figures set beside ours, with what differs; all of ours is read from the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.assess import assess_run
from training.checkpoint import CHECKPOINT, load_recipe_of, read_curves
from training.compare import Row, comparison, read_rows
from training.datasets import Part, load_index
from training.devices import Device
from training.fit import fit
from training.metrics import Figure
from training.pages import html, table
from training.papers import PAPERS, Claim, Paper
from training.recipe import Recipe, RecipeError, load_recipe
from training.report import JSON, in_words, write_report

_WORDS = {
    "model.weights": "weights at the start", "model.frozen": "trunk stays as it is", "fit.epochs": "epochs planned",
    "fit.learning_rate": "learning rate", "fit.batch_size": "batch size", "input.rows": "input height",
    "input.columns": "input width", "data.most": "images of a class, at most",
    "data.sources": "the only sources of a class",
    "data.external": "sources kept for the external test", "data.fold": "fold that validates",
}  # fmt: skip


def reproduce(name: str, data: Path, runs: Path, *, changes: Sequence[str] = (), device: Device | None = None) -> Path:
    """Fit and evaluate what is not yet; write `runs`/NAME.md and .html; returns the latter. Raises RecipeError."""
    device = device or Device()
    if name not in PAPERS:
        raise RecipeError(f"no paper '{name}': give one of {', '.join(PAPERS)}")
    paper = PAPERS[name]
    recipes = [load_recipe(recipe, [*paper.changes, *changes]) for recipe in paper.recipes]
    folders = [runs / recipe.name for recipe in recipes]
    for recipe, run in zip(recipes, folders, strict=True):
        if not is_finished(run, recipe):
            fit(recipe, data, run, device)
    page = runs / f"{name}.html"
    if device.first:  # of several processes, one evaluates
        for run in folders:
            _evaluate(run, data, device.torch_device)
        text = report(paper, read_rows(folders), data, command=_command(name, changes))
        page.with_suffix(".md").write_text(text, encoding="utf-8")
        page.write_text(html(paper.citation, text), encoding="utf-8")
    return page


def is_finished(run: Path, recipe: Recipe) -> bool:
    """Whether `run` is of this very recipe, with all its epochs done."""
    return (
        (run / CHECKPOINT).is_file()
        and load_recipe_of(run) == recipe
        and len(read_curves(run)) >= recipe.fit.epochs
    )  # fmt: skip


def report(paper: Paper, rows: Sequence[Row], data: Path, *, command: str) -> str:
    """In Markdown."""
    differences = "\n\n".join(f"### {row.name}\n\n{differing(paper, row, data)}" for row in rows)
    notes = "\n".join(f"- {note}" for note in paper.notes)
    return f"""# The figures of {paper.citation}, and ours

Research use, not for diagnosis. Made by `{command}`.

## The paper's figures beside ours

Ours are of the test part, which shares no patient with the others; in brackets the 95 % interval of a bootstrap over
patients. "Reached" says whether our interval reaches the paper's figure. Where data, weights or epochs differ (below),
neither a figure that is reached nor one that is not says anything about the paper.

{beside(paper, rows)}

{notes}

## What differs

{differences}

## Our runs

{comparison(rows)}"""


def beside(paper: Paper, rows: Sequence[Row]) -> str:
    """The paper's figure, ours, and whether ours reaches it."""
    by_recipe = {row.recipe.name: row for row in rows}
    claims = [(claim, ours(claim, by_recipe[claim.recipe])) for claim in paper.claims]
    silent = [row for row in rows if row.recipe.name not in {claim.recipe for claim in paper.claims}]
    lines = [
        (claim.recipe, _what(claim), f"{claim.value:.4g}", _said(found), _reached(claim, found))
        for claim, found in claims
    ]
    lines += [(row.recipe.name, "accuracy", "not at hand", in_words(row.test["accuracy"]), "") for row in silent]
    return table(["network", "figure", "paper", "here", "reached"], lines)


def ours(claim: Claim, row: Row) -> Figure | None:
    """Our figure of the same name: {"value"} and, on the test part, {"low", "high"}; None where there is none.

    training_accuracy and validation_accuracy are those of the last epoch. The accuracy of a label is that of telling it
    from the rest.
    """
    last = {"training_accuracy": "accuracy", "validation_accuracy": "validation_accuracy"}
    if claim.metric in last:
        return {"value": row.curves[-1][last[claim.metric]]} if row.curves else None
    if claim.label is None:
        return dict(row.test[claim.metric])
    if claim.metric == "accuracy":
        return {"value": one_against_rest(row.test["confusion"], row.recipe.label_names.index(claim.label))}
    found: Figure | None = row.test["per_label"].get(claim.label, {}).get(claim.metric)
    return found


def one_against_rest(confusion: Sequence[Sequence[int]], k: int) -> float:
    """Accuracy of telling class k from the others; a row of the matrix is a label, a column a class."""
    matrix = np.array(confusion)
    wrong = matrix[k].sum() + matrix[:, k].sum() - 2 * matrix[k, k]
    return float(1 - wrong / matrix.sum())


def differing(paper: Paper, row: Row, data: Path) -> str:
    """Data, split, and every number of the recipe that is not the paper's."""
    samples = [s for s in load_index(data, row.recipe.data) if s.label in row.recipe.label_names]
    inside = [s for s in samples if s.part is not Part.EXTERNAL]
    count, part = Counter(s.label for s in inside), Counter(s.part for s in inside)
    sources = Counter((s.label, s.source) for s in inside)
    lines: list[tuple[object, ...]] = [(f"images of {k}", n, count[k]) for k, n in paper.images.items()]
    lines += [
        (f"sources of {k}", "see the paper", ", ".join(f"{s} {n}" for (of, s), n in sorted(sources.items()) if of == k))
        for k in row.recipe.label_names
    ]
    shares = ", ".join(f"{part[p]} {p.value} ({100 * part[p] / len(inside):.0f} %)" for p in (
        Part.TRAIN, Part.VALIDATION, Part.TEST))  # fmt: skip
    groups = len({s.group for s in inside})
    lines.append(
        ("split", paper.split, f"{shares}; by group: {groups} patients or sets of near duplicates, none in two parts")
    )
    if row.recipe.data.folds and row.recipe.data.fold is None:
        lines.append(("cross-validation", f"{row.recipe.data.folds} folds", "none: one split"))
    if len(row.curves) < row.recipe.fit.epochs:
        lines.append(("epochs done", row.recipe.fit.epochs, len(row.curves)))
    lines += [
        (_WORDS.get(k, k), _plain(a), _plain(b))
        for k, a, b in changed(load_recipe(row.recipe.name, paper.changes), row.recipe)
    ]
    return table(["what", "paper", "here"], lines)


def changed(paper: Recipe, here: Recipe) -> list[tuple[str, Any, Any]]:
    """(key, the paper's value, the value here) of what the recipes do not share."""
    one, other = _flat(paper), _flat(here)
    return [(key, one.get(key), other.get(key)) for key in {**one, **other} if one.get(key) != other.get(key)]


def _flat(recipe: Recipe) -> dict[str, Any]:
    tables = recipe.model_dump(mode="json", exclude={"name", "description"})
    return {
        f"{name}.{key}": value
        for name, inner in tables.items()
        for key, value in (inner if isinstance(inner, dict) else {name: inner}).items()
    }


def _evaluate(run: Path, data: Path, device: torch.device) -> None:
    """Unless it was, after its last epoch."""
    path = run / JSON
    if not path.is_file() or path.stat().st_mtime < (run / CHECKPOINT).stat().st_mtime:
        write_report(assess_run(run, data, baseline=False, device=device), run)


def _command(name: str, changes: Sequence[str]) -> str:
    return " ".join([f"python -m training reproduce {name} --data DATA", *(f"--set '{c}'" for c in changes)])


def _what(claim: Claim) -> str:
    """The figure's name."""
    words = claim.metric.replace("_", " ")
    if claim.label is None:
        return words
    return f"{words}, {claim.label}" + (" against the rest" if claim.metric == "accuracy" else "")


def _said(found: Figure | None) -> str:
    return f"{found['value']:.3f}" if found and "low" not in found else in_words(found)


def _reached(claim: Claim, found: Figure | None) -> str:
    if found is None:
        return ""
    return "yes" if found.get("high", found["value"]) >= claim.value else "no"


def _plain(value: Any) -> str:
    """A value of a recipe, in words."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return {"None": "none", "True": "yes", "False": "no"}.get(str(value), str(value))
