"""The resampled figures are scikit-learn's; intervals are of groups."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from training.calibrate import Calibration, reliability, softmax
from training.metrics import FIGURES, Scored, confusion_shares, draw, exact, figure, report, resampled, roc, share

LABELS = ["a", "b", "c"]


def random_scored(seed: int, images: int, classes: int = 3, groups: int = 20) -> Scored:
    """Probabilities with many ties, and now and then a label without images or a class that is never said."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(1, 6, (images, classes)).astype(np.float32)
    return Scored(
        truth=rng.choice(classes, images, p=rng.dirichlet(np.ones(classes) / 2)),
        probabilities=(raw / raw.sum(1, keepdims=True)).astype(np.float32),
        groups=rng.integers(0, groups, images).astype(np.str_),
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(2, 60), classes=st.integers(2, 5))
def test_every_resampled_figure_is_scikit_learns(seed: int, images: int, classes: int) -> None:
    scored = random_scored(seed, images, classes)
    weights = np.random.default_rng(seed).integers(0, 3, (4, images)).astype(np.float64)
    weights = weights[weights.sum(1) > 0]
    found = resampled(scored, weights)
    for row, weight in enumerate(weights):
        want = exact(scored, weight)
        for name in FIGURES:
            np.testing.assert_allclose(found[name][row], want[name], atol=1e-12, err_msg=name)
    ones = resampled(scored, np.ones((1, images)))
    for name, values in exact(scored).items():
        np.testing.assert_allclose(ones[name][0], values, atol=1e-12, err_msg=name)


def test_the_bootstrap_draws_whole_groups() -> None:
    groups = np.array(list("aabbbc"))
    weights = draw(groups)
    assert weights.shape == (1000, 6)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 2] == weights[:, 4]).all()
    assert (weights[:, [0, 2, 5]].sum(1) == 3).all()  # as many groups as there are


def test_macro_is_the_mean_of_the_labels_that_have_images() -> None:
    truth, found = np.array([0, 0, 1, 1, 1, 0]), np.array([0, 1, 1, 1, 2, 0])
    scored = Scored(truth=truth, probabilities=np.eye(3, dtype=np.float32)[found], groups=np.array(list("abcdef")))
    r = report(scored, LABELS)
    assert list(r["per_label"]) == ["a", "b"]
    for name in FIGURES:
        mean = np.mean([row[name]["value"] for row in r["per_label"].values()])
        assert r["macro"][name]["value"] == pytest.approx(mean, abs=1e-4)
    assert r["confusion"] == [[2, 1, 0], [0, 2, 1], [0, 0, 0]]
    json.dumps(r, allow_nan=False)


def test_a_share_without_a_whole_is_not_defined() -> None:
    nothing = np.zeros(4)
    assert share(nothing, np.array(list("abcd")), nothing) is None
    assert figure(0.5, np.array([np.nan])) is None


def test_roc_curves_rise_within_their_band() -> None:
    scored = random_scored(1, 300)
    curves = roc(scored, LABELS)
    x = np.array(curves["false_positive_rate"])
    assert x[0] == 0
    assert x[-1] == 1
    assert len(x) <= 100
    for k, label in enumerate(LABELS):
        curve = {name: np.array(values) for name, values in curves["per_label"][label].items()}
        assert (np.diff(curve["sensitivity"]) >= 0).all()
        assert (curve["low"] <= curve["high"]).all()
        assert curve["sensitivity"][-1] == 1
        area = np.trapezoid(curve["sensitivity"], x)
        assert area == pytest.approx(exact(scored)["auc"][k], abs=0.02)


def test_a_label_without_images_has_no_curve() -> None:
    scored = Scored(
        truth=np.array([0, 1, 0, 1]), groups=np.array(list("abcd")),
        probabilities=np.eye(3, dtype=np.float32)[[0, 1, 1, 1]],
    )  # fmt: skip
    assert list(roc(scored, LABELS)["per_label"]) == ["a", "b"]
    assert confusion_shares(scored, LABELS)[2] == [None] * 3


def test_each_row_of_the_confusion_shares_is_one() -> None:
    rows = confusion_shares(random_scored(2, 200), LABELS)
    for row in rows:
        assert sum(cell["value"] for cell in row if cell) == pytest.approx(1, abs=2e-4)


def test_reliability_is_the_mean_distance_of_the_calibration_curve() -> None:
    scored = random_scored(3, 400)
    found = reliability(scored)
    right, said = calibration_curve(scored.hit, scored.probabilities.max(1), n_bins=10)
    n = np.array([row["images"] for row in found["bins"]])
    assert n.sum() == 400
    assert found["ece"]["value"] == pytest.approx(float(n @ np.abs(right - said) / 400), abs=1e-4)
    assert [row["confidence"] for row in found["bins"]] == pytest.approx(said.tolist(), abs=1e-4)


def test_a_calibrated_model_has_a_small_error_and_a_bold_one_a_large() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, 3)).astype(np.float32) * 2
    truth = np.array([rng.choice(3, p=p / p.sum()) for p in softmax(logits).astype(np.float64)])
    groups = np.arange(3000).astype(np.str_)
    calm, bold = (
        reliability(Scored(truth=truth, probabilities=softmax(logits / np.float32(t)), groups=groups))["ece"]
        for t in (1.0, 0.25)
    )
    assert calm["value"] < 0.03 < 0.1 < bold["value"]
    assert bold["low"] <= bold["value"] <= bold["high"]


def test_a_calibration_can_be_taken_back() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) * 3
    calibration = Calibration(temperature=2.5, offsets=(1.0, -0.4, -0.6))
    np.testing.assert_allclose(calibration.undo(calibration.apply(logits)), softmax(logits), atol=1e-5)
