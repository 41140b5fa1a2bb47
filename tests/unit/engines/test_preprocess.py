"""The network's input: sizes, and greys that a vendor's tone does not change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import FloatArray
from engines.preprocess import normalise, prepare

SIDE = 64


def film(seed: int, side: int = SIDE) -> FloatArray:
    """A smooth picture with 256 greys at most, as most films have."""
    rng = np.random.default_rng(seed)
    rows = np.kron(rng.random((8, 8)), np.ones((side // 8, side // 8)))
    noisy = np.clip(0.8 * rows + 0.2 * rng.random((side, side)), 0, 1)
    return np.asarray(np.rint(noisy * 255) / 255, np.float32)


@given(st.integers(0, 99), st.floats(0.4, 2.5), st.floats(0, 0.2), st.floats(0.7, 1))
def test_equalising_forgets_the_tone(seed: int, gamma: float, low: float, high: float) -> None:
    """Any window and gamma that keep the greys apart."""
    plain = film(seed) * 0.6 + 0.2  # of darker greys a gamma of 2.5 leaves none apart
    toned = np.asarray(low + (high - low) * plain**gamma, np.float32)
    a, b = (prepare(x, SIDE, SIDE, equalise=True) for x in (plain, toned))
    assert float(np.abs(a - b).mean()) < 0.01
    assert 0 <= a.min() <= a.max() <= 1


@given(st.integers(0, 99))
def test_equalising_keeps_the_order_and_gives_a_normal_distribution(seed: int) -> None:
    plain = film(seed)
    equal = prepare(plain, SIDE, SIDE, equalise=True)
    order = np.argsort(plain, axis=None)
    assert (np.diff(equal.ravel()[order]) >= 0).all()
    z = normalise([equal])[0]
    assert np.quantile(z, [0.16, 0.5, 0.84]) == pytest.approx([-1, 0, 1], abs=0.08)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_flat_film_stays_flat_and_finite(value: float) -> None:
    equal = prepare(np.full((80, 90), value, np.float32), SIDE, SIDE, equalise=True)
    assert np.ptp(equal) == 0
    assert np.isfinite(normalise([equal])).all()


def test_without_it_a_film_of_the_size_is_as_it_was() -> None:
    plain = film(1)
    assert prepare(plain, SIDE, SIDE) is plain
