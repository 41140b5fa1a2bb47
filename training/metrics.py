"""Figures of a classifier, each with its 95 % interval from a bootstrap over groups (patients), not images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, roc_auc_score

from engines.base import FloatArray, IntArray

_RESAMPLES = 500
_SEED = 20201108
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
    values = interval(scored, lambda s: _figures(s, len(labels)))
    names = ["precision", "recall", "specificity", "f1", "auc"]
    per_label = {
        label: {"n": int((scored.truth == k).sum())}
        | {name: values[1 + k * len(names) + i] for i, name in enumerate(names)}
        for k, label in enumerate(labels)
        if (scored.truth == k).any()
    }
    return {
        "images": len(scored),
        "groups": len(set(scored.groups)),
        "accuracy": values[0],
        "per_label": per_label,
        "confusion": _confusion(scored, len(labels)).tolist(),
    }


def interval(scored: Scored, statistic: Callable[[Scored], FloatArray]) -> list[Figure | None]:
    """Value and 2.5 / 97.5 percentiles of each number that `statistic` gives; None where it is not defined."""
    rng = np.random.default_rng(_SEED)
    names, member = np.unique(scored.groups, return_inverse=True)
    rows = [np.flatnonzero(member == g) for g in range(len(names))]
    draws = [
        statistic(scored.take(np.concatenate([rows[g] for g in rng.integers(0, len(rows), len(rows))])))
        for _ in range(_RESAMPLES)
    ]
    return [_figure(v, column) for v, column in zip(statistic(scored), np.array(draws).T, strict=True)]


def recall_of(scored: Scored) -> Figure | None:
    """Share of images whose class is their label; of one label's images that is its recall."""
    return interval(scored, lambda s: np.array([(s.probabilities.argmax(1) == s.truth).mean()], np.float32))[0]


def _figure(value: float, draws: FloatArray) -> Figure | None:
    drawn = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not len(drawn):
        return None
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"value": round(float(value), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _figures(scored: Scored, classes: int) -> FloatArray:
    """[1 + 5 K]: accuracy, then precision, recall, specificity, F1 and AUC of each label; nan where not defined."""
    matrix = _confusion(scored, classes).astype(np.float64)
    values = [float(np.trace(matrix) / matrix.sum())]
    for k in range(classes):
        hit, missed, false = matrix[k, k], matrix[k].sum() - matrix[k, k], matrix[:, k].sum() - matrix[k, k]
        rejected = matrix.sum() - hit - missed - false
        values += [_ratio(hit, hit + false), _ratio(hit, hit + missed), _ratio(rejected, rejected + false)]
        values += [_ratio(2 * hit, 2 * hit + false + missed), _auc(scored, k)]
    return np.array(values, np.float32)


def _confusion(scored: Scored, classes: int) -> npt.NDArray[np.int64]:
    """[K, K]: row the label, column the class."""
    found = scored.probabilities.argmax(1)
    return np.asarray(confusion_matrix(scored.truth, found, labels=list(range(classes))), np.int64)


def _auc(scored: Scored, k: int) -> float:
    is_k = scored.truth == k
    return float("nan") if is_k.all() or not is_k.any() else float(roc_auc_score(is_k, scored.probabilities[:, k]))


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
