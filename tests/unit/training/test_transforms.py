"""An augmented image is an image: same shape, 0..1, finite, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.bundle import InputShape
from training.phantoms import golden_batch, phantom
from training.recipe import AugmentSpec
from training.transforms import _APPEARANCE, augment, to_grey

IMAGE = (phantom(opacities=3) * 255).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["phantom", "black", "white"]), appearance=st.booleans())
def test_shape_range_and_repeatability(seed: int, kind: str, appearance: bool) -> None:
    image = {"phantom": IMAGE, "black": np.zeros_like(IMAGE), "white": np.full_like(IMAGE, 255)}[kind]
    spec = AugmentSpec(appearance=appearance, flip=True)
    x = augment(image, spec, np.random.default_rng(seed))
    assert x.shape == image.shape
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert 0 <= x.min() <= x.max() <= 1
    np.testing.assert_array_equal(x, augment(image, spec, np.random.default_rng(seed)))


@pytest.mark.parametrize("change", [c for c, _ in _APPEARANCE], ids=lambda c: c.__name__)
def test_every_change_changes_and_leaves_its_input_alone(change) -> None:  # type: ignore[no-untyped-def]
    grey = to_grey(IMAGE)
    before = grey.copy()
    changed = change(grey, np.random.default_rng(1))
    assert changed.shape == grey.shape
    assert np.abs(changed - before).max() > 1e-3
    np.testing.assert_array_equal(grey, before)


def test_geometry_keeps_to_paper_1() -> None:
    """A centre mark moves by no more than shift, and zoom and rotation leave it within the frame."""
    image = np.zeros((101, 101), np.uint8)
    image[48:53, 48:53] = 255
    for seed in range(50):
        x = augment(image, AugmentSpec(appearance=False), np.random.default_rng(seed))
        y, col = np.unravel_index(x.argmax(), x.shape)
        assert abs(int(y) - 50) <= 15
        assert abs(int(col) - 50) <= 15


def test_golden_inputs_are_what_the_network_takes() -> None:
    batch = golden_batch(InputShape(channels=3, rows=64, columns=48))
    assert batch.shape == (6, 3, 64, 48)
    assert batch.dtype == np.float32
    np.testing.assert_allclose(batch.mean((2, 3)), 0, atol=1e-4)
    np.testing.assert_array_equal(batch, golden_batch(InputShape(channels=3, rows=64, columns=48)))
