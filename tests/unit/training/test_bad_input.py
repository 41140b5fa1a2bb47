"""What cannot be fitted is told in a line, before the first epoch where it can be known; nothing is overwritten."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import training.fit as module
from tests.support.small_disk import small_disk
from tests.unit.training.test_cache import file_size_limit
from training import command
from training.checkpoint import CHECKPOINT, RECIPE, SPLIT, load_run
from training.datasets import Part, Sample, load_index
from training.fit import LEFT_OUT, check_labels, fit
from training.recipe import DataSpec, Recipe, RecipeError, load_recipe

TINY = str(Path(__file__).with_name("tiny.toml"))
INDEX = "index.csv"


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """The data, to be damaged."""
    return shutil.copytree(data, tmp_path / "data")


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """`python -m training WORDS`; its exit code."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # the other tests' sums must stay the same
    monkeypatch.setattr(sys, "argv", ["training", *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    return int(ended.value.code or 0)


def missing(data: Path) -> None:
    for k in range(5):
        (data / "images" / f"{k}.jpg").unlink()


def unreadable(data: Path) -> None:
    for path in (data / "images").iterdir():
        path.write_bytes(path.read_bytes()[:200])


def two_parts(data: Path) -> None:
    lines = (data / INDEX).read_text().splitlines()
    parts = ["part", "train", "test", *[""] * 142]
    (data / INDEX).write_text("\n".join(f"{line},{part}" for line, part in zip(lines, parts, strict=True)))


def utf_16(data: Path) -> None:
    (data / INDEX).write_bytes((data / INDEX).read_text().encode("utf-16"))


def replaced(old: str, new: str, count: int = -1) -> Callable[[Path], None]:
    """The index with another text in it."""

    def replace(data: Path) -> None:
        text = (data / INDEX).read_text()
        assert old in text
        (data / INDEX).write_text(text.replace(old, new, count))

    return replace


def appended(more: str) -> Callable[[Path], None]:
    def append(data: Path) -> None:
        with (data / INDEX).open("a") as f:
            f.write(more)

    return append


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "no .*index.csv: give the data folder with --data"),
        (missing, r"5 of 144 images of .*index.csv are missing .*: 0.jpg, 1.jpg, 2.jpg and 2 more"),
        (unreadable, r"\d+ of \d+ images cannot be used: cannot read .*\.jpg"),
        (two_parts, "group g0 stands in two parts, train and test"),
        (lambda d: (d / INDEX).write_text(""), "index.csv is empty"),
        (lambda d: (d / INDEX).write_text("image,label,source,group,age\n"), "is empty: it has a head and no row"),
        (replaced("\n7.jpg", "\n/etc/passwd"), "'/etc/passwd', which is not below the data folder"),
        (replaced("\n7.jpg", "\nC:\\7.jpg"), "which is not below"),
        (replaced("\n7.jpg", "\na/../../7.jpg"), "which is not below"),
        (replaced("\n7.jpg", "\n"), "which is not below"),
        (replaced("\n7.jpg", "\n" + 300 * "7"), "1 of 144 images"),
        (replaced("\n7.jpg", "\n8.jpg"), "two rows for 8.jpg"),
        (replaced(",g3,", ",,"), "gives image 6.jpg no group"),
        (appended("9.jpg,covid\n"), "line 146 of .* has 2 values, its head 6 names"),
        (appended('"9.jpg'), "line 146 of .* is no CSV"),
        (utf_16, "is not UTF-8 .*: save it as CSV UTF-8"),
        (replaced("viral", "flu"), "no image labelled 'viral' .*knows: covid, flu, normal"),
        (replaced("viral", "Viral", 3), "3 images are labelled 'Viral', and the recipe says 'viral'"),
    ],
)
def test_bad_data_is_told_in_a_line_and_no_run_is_begun(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object], words: str,
) -> None:  # fmt: skip
    damage(copy)
    run = copy.parent / "run"
    assert run_main(monkeypatch, "fit", TINY, "--data", str(copy), "--run", str(run), "--device", "cpu") == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("[ WARN")]
    assert line.startswith("error: ")
    with pytest.raises(RecipeError, match=words):
        raise RecipeError(line)
    assert not run.exists()


def excel(text: str, separator: str) -> bytes:
    return b"\xef\xbb\xbf" + text.replace(",", separator).replace("\n", "\r\n").encode()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_what_a_spreadsheet_writes_is_read_right(copy: Path, separator: str) -> None:
    before = load_index(copy, DataSpec())
    (copy / INDEX).write_bytes(excel((copy / INDEX).read_text(), separator))
    assert load_index(copy, DataSpec()) == before


def test_a_label_without_validation_images_is_named(recipe: Recipe) -> None:
    rows = [(label, part) for label in recipe.label_names for part in (Part.TRAIN, Part.VALIDATION)][:-1]
    samples = [Sample(image="", label=label, source="", group="", age=None, part=part) for label, part in rows]
    with pytest.raises(RecipeError, match="the validation part has no image labelled 'normal'"):
        check_labels(samples, recipe)


# --- weights


def changed(recipe: Recipe, table: str, **values: Any) -> Recipe:
    return recipe.model_copy(update={table: getattr(recipe, table).model_copy(update=values)})


