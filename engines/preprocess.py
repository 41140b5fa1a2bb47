"""The one preprocessing that training and serving share (design rule 8). Its version is part of every bundle."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from engines.base import FloatArray

PREPROCESS_VERSION = 1
_FLAT = 1e-3  # standard deviation below which an image carries no signal; keeps the division finite


def prepare(grey: FloatArray, rows: int, columns: int) -> FloatArray:
    """Squash a radiograph to the network's input size by area averaging.

    grey: float32 [H, W] in 0..1, dense bone white (as MONOCHROME2 is displayed). Returns float32 [rows, columns]
    in 0..1. The aspect ratio is given up, as in the training data and in paper 1 (resize to 100x100).
    """
    if grey.shape == (rows, columns):
        return grey
    shrinks = grey.shape[0] >= rows and grey.shape[1] >= columns
    resized = cv2.resize(grey, (columns, rows), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(np.clip(resized, 0, 1), np.float32)


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
