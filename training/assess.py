"""All that a report says of a run or of a bundle: its figures, its snapshots', its curves, and the controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from engines.bundle import load_bundle
from engines.cpu import CpuEngine
from training.bundle import calibrate
from training.calibrate import Calibration
from training.checkpoint import load_run, read_curves, snapshot
from training.controls import random_baseline, randomised_maps
from training.datasets import Part, load_index, select, unseen
from training.evaluate import Subject, evaluate, score, subject_of_bundle
from training.fit import CACHE, predict_grey
from training.metrics import report
from training.models.network import Model
from training.recipe import DataSpec, Recipe

Figures = dict[str, Any]


def assess_run(run: Path, data: Path, *, baseline: bool = True, device: torch.device | None = None) -> Figures:
    """Figures of a run, as JSON can hold them; `baseline` fits the classifier on random features too.

    An ensemble is evaluated as one, with a row for each snapshot. Raises RecipeError.
    """
    recipe, model = load_run(run)
    model.to(device)
    calibrated, curves, cache = calibrate(recipe, model, data), read_curves(run), run.parent / CACHE
    subject = subject_of_network(
        recipe, model, calibration=calibrated.calibration, thresholds=calibrated.thresholds
    )  # fmt: skip
    return {
        "about": _about_run(recipe, run, len(curves), calibrated.calibration),
        "labels": recipe.label_names,
        "composition": composition(data, recipe.data, recipe.label_names),
        **evaluate(subject, data, calibrated.scored),
        "members": _members(run, recipe, data, device, calibrated.calibration),
        "curves": curves,
        "random_baseline": random_baseline(recipe, data, cache) if baseline else None,
        "randomised_maps": randomised_maps(recipe, model, data, cache),
    }


def assess_bundle(name: str, data: Path) -> Figures:
    """Figures of a bundle as it ships: the ONNX through the engine. Raises EngineError, RecipeError."""
    bundle = load_bundle(name)
    engine = CpuEngine(bundle)
    engine.activate()
    try:
        subject = subject_of_bundle(bundle, engine)
        return {
            "about": {
                "name": f"{bundle.name} {bundle.manifest.version}", "description": bundle.manifest.description,
                "Network": bundle.manifest.architecture, "Engine": engine.name,
                "Weights at the start": bundle.manifest.data.get("weights", "unknown"),
            },
            "labels": list(subject.labels),
            "composition": composition(data, subject.data, subject.labels),
            **evaluate(subject, data),
        }  # fmt: skip
    finally:
        engine.deactivate()


def subject_of_network(
    recipe: Recipe, model: Model, *, calibration: Calibration, thresholds: tuple[tuple[float, float], ...] = ()
) -> Subject:
    return Subject(
        predict=lambda images: calibration.apply(predict_grey(model, recipe, images)),
        labels=tuple(recipe.label_names), data=recipe.data, calibration=calibration, thresholds=thresholds,
    )  # fmt: skip


def composition(data: Path, spec: DataSpec, labels: Sequence[str]) -> list[Figures]:
    """Images of each label and source in each part: what a network could tell apart instead of disease."""
    samples = load_index(data, spec)
    shown = {part: select(samples, part, labels) for part in Part}
    shown[Part.EXTERNAL] = unseen(shown[Part.EXTERNAL], samples)
    count = Counter((s.label, s.source, part) for part, chosen in shown.items() for s in chosen)
    pairs = sorted({(labels.index(label), source) for label, source, _ in count})
    return [
        {"label": labels[k], "source": source, "children": source in spec.children}
        | {part.value: count[labels[k], source, part] for part in Part}
        for k, source in pairs
    ]


def _about_run(recipe: Recipe, run: Path, epochs: int, calibration: Calibration) -> Figures:
    model, fit, shape = recipe.model, recipe.fit, recipe.input
    return {
        "name": run.name,
        "description": recipe.description,
        "Recipe": recipe.name,
        "Network": f"{model.trunk}, {model.pooling} pooling, {model.hidden} ReLU, softmax",
        "Weights at the start": model.weights + (" (the trunk stayed as it was)" if model.frozen else ""),
        "Input": f"{shape.columns}x{shape.rows}x{shape.channels}" + (", equalised" if shape.equalise else ""),
        "Epochs": "none: the weights as they were"
        if not fit.epochs
        else f"{epochs} of {fit.epochs}" + (f", in {fit.cycles} cycles: an ensemble" if fit.cycles > 1 else ""),
        "Fit": f"{fit.optimiser}, rate {fit.learning_rate:g} ({fit.schedule}), batches of {fit.batch_size}",
        "Calibration": f"temperature {calibration.temperature:g}, offsets "
        + ", ".join(f"{n} {x:+.2f}" for n, x in zip(recipe.label_names, calibration.offsets, strict=True)),
    }


def _members(
    run: Path, recipe: Recipe, data: Path, device: torch.device | None, calibration: Calibration
) -> list[Figures]:
    """The test part by each snapshot of an ensemble, calibrated as the ensemble is."""
    if recipe.fit.cycles == 1:
        return []
    test = select(load_index(data, recipe.data), Part.TEST, recipe.label_names)
    rows = []
    for k in range(1, recipe.fit.cycles + 1):
        if snapshot(run, k).is_file():
            subject = subject_of_network(recipe, load_run(run, member=k)[1].to(device), calibration=calibration)
            figures = report(score(subject, data, test), recipe.label_names)
            rows.append({"member": k, "accuracy": figures["accuracy"], "macro": figures["macro"]})
    return rows
