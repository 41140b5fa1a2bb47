"""A run to a model bundle: ONNX, golden outputs, figures of the ONNX itself through the engine, model card."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engines.base import FloatArray
from engines.bundle import (
    CARD,
    GOLDEN,
    MANIFEST,
    MODEL,
    Label,
    Manifest,
    Tolerance,
    load_bundle,
    sha256_file,
)
from engines.cpu import CpuEngine
from engines.preprocess import PREPROCESS_VERSION
from training.calibrate import fit_temperature, negative_log_likelihood, softmax, thresholds
from training.card import write_card
from training.datasets import Part, count_rows, load_images, load_index, select
from training.evaluate import evaluate, subject_of_bundle
from training.export import export_onnx, run_torch
from training.fit import load_run, predict, to_tensor
from training.models.network import Exported, Network
from training.phantoms import golden_batch
from training.recipe import Recipe, RecipeError
from training.transforms import to_grey

TOLERANCE = {"fp32": Tolerance(probabilities=1e-4, cam=1e-3, tie=1e-3)}
USE = "Research use, not for diagnosis."
LICENSE = "Apache-2.0 (weights; the training images keep their own terms, see MODEL_CARD.md)"
_LARGEST = 60 * 2**20  # bytes: bundles live in the repository
_FULL_COLOUR = 0.75  # quantile of the validation maps' maxima that an overlay shows in full colour
_MAPS = 64  # maps at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What the validation part decides."""

    temperature: float
    thresholds: tuple[tuple[float, float], ...]  # per label: present_at, absent_below
    note: dict[str, Any]


def export_run(run: Path, data: Path, folder: Path, *, version: str, evidence: dict[str, Any] | None = None) -> Path:
    """Write the bundle `folder` (its name is the bundle's) from `run`; an older one is replaced when all is done.

    It is made within the run folder first, so that a half-made one never stands among the shipped.

    `evidence` goes into the manifest's metrics and the card as it is. Raises RecipeError, ExportError, EngineError.
    """
    recipe, network = load_run(run)
    calibrated = calibrate(recipe, network, data)
    staging = run / "bundle"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    exported = export_onnx(network, recipe.input, calibrated.temperature, staging / MODEL)
    write_golden(recipe, exported, staging / GOLDEN)
    manifest = make_manifest(recipe, calibrated, name=folder.name, version=version, data=describe_data(recipe, data))
    write_manifest(staging, manifest)  # the engine needs one, to measure what the final one says
    manifest = manifest.model_copy(update={"metrics": measure(staging, data) | (evidence or {})})
    write_manifest(staging, manifest)
    load_bundle(str(staging))
    size = sum(f.stat().st_size for f in staging.iterdir())
    if size > _LARGEST:
        raise RecipeError(f"the bundle has {size / 2**20:.0f} MiB, at most {_LARGEST // 2**20} are allowed")
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(staging, folder)


def calibrate(recipe: Recipe, network: Network, data: Path) -> Calibrated:
    """Temperature, thresholds and the map's reference value from the validation part."""
    samples = select(load_index(data, recipe.data), Part.VALIDATION, recipe.label_names)
    if not samples:
        raise RecipeError(f"{data}/index.csv has no validation image with a label of {', '.join(recipe.label_names)}")
    images = load_images(data, samples)
    truth = np.array([recipe.label_names.index(s.label) for s in samples], np.int64)
    logits = predict(network, recipe, images)
    temperature = fit_temperature(logits, truth)
    p = softmax(logits, temperature)
    note = {
        "method": "temperature scaling on the validation part, inside the graph",
        "temperature": temperature,
        "validation_images": len(samples),
        "validation_accuracy": round(float((p.argmax(1) == truth).mean()), 4),
        "nll_before": round(negative_log_likelihood(logits, truth), 4),
        "nll_after": round(negative_log_likelihood(logits, truth, temperature), 4),
        "cam_reference": round(float(np.quantile(_map_maxima(recipe, network, images), _FULL_COLOUR)), 6),
    }
    chosen = tuple(thresholds(p[:, k], truth == k) for k in range(len(recipe.labels)))
    return Calibrated(temperature=temperature, thresholds=chosen, note=note)


@torch.no_grad()
def _map_maxima(recipe: Recipe, network: Network, images: list[Any]) -> FloatArray:
    """The largest value of each image's raw map, [N]."""
    maxima = []
    for i in range(0, len(images), _MAPS):
        batch = to_tensor(recipe, [to_grey(image) for image in images[i : i + _MAPS]])
        maxima.append(network.explain(batch)[1].amax((1, 2)).numpy())
    return np.concatenate(maxima)


def write_golden(recipe: Recipe, exported: Exported, path: Path) -> None:
    """Golden inputs and torch's own float32 outputs for them."""
    batch = golden_batch(recipe.input)
    output = run_torch(exported, batch)
    np.savez_compressed(
        path, batch=batch, probabilities=output.probabilities, class_index=output.class_index, cam=output.cam
    )


def describe_data(recipe: Recipe, data: Path) -> dict[str, Any]:
    """The split and how many images of which source, label and licence each part holds."""
    samples = load_index(data, recipe.data)
    parts = {part.value: count_rows(data, select(samples, part, recipe.label_names)) for part in Part}
    rule = "80/10/10 by sha256 of split_seed and group; whole external sources apart"
    return {
        "split": recipe.data.model_dump(mode="json"), "rule": rule, "parts": parts,
        "weights": recipe.model.weights, "recipe": recipe.model_dump(mode="json"),
    }  # fmt: skip


def make_manifest(recipe: Recipe, calibrated: Calibrated, *, name: str, version: str, data: dict[str, Any]) -> Manifest:
    """A manifest without digests and figures."""
    labels = tuple(
        Label(name=spec.name, code=spec.code, normal=spec.normal, present_at=present, absent_below=absent)
        for spec, (present, absent) in zip(recipe.labels, calibrated.thresholds, strict=True)
    )
    return Manifest(
        name=name, version=version, description=recipe.description,
        architecture=f"{recipe.model.trunk}, average pooling, dropout, {recipe.model.hidden} ReLU, dropout, softmax",
        input=recipe.input, preprocess_version=PREPROCESS_VERSION, labels=labels, calibration=calibrated.note,
        tolerance=TOLERANCE, files={}, data=data, metrics={}, intended_use=USE, license=LICENSE,
    )  # fmt: skip


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """The card, then bundle.json with the digest of every file."""
    (folder / CARD).write_text(write_card(manifest), encoding="utf-8")
    files = {name: sha256_file(folder / name) for name in (MODEL, GOLDEN, CARD)}
    final = manifest.model_copy(update={"files": files})
    (folder / MANIFEST).write_text(final.model_dump_json(indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, data: Path) -> dict[str, Any]:
    """The figures of the bundle in `folder` as the engine computes them."""
    bundle = load_bundle(str(folder))
    engine = CpuEngine(bundle)
    engine.activate()
    try:
        return evaluate(subject_of_bundle(bundle, engine), data) | {"engine": engine.name}
    finally:
        engine.deactivate()