def test_weights_that_do_not_fit_claim_no_run(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "w.pt")
    with pytest.raises(RecipeError, match="the weights hold 1 tensors"):
        fit(changed(recipe, "model", weights=str(tmp_path / "w.pt")), data, tmp_path / "run")
    base = fit(changed(recipe, "fit", epochs=0), data, tmp_path / "base")
    with pytest.raises(RecipeError, match=r"the weights of .*base do not fit the recipe's network: .*head"):
        fit(changed(recipe, "model", weights=f"run:{base}", hidden=9), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- run folders


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def begun(recipe: Recipe, data: Path, tmp_path: Path) -> Path:
    """A run of one epoch of two: killed after its first checkpoint."""

    class KilledError(Exception):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    with pytest.MonkeyPatch.context() as m:
        m.setattr(module, "_line", killed)
        with pytest.raises(KilledError):
            fit(recipe, data, tmp_path / "run")
    return tmp_path / "run"


def test_a_checkpoint_of_another_recipe_is_left_alone(recipe: Recipe, data: Path, begun: Path) -> None:
    before = contents(begun)
    with pytest.raises(RecipeError, match="another recipe: choose another --run"):
        fit(changed(recipe, "fit", learning_rate=0.5), data, begun)
    (begun / RECIPE).write_text("{}")
    with pytest.raises(RecipeError, match=r"recipe.json is no recipe of this version"):
        fit(recipe, data, begun)
    with pytest.raises(RecipeError, match=r"recipe.json is no recipe of this version"):
        load_run(begun)
    assert contents(begun) == before | {RECIPE: b"{}"}


def test_a_run_of_other_data_is_left_alone(recipe: Recipe, copy: Path, begun: Path) -> None:
    before = contents(begun)
    (copy / INDEX).write_text("\n".join((copy / INDEX).read_text().splitlines()[:-3]))
    with pytest.raises(RecipeError, match=r"was begun with other data .*split.csv"):
        fit(recipe, copy, begun)
    assert contents(begun) == before


@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b"junk" * 9, lambda b: b[: len(b) // 2], lambda b: b[:1000]],
    ids=["empty", "junk", "half", "head"],
)
def test_a_damaged_checkpoint_is_named_and_left(
    recipe: Recipe, data: Path, begun: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = begun / CHECKPOINT
    path.write_bytes(damage(path.read_bytes()))
    before = contents(begun)
    for use in (lambda: fit(recipe, data, begun), lambda: load_run(begun)):
        with pytest.raises(RecipeError, match=r"checkpoint.pt is damaged .* or remove it"):
            use()
    assert contents(begun) == before
    path.unlink()
    fit(recipe, data, begun)


def test_a_checkpoint_of_another_network_is_named(recipe: Recipe, data: Path, begun: Path, tmp_path: Path) -> None:
    other = fit(changed(changed(recipe, "model", hidden=9), "fit", epochs=0), data, tmp_path / "other")
    shutil.copy(other / CHECKPOINT, begun / CHECKPOINT)
    with pytest.raises(RecipeError, match="do not fit the recipe's network: size mismatch"):
        fit(recipe, data, begun)


# --- room


def test_no_room_for_a_checkpoint_keeps_the_last_one(recipe: Recipe, data: Path, begun: Path, tmp_path: Path) -> None:
    """And the same command goes on from it, to the end of an undisturbed fit."""
    before = contents(begun)
    with file_size_limit(100_000), pytest.raises(RecipeError, match=r"cannot write .*checkpoint.pt .*make room"):
        fit(recipe, data, begun)
    assert contents(begun) == before
    fit(recipe, data, begun)
    fit(recipe, data, tmp_path / "whole")
    one, other = (torch.load(run / CHECKPOINT, weights_only=True)["average"] for run in (begun, tmp_path / "whole"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_disk_that_fills_up_meanwhile_keeps_the_last_one(
    recipe: Recipe, data: Path, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, before = shutil.disk_usage(tmp_path), contents(begun)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    room = sum(map(len, before.values())) + len(before[CHECKPOINT]) // 2 + 512 * 1024  # and the cache
    with small_disk(tmp_path / "disk", f"size={room}"):
        run = Path(shutil.copytree(begun, tmp_path / "disk" / "run"))
        with pytest.raises(RecipeError, match=r"cannot write .*checkpoint\.pt .*make room"):
            fit(recipe, data, run)
        assert contents(run) == before


def test_no_room_is_known_before_the_first_epoch(
    recipe: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(RecipeError, match=r"run needs \d+ MiB for its checkpoints, and 0 are free"):
        fit(recipe, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_fit_asks_for_is_what_it_writes(
    recipe: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two checkpoints stand side by side for a moment."""
    written = (fit(recipe, data, tmp_path / "once") / CHECKPOINT).stat().st_size
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=round(1.7 * written)))
    with pytest.raises(RecipeError, match="needs"):
        fit(recipe, data, tmp_path / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * written))
    fit(recipe, data, tmp_path / "run")


def test_a_run_folder_that_cannot_be_made_is_named(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(RecipeError, match=r"cannot write .*run/recipe\.json"):
        fit(recipe, data, tmp_path / "run")


def test_what_is_left_out_is_written_into_the_run(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "classes"
    for s in load_index(data, DataSpec()):
        (folder / s.label / s.group).mkdir(parents=True, exist_ok=True)
        shutil.copy(data / "images" / s.image, folder / s.label / s.group)
    (folder / "covid" / "Thumbs.db").touch()
    spec = load_recipe(TINY, ["fit.epochs=1", "data.split_seed=4"])
    run = fit(spec, folder, tmp_path / "run")
    assert (run / LEFT_OUT).read_text().splitlines() == ["image,reason", "covid/Thumbs.db,no image by its name"]
    assert "covid/g0/0.jpg" in (run / SPLIT).read_text()
