"""Calibration and thresholds, both chosen on the validation part alone; how far a confidence can be believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from engines.base import FloatArray, IntArray
from training.metrics import Array, Row, Scored, draw, figure

_PRECISION = 0.95  # "present" must be right this often
_MISSED = 0.02  # "absent" may be said of this share of a label's images
_PRESENT, _ABSENT = (0.5, 0.9), (0.05, 0.5)  # few validation images must not move a threshold to an extreme
_TEMPERATURES, _OFFSET = (0.3, 5.0), 2.0
_BINS = 10  # of the reliability diagram


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """softmax((logits + offsets) / temperature). Source: bias-corrected temperature scaling, Alexandari et al. 2020."""

    temperature: float = 1.0
    offsets: tuple[float, ...] = ()  # of each label, their sum 0; none: all 0

    def apply(self, logits: FloatArray) -> FloatArray:
        """Probabilities [N, K]."""
        return softmax((logits + self._row(logits)) / np.float32(self.temperature))

    def undo(self, probabilities: FloatArray) -> FloatArray:
        """[N, K]: what the softmax said before."""
        logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)) * np.float32(self.temperature)
        return softmax(logits - self._row(logits))

    def _row(self, logits: FloatArray) -> FloatArray:
        return np.array(self.offsets or [0.0] * logits.shape[1], np.float32)


def softmax(logits: FloatArray) -> FloatArray:
    """[N, K] to [N, K]."""
    e = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True), np.float32)


def balanced_loss(logits: FloatArray, truth: IntArray, calibration: Calibration | None = None) -> float:
    """Negative log likelihood, in which each label weighs the same however many images it has."""
    weights = 1 / np.bincount(truth, minlength=logits.shape[1]).clip(1)
    p = (calibration or Calibration()).apply(logits)
    return float(log_loss(truth, p, labels=range(logits.shape[1]), sample_weight=weights[truth]))


def fit_calibration(logits: FloatArray, truth: IntArray) -> Calibration:
    """The calibration of the least `balanced_loss`: the class is then the likeliest where no label is the rarer.

    A network that saw few images of a label, all of which it came to know by heart, says that label too seldom of new
    ones; the offsets mend it. The bounds keep a validation part of a few images from moving them to an extreme.
    """

    def numbers(x: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        return float(np.exp(x[0])), x[1:] - x[1:].mean()

    def loss(x: npt.NDArray[np.float64]) -> float:
        """`balanced_loss` in float64: the minimiser takes differences that float32 does not show."""
        temperature, offsets = numbers(x)
        z = (logits + offsets) / temperature
        z = z - z.max(1, keepdims=True)
        each = np.log(np.exp(z).sum(1)) - z[np.arange(len(truth)), truth]
        return float(np.mean([each[truth == label].mean() for label in np.unique(truth)]))

    k = logits.shape[1]
    bounds = [tuple(np.log(_TEMPERATURES)), *[(-_OFFSET, _OFFSET)] * k]
    temperature, offsets = numbers(minimize(loss, np.zeros(k + 1), method="L-BFGS-B", bounds=bounds).x)
    return Calibration(temperature=round(temperature, 4), offsets=tuple(offsets.round(4).tolist()))


def reliability(scored: Scored) -> Row:
    """How often the class is right among images of the same confidence, in ten bins; the expected calibration error.

    Source: Guo et al. 2017, equations 1 to 3; the confidence is the greatest probability. Few images in a bin make the
    error too large, and its resamples more so: its interval leans upwards.
    """
    confidence = scored.probabilities.max(1).clip(0, 1).astype(np.float64)
    right, said = calibration_curve(scored.hit, confidence, n_bins=_BINS)
    edges = np.linspace(0, 1, _BINS + 1)[1:-1]
    bins = np.searchsorted(edges, confidence)  # as calibration_curve does
    images = np.bincount(bins, minlength=_BINS)
    gaps = np.eye(_BINS)[bins] * (scored.hit - confidence)[:, None]
    rows = zip(said.round(4).tolist(), right.round(4).tolist(), images[images > 0].tolist(), strict=True)
    return {
        "ece": figure(_error(gaps, np.ones((1, len(scored))))[0], _error(gaps, draw(scored.groups))),
        "bins": [dict(zip(("confidence", "accuracy", "images"), row, strict=True)) for row in rows],
    }  # fmt: skip


def thresholds(probability: FloatArray, is_label: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """(present_at, absent_below) of one label from its probabilities [N] and whether each image has it [N].

    present_at: the least threshold with a precision of 95 %; absent_below: the greatest that 2 % of the label's images
    fall below. Both stay on their side of 0.5.
    """
    candidates = np.linspace(*_PRESENT, 41)
    precise = [t for t in candidates if _precision(probability, is_label, t) >= _PRECISION]
    present_at = float(precise[0]) if precise else _PRESENT[1]
    absent_below = (
        float(np.clip(np.quantile(probability[is_label], _MISSED), *_ABSENT)) if is_label.any() else _ABSENT[0]
    )
    return round(present_at, 2), round(absent_below, 2)


def _error(gaps: Array, weights: Array) -> Array:
    """[R]: the expected calibration error of each row of `weights` [R, N]; `gaps` [N, B]: right minus confidence."""
    return np.asarray(np.abs(weights @ gaps).sum(1) / weights.sum(1), np.float64)


def _precision(probability: FloatArray, is_label: npt.NDArray[np.bool_], threshold: float) -> float:
    said = probability >= threshold
    return float(is_label[said].mean()) if said.any() else 1.0
