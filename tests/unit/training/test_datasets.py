"""No group stands on two sides, whatever the index holds."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.datasets import Part, Sample, count_rows, load_images, load_index, part_of_group, sampling_weights, select
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
