"""A recipe says everything or is refused."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from training.recipe import RECIPES, RecipeError, load_recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_loads_and_its_header_says_how_to_run_it(path: Path) -> None:
    recipe = load_recipe(path.stem)
    assert recipe.name == path.stem
    header = path.read_text().split("name =")[0]
    assert f"python -m training fit {path.stem}" in header
    assert any(word in header for word in ("minutes", "hours", "Seconds"))
    assert sum(label.normal for label in recipe.labels) == 1


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    text = (RECIPES / "resnet50-snapshot.toml").read_text() + "learning_rat = 0.1\n"
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError, match=r"fit\.learning_rat"):
        load_recipe(str(tmp_path / "r.toml"))


def test_a_recipe_is_changed_for_one_run() -> None:
    changes = ["fit.epochs=3", "model.frozen=true", "model.weights=none", "data.fold=2", "fit.learning_rate=1e-3"]
    recipe = load_recipe("vgg19-rnn", changes)
    assert (recipe.fit.epochs, recipe.model.frozen, recipe.model.weights, recipe.data.fold) == (3, True, "none", 2)
    assert recipe.fit.learning_rate == 1e-3
    assert load_recipe("vgg19-rnn").fit.epochs == 150


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("fit.epoch=3", r"fit\.epoch"),
        ("fit.epochs", "write it as fit.epochs=3"),
        ("name.first=x", "name is no table"),
        ("data.fold=5", "fold 5 of 5"),
        ("fit.cycles=7", "7 cycles need"),
    ],
)
def test_a_change_that_cannot_be_made_is_named(change: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe("vgg19-rnn", [change])


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (["fit.epoch=3"], ["fit.epoch = 3: unknown key; did you mean epochs?"]),
        (["fit.zzz=[]"], ["fit.zzz: unknown key; known here: epochs, batch_size, optimiser, *"]),
        (["labels=[{nam='a'}, {name='b'}]"], [
            "labels[0].name: is missing", "labels[0].code: is missing",
            'labels[0].nam = "a": unknown key; did you mean name?', "labels[1].code: is missing",
        ]),
        (["labels=[]"], ["labels: should have at least 2 items *"]),
        (["fit.epochs=many", "fit=3"], ["fit = 3: should be a table"]),
        (["data.external=x", "model.weights=3"], [
            'data.external = "x": should be an array', "model.weights = 3: should be a valid string",
        ]),
        (["fit.epochs=many", "fit.batch_size=1"], [
            'fit.epochs = "many": should be a valid integer, unable to parse string as an integer',
            "fit.batch_size = 1: should be greater than or equal to 2",
        ]),
        (["fit.optimiser=sgd"], ["fit.optimiser = \"sgd\": should be 'adamw', 'adam' or 'rmsprop'"]),
        (["data.most={covid=-1, viral=0, normal=1}"], [
            "data.most.covid = -1: should be greater than 0",
            "data.most.viral = 0: should be greater than 0",
        ]),
        (["data.fold=5"], ["data: fold 5 of 5 folds: give folds >= 2 and 0 <= fold < folds"]),
    ],
)  # fmt: skip
def test_every_fault_is_one_line(changes: list[str], lines: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("vgg19-rnn", changes)
    head, *told = str(caught.value).splitlines()
    assert head.endswith("vgg19-rnn.toml is not valid:")
    assert len(told) == len(lines)
    for said, line in zip(told, lines, strict=True):
        assert fnmatchcase(said, "  " + line.replace("[", "[[]")), said


def test_what_is_no_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("name = ")
    with pytest.raises(RecipeError, match="is not valid"):
        load_recipe(str(tmp_path / "r.toml"))


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(RecipeError, match=r"cxr3-lite2, cxr3-lite2-base, .*, resnet50-snapshot, vgg19-rnn"):
        load_recipe("nothing")


def test_a_meaning_too_long_for_dicom_is_refused(tmp_path: Path) -> None:
    text = (RECIPES / "resnet50-snapshot.toml").read_text().replace("Viral pneumonia", "v" * 65)
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError, match="meaning"):
        load_recipe(str(tmp_path / "r.toml"))
