"""Figures of a classifier, each with its 95 % interval from a bootstrap over groups (patients), not images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, roc_auc_score

from engines.base import FloatArray, IntArray

_RESAMPLES = 1000
_SEED = 20201108
Array = npt.NDArray[np.float64]
Figure = dict[str, float]  # value, low, high
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a model said of N images whose label is known. Groups are what the bootstrap draws."""

    truth: IntArray  # [N]
    probabilities: FloatArray  # [N, K]
    groups: npt.NDArray[np.str_]  # [N]

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, rows: npt.NDArray[Any]) -> Scored:
        return Scored(truth=self.truth[rows], probabilities=self.probabilities[rows], groups=self.groups[rows])


def report(scored: Scored, labels: Sequence[str]) -> Row:
    """Counts, confusion matrix, and every figure of paper 1's table with its interval; JSON can hold it."""
    classes = list(range(len(labels)))
    found = scored.probabilities.argmax(1)
    matrix = confusion_matrix(scored.truth, found, labels=classes).astype(np.float64)
    weights = draw(scored.groups)
    drawn = _drawn_confusions(scored.truth, found, weights, len(labels))
    point, spread = _figures(matrix[None]), _figures(drawn)
    per_label = {
        label: {"n": int(matrix[k].sum())}
        | {name: _figure(point[name][0, k], spread[name][:, k]) for name in point}
        | {"auc": _auc_figure(scored.truth == k, scored.probabilities[:, k], weights)}
        for k, label in enumerate(labels)
        if matrix[k].sum()
    }
    return {
        "images": len(scored),
        "groups": len(set(scored.groups)),
        "accuracy": _figure(_accuracy(matrix[None])[0], _accuracy(drawn)),
        "per_label": per_label,
        "confusion": matrix.astype(int).tolist(),
    }


def recall_of(scored: Scored) -> Figure | None:
    """Share of images whose class is their label; of one label's images that is its recall."""
    hit = (scored.probabilities.argmax(1) == scored.truth).astype(np.float64)
    weights = draw(scored.groups)
    return _figure(float(hit.mean()), weights @ hit / weights.sum(1))


def draw(groups: npt.NDArray[np.str_]) -> Array:
    """Bootstrap weights [1000, N]: how often each image counts when its groups are drawn with replacement."""
    names, member = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(_SEED)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=_RESAMPLES)
    return np.asarray(times[:, member], np.float64)


def weighted_auc(is_label: npt.NDArray[np.bool_], score: FloatArray, weights: Array) -> Array:
    """[R]: the area under the ROC curve for each row of weights [R, N]; nan where a side is empty."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))  # ties count as one place, half on either side
    positive = np.add.reduceat(weights[:, order] * is_label[order], starts, axis=1)
    negative = np.add.reduceat(weights[:, order] * ~is_label[order], starts, axis=1)
    below = negative.cumsum(1) - negative / 2
    return _divide((positive * below).sum(1), positive.sum(1) * negative.sum(1))


def _auc_figure(is_label: npt.NDArray[np.bool_], score: FloatArray, weights: Array) -> Figure | None:
    if is_label.all() or not is_label.any():
        return None
    return _figure(float(roc_auc_score(is_label, score)), weighted_auc(is_label, score, weights))


def _drawn_confusions(truth: IntArray, found: npt.NDArray[np.intp], weights: Array, classes: int) -> Array:
    """[R, K, K]: row the label, column the class."""
    cell = truth * classes + found
    return np.asarray((weights @ np.eye(classes * classes)[cell]).reshape(-1, classes, classes), np.float64)


def _accuracy(confusions: Array) -> Array:
    return _divide(np.trace(confusions, axis1=1, axis2=2), confusions.sum((1, 2)))


def _figures(confusions: Array) -> dict[str, Array]:
    """Each figure [R, K] of confusion matrices [R, K, K]; nan where it is not defined."""
    hit = np.diagonal(confusions, axis1=1, axis2=2)
    missed, false = confusions.sum(2) - hit, confusions.sum(1) - hit
    rejected = confusions.sum((1, 2))[:, None] - hit - missed - false
    return {
        "precision": _divide(hit, hit + false),
        "recall": _divide(hit, hit + missed),
        "specificity": _divide(rejected, rejected + false),
        "f1": _divide(2 * hit, 2 * hit + false + missed),
    }


def _figure(value: float, draws: Array) -> Figure | None:
    """Value and the 2.5 and 97.5 percentiles; None where it is not defined."""
    drawn = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not len(drawn):
        return None
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"value": round(float(value), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _divide(part: Array, whole: Array) -> Array:
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0), np.float64)
