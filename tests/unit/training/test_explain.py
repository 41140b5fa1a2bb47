"""A picture an image: a row a class, each with its own map, on one scale."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cxrnode.location import Location
from cxrnode.workers import decode
from engines.bundle import InputShape
from engines.preprocess import prepare
from tests.support.make_dicom import chest, write
from training.command import app
from training.explain import Explained, draw, explain, explain_run, read_radiograph
from training.feed import to_tensor
from training.fit import fit
from training.gradcam import cam_of
from training.models.network import make_network
from training.phantoms import phantom
from training.recipe import Recipe, RecipeError

SHAPE = InputShape(channels=3, rows=96, columns=96)


@pytest.fixture(scope="module")
def run(recipe: Recipe, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    once = recipe.fit.model_copy(update={"epochs": 1})
    return fit(recipe.model_copy(update={"fit": once}), data, tmp_path_factory.mktemp("runs") / "tiny")


def test_one_command_draws_pictures_and_radiographs_alike(run: Path, tmp_path: Path) -> None:
    picture, dicom, out = tmp_path / "a.png", tmp_path / "b.dcm", tmp_path / "out"
    cv2.imwrite(str(picture), np.rint(phantom(opacities=3) * 255))
    write(chest(120, 100), dicom)
    before = picture.read_bytes()
    result = CliRunner().invoke(app, ["explain", str(run), str(picture), str(dicom), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert [line.partition(":")[0] for line in result.output.splitlines()] == ["a.png", "b.dcm"]
    drawn = [cv2.imread(str(out / name)) for name in ("a-cam.png", "b-cam.png")]
    assert all(one is not None and one.std() > 10 for one in drawn)
    assert picture.read_bytes() == before


@pytest.mark.parametrize("command", [["evaluate", "--data", "."], ["explain", "x.png", "--out", "."]])
def test_a_device_that_is_not_there_is_named(run: Path, command: list[str]) -> None:
    result = CliRunner().invoke(app, [command[0], str(run), *command[1:], "--device", "tpu"])
    assert isinstance(result.exception, RecipeError)
    assert str(result.exception) == "no device 'tpu': give cpu or cuda"


def test_every_class_has_its_own_map(recipe: Recipe) -> None:
    recipe = recipe.model_copy(update={"input": SHAPE})  # a map of nine places
    model, picture = make_network(recipe).eval(), phantom(opacities=2)
    model.head.b.bias.data.zero_()
    one = explain(recipe, model, picture, "phantom")
    batch = to_tensor(recipe, [picture])
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(one.probabilities), model(batch).softmax(-1)[0])
    for k in range(3):
        np.testing.assert_allclose(one.maps[k], cam_of(model, batch.clone(), k)[0].numpy(), atol=1e-7)
    assert len({one.maps[k].tobytes() for k in range(3)}) == 3


def test_the_picture_says_what_was_predicted_and_stretches_no_weak_map() -> None:
    maps = np.zeros((2, 4, 4), np.float32)
    maps[0, 1, 1], maps[1, 2, 2] = 1.0, 0.1
    figure = draw(
        Explained(
            name="x.png", picture=phantom(), labels=("covid", "normal"), maps=maps,
            probabilities=np.array([0.75, 0.25], np.float32),
        )
    )  # fmt: skip
    axes = figure.axes
    assert [axes[i].get_ylabel() for i in (0, 3)] == ["covid  0.750\npredicted", "normal  0.250"]
    strong, weak = (np.asarray(axes[i].images[0].get_array()).max() for i in (1, 4))
    assert strong > 0.9
    assert weak < 0.15
    assert np.asarray(axes[5].images[1].get_alpha()).max() < 0.05  # faint in the overlay


def test_a_map_of_nothing_is_drawn_as_nothing() -> None:
    nothing = Explained(
        name="x", picture=phantom(), labels=("a", "b"), probabilities=np.array([0.5, 0.5], np.float32),
        maps=np.zeros((2, 4, 4), np.float32),
    )  # fmt: skip
    assert np.asarray(draw(nothing).axes[1].images[0].get_array()).max() == 0


def test_a_radiograph_is_read_as_serving_reads_it(tmp_path: Path) -> None:
    path = write(chest(600, 500, seed=3), tmp_path / "x.dcm")
    served = decode(Location(container=str(path)).as_json(), SHAPE).image
    assert served is not None
    np.testing.assert_array_equal(prepare(read_radiograph(path), SHAPE.rows, SHAPE.columns), served.pixels)


@pytest.mark.parametrize(
    ("name", "words"),
    [("lateral.dcm", "would not analyse"), ("words.txt", "not a DICOM file"), ("none.png", "cannot read")],
)
def test_what_cannot_be_explained_is_named_and_nothing_is_drawn(
    run: Path, tmp_path: Path, name: str, words: str
) -> None:
    good, bad, out = write(chest(120, 100), tmp_path / "good.dcm"), tmp_path / name, tmp_path / "out"
    if name == "lateral.dcm":
        write(chest(120, 100, view="LL"), bad)
    elif name == "words.txt":
        bad.write_text("this is no image, and no DICOM file either\n" * 20)
    with pytest.raises(RecipeError, match=words) as caught:
        explain_run(run, [good, bad], out)
    assert name in str(caught.value)
    assert not out.exists()


def test_two_images_of_one_name_are_two_pictures(run: Path, tmp_path: Path) -> None:
    paths = [write(chest(120, 100, seed=k), tmp_path / f"{k}" / "x.dcm") for k in (1, 2)]
    explain_run(run, paths, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["1-x-cam.png", "2-x-cam.png"]
