"""What a model says of the test part, of adults alone, of hospitals it never saw, and of what it should not see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from engines.base import Engine, FloatArray
from engines.bundle import Bundle
from engines.preprocess import to_batch
from training.calibrate import Calibration, reliability
from training.datasets import Part, Sample, load_images, load_index, select, unseen
from training.metrics import Scored, confusion_shares, hit_rate, report, roc, share
from training.recipe import DataSpec, RecipeError, faults
from training.transforms import to_grey

T = TypeVar("T")
FRAME = 0.1  # the outer tenth of each side is all that the border-only control sees
_BATCH = 32
Predict = Callable[[list[FloatArray]], FloatArray]  # grey float32 [H, W] in 0..1 -> probabilities [N, K]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is evaluated: something that predicts these labels, and the data it was fitted and must be tested on."""

    predict: Predict
    labels: tuple[str, ...]
    data: DataSpec
    calibration: Calibration = field(default_factory=Calibration)  # that is in the probabilities
    thresholds: tuple[tuple[float, float], ...] = ()  # per label: present_at, absent_below


def subject_of_bundle(bundle: Bundle, engine: Engine) -> Subject:
    """A bundle as it ships: the ONNX through the (active) engine, the split from its manifest."""
    shape = bundle.manifest.input

    def predict(images: list[FloatArray]) -> FloatArray:
        prepared = [shape.prepared(image) for image in images]
        batches = [prepared[i : i + _BATCH] for i in range(0, len(prepared), _BATCH)]
        return np.concatenate([engine.infer(to_batch(b, shape.channels)).probabilities for b in batches])

    if "split" not in bundle.manifest.data:
        raise RecipeError(f"bundle {bundle.name} does not say how its data was split: evaluate its run instead")
    return Subject(
        predict=predict, labels=tuple(label.name for label in bundle.labels),
        data=_said_by(bundle, DataSpec, bundle.manifest.data["split"], "how its data was split"),
        calibration=_said_by(bundle, Calibration, bundle.manifest.calibration, "how it was calibrated"),
        thresholds=tuple((label.present_at, label.absent_below) for label in bundle.labels),
    )  # fmt: skip


def evaluate(subject: Subject, data: Path, held: Scored | None = None) -> dict[str, Any]:
    """Every figure of the model card, as JSON can hold it. Raises RecipeError where the data cannot be read.

    held: the validation part, where it is scored already.
    """
    samples = load_index(data, subject.data)
    test = some(data, samples, Part.TEST, subject.labels)
    external = unseen(select(samples, Part.EXTERNAL, subject.labels), samples)
    if held is None and (validation := select(samples, Part.VALIDATION, subject.labels)):
        held = score(subject, data, validation)
    scored, border = score(subject, data, test), score(subject, data, test, change=frame_only)
    scored_external = score(subject, data, external) if external else None
    adult = np.array([s.source not in subject.data.children for s in test])
    parts = {"test": scored} | ({"validation": held} if held else {})
    result = {
        "test": _in_detail(scored, subject.labels),
        "test_adults": report(scored.take(adult), subject.labels) if adult.any() else None,
        "by_source": _by_source(test, scored, subject.labels),
        "border_only": report(border, subject.labels),
        "external": None,
        "external_by_source": [],
        "other_findings": _other_findings(subject, data, samples),
        "calibration": {
            "temperature": subject.calibration.temperature,
            "offsets": dict(zip(subject.labels, subject.calibration.offsets, strict=False)),
        }
        | {name: _calibration(part, subject.calibration) for name, part in parts.items()},
        "thresholds": _thresholds(subject, scored),
    }
    if scored_external:
        result["external"] = _in_detail(scored_external, subject.labels)
        result["external_by_source"] = _by_source(external, scored_external, subject.labels)
    return result


def some(data: Path, samples: Sequence[Sample], part: Part, labels: Sequence[str]) -> list[Sample]:
    """`select`. Raises RecipeError where there is none."""
    if not (chosen := select(samples, part, labels)):
        found = ", ".join(sorted({s.label for s in samples if s.part is part})) or "nothing"
        raise RecipeError(
            f"the {part.value} part of {data} has no image labelled {', '.join(labels)} (but {found}): is it the data "
            "that the model was fitted on?"
        )
    return chosen


