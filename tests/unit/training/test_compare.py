"""The table of paper 2 from what the runs hold, and a paper's figures beside ours."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from typer.testing import CliRunner

from training import reproduce as module
from training.checkpoint import CHECKPOINT, CURVES, RECIPE, read_curves
from training.command import app
from training.compare import Row, comparison, find_folds, read_rows, write_comparison
from training.pages import html, table
from training.papers import PAPERS, Claim
from training.recipe import Recipe, RecipeError, load_recipe
from training.report import JSON
from training.reproduce import changed, one_against_rest, ours, reproduce

SMALL = [
    "input.rows=32", "input.columns=32", "model.trunk=timm:test_efficientnet", "model.weights=none", "model.hidden=8",
    "fit.epochs=3", "fit.batch_size=8", "data.split_seed=107", 'data.external=["outside"]',
]  # fmt: skip


def figure_of(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


def figures_of_test(accuracy: float) -> dict[str, Any]:
    label = {"n": 4} | {m: figure_of(accuracy) for m in ("precision", "recall", "specificity", "f1", "auc")}
    return {
        "images": 12, "accuracy": figure_of(accuracy), "per_label": dict.fromkeys(("covid", "viral", "normal"), label),
        "confusion": [[4, 0, 0], [1, 3, 0], [0, 0, 4]],
    }  # fmt: skip


def make_run(folder: Path, recipe: Recipe, accuracy: float, *, seconds: float = 10.0) -> Path:
    """What the command reads of a run, without the weights."""
    folder.mkdir(parents=True)
    (folder / RECIPE).write_text(recipe.model_dump_json())
    (folder / CHECKPOINT).touch()
    (folder / JSON).write_text(json.dumps({"test": figures_of_test(accuracy)}))
    rows = "".join(f"{k},0.9,0.8,{seconds}\n" for k in (1, 2, 3))
    (folder / CURVES).write_text(f"epoch,accuracy,validation_accuracy,seconds\n{rows}")
    return folder


def folded(fold: int) -> Recipe:
    return load_recipe("vgg19-rnn", [f"data.fold={fold}", "model.weights=none", "model.frozen=true"])


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three folds of one recipe, and another network."""
    made = [make_run(tmp_path / f"vgg-{k}", folded(k), 0.9 + k / 100) for k in range(3)]
    return [*made, make_run(tmp_path / "resnet", load_recipe("resnet50-snapshot"), 0.85, seconds=2)]


def test_the_command_prints_figures_time_start_and_folds(runs: list[Path], tmp_path: Path) -> None:
    for suffix in ("md", "html", "json"):
        out = tmp_path / f"table.{suffix}"
        result = CliRunner().invoke(app, ["compare", *map(str, runs), "--out", str(out)])
        assert result.exit_code == 0, result.output
    lines = {
        line.split(" | ")[0].strip("| "): line
        for line in result.output.splitlines()
        if "of 150" in line or "of 60" in line
    }
    for words in (
        "vgg19 + LSTM",
        "0.920 (0.900 to 0.940)",
        "| 10 | 0.5 | 3 of 150 |",
        "random, trunk not fitted",
        "224x224",
    ):
        assert words in lines["vgg-2"]
    for words in ("resnet50", "| 2 | 0.1 | 3 of 60 |", "ImageNet", "100x100", "23.8 M"):
        assert words in lines["resnet"]
    assert "The greatest accuracy has `vgg-2`" in result.output
    assert "not all tested on the same images" in result.output
    page = (tmp_path / "table.html").read_text()
    assert page.count("<table>") == 3
    assert "Research use, not for diagnosis" in page
    data = json.loads((tmp_path / "table.json").read_text())
    assert [row["run"] for row in data["runs"]] == ["vgg-0", "vgg-1", "vgg-2", "resnet"]
    assert data["runs"][3]["test"]["per_label"]["covid"]["auc"] == figure_of(0.85)


def test_folds_are_mean_and_deviation(runs: list[Path]) -> None:
    (folds,) = find_folds(read_rows(runs))
    assert [row.name for row in folds.rows] == ["vgg-0", "vgg-1", "vgg-2"]
    values = [0.9, 0.91, 0.92]
    assert folds.spread() == pytest.approx((fmean(values), stdev(values)))
    assert folds.spread("covid", "recall") == pytest.approx((fmean(values), stdev(values)))
    assert "0.910 ± 0.010" in comparison(read_rows(runs))


