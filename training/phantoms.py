"""Golden inputs: pictures made by formula, so that no patient's image travels with a bundle."""

from __future__ import annotations

import cv2
import numpy as np

from engines.base import FloatArray
from engines.bundle import InputShape
from engines.preprocess import to_batch

_SIDE = 224


def golden_batch(shape: InputShape) -> FloatArray:
    """Six pictures as the network takes them: three chest phantoms, one of low contrast, a gradient, noise."""
    rng = np.random.default_rng(18)
    pictures = [phantom(), phantom(opacities=6), phantom(opacities=2, ribs=0.12), 0.4 + 0.2 * phantom(opacities=3)]
    pictures += [np.tile(np.linspace(0, 1, _SIDE), (_SIDE, 1)), rng.random((_SIDE, _SIDE))]
    return to_batch([shape.prepared(_to_8_bits(p)) for p in pictures], shape.channels)


def phantom(*, opacities: int = 0, ribs: float = 0.06) -> FloatArray:
    """float32 [224, 224] in 0..1: trunk, lungs, heart, spine, ribs, and round opacities in the lungs."""
    y, x = np.mgrid[0:_SIDE, 0:_SIDE] / _SIDE
    rng = np.random.default_rng(opacities)
    picture = 0.75 * _ellipse(x, y, 0.5, 0.62, 0.46, 0.62)
    lungs = _ellipse(x, y, 0.3, 0.48, 0.16, 0.32) + _ellipse(x, y, 0.7, 0.48, 0.16, 0.32)
    picture -= 0.5 * lungs
    picture += 0.12 * _ellipse(x, y, 0.5, 0.5, 0.04, 0.6) + 0.3 * _ellipse(x, y, 0.57, 0.62, 0.13, 0.16)
    picture += ribs * lungs * np.sin(2 * np.pi * (9 * y + 1.5 * np.abs(x - 0.5)))
    for _ in range(opacities):
        cx, cy = rng.choice([0.3, 0.7]) + rng.uniform(-0.1, 0.1), rng.uniform(0.35, 0.72)
        picture += 0.3 * lungs * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * rng.uniform(0.03, 0.07) ** 2))
    return np.asarray(np.clip(cv2.GaussianBlur(picture, (0, 0), 2), 0, 1), np.float32)


def _ellipse(x: FloatArray, y: FloatArray, cx: float, cy: float, rx: float, ry: float) -> FloatArray:
    return (((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1).astype(np.float32)


def _to_8_bits(picture: FloatArray) -> FloatArray:
    """256 levels: the stored file compresses well."""
    return (np.round(np.clip(picture, 0, 1) * 255) / 255).astype(np.float32)