def score(
    subject: Subject, data: Path, samples: Sequence[Sample], change: Callable[[FloatArray], FloatArray] | None = None
) -> Scored:
    """Probabilities of labelled samples; `change` is applied to each grey image first."""
    images = [to_grey(image) for image in load_images(data, samples)]
    return Scored(
        truth=np.array([subject.labels.index(s.label) for s in samples], np.int64),
        probabilities=subject.predict([change(image) for image in images] if change else images),
        groups=np.array([s.group for s in samples], np.str_),
    )


def frame_only(image: FloatArray) -> FloatArray:
    """Only the outer tenth of each side; the frame's mean within. A model that still tells classes uses a shortcut."""
    h, w = image.shape
    dy, dx = int(h * FRAME), int(w * FRAME)
    inside = np.zeros(image.shape, bool)
    inside[dy : h - dy, dx : w - dx] = True
    return np.where(inside, image[~inside].mean(), image).astype(np.float32)


def _in_detail(scored: Scored, labels: Sequence[str]) -> dict[str, Any]:
    return report(scored, labels) | {
        "confusion_shares": confusion_shares(scored, labels),
        "roc": roc(scored, labels),
    }


def _by_source(samples: Sequence[Sample], scored: Scored, labels: Sequence[str]) -> list[dict[str, Any]]:
    def key(i: int) -> tuple[str, str]:
        return samples[i].source, samples[i].label

    rows = []
    for (source, label), members in groupby(sorted(range(len(samples)), key=key), key):
        part = scored.take(np.array(list(members)))
        rows.append({"source": source, "label": label} | _said(part.probabilities, labels) | {"recall": hit_rate(part)})
    return rows


def _other_findings(subject: Subject, data: Path, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Test images whose finding is none of the labels: what the model says where every answer is wrong."""
    others = sorted({s.label for s in samples} - set(subject.labels))
    rows = []
    for label in others:
        chosen = select(samples, Part.TEST, [label])
        if chosen:
            images = [to_grey(image) for image in load_images(data, chosen)]
            rows.append({"label": label} | _said(subject.predict(images), subject.labels))
    return rows


def _said(probabilities: FloatArray, labels: Sequence[str]) -> dict[str, Any]:
    """How many images, and how many of them got each class."""
    found = Counter(probabilities.argmax(1).tolist())
    return {"images": len(probabilities), "classes": {label: found[k] for k, label in enumerate(labels)}}


def _said_by(bundle: Bundle, kind: type[T], values: Any, what: str) -> T:
    """What a bundle's manifest, of whatever version, says. Raises RecipeError."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as e:
        head = (
            f"bundle {bundle.name} does not say {what} in a way that this version knows: evaluate its run instead, or "
            "the bundle with the version that made it"
        )
        raise RecipeError(head, *faults(e.errors(), DataSpec)) from e


def _calibration(scored: Scored, calibration: Calibration) -> dict[str, Any]:
    """Reliability without the calibration, and with it."""
    before = replace(scored, probabilities=calibration.undo(scored.probabilities))
    return {"images": len(scored), "before": reliability(before), "after": reliability(scored)}


def _thresholds(subject: Subject, scored: Scored) -> dict[str, Any]:
    """What the thresholds, chosen on the validation part, do on the test part."""
    rows = {}
    for k, (present_at, absent_below) in enumerate(subject.thresholds):
        p, is_label = scored.probabilities[:, k], scored.truth == k
        present, absent = p >= present_at, p < absent_below
        rows[subject.labels[k]] = {
            "present_at": present_at, "absent_below": absent_below,
            "right_where_present": share(present & is_label, scored.groups, present),
            "missed": share(absent & is_label, scored.groups, is_label),
            "undetermined": share(~present & ~absent, scored.groups),
        }  # fmt: skip
    return rows
