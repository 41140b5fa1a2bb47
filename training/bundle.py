"""A run to a model bundle: ONNX, golden outputs, figures of the ONNX itself through the engine, model card."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
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
from training.calibrate import Calibration, balanced_loss, fit_calibration, thresholds
from training.card import write_card
from training.checkpoint import load_recipe_of, load_run
from training.datasets import Part, count_rows, load_images, load_index, used
from training.evaluate import evaluate, some, subject_of_bundle
from training.export import export_onnx, run_torch
from training.feed import to_tensor
from training.files import whole
from training.half import round_weights
from training.metrics import Scored
from training.models.network import Ensemble, Exported, Model
from training.phantoms import golden_batch
from training.recipe import DataSpec, Recipe, RecipeError
from training.rows import Row
from training.sources import read_folder
from training.transforms import to_grey

TOLERANCE = {
    "fp32": Tolerance(probabilities=1e-4, cam=1e-3, tie=1e-3),
    "fp16": Tolerance(probabilities=1e-2, cam=0.12, tie=2e-2),  # twice what was seen, where the golden maps are faint
}
USE = "Research use, not for diagnosis."
LICENSE = "Apache-2.0 (weights; the training images keep their own terms, see MODEL_CARD.md)"
_MIB = 2**20
_LARGEST = 60 * _MIB  # bytes: bundles live in the repository
_FULL_COLOUR = 0.75  # quantile of the validation maps' maxima that an overlay shows in full colour
_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What of a run is exported, and how. half: large weights rounded to float16 before all else, and stored as such.

    member: one snapshot, 1, 2, ..., of an ensemble; None: all of it.
    """

    half: bool = False
    member: int | None = None

    @property
    def options(self) -> str:
        """As the command line says it."""
        return " ".join(["--half"] * self.half + ([f"--member {self.member}"] if self.member is not None else []))


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What the validation part decides."""

    calibration: Calibration
    thresholds: tuple[tuple[float, float], ...]  # per label: present_at, absent_below
    scored: Scored  # the validation part, calibrated
    note: dict[str, Any]


def export_run(
    run: Path,
    data: Path,
    folder: Path,
    *,
    version: str,
    evidence: dict[str, Any] | None = None,
    form: Form | None = None,
) -> Path:
    """Write the bundle `folder` (its name is the bundle's) from `run`; an older one is replaced when all is done.

    It is made within the run folder first, so that a half-made one never stands among the shipped.

    `evidence` goes into the manifest's metrics and the card as it is. Raises RecipeError, ExportError, EngineError.
    """
    form = form or Form()
    recipe, model = load_form(run, form)
    calibrated = calibrate(recipe, model, data)
    staging = run / "bundle"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    exported = export_onnx(model, recipe.input, calibrated.calibration, staging / MODEL, half=form.half)
    write_golden(recipe, exported, staging / GOLDEN)
    check_size(staging, half=form.half, members=len(model.members) if isinstance(model, Ensemble) else 1)
    manifest = make_manifest(
        recipe, calibrated, name=folder.name, version=version,
        architecture=describe_architecture(recipe, model, half=form.half),
        data=describe_data(recipe, data) | {"export": form.options},
    )  # fmt: skip
    write_manifest(staging, manifest)  # the engine needs one, to measure what the final one says
    manifest = manifest.model_copy(update={"metrics": measure(staging, data) | (evidence or {})})
    write_manifest(staging, manifest)
    load_bundle(str(staging))
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(staging, folder)


def load_form(run: Path, form: Form) -> tuple[Recipe, Model]:
    """The recipe and the model as it will ship. Raises RecipeError."""
    if form.member is not None and load_recipe_of(run).fit.cycles == 1:
        raise RecipeError(f"{run} is no ensemble and has no members: leave --member out")
    recipe, model = load_run(run, member=form.member)
    if form.half:
        round_weights(model)
    return recipe, model


def check_size(folder: Path, *, half: bool, members: int) -> None:
    """Raises RecipeError, which says what would make the bundle small enough, where it is larger than is allowed."""
    sizes = {f.name: f.stat().st_size for f in folder.iterdir()}
    whole, model = sum(sizes.values()), sizes[MODEL]
    if whole <= _LARGEST:
        return
    by_half, by_member = {"--half": 2.0} if not half else {}, {"--member K": members} if members > 1 else {}
    ways: dict[str, float] = {**by_half, **by_member}
    if len(ways) > 1:
        ways["--half --member K"] = 2 * members
    after = {way: whole - model + model / smaller for way, smaller in ways.items()}
    helping = [f"{way} (about {size / _MIB:.0f} MiB)" for way, size in after.items() if size <= _LARGEST]
    advice = " or ".join(helping) if helping else "a smaller trunk: neither --half nor --member would be enough"
    allowed = f"at most {_LARGEST / _MIB:.0f} MiB are allowed"
    raise RecipeError(f"the bundle has {whole / _MIB:.0f} MiB, {allowed}: export it with {advice}")


def calibrate(recipe: Recipe, model: Model, data: Path) -> Calibrated:
    """Calibration, thresholds and the map's reference value from the validation part."""
    samples = some(data, load_index(data, recipe.data), Part.VALIDATION, recipe.label_names)
    truth = np.array([recipe.label_names.index(s.label) for s in samples], np.int64)
    logits, maxima = _logits_and_maxima(recipe, model, load_images(data, samples))
    calibration = fit_calibration(logits, truth)
    p = calibration.apply(logits)
    scored = Scored(truth=truth, probabilities=p, groups=np.array([s.group for s in samples], np.str_))
    note = {
        "method": "temperature and an offset a label, inside the graph, of the least loss on the validation part, in "
        "which each label weighs the same",
        "temperature": calibration.temperature,
        "offsets": list(calibration.offsets),
        "validation_images": len(samples),
        "validation_accuracy": round(float(scored.hit.mean()), 4),
        "loss_before": round(balanced_loss(logits, truth), 4),
        "loss_after": round(balanced_loss(logits, truth, calibration), 4),
        "cam_reference": round(float(np.quantile(maxima, _FULL_COLOUR)), 6),
    }
    chosen = tuple(thresholds(p[:, k], truth == k) for k in range(len(recipe.labels)))
    return Calibrated(calibration=calibration, thresholds=chosen, scored=scored, note=note)


@torch.no_grad()
def _logits_and_maxima(recipe: Recipe, model: Model, images: list[Any]) -> tuple[FloatArray, FloatArray]:
    """[N, K], and the largest value of each image's raw map [N], in one pass."""
    device = next(model.parameters()).device
    logits, maxima = [], []
    for i in range(0, len(images), _BATCH):
        batch = to_tensor(recipe, [to_grey(image) for image in images[i : i + _BATCH]], device)
        said, cam = model.explain(batch)
        logits.append(said.cpu().numpy())
        maxima.append(cam.amax((1, 2)).cpu().numpy())
    return np.concatenate(logits), np.concatenate(maxima)


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
    parts = {part.value: count_rows(data, used(samples, part, recipe)) for part in Part}
    rule = describe_split(recipe.data, read_folder(data).rows)
    return {
        "split": recipe.data.model_dump(mode="json"), "rule": rule, "parts": parts,
        "weights": recipe.model.weights, "recipe": recipe.model_dump(mode="json"),
    }  # fmt: skip


def describe_split(spec: DataSpec, rows: Sequence[Row]) -> str:
    """In words; `rows` are the data's, which may say a group's part themselves."""
    test, by = 10 * spec.test_tenths, f"by sha256 of the split_seed {spec.split_seed} and the group"
    drawn = f"{90 - test}/10/{test} {by}" if spec.fold is None else f"{test} % test, {by}"
    inside = [row for row in rows if row.source not in spec.external]
    told = {row.group for row in inside if row.part}
    if told:
        given = sum(row.group in told for row in inside)
        few = f" for {given} of {len(inside)} images, the others {drawn}" if given < len(inside) else ""
        drawn = f"{'' if spec.fold is None else 'test part '}as the data's column part says{few}"
    fold = f"of the rest, fold {spec.fold} of {spec.folds} (0 is the first; stratified, by group) validates"
    return "; ".join([drawn, *([] if spec.fold is None else [fold]), "whole external sources apart"])


def describe_architecture(recipe: Recipe, model: Model, *, half: bool = False) -> str:
    """What the graph computes, in words."""
    spec, k = recipe.model, len(recipe.labels)
    pooling = f"LSTM of {spec.units} units over the last map's places" if spec.pooling == "lstm" else "average pooling"
    text = f"{spec.trunk}, {pooling}, dropout, {spec.hidden} ReLU, dropout, softmax of {k}"
    if spec.mirror:
        text += ", the mean of the image and its mirror image"
    if isinstance(model, Ensemble):
        text = f"ensemble of {len(model.members)} snapshots, the mean of their softmax; each: {text}"
    return text + ("; large weights stored as float16, computed in float32" if half else "")


def make_manifest(
    recipe: Recipe, calibrated: Calibrated, *, name: str, version: str, architecture: str, data: dict[str, Any]
) -> Manifest:
    """A manifest without digests and figures."""
    labels = tuple(
        Label(name=spec.name, code=spec.code, normal=spec.normal, present_at=present, absent_below=absent)
        for spec, (present, absent) in zip(recipe.labels, calibrated.thresholds, strict=True)
    )
    return Manifest(
        name=name, version=version, description=recipe.description, architecture=architecture,
        input=recipe.input, preprocess_version=PREPROCESS_VERSION, labels=labels, calibration=calibrated.note,
        tolerance=TOLERANCE, files={}, data=data, metrics={}, intended_use=USE, license=LICENSE,
    )  # fmt: skip


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """The card and bundle.json with the digest of every file. Both are written before either takes its place.

    Raises RecipeError where they cannot be written; what stood there then still stands.
    """
    with whole(folder / MANIFEST) as described, whole(folder / CARD) as card:
        card.write_text(write_card(manifest), encoding="utf-8")
        found = {MODEL: folder / MODEL, GOLDEN: folder / GOLDEN, CARD: card}
        files = {name: sha256_file(path) for name, path in found.items()}
        final = manifest.model_copy(update={"files": files})
        described.write_text(final.model_dump_json(indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, data: Path) -> dict[str, Any]:
    """The figures of the bundle in `folder` as the engine computes them."""
    bundle = load_bundle(str(folder))
    engine = CpuEngine(bundle)
    engine.activate()
    try:
        return evaluate(subject_of_bundle(bundle, engine), data) | {"engine": engine.name}
    finally:
        engine.deactivate()
