"""No group stands on two sides, whatever the index holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import compress, product
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.datasets import (
    Part,
    Sample,
    _fill,
    _in_folds,
    _limited,
    count_rows,
    left_out,
    load_images,
    load_index,
    part_of_group,
    read_image,
    sampling_weights,
    select,
)
from training.datasets import unseen as unseen_of
from training.recipe import DataSpec, RecipeError

GROUPS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(groups=st.lists(GROUPS, min_size=1, max_size=50), seed=st.integers(0, 1000))
def test_a_group_has_one_part_whatever_stands_beside_it(groups: list[str], seed: int) -> None:
    parts = defaultdict(set)
    for group in groups + groups[::-1]:
        parts[group].add(part_of_group(group, seed))
    assert all(len(found) == 1 for found in parts.values())
    assert Part.EXTERNAL not in set().union(*parts.values())


@given(seed=st.integers(0, 10_000))
def test_the_parts_are_about_80_10_10(seed: int) -> None:
    parts = [part_of_group(f"g{i}", seed) for i in range(2000)]
    assert 0.75 < parts.count(Part.TRAIN) / 2000 < 0.85
    assert 0.06 < parts.count(Part.TEST) / 2000 < 0.14


def test_parts_share_no_group_and_external_sources_stand_apart(data: Path) -> None:
    samples = load_index(data, DataSpec(external=("outside",), split_seed=3))
    groups = {part: {s.group for s in samples if s.part is part} for part in Part}
    assert all(groups.values())
    for one in Part:
        for other in Part:
            assert one is other or not groups[one] & groups[other]
    assert {s.source for s in samples if s.part is Part.EXTERNAL} == {"outside"}


def sample(label: str, source: str, group: str, part: Part = Part.TRAIN) -> Sample:
    return Sample(image="", label=label, source=source, group=group, age=None, part=part)


def test_an_external_image_whose_group_a_fit_saw_is_not_evaluated() -> None:
    inside, outside = sample("covid", "a", "g1"), sample("covid", "b", "g1", Part.EXTERNAL)
    fresh = sample("covid", "b", "g2", Part.EXTERNAL)
    assert unseen_of([outside, fresh], [inside, outside, fresh]) == [fresh]


@given(
    rows=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), min_size=1, max_size=60),
    balance=st.floats(0, 1),
)
def test_labels_weigh_the_same(rows: list[tuple[str, str]], balance: float) -> None:
    samples = [sample(label, source, "g") for label, source in rows]
    weights = sampling_weights(samples, balance)
    assert np.isclose(weights.sum(), 1)
    totals = [sum(w for w, s in zip(weights, samples, strict=True) if s.label == n) for n in {n for n, _ in rows}]
    np.testing.assert_allclose(totals, 1 / len(totals))


def test_full_balance_makes_the_sources_of_a_label_weigh_the_same() -> None:
    samples = [sample("a", "large", "g")] * 9 + [sample("a", "small", "g")]
    np.testing.assert_allclose(sampling_weights(samples, 1)[-1], 0.5)
    np.testing.assert_allclose(sampling_weights(samples, 0)[-1], 0.1)


def test_no_index_is_told_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--data or CXRNODE_DATA"):
        load_index(tmp_path, DataSpec())


def test_a_column_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("image,label,source,age\n")
    with pytest.raises(RecipeError, match="no column group"):
        load_index(tmp_path, DataSpec())


def test_an_image_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gone\.jpg"):
        load_images(tmp_path, [Sample(image="gone.jpg", label="", source="", group="", age=None, part=Part.TEST)])


def test_licences_are_counted(data: Path) -> None:
    samples = select(load_index(data, DataSpec()), Part.TRAIN, ["covid"])
    rows = count_rows(data, samples)
    assert sum(int(str(r["images"])) for r in rows) == len(samples)
    assert {r["license"] for r in rows} == {"CC0"}


# --- merging and limits


def write_index(folder: Path, rows: Sequence[tuple[str, str, str]], more: str = "") -> Path:
    """`rows` of (label, group, part), an empty image each; `more`: names of images that are listed and missing."""
    (folder / "images").mkdir(parents=True)
    lines = ["image,label,source,group,age,part"]
    for k, (label, group, part) in enumerate(rows):
        (folder / "images" / f"{k}.png").touch()
        lines.append(f"{k}.png,{label},here,{group},,{part}")
    (folder / "index.csv").write_text("\n".join(lines) + more)
    return folder


def test_labels_that_count_as_one_are_merged(data: Path) -> None:
    before = load_index(data, DataSpec())
    after = load_index(data, DataSpec(merge={"ill": ("covid", "viral")}))
    assert [(s.image, s.part) for s in before] == [(s.image, s.part) for s in after]
    assert [s.label if s.label == "normal" else "ill" for s in before] == [s.label for s in after]


def test_a_label_that_counts_as_two_is_refused(data: Path) -> None:
    with pytest.raises(RecipeError, match="counts 'viral' as 'a' and as 'b'"):
        load_index(data, DataSpec(merge={"a": ("viral",), "b": ("viral",)}))


@settings(deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 9), max_size=9), limit=st.integers(0, 40))
def test_a_limit_is_filled_as_far_as_whole_groups_allow(sizes: list[int], limit: int) -> None:
    taken = _fill(sizes, limit)
    sums = [sum(compress(sizes, chosen)) for chosen in product((0, 1), repeat=len(sizes))]
    assert sum(compress(sizes, taken)) == max(n for n in sums if n <= limit)


@settings(deadline=None, derandomize=True)
@given(
    groups=st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 4)), max_size=12),
    limit=st.integers(1, 12), seed=st.integers(0, 99),
)  # fmt: skip
def test_at_most_so_many_images_of_a_label(groups: list[tuple[str, int]], limit: int, seed: int) -> None:
    """Whole groups, the same ones whatever the order of the rows, and the other label as it was."""
    samples = [sample(label, "", f"g{k}") for k, (label, n) in enumerate(groups) for _ in range(n)]
    spec = DataSpec(most={"a": limit}, split_seed=seed)
    kept = _limited(samples, spec)
    assert sum(s.label == "a" for s in kept) <= limit
    assert [s for s in kept if s.label == "b"] == [s for s in samples if s.label == "b"]
    for group in {s.group for s in samples}:
        before, after = (sum(s.group == group for s in some) for some in (samples, kept))
        assert after in (0, before)
    assert {s.group for s in _limited(samples[::-1], spec)} == {s.group for s in kept}


def test_a_limit_leaves_the_parts_their_shares_and_external_images_alone() -> None:
    samples = [sample("a", "", f"g{i}", part_of_group(f"g{i}", 7)) for i in range(4000)]
    outside = [sample("a", "", f"x{i}", Part.EXTERNAL) for i in range(50)]
    kept = _limited(samples + outside, DataSpec(most={"a": 2000}))
    assert sum(s.part is not Part.EXTERNAL for s in kept) == 2000
    assert [s for s in kept if s.part is Part.EXTERNAL] == outside
    assert 0.07 < sum(s.part is Part.TEST for s in kept) / 2000 < 0.13


def test_a_label_of_some_sources_alone() -> None:
    """The other sources' images of that label are gone, but for external ones; another label's stay."""
    inside, outside = sample("a", "x", "g1"), sample("a", "z", "g4", Part.EXTERNAL)
    samples = [inside, sample("a", "y", "g2"), sample("b", "y", "g3"), outside]
    assert _limited(samples, DataSpec(sources={"a": ("x",)})) == [inside, samples[2], outside]


def test_another_seed_draws_others() -> None:
    samples = [sample("a", "", f"g{i}") for i in range(100)]
    one, other = (_limited(samples, DataSpec(most={"a": 50}, split_seed=seed)) for seed in (1, 2))
    assert len(one) == len(other) == 50
    assert one != other


# --- the column `part`


def test_the_data_may_say_a_groups_part(tmp_path: Path) -> None:
    rows = [("a", "g1", "test"), ("a", "g1", ""), ("a", "g2", "external"), ("a", "g3", "validation"), ("a", "g4", "")]
    parts = [s.part for s in load_index(write_index(tmp_path / "d", rows), DataSpec())]
    assert parts == [Part.TEST, Part.TEST, Part.EXTERNAL, Part.VALIDATION, part_of_group("g4", 7)]


def test_what_the_recipe_calls_external_no_fit_sees(tmp_path: Path) -> None:
    data = write_index(tmp_path / "d", [("a", "g1", "train")])
    assert [s.part for s in load_index(data, DataSpec(external=("here",)))] == [Part.EXTERNAL]


def test_a_group_in_two_parts_is_named_with_both(tmp_path: Path) -> None:
    data = write_index(tmp_path / "d", [("a", "g1", "train"), ("a", "g2", "test"), ("a", "g1", "test")])
    with pytest.raises(RecipeError, match="group g1 stands in two parts, train and test"):
        load_index(data, DataSpec())


def test_an_unknown_part_is_told_the_known_ones(tmp_path: Path) -> None:
    data = write_index(tmp_path / "d", [("a", "g1", "val")])
    with pytest.raises(RecipeError, match="part 'val': write one of train, validation, test, external"):
        load_index(data, DataSpec())


# --- folds


@settings(max_examples=30, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 4), min_size=12, max_size=60), folds=st.integers(2, 5), seed=st.integers(0, 99))
def test_folds_are_disjoint_by_group_and_cover_all_but_the_test_part(sizes: list[int], folds: int, seed: int) -> None:
    samples = [
        sample("abc"[k % 3], "", f"g{k}", part_of_group(f"g{k}", seed)) for k, n in enumerate(sizes) for _ in range(n)
    ]
    pooled = [k for k, s in enumerate(samples) if s.part is not Part.TEST]
    if len(pooled) < 20:
        return
    split = [_in_folds(samples, DataSpec(folds=folds, fold=fold, split_seed=seed)) for fold in range(folds)]
    held = [{k for k, s in enumerate(after) if s.part is Part.VALIDATION} for after in split]
    assert sorted(k for some in held for k in some) == pooled
    for after, fold in zip(split, held, strict=True):
        assert [k for k, s in enumerate(after) if s.part is Part.TEST] == sorted(set(range(len(samples))) - set(pooled))
        assert {k for k, s in enumerate(after) if s.part is Part.TRAIN} == set(pooled) - fold
        validated = {after[k].group for k in fold}
        assert not validated & {s.group for s in after if s.part is Part.TRAIN}


def test_folds_are_stratified() -> None:
    samples = [sample("a" if k % 10 == 0 else "b", "", f"g{k // 2}") for k in range(1000)]
    for fold in range(5):
        after = _in_folds(samples, DataSpec(folds=5, fold=fold))
        held = [s.label for s in after if s.part is Part.VALIDATION]
        assert abs(len(held) - 200) <= 4
        assert abs(held.count("a") - 20) <= 2


def test_a_rare_label_does_not_hinder_the_folds() -> None:
    samples = [sample("a", "", f"g{k}") for k in range(20)] + [sample("rare", "", "r")]
    assert len(_in_folds(samples, DataSpec(folds=5, fold=0))) == 21


def test_too_few_images_for_so_many_folds() -> None:
    with pytest.raises(RecipeError, match="3 images cannot make 5 folds"):
        _in_folds([sample("a", "", f"g{k}") for k in range(3)], DataSpec(folds=5, fold=0))


# --- a folder a class


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (40, 30), np.uint8))
    return path


def test_a_folder_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "clinic"
    for name in ("covid/1.png", "covid/p7/a.JPG", "covid/p7/b.jpg", "normal/1.png", "normal/p7/day 2/c.bmp"):
        picture(data / name)
    (data / "covid" / "notes.txt").write_text("")
    picture(data / "stray.png")
    picture(data / "normal" / ".hidden.png")
    samples = {s.image: s for s in load_index(data, DataSpec())}
    assert {name: (s.label, s.group, s.source) for name, s in samples.items()} == {
        "covid/1.png": ("covid", "covid/1", "clinic"),
        "covid/p7/a.JPG": ("covid", "p7", "clinic"),
        "covid/p7/b.jpg": ("covid", "p7", "clinic"),
        "normal/1.png": ("normal", "normal/1", "clinic"),
        "normal/p7/day 2/c.bmp": ("normal", "p7", "clinic"),  # the same patient, well again
    }
    assert read_image(data, samples["covid/p7/b.jpg"]).shape == (40, 30)
    told = capsys.readouterr().err
    assert "2 files of" in told
    assert "1 no image by its name" in told
    assert {x.image for x in left_out(data)} == {"stray.png", "covid/notes.txt"}
    assert [r["images"] for r in count_rows(data, list(samples.values()))] == [3, 2]


def test_two_forms_at_once_are_refused(tmp_path: Path) -> None:
    (tmp_path / "index.csv").touch()
    (tmp_path / "labels.csv").touch()
    with pytest.raises(RecipeError, match="which of them labels the images"):
        load_index(tmp_path, DataSpec())
