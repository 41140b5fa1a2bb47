"""From a run to a bundle that loads, verifies, and whose card says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from engines.bundle import CARD, MODEL, load_bundle
from engines.cpu import CpuEngine
from training.bundle import Form, check_size, describe_architecture, describe_split, export_run
from training.calibrate import balanced_loss, fit_calibration, softmax, thresholds
from training.checkpoint import load_run
from training.command import app
from training.fit import fit
from training.metrics import Scored, report
from training.models.network import make_network
from training.recipe import DataSpec, Recipe, RecipeError, load_recipe
from training.rows import Row


def invoke(*command: str) -> str:
    """What `python -m training` printed."""
    result = CliRunner().invoke(app, list(command))
    assert result.exit_code == 0, result.output
    return result.output


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
    said = invoke("evaluate", "--bundle", str(folder), "--data", str(data), "--out", str(tmp_path))
    metrics = load_bundle(str(folder)).manifest.metrics
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {k: figures[k] for k in metrics if k != "engine"} == {k: v for k, v in metrics.items() if k != "engine"}
    assert f"accuracy {metrics['test']['accuracy']['value']:.3f}" in said


def test_a_run_evaluates_as_its_bundle_does(run: Path, folder: Path, data: Path, tmp_path: Path) -> None:
    invoke("evaluate", str(run), "--data", str(data), "--out", str(tmp_path), "--no-baseline")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["test"]["confusion"] == load_bundle(str(folder)).manifest.metrics["test"]["confusion"]


def test_half_is_of_the_rounded_network_from_the_golden_outputs_on(
    run: Path, folder: Path, data: Path, tmp_path: Path
) -> None:
    """The tiny network has no weight worth storing in half: all are taken."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr("training.half._LARGE", 1)
        half = tmp_path / "half"
        invoke("export", str(run), "--bundle", str(half), "--data", str(data), "--half")
    one, other = load_bundle(str(folder)), load_bundle(str(half))
    assert "float16" in other.manifest.architecture
    assert "float16" not in one.manifest.architecture
    assert other.manifest.data["export"] == "--half"
    engine = CpuEngine(other)
    engine.activate()  # against torch's outputs of the rounded network, which are not those of the other
    engine.deactivate()
    assert not np.array_equal(one.golden().output.probabilities, other.golden().output.probabilities)


