"""What is measured is what it says: on which images, of which model, against which control."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from engines.base import FloatArray
from engines.bundle import InputShape
from engines.cpu import CpuEngine
from tests.support.bundles import make_bundle
from training.assess import composition
from training.calibrate import Calibration, softmax
from training.controls import _all_random, _likeness, _random_network, _with_new_head, random_baseline, randomised_maps
from training.datasets import Part, load_index, select
from training.evaluate import Subject, evaluate, subject_of_bundle
from training.models.network import Ensemble, Network, make_network
from training.recipe import Recipe, RecipeError

LABELS = ("covid", "viral", "normal")
Reads = Callable[[FloatArray], list[float]]


def subject_of(recipe: Recipe, reads: Reads) -> Subject:
    """A model whose logits of an image are what `reads` says."""
    return Subject(
        predict=lambda images: softmax(np.array([reads(image) for image in images], np.float32)),
        labels=LABELS, data=recipe.data, thresholds=((0.5, 0.2),) * 3,
    )  # fmt: skip


def brightness(image: FloatArray) -> list[float]:
    """The fixture's labels are 60, 120 and 180 of 255."""
    return [-1000 * (float(image.mean()) - level / 255) ** 2 for level in (60, 120, 180)]


def test_a_model_that_reads_the_label_is_right_everywhere(recipe: Recipe, data: Path) -> None:
    figures = evaluate(subject_of(recipe, brightness), data)
    samples = load_index(data, recipe.data)
    assert figures["test"]["images"] == len(select(samples, Part.TEST, LABELS))
    assert figures["external"]["images"] == 48
    assert {row["source"] for row in figures["external_by_source"]} == {"outside"}
    assert {row["source"] for row in figures["by_source"]} == {"kaggle_kermany", "elsewhere"}
    assert figures["test_adults"]["images"] < figures["test"]["images"]
    for part in ("test", "test_adults", "external", "border_only"):
        assert figures[part]["accuracy"] == {"value": 1, "low": 1, "high": 1}
        assert all(f["value"] == 1 for f in figures[part]["macro"].values())
    for row in figures["thresholds"].values():
        assert row["right_where_present"]["value"] == 1
        assert row["missed"]["value"] == row["undetermined"]["value"] == 0
    json.dumps(figures, allow_nan=False)


def test_the_border_control_hides_the_middle(recipe: Recipe, data: Path) -> None:
    def middle(image: FloatArray) -> list[float]:
        part = image[10:-10, 10:-10]
        return brightness(part) if np.ptp(part) else [1.0, 0.0, 0.0]

    figures = evaluate(subject_of(recipe, middle), data)
    assert figures["test"]["accuracy"]["value"] == 1
    assert figures["border_only"]["per_label"]["covid"]["recall"]["value"] == 1
    assert figures["border_only"]["per_label"]["viral"]["recall"]["value"] == 0


def test_calibration_shows_what_the_temperature_did(recipe: Recipe, data: Path) -> None:
    """A model that always says 0.995 and is right once in three: a temperature brings it down, no class changes."""
    cooling = Calibration(temperature=8, offsets=(0, 0, 0))

    def cooled(images: list[FloatArray]) -> FloatArray:
        return cooling.apply(np.array([[6.0, 0.0, 0.0] for _ in images], np.float32))

    figures = evaluate(Subject(predict=cooled, labels=LABELS, data=recipe.data, calibration=cooling), data)
    for part in ("validation", "test"):
        before, after = (figures["calibration"][part][name] for name in ("before", "after"))
        (bold,), (calm,) = before["bins"], after["bins"]
        assert bold["confidence"] == pytest.approx(float(softmax(np.array([[6.0, 0, 0]]))[0, 0]), abs=1e-4)
        assert bold["accuracy"] == calm["accuracy"]
        assert before["ece"]["value"] == pytest.approx(bold["confidence"] - bold["accuracy"], abs=2e-4)
        assert after["ece"]["value"] < before["ece"]["value"] / 2


def test_no_test_image_is_an_error(recipe: Recipe, data: Path) -> None:
    subject = subject_of(recipe, brightness)
    with pytest.raises(RecipeError, match=r"test part of .*data\d* has no image labelled cat \(but covid, .*\): is it"):
        evaluate(Subject(predict=subject.predict, labels=("cat",), data=recipe.data), data)


@pytest.mark.parametrize(
    ("data", "calibration", "lines"),
    [
        ({}, {}, ["bundle cxr3-test does not say how its data was split: evaluate its run instead"]),
        (
            {"split": {"test_tenth": 1, "folds": "many"}},
            {},
            [
                "bundle cxr3-test does not say how its data was split in a way that this version knows: evaluate its "
                "run instead, or the bundle with the version that made it",
                '  folds = "many": should be a valid integer, unable to parse string as an integer',
                "  test_tenth = 1: unknown key; did you mean test_tenths?",
            ],
        ),
        (
            {"split": {}},
            {"temperature": "hot", "offsets": [1, None]},
            [
                "bundle cxr3-test does not say how it was calibrated in a way that this version knows: evaluate its "
                "run instead, or the bundle with the version that made it",
                '  temperature = "hot": should be a valid number, unable to parse string as a number',
                "  offsets[1]: should be a valid number",
            ],
        ),
    ],
)
def test_a_manifest_that_is_of_no_use_is_told_in_words(
    data: dict[str, Any], calibration: dict[str, Any], lines: list[str]
) -> None:
    bundle = make_bundle()
    manifest = bundle.manifest.model_copy(update={"data": data, "calibration": calibration})
    with pytest.raises(RecipeError) as caught:
        subject_of_bundle(replace(bundle, manifest=manifest), CpuEngine(bundle))
    assert str(caught.value).splitlines() == lines


