"""One command: a page that needs nothing beside it, and a file with every figure."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from engines.bundle import load_bundle
from training import datasets
from training.assess import assess_run
from training.card import write_card
from training.command import app
from training.datasets import Part, Sample, load_index, select
from training.fit import fit
from training.recipe import Recipe, RecipeError
from training.report import HTML, JSON, mixes, render, summary, write_report

_EMPTY = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Its tags, checked to be closed in order, its pictures and its words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.words = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        if tag == "img":
            self.pictures.append(dict(attrs))
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def run(recipe: Recipe, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of two snapshots, at a size where a map has nine places."""
    spec = recipe.fit.model_copy(update={"epochs": 2, "cycles": 2, "schedule": "snapshot", "ema": 0.0})
    shape = recipe.input.model_copy(update={"rows": 96, "columns": 96})
    changed = recipe.model_copy(update={"fit": spec, "input": shape})
    return fit(changed, data, tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def output(run: Path, data: Path) -> str:
    result = CliRunner().invoke(app, ["evaluate", str(run), "--data", str(data)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def figures(run: Path, output: str) -> dict[str, Any]:
    return dict(json.loads((run / JSON).read_text()))


def test_the_page_needs_nothing_beside_it(run: Path, output: str) -> None:
    html = (run / HTML).read_text()
    page = Page(html)
    assert len(page.pictures) == 8
    assert all((p["src"] or "").startswith("data:image/svg+xml;base64,") and p["alt"] for p in page.pictures)
    assert "http" not in html.replace("http-equiv", "")
    for words in (
        "Research use, not for diagnosis", "The shortcut: age and source", "Adults alone", "Hospitals that no fit saw",
        "Border only", "Random weights", "Calibration", "Thresholds", "Learning curves", "Snapshots", "Adebayo",
    ):  # fmt: skip
        assert words in page.words, words
    assert str(run / HTML) in output.replace("\n", "")


def test_the_page_can_be_made_again_from_the_file(run: Path, figures: dict[str, Any]) -> None:
    html = render(figures)
    assert html == (run / HTML).read_text()
    page = Page(html)
    for part in ("test", "test_adults", "external", "border_only", "random_baseline"):
        f = figures[part]["accuracy"]
        assert f"{f['value']:.3f} ({f['low']:.3f} to {f['high']:.3f})" in page.words
    assert [row["member"] for row in figures["members"]] == [1, 2]
    assert [row["epoch"] for row in figures["curves"]] == [1, 2]
    assert set(figures["calibration"]) == {"temperature", "offsets", "validation", "test"}


def test_the_same_run_gives_the_same_report(run: Path, data: Path, figures: dict[str, Any]) -> None:
    again = assess_run(run, data, baseline=False)
    assert again == figures | {"random_baseline": None}
    page = Page(render(again))
    assert "Random weights" not in page.words


def test_names_are_escaped(figures: dict[str, Any]) -> None:
    hostile = figures | {"about": {"name": "<script>alert(1)</script>", "description": "<b>"}}
    assert "<script>" not in render(hostile)


def test_a_folder_that_cannot_be_made(figures: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="give another folder with --out"):
        write_report(figures, tmp_path / "file")


def test_mixes_names_the_share_of_children_and_the_commonest_source() -> None:
    parts = {"train": 6, "validation": 1, "test": 1, "external": 0}
    rows = [
        {"label": "covid", "source": "a", "children": False, **parts},
        {"label": "viral", "source": "b", "children": True, **parts},
        {"label": "viral", "source": "a", "children": False, **parts, "train": 0},
    ]
    covid, viral = mixes(rows)
    assert covid == {"label": "covid", "images": 8, "children": 0, "source": "a", "share": 1}
    assert (viral["images"], viral["children"], viral["source"]) == (10, 0.8, "b")


def test_a_bundle_of_an_older_format_still_shows() -> None:
    """Shipped before there were macro figures, curves and calibration errors."""
    manifest = load_bundle("cxr3-lite2").manifest
    older = manifest.model_copy(
        update={"metrics": {k: manifest.metrics[k] for k in ("test", "test_adults", "by_source", "border_only")}}
    )
    lines = summary(older.metrics)
    assert lines[0].startswith("test (")
    assert "Adults only" in write_card(older)


def test_evaluate_wants_one_thing(data: Path) -> None:
    for arguments in ([], ["run", "--bundle", "cxr3-lite2"]):
        assert CliRunner().invoke(app, ["evaluate", *arguments, "--data", str(data)]).exit_code == 2


def test_a_validation_image_is_read_and_predicted_once(
    run: Path, data: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the calibration and for its figures."""
    read, real = Counter[str](), datasets.read_image

    def counted(data: Path, sample: Sample) -> npt.NDArray[np.uint8]:
        read[sample.image] += 1
        return real(data, sample)

    monkeypatch.setattr(datasets, "read_image", counted)
    assess_run(run, data, baseline=False)
    held = select(load_index(data, recipe.data), Part.VALIDATION, recipe.label_names)
    assert held
    assert {read[sample.image] for sample in held} == {1}
