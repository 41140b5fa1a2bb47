"""From a run to a bundle that loads, verifies, and whose card says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from engines.bundle import CARD, load_bundle
from engines.cpu import CpuEngine
from training.__main__ import app
from training.calibrate import fit_temperature, negative_log_likelihood, softmax, thresholds
from training.evaluate import frame_only
from training.fit import fit
from training.metrics import Scored, report, weighted_auc
from training.recipe import Recipe


@pytest.fixture(scope="module")
def run(recipe: Recipe, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(recipe, data, tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def folder(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    command = ["export", str(run), "--bundle", str(folder), "--data", str(data), "--version", "1.2.3"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return folder


def test_a_bundle_verifies_and_its_card_tells_the_truth(folder: Path) -> None:
    bundle = load_bundle(str(folder))
    assert bundle.manifest.version == "1.2.3"
    engine = CpuEngine(bundle)
    engine.activate()  # torch's golden outputs, onnxruntime's answers
    engine.deactivate()
    card = (folder / CARD).read_text()
    accuracy = bundle.manifest.metrics["test"]["accuracy"]
    assert f"Accuracy **{accuracy['value']:.3f} ({accuracy['low']:.3f} - {accuracy['high']:.3f})**" in card
    for words in ("Research use, not for diagnosis", "outside", "CC0", "shortcut", "outer tenth", "Make it again"):
        assert words in card


def test_one_command_makes_the_figures_again(folder: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    result = CliRunner().invoke(app, ["evaluate", "--bundle", str(folder), "--data", str(data), "--out", str(out)])
    assert result.exit_code == 0, result.output
    metrics = load_bundle(str(folder)).manifest.metrics
    figures = json.loads(out.read_text())
    assert figures == {k: v for k, v in metrics.items() if k != "engine"}


def test_a_run_evaluates_as_its_bundle_does(run: Path, folder: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    result = CliRunner().invoke(app, ["evaluate", str(run), "--data", str(data), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert (
        json.loads(out.read_text())["test"]["confusion"]
        == load_bundle(str(folder)).manifest.metrics["test"]["confusion"]
    )


def test_evaluate_wants_one_thing() -> None:
    assert CliRunner().invoke(app, ["evaluate"]).exit_code == 2


def test_figures_of_a_known_confusion() -> None:
    truth = np.array([0, 0, 0, 1, 1, 2])
    found = np.array([0, 0, 1, 1, 1, 0])
    scored = Scored(truth=truth, probabilities=np.eye(3, dtype=np.float32)[found], groups=np.array(list("abcdef")))
    r = report(scored, ["a", "b", "c"])
    a = {k: v["value"] for k, v in r["per_label"]["a"].items() if isinstance(v, dict)}
    assert r["accuracy"]["value"] == pytest.approx(4 / 6, abs=1e-4)
    assert (a["precision"], a["recall"], a["specificity"]) == pytest.approx((2 / 3, 2 / 3, 2 / 3), abs=1e-4)
    assert a["f1"] == pytest.approx(2 / 3, abs=1e-4)
    assert r["accuracy"]["low"] < r["accuracy"]["value"] < r["accuracy"]["high"]
    assert r["per_label"]["c"]["precision"] is None  # never said


def test_intervals_are_of_groups_not_images() -> None:
    """The same image a hundred times is one patient: the interval must not shrink."""
    truth, found = np.tile([0, 1, 0, 1], 100), np.tile([0, 1, 1, 1], 100)
    p = np.eye(2, dtype=np.float32)[found]
    alone = Scored(truth=truth, probabilities=p, groups=np.array([str(i) for i in range(400)]))
    grouped = Scored(truth=truth, probabilities=p, groups=np.tile(list("abcd"), 100))
    widths = []
    for scored in (alone, grouped):
        accuracy = report(scored, ["a", "b"])["accuracy"]
        widths.append(accuracy["high"] - accuracy["low"])
    assert widths[1] > 4 * widths[0]


def test_temperature_repairs_confidence() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, 3)).astype(np.float32)
    truth = np.array([rng.choice(3, p=p / p.sum()) for p in softmax(logits).astype(float)])
    assert fit_temperature(3 * logits, truth) == pytest.approx(3, rel=0.1)
    assert negative_log_likelihood(3 * logits, truth, 3) < negative_log_likelihood(3 * logits, truth)


def test_thresholds_stay_on_their_side() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(40).astype(np.float32)
        present, absent = thresholds(p, rng.random(40) < 0.3)
        assert 0.05 <= absent <= 0.5 <= present <= 0.9


def test_the_border_control_shows_no_lung() -> None:
    x = np.random.default_rng(0).random((100, 80)).astype(np.float32)
    y = frame_only(x)
    assert len(np.unique(y[10:90, 8:72])) == 1
    np.testing.assert_array_equal(y[:10], x[:10])
    np.testing.assert_array_equal(y[:, 72:], x[:, 72:])


def test_the_weighted_area_equals_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    score = np.asarray(rng.integers(0, 12, 80) / 12, np.float32)  # many ties
    is_label = rng.random(80) < 0.4
    weights = rng.integers(0, 4, (5, 80)).astype(np.float64)
    want = [roc_auc_score(is_label, score, sample_weight=w) for w in weights]
    np.testing.assert_allclose(weighted_auc(is_label, score, weights), np.array(want))