def test_other_recipes_are_no_folds(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a", folded(0), 0.9)
    other = make_run(tmp_path / "b", load_recipe("vgg19-rnn", ["data.fold=1", "fit.seed=1"]), 0.9)
    again = make_run(tmp_path / "c", folded(0), 0.9)
    assert find_folds(read_rows([one, other, again])) == []


def test_a_run_that_was_not_evaluated_is_named(runs: list[Path], tmp_path: Path) -> None:
    (runs[1] / JSON).unlink()
    with pytest.raises(RecipeError, match=f"evaluate {runs[1]}"):
        read_rows(runs)
    with pytest.raises(RecipeError, match=r"ends in \.md, \.html, \.json"):
        write_comparison(read_rows(runs[:1]), tmp_path / "table.csv")


def test_a_cell_cannot_break_the_table() -> None:
    page = html("<t>", table(["a"], [("x | <b>y",)]))
    assert "x / &lt;b&gt;y" in page
    assert "&lt;t&gt;" in page


def test_accuracy_against_the_rest() -> None:
    """Paper 2's own figures for VGG19: one of 463 missed, one false, 1388 images."""
    assert one_against_rest([[462, 1, 0], [1, 462, 0], [0, 0, 462]], 0) == pytest.approx(1 - 2 / 1388)
    assert one_against_rest([[4, 0, 0], [1, 3, 0], [0, 0, 4]], 2) == 1


def row_of(recipe: Recipe) -> Row:
    curves = [{"accuracy": 0.9, "validation_accuracy": 0.8, "seconds": 1.0}]
    return Row(name="row", recipe=recipe, test=figures_of_test(0.9), curves=curves, members=1, parameters=1)


def test_each_claim_has_a_figure_of_ours() -> None:
    for paper in PAPERS.values():
        rows = {name: row_of(load_recipe(name, paper.changes)) for name in paper.recipes}
        for claim in paper.claims:
            row = rows[claim.recipe]
            assert 0.9 < claim.value <= 1
            assert ours(claim, row) is not None
            assert claim.label in (None, *row.recipe.label_names)
        assert all(set(paper.images) == set(row.recipe.label_names) for row in rows.values())
    row = row_of(load_recipe("vgg19-rnn"))
    assert ours(Claim(recipe="vgg19-rnn", metric="validation_accuracy", value=1), row) == {"value": 0.8}
    assert ours(Claim(recipe="vgg19-rnn", label="covid", metric="recall", value=1), row) == figure_of(0.9)


def test_only_what_differs_is_told() -> None:
    paper, here = load_recipe("vgg19-rnn"), load_recipe("vgg19-rnn", ["fit.epochs=30", "model.weights=none"])
    assert set(changed(paper, here)) == {("fit.epochs", 150, 30), ("model.weights", "imagenet", "none")}
    assert changed(paper, paper) == []


def test_paper_1_is_fitted_evaluated_and_set_beside(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [argument for change in SMALL for argument in ("--set", change)]
    command = ["reproduce", "paper1", "--data", str(data), "--runs", str(tmp_path), "--device", "cpu", *changes]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "paper1.md").read_text()
    for words in (
        "| resnet50-snapshot | precision, covid | 1 |", "| images of covid | 219 | 32 |", "| epochs planned | 60 | 3 |",
        "| weights at the start | imagenet | none |", "| input height | 100 | 32 |", "kaggle_kermany 16",
        "3 snapshots of test_efficientnet", "--set 'fit.epochs=3'", "none in two parts",
    ):  # fmt: skip
        assert words in text
    assert "images of a class, at most" not in text  # the paper's own
    assert "<table>" in (tmp_path / "paper1.html").read_text()
    with monkeypatch.context() as m:  # what is finished is taken
        for name in ("fit", "assess_run"):
            m.setattr(module, name, lambda *_, **__: pytest.fail("was done before"))
        reproduce("paper1", data, tmp_path, changes=SMALL)
    assert (tmp_path / "paper1.md").read_text() == text
    with pytest.raises(RecipeError, match="another recipe"):
        reproduce("paper1", data, tmp_path, changes=[*SMALL, "fit.seed=1"])


@pytest.mark.slow  # four networks, four reports
def test_paper_2_is_fitted_evaluated_and_set_beside(data: Path, tmp_path: Path) -> None:
    """As its recipes say for machines without a GPU: frozen trunks of random weights; here tiny, and one fold."""
    more = ["fit.epochs=1", "model.frozen=true", "model.units=4", "data.fold=0"]
    changes = [argument for change in [*SMALL, *more] for argument in ("--set", change)]
    command = ["reproduce", "paper2", "--data", str(data), "--runs", str(tmp_path), "--device", "cpu", *changes]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "paper2.md").read_text()
    for name in PAPERS["paper2"].recipes:
        assert f"### {name}\n" in text
        assert len(read_curves(tmp_path / name)) == 1
    for words in (
        "| vgg19-rnn | accuracy, covid against the rest | 0.9985 |",
        "| inceptionv3-rnn | validation accuracy | 0.9491 |",
        "| densenet121-rnn | accuracy | not at hand |", "| images of pneumonia | 2313 | 32 |",
        "| epochs planned | 150 | 1 |", "| trunk stays as it is | no | yes |", "| fold that validates | none | 0 |",
        "test_efficientnet + LSTM", "random, trunk not fitted",
    ):  # fmt: skip
        assert words in text
    assert "<table>" in (tmp_path / "paper2.html").read_text()


def test_no_such_paper(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="give one of paper1, paper2"):
        reproduce("paper3", data, tmp_path)


def test_parameters_are_of_the_network(tmp_path: Path) -> None:
    (row,) = read_rows([make_run(tmp_path / "vgg", folded(0), 0.9)])
    assert isinstance(row, Row)
    lstm = 4 * 512 * (512 + 512 + 2)
    trunk = 20_024_384  # torchvision's VGG19 without its classifier
    assert row.parameters == trunk + lstm + 512 * 64 + 64 + 64 * 3 + 3
