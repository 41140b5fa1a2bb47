"""Augmentation: paper 1's geometry, and what radiographs of other hospitals differ in.

Source: Sakib et al. 2020 (paper 1): rotation 10 degrees, zoom 0.9-1.1, width and height shift 10 %.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from engines.base import FloatArray
from training.recipe import AugmentSpec

Rng = np.random.Generator


def to_grey(image: npt.NDArray[np.uint8]) -> FloatArray:
    """uint8 [H, W] to float32 0..1."""
    return np.asarray(image, np.float32) / np.float32(255)


def augment(image: npt.NDArray[np.uint8], spec: AugmentSpec, rng: Rng) -> FloatArray:
    """One random variant of `image` (uint8 [H, W]); float32 [H, W] in 0..1."""
    x = to_grey(_geometry(image, spec, rng))
    for change, probability in _APPEARANCE:
        if rng.random() < probability * spec.appearance:
            x = change(x, rng)
            np.clip(x, 0, 1, out=x)
    if spec.flip and rng.random() < 0.5:
        x = np.ascontiguousarray(x[:, ::-1])
    return x


def _geometry(image: npt.NDArray[np.uint8], spec: AugmentSpec, rng: Rng) -> npt.NDArray[np.uint8]:
    h, w = image.shape
    rotation = np.vstack(
        [cv2.getRotationMatrix2D((w / 2, h / 2), rng.uniform(-spec.rotation_deg, spec.rotation_deg), 1), [0, 0, 1]]
    )
    zoom = rng.uniform(1 - spec.zoom, 1 + spec.zoom)
    zx, zy = zoom, zoom * rng.uniform(0.9, 1.1)  # films are squashed to a square: aspect ratios differ by site
    scale = np.array([[zx, 0, w / 2 * (1 - zx)], [0, zy, h / 2 * (1 - zy)], [0, 0, 1]])
    matrix = rotation @ scale
    matrix[:2, 2] += rng.uniform(-spec.shift, spec.shift, 2) * (w, h)
    border = cv2.BORDER_REPLICATE if rng.random() < 0.5 else cv2.BORDER_CONSTANT
    return np.asarray(cv2.warpAffine(image, matrix[:2], (w, h), flags=cv2.INTER_LINEAR, borderMode=border), np.uint8)


def _gamma(x: FloatArray, rng: Rng) -> FloatArray:
    return np.asarray(cv2.pow(x, rng.uniform(0.6, 1.7)), np.float32)


def _window(x: FloatArray, rng: Rng) -> FloatArray:
    low, high = np.quantile(x[::4, ::4], [rng.uniform(0, 0.08), 1 - rng.uniform(0, 0.08)])
    return np.asarray((x - low) / max(float(high - low), 0.1), np.float32)


def _equalise(x: FloatArray, rng: Rng) -> FloatArray:
    """What some vendors' processing does."""
    clahe = cv2.createCLAHE(rng.uniform(1, 3), (8, 8))
    return to_grey(np.asarray(clahe.apply(_to_bytes(x)), np.uint8))


def _blur(x: FloatArray, rng: Rng) -> FloatArray:
    return np.asarray(cv2.GaussianBlur(x, (0, 0), rng.uniform(0.3, 1.6)), np.float32)


def _sharpen(x: FloatArray, rng: Rng) -> FloatArray:
    return np.asarray(x + rng.uniform(0.2, 1) * (x - cv2.GaussianBlur(x, (0, 0), 2)), np.float32)


def _noise(x: FloatArray, rng: Rng) -> FloatArray:
    return x + np.float32(rng.uniform(0.005, 0.04)) * rng.standard_normal(x.shape, np.float32)


def _jpeg(x: FloatArray, rng: Rng) -> FloatArray:
    _, code = cv2.imencode(".jpg", _to_bytes(x), [cv2.IMWRITE_JPEG_QUALITY, int(rng.uniform(30, 90))])
    return to_grey(np.asarray(cv2.imdecode(code, cv2.IMREAD_GRAYSCALE), np.uint8))


def _resample(x: FloatArray, rng: Rng) -> FloatArray:
    """Down and up: thumbnails and screenshots."""
    h, w = x.shape
    side = int(rng.uniform(0.45, 0.9) * w)
    small = cv2.resize(x, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR), np.float32)


def _frame(x: FloatArray, rng: Rng) -> FloatArray:
    """Collimation and film borders: the frame must not tell the source."""
    x, value = x.copy(), float(rng.random() < 0.2)
    top, bottom, left, right = (int(rng.uniform(0, 0.12) * x.shape[0]) for _ in range(4))
    x[:top], x[x.shape[0] - bottom :] = value, value
    x[:, :left], x[:, x.shape[1] - right :] = value, value
    return x


def _marker(x: FloatArray, rng: Rng) -> FloatArray:
    """Side markers, labels, electrodes."""
    x, (h, w) = x.copy(), x.shape
    for _ in range(rng.integers(1, 3)):
        top, left = rng.integers(0, h * 9 // 10), rng.integers(0, w * 9 // 10)
        x[top : top + rng.integers(h // 28, h // 6), left : left + rng.integers(w // 28, w // 6)] = rng.random()
    return x


def _to_bytes(x: FloatArray) -> npt.NDArray[np.uint8]:
    return np.asarray(np.clip(x, 0, 1) * 255, np.uint8)


_APPEARANCE: tuple[tuple[Callable[[FloatArray, Rng], FloatArray], float], ...] = (
    (_gamma, 0.5), (_window, 0.5), (_equalise, 0.15), (_blur, 0.4), (_sharpen, 0.25), (_resample, 0.2), (_noise, 0.4),
    (_jpeg, 0.4), (_frame, 0.4), (_marker, 0.3),
)  # fmt: skip
