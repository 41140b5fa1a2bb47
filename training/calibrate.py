"""Temperature and thresholds, both chosen on the validation part alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engines.base import FloatArray, IntArray

_PRECISION = 0.95  # "present" must be right this often
_MISSED = 0.02  # "absent" may be said of this share of a label's images
_PRESENT, _ABSENT = (0.5, 0.9), (0.05, 0.5)  # few validation images must not move a threshold to an extreme


def softmax(logits: FloatArray, temperature: float = 1.0) -> FloatArray:
    """[N, K] to [N, K]."""
    z = logits / temperature
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True), np.float32)


def negative_log_likelihood(logits: FloatArray, truth: IntArray, temperature: float = 1.0) -> float:
    p = softmax(logits, temperature)[np.arange(len(truth)), truth]
    return float(-np.log(np.maximum(p, 1e-7)).mean())


def fit_temperature(logits: FloatArray, truth: IntArray) -> float:
    """The temperature of the least validation loss (Guo et al. 2017), over a grid from 0.3 to 5."""
    grid = np.geomspace(0.3, 5, 141)
    return round(float(min(grid, key=lambda t: negative_log_likelihood(logits, truth, float(t)))), 4)


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


def _precision(probability: FloatArray, is_label: npt.NDArray[np.bool_], threshold: float) -> float:
    said = probability >= threshold
    return float(is_label[said].mean()) if said.any() else 1.0