def test_one_snapshot_of_an_ensemble(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    spec = recipe.fit.model_copy(update={"epochs": 2, "cycles": 2, "schedule": "snapshot", "ema": 0.0})
    run = fit(recipe.model_copy(update={"fit": spec}), data, tmp_path / "run")
    for member, words in ((None, "ensemble of 2 snapshots, the mean of their softmax"), (2, "timm:test_efficientnet")):
        options = ["--member", str(member)] if member else []
        target = tmp_path / f"bundle-{member}".lower()
        invoke("export", str(run), "--bundle", str(target), "--data", str(data), *options)
        bundle = load_bundle(str(target))
        assert bundle.manifest.architecture.startswith(words)
        assert bundle.manifest.data["export"] == " ".join(options)
        model = load_run(run, member=member)[1]
        with torch.no_grad():
            logits = model(torch.from_numpy(bundle.golden().batch))
        temperature, offsets = (bundle.manifest.calibration[name] for name in ("temperature", "offsets"))
        want = ((logits + torch.tensor(offsets)) / temperature).softmax(-1).numpy()
        np.testing.assert_allclose(bundle.golden().output.probabilities, want, atol=1e-6)


def test_a_network_that_is_no_ensemble_has_no_members(run: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is no ensemble"):
        export_run(run, data, tmp_path / "b", version="1", form=Form(member=1))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("mib", "half", "members", "advice"),
    [
        (100, False, 1, "with --half \\(about 50 MiB\\)$"),
        (47, True, 1, None),
        (90, True, 3, "with --member K \\(about 30 MiB\\)$"),
        (270, False, 3, "with --half --member K \\(about 45 MiB\\)$"),
        (150, False, 3, "with --member K \\(about 50 MiB\\) or --half --member K \\(about 25 MiB\\)$"),
        (500, False, 1, "neither --half nor --member would be enough"),
        (70, True, 1, "neither --half nor --member would be enough"),
    ],
)
def test_a_bundle_too_large_says_what_helps(
    tmp_path: Path, mib: int, half: bool, members: int, advice: str | None
) -> None:
    with (tmp_path / MODEL).open("wb") as f:
        f.truncate(mib * 2**20)  # a hole: no room is taken
    if advice is None:
        check_size(tmp_path, half=half, members=members)
        return
    with pytest.raises(RecipeError, match=advice):
        check_size(tmp_path, half=half, members=members)


def test_too_large_a_bundle_replaces_nothing(run: Path, folder: Path, data: Path, tmp_path: Path) -> None:
    before = (folder / MODEL).read_bytes()
    with pytest.MonkeyPatch.context() as m:
        m.setattr("training.bundle._LARGEST", 1000)
        with pytest.raises(RecipeError, match="are allowed"):
            export_run(run, data, folder, version="2.0.0")
    assert (folder / MODEL).read_bytes() == before


def test_the_architecture_in_words() -> None:
    for name, words in (
        ("resnet50-snapshot", "torchvision:resnet50, average pooling, dropout, 128 ReLU, dropout, softmax of 3"),
        ("vgg19-rnn", "torchvision:vgg19, LSTM of 512 units over the last map's places, dropout, 64 ReLU"),
    ):
        recipe = load_recipe(name)
        with torch.device("meta"):
            network = make_network(recipe, weights=False)
        assert describe_architecture(recipe, network).startswith(words)


def rows_of(*parts: str) -> list[Row]:
    """A row a part, each of its own group."""
    return [
        Row(image=f"{k}", path=Path(f"{k}"), label="a", source="here", group=f"g{k}", part=part)
        for k, part in enumerate(parts)
    ]


def test_the_split_in_words() -> None:
    assert describe_split(DataSpec(), rows_of("")).startswith("80/10/10 by sha256 of the split_seed 7 and")
    assert describe_split(DataSpec(test_tenths=2), rows_of("")).startswith("70/10/20 by")
    folds = describe_split(DataSpec(test_tenths=2, folds=5, fold=4), rows_of(""))
    assert folds.startswith("20 % test")
    assert "fold 4 of 5" in folds


def test_a_split_that_the_data_give_is_told_as_such() -> None:
    rows = rows_of("train", "validation", "test")
    given = describe_split(DataSpec(), rows)
    assert given.startswith("as the data's column part says; whole")
    assert "sha256" not in given
    assert describe_split(DataSpec(), rows_of("train", "", "test", "")).startswith(
        "as the data's column part says for 2 of 4 images, the others 80/10/10 by sha256"
    )
    folds = describe_split(DataSpec(folds=5, fold=0), rows)
    assert folds.startswith("test part as the data's column part says; of the rest, fold 0 of 5")
    outside = DataSpec(external=("here",))  # what the column says of it does not count
    assert describe_split(outside, rows).startswith("80/10/10 by")


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


def test_calibration_repairs_confidence_and_what_is_said_too_seldom() -> None:
    """Of logits that are three times too bold, and of a label said too seldom; however rare a label is."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(9000, 3)).astype(np.float32)
    truth = np.array([rng.choice(3, p=p / p.sum()) for p in softmax(logits).astype(float)])
    kept = (truth != 0) | (rng.random(len(truth)) < 0.2)
    bold, rare = 3 * logits[kept] - np.array([1.2, 0, 0], np.float32), truth[kept]
    found = fit_calibration(bold, rare)
    assert found.temperature == pytest.approx(3, rel=0.1)
    assert found.offsets == pytest.approx((0.8, -0.4, -0.4), abs=0.2)
    assert balanced_loss(bold, rare, found) < balanced_loss(bold, rare)


def test_a_calibration_of_a_few_images_stays_within_bounds() -> None:
    found = fit_calibration(np.array([[9, 0, 0], [0, 9, 0]], np.float32), np.array([0, 1]))
    assert 0.3 <= found.temperature <= 5
    assert max(map(abs, found.offsets)) <= 4


def test_thresholds_stay_on_their_side() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(40).astype(np.float32)
        present, absent = thresholds(p, rng.random(40) < 0.3)
        assert 0.05 <= absent <= 0.5 <= present <= 0.9
