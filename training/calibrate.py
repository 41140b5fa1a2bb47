"""Temperature and thresholds, both chosen on the validation part alone; how far a confidence can be believed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from engines.base import FloatArray, IntArray
from training.metrics import Array, Row, Scored, draw, figure

_PRECISION = 0.95  # "present" must be right this often
_MISSED = 0.02  # "absent" may be said of this share of a label's images
_PRESENT, _ABSENT = (0.5, 0.9), (0.05, 0.5)  # few validation images must not move a threshold to an extreme
_BINS = 10  # of the reliability diagram


def softmax(logits: FloatArray, temperature: float = 1.0) -> FloatArray:
    """[N, K] to [N, K]."""
    z = logits / temperature
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True), np.float32)


def negative_log_likelihood(logits: FloatArray, truth: IntArray, temperature: float = 1.0) -> float:
    return float(log_loss(truth, softmax(logits, temperature), labels=range(logits.shape[1])))


def fit_temperature(logits: FloatArray, truth: IntArray) -> float:
    """The temperature of the least validation loss (Guo et al. 2017), over a grid from 0.3 to 5."""
    grid = np.geomspace(0.3, 5, 141)
    return round(float(min(grid, key=lambda t: negative_log_likelihood(logits, truth, float(t)))), 4)


def uncalibrated(probabilities: FloatArray, temperature: float) -> FloatArray:
    """[N, K]: what the softmax said before its logits were divided by `temperature`."""
    return softmax(np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)), 1 / temperature)


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
