"""The one preprocessing that training and serving share (design rule 8). Its version is part of every bundle."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import cv2
import numpy as np

from engines.base import FloatArray

PREPROCESS_VERSION = 1
_LEVELS = 1024  # of grey that equalising tells apart: as many as an eye does on a good display
_FLAT = 1e-3  # standard deviation below which an image carries no signal; keeps the division finite


def prepare(grey: FloatArray, rows: int, columns: int, *, equalise: bool = False) -> FloatArray:
    """Squash a radiograph to the network's input size by area averaging.

    grey: float32 [H, W] in 0..1, dense bone white (as MONOCHROME2 is displayed). Returns float32 [rows, columns]
    in 0..1. The aspect ratio is given up, as in the training data and in paper 1 (resize to 100x100).

    equalise: give the greys a normal distribution, whatever it was: the tone that a vendor's processing or a window
    gave the film is gone, the order of its greys stays. Hospitals differ in tone more than in anatomy.
    """
    sized = _resized(grey, rows, columns)
    return _equalised(sized) if equalise else sized


def _resized(grey: FloatArray, rows: int, columns: int) -> FloatArray:
    if grey.shape == (rows, columns):
        return grey
    shrinks = grey.shape[0] >= rows and grey.shape[1] >= columns
    resized = cv2.resize(grey, (columns, rows), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(np.clip(resized, 0, 1), np.float32)


def _equalised(grey: FloatArray) -> FloatArray:
    """Each grey by its rank among the pixels, as a quantile of the normal distribution, cut at both ends, in 0..1.

    The ranks are smoothed over greys: a flat background, whose equal pixels share one rank, would else fall apart with
    the little noise of a lossy coding.
    """
    levels = np.rint(grey * (_LEVELS - 1)).astype(np.intp)
    count = np.bincount(levels.ravel(), minlength=_LEVELS)
    rank = (np.cumsum(count) - count / 2) / grey.size  # of each level, in 0..1: the middle one of its equals
    rank = np.convolve(np.pad(rank, len(_SMOOTH) // 2, constant_values=(0, 1)), _SMOOTH, "valid")
    return _QUANTILES[np.clip(rank * _LEVELS, 0, _LEVELS - 1).astype(np.intp)][levels]


def _normal_quantiles() -> FloatArray:
    """[_LEVELS], in 0..1."""
    normal = NormalDist()
    q = np.array([normal.inv_cdf((k + 0.5) / _LEVELS) for k in range(_LEVELS)], np.float32)
    return np.asarray((q - q[0]) / (q[-1] - q[0]), np.float32)


def _normal_weights() -> FloatArray:
    """Of the levels around one, a standard deviation of 1 % of the greys; their sum is 1."""
    sigma = 0.01 * _LEVELS
    weights = np.exp(-0.5 * (np.arange(-int(3 * sigma), int(3 * sigma) + 1) / sigma) ** 2)
    return np.asarray(weights / weights.sum(), np.float32)


_QUANTILES, _SMOOTH = _normal_quantiles(), _normal_weights()


def normalise(images: Sequence[FloatArray]) -> FloatArray:
    """Stack prepared images into float32 [N, H, W], each with mean 0 and standard deviation 1.

    Source: Sakib et al. 2020 (paper 1), preprocessing: Z-normalisation.
    """
    stack = np.stack(images).astype(np.float32, copy=False)
    mean = stack.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    std = stack.std(axis=(1, 2), keepdims=True, dtype=np.float32)
    return np.asarray((stack - mean) / np.maximum(std, np.float32(_FLAT)))


def to_batch(images: Sequence[FloatArray], channels: int = 3) -> FloatArray:
    """Normalised images as float32 [N, C, H, W], grey copied to each channel (paper 1: merged into three channels)."""
    return np.repeat(normalise(images)[:, None], channels, axis=1)