def test_composition_counts_every_image_once(recipe: Recipe, data: Path) -> None:
    rows = composition(data, recipe.data, LABELS)
    assert sum(row[part.value] for row in rows for part in Part) == 144
    assert {row["source"] for row in rows if row["children"]} == {"kaggle_kermany"}
    assert all(row["external"] == 0 for row in rows if row["source"] != "outside")


# --- controls -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def striped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 images of 96x96 whose label shows in the stripes' width and whose place differs."""
    folder = tmp_path_factory.mktemp("striped")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    with (folder / "index.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["image", "label", "source", "group", "age", "license"])
        for i in range(90):
            x, y = np.meshgrid(np.arange(96), np.arange(96))
            stripes = 40 * np.sin(2 * np.pi * (x + rng.uniform(0, 40)) / (4, 10, 25)[i % 3])
            spot = 80 * np.exp(-((x - rng.uniform(20, 76)) ** 2 + (y - rng.uniform(20, 76)) ** 2) / 200)
            picture = (100 + stripes + spot + rng.normal(0, 10, x.shape)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / "images" / f"{i}.png"), picture)
            writer.writerow([f"{i}.png", LABELS[i % 3], "here", f"g{i}", "", "CC0"])
    return folder


@pytest.fixture(scope="module")
def large(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"input": InputShape(channels=3, rows=96, columns=96)})


def test_random_weights_tell_textures_apart(large: Recipe, striped: Path, tmp_path: Path) -> None:
    """The very reason for the control: nothing was learned, and it is nearly always right."""
    one = random_baseline(large, striped, tmp_path)
    assert one["images"] == len(select(load_index(striped, large.data), Part.TEST, LABELS))
    assert one["accuracy"]["value"] > 0.8
    assert random_baseline(large, striped, tmp_path) == one


def test_random_weights_tell_sizes_apart(large: Recipe, tmp_path: Path) -> None:
    """As of children and adults, the shortcut that the control is to show."""
    (tmp_path / "images").mkdir()
    rng, lines = np.random.default_rng(0), ["image,label,source,group,age"]
    x, y = np.meshgrid(np.arange(96), np.arange(96))
    for i in range(90):
        far = np.hypot(x - rng.uniform(44, 52), y - rng.uniform(44, 52))
        picture = 128 + 60 * (far < (26, 32, 38)[i % 3]) + rng.normal(0, 40, x.shape)
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), picture.clip(0, 255).astype(np.uint8))
        lines.append(f"{i}.png,{LABELS[i % 3]},here,g{i},")
    (tmp_path / "index.csv").write_text("\n".join(lines))
    assert random_baseline(large, tmp_path, tmp_path / "cache")["accuracy"]["value"] > 0.9


def test_only_the_head_or_all_of_it_is_random(large: Recipe) -> None:
    images = np.random.default_rng(0).integers(0, 255, (8, 96, 96), dtype=np.uint8)
    model = make_network(large)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    head, whole = _with_new_head(model, large).state_dict(), _all_random(model, large, images).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert torch.equal(value, head[name]) == name.startswith("trunk."), name
    for name in ("trunk.conv_stem.weight", "head.a.weight", "head.b.weight"):
        assert not torch.equal(before[name], whole[name])
    both = Ensemble([make_network(large), make_network(large)])
    for changed in (_with_new_head(both, large), _all_random(both, large, images)):
        assert isinstance(changed, Ensemble)
        one, other = (m for m in changed.members if isinstance(m, Network))
        assert not torch.equal(one.head.a.weight, other.head.a.weight)


def test_maps_of_a_network_are_unlike_those_of_random_weights(large: Recipe, striped: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (8, 96, 96), dtype=np.uint8)
    found = randomised_maps(large, _random_network(large, images, 0), striped, tmp_path)
    assert [e["label"] for e in found["examples"]] == list(LABELS)
    for stage in found["stages"].values():
        assert stage["compared"] <= found["images"]
        if stage["compared"]:
            assert stage["rank_correlation"]["value"] < 0.9
    json.dumps(found, allow_nan=False)


def test_a_map_is_like_itself_and_a_blank_one_is_not_compared(large: Recipe) -> None:
    maps = np.random.default_rng(0).random((5, 3, 3)).astype(np.float32)
    groups = np.array(list("abcde"))
    same = _likeness(maps, 7 * maps, groups, large)
    assert same["rank_correlation"]["value"] == pytest.approx(1)
    assert same["structural_similarity"]["value"] == pytest.approx(1)
    reverse = _likeness(maps, 1 - maps, groups, large)
    assert reverse["rank_correlation"]["value"] == pytest.approx(-1)
    blank = np.concatenate([np.zeros((1, 3, 3), np.float32), maps[1:]])
    assert _likeness(maps, blank, groups, large)["compared"] == 4
    assert _likeness(maps, 0 * maps, groups, large) == {
        "compared": 0, "rank_correlation": None, "structural_similarity": None,
    }  # fmt: skip
