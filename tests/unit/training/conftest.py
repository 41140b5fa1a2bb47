"""A tiny labelled data set and a tiny recipe, made on the spot."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from typer.testing import CliRunner  # noqa: E402

from training.command import app  # noqa: E402
from training.fit import fit  # noqa: E402
from training.recipe import Recipe, load_recipe  # noqa: E402

LABELS = ("covid", "viral", "normal")
SOURCES = ("kaggle_kermany", "elsewhere", "outside")  # children, adults, a hospital that no fit sees


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """The networks are tiny, and one thread makes every sum the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """144 images of 40x40: 3 labels, 3 sources, two images a group; the label shows in the brightness."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    with (folder / "index.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["image", "label", "source", "group", "age", "license"])
        for i in range(144):
            label, source = LABELS[i // 2 % 3], SOURCES[i // 6 % 3]
            picture = rng.normal(60 + 60 * LABELS.index(label), 20, (40, 40)).clip(0, 255)
            cv2.imwrite(str(folder / "images" / f"{i}.jpg"), picture.astype(np.uint8))
            writer.writerow([f"{i}.jpg", label, source, f"g{i // 2}", "50" if i % 4 else "", "CC0"])
    return folder


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return load_recipe(str(Path(__file__).with_name("tiny.toml")))


@pytest.fixture(scope="session")
def run(recipe: Recipe, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(recipe, data, tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def folder(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's bundle; copy it to change it."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    command = ["export", str(run), "--bundle", str(folder), "--data", str(data), "--version", "1.2.3"]
    CliRunner().invoke(app, command, catch_exceptions=False)
    return folder
