"""Figures of a classifier, each with its 95 % interval from a bootstrap over groups (patients), not images.

The figures are scikit-learn's (`exact`). Asking it a thousand times, once a resample, takes half a minute a table; the
resamples are computed all at once (`resampled`), and a property test proves them equal to scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, recall_score, roc_auc_score, roc_curve

from engines.base import FloatArray, IntArray

FIGURES = ("precision", "recall", "specificity", "f1", "auc")
_RESAMPLES = 1000
_SEED = 20201108
_FALSE_ALARMS = np.linspace(0, 1, 51) ** 2  # where a ROC curve is kept: densest where false alarms are few
_CURVES = 200  # resampled ROC curves that its band is made of
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

    @property
    def found(self) -> npt.NDArray[np.intp]:
        """[N]: the class of each image."""
        return np.asarray(self.probabilities.argmax(1))

    @property
    def hit(self) -> npt.NDArray[np.bool_]:
        """[N]: whether the class is the label."""
        return np.asarray(self.found == self.truth)

    def take(self, rows: npt.NDArray[Any]) -> Scored:
        return Scored(truth=self.truth[rows], probabilities=self.probabilities[rows], groups=self.groups[rows])


def report(scored: Scored, labels: Sequence[str]) -> Row:
    """Counts, confusion matrix, and every figure of paper 1's table with its interval; JSON can hold it.

    A label without images has no row; `macro` is the plain mean of the rows for which a figure is defined.
    """
    shown = [k for k in range(len(labels)) if (scored.truth == k).any()]
    point, spread = exact(scored), resampled(scored, draw(scored.groups))
    per_label = {
        labels[k]: {"n": int((scored.truth == k).sum())}
        | {name: figure(point[name][k], spread[name][:, k]) for name in FIGURES}
        for k in shown
    }
    macro = {
        name: figure(_mean(point[name][None, shown])[0], _mean(spread[name][:, shown])) for name in FIGURES
    }  # fmt: skip
    return {
        "images": len(scored),
        "groups": len(set(scored.groups)),
        "accuracy": hit_rate(scored),
        "macro": macro,
        "per_label": per_label,
        "confusion": confusion_matrix(scored.truth, scored.found, labels=list(range(len(labels)))).tolist(),
    }


def hit_rate(scored: Scored) -> Figure | None:
    """Share of images whose class is their label: the accuracy; of one label's images alone, its recall."""
    return share(scored.hit, scored.groups)


def share(part: npt.NDArray[Any], groups: npt.NDArray[np.str_], whole: npt.NDArray[Any] | None = None) -> Figure | None:
    """Sum of `part` [N] over sum of `whole` [N] (all images where it is not given); None where that is 0."""
    part, whole = part.astype(np.float64), np.ones(len(part)) if whole is None else whole.astype(np.float64)
    weights = np.vstack([np.ones(len(part)), draw(groups)])
    shares = _divide(weights @ part, weights @ whole)
    return figure(shares[0], shares[1:])


def figure(value: float, draws: Array) -> Figure | None:
    """Value and the 2.5 and 97.5 percentiles of its draws; None where it is not defined."""
    drawn = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not len(drawn):
        return None
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"value": round(float(value), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def exact(scored: Scored, weight: Array | None = None) -> dict[str, Array]:
    """Each figure [K] by scikit-learn, where images weigh `weight` [N]; nan where it is not defined."""
    truth, found, classes = scored.truth, scored.found, range(scored.probabilities.shape[1])
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, found, labels=list(classes), sample_weight=weight, zero_division=np.nan
    )
    specificity = [recall_score(truth != k, found != k, sample_weight=weight, zero_division=np.nan) for k in classes]
    auc = [_auc(truth == k, scored.probabilities[:, k], weight) for k in classes]
    columns = (precision, recall, specificity, f1, auc)
    return {name: np.asarray(column, np.float64) for name, column in zip(FIGURES, columns, strict=True)}


def resampled(scored: Scored, weights: Array) -> dict[str, Array]:
    """Each figure [R, K] for every row of `weights` [R, N]: what `exact` says of each, a thousand times faster."""
    confusions = _confusions(scored, weights)
    hit = np.diagonal(confusions, axis1=1, axis2=2)
    missed, false = confusions.sum(2) - hit, confusions.sum(1) - hit
    rejected = confusions.sum((1, 2))[:, None] - hit - missed - false
    auc = [weighted_auc(scored.truth == k, p, weights) for k, p in enumerate(scored.probabilities.T)]
    columns = (
        _divide(hit, hit + false), _divide(hit, hit + missed), _divide(rejected, rejected + false),
        _divide(2 * hit, 2 * hit + false + missed), np.stack(auc, axis=1),
    )  # fmt: skip
    return dict(zip(FIGURES, columns, strict=True))


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


def roc(scored: Scored, labels: Sequence[str]) -> Row:
    """The ROC curve of each label against the rest: sensitivity, and its 95 % band, at 51 false positive rates."""
    curves, weights = {}, draw(scored.groups)[:_CURVES]
    for k, label in enumerate(labels):
        is_label, score = scored.truth == k, scored.probabilities[:, k]
        drawn = [_curve(is_label, score, w) for w in weights if w[is_label].any() and w[~is_label].any()]
        if drawn and is_label.any() and not is_label.all():
            low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
            curve = {"sensitivity": _curve(is_label, score, None), "low": low, "high": high}
            curves[label] = {name: np.round(values, 4).tolist() for name, values in curve.items()}
    return {"false_positive_rate": np.round(_FALSE_ALARMS, 4).tolist(), "per_label": curves}


def confusion_shares(scored: Scored, labels: Sequence[str]) -> list[list[Figure | None]]:
    """[K][K]: the share of a label's images (row) that got each class (column)."""
    of_label = [(scored.truth == k).astype(np.float64) for k in range(len(labels))]
    return [
        [share(row * (scored.found == k), scored.groups, row) for k in range(len(labels))] for row in of_label
    ]  # fmt: skip


def _auc(is_label: npt.NDArray[np.bool_], score: FloatArray, weight: Array | None) -> float:
    counted = np.ones(len(score), bool) if weight is None else weight > 0
    if is_label[counted].all() or not is_label[counted].any():
        return np.nan
    return float(roc_auc_score(is_label, score, sample_weight=weight))


def _curve(is_label: npt.NDArray[np.bool_], score: FloatArray, weight: Array | None) -> Array:
    false_alarms, sensitivity, _ = roc_curve(is_label, score, sample_weight=weight)
    return np.asarray(np.interp(_FALSE_ALARMS, false_alarms, sensitivity), np.float64)


def _confusions(scored: Scored, weights: Array) -> Array:
    """[R, K, K]: row the label, column the class."""
    k = scored.probabilities.shape[1]
    cell = scored.truth * k + scored.found
    return np.asarray((weights @ np.eye(k * k)[cell]).reshape(-1, k, k), np.float64)


def _mean(figures: Array) -> Array:
    """[R, K] to [R], over what is defined."""
    defined = np.isfinite(figures)
    return _divide(np.where(defined, figures, 0).sum(1), defined.sum(1).astype(np.float64))


def _divide(part: Array, whole: Array) -> Array:
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0), np.float64)
