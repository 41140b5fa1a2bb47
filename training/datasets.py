"""Labelled radiographs: an index CSV, split by group so that no patient stands on both sides."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from training.recipe import DataSpec, RecipeError

_COLUMNS = {"image", "label", "source", "group", "age"}


class Part(StrEnum):
    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    EXTERNAL = "external"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One radiograph of the index; `group` joins a patient's images and near duplicates."""

    image: str
    label: str
    source: str
    group: str
    age: float | None
    part: Part


def load_index(data: Path, spec: DataSpec) -> list[Sample]:
    """Every row of `data`/index.csv with its part. Raises RecipeError where the index is missing or not one."""
    index = data / "index.csv"
    if not index.is_file():
        raise RecipeError(f"no {index}: give the data folder (index.csv and images/) with --data or CXRNODE_DATA")
    with index.open(encoding="utf-8", newline="") as f:
        reader = csv.DictReader(f)
        if missing := _COLUMNS - set(reader.fieldnames or ()):
            raise RecipeError(f"{index} has no column {', '.join(sorted(missing))}")
        return [_sample(row, spec) for row in reader]


def _sample(row: dict[str, str], spec: DataSpec) -> Sample:
    part = Part.EXTERNAL if row["source"] in spec.external else part_of_group(row["group"], spec.split_seed)
    age = float(row["age"]) if row["age"].replace(".", "", 1).isdecimal() else None
    return Sample(
        image=row["image"], label=row["label"], source=row["source"], group=row["group"], age=age, part=part
    )  # fmt: skip


def part_of_group(group: str, seed: int) -> Part:
    """80/10/10 by a hash of the group: a new image never moves an old one to another part."""
    tenth = int(hashlib.sha256(f"{seed}{group}".encode()).hexdigest(), 16) % 10
    return {0: Part.TEST, 1: Part.VALIDATION}.get(tenth, Part.TRAIN)


def select(samples: Sequence[Sample], part: Part, labels: Sequence[str]) -> list[Sample]:
    return [s for s in samples if s.part is part and s.label in labels]


def unseen(external: Sequence[Sample], samples: Sequence[Sample]) -> list[Sample]:
    """Without the groups that also hold an image of a source that is not external: a fit may have seen the patient."""
    inside = {s.group for s in samples if s.part is not Part.EXTERNAL}
    return [s for s in external if s.group not in inside]


def count_rows(data: Path, samples: Sequence[Sample]) -> list[dict[str, object]]:
    """How many of `samples` each source, label and licence of the index has."""
    wanted = {s.image for s in samples}
    with (data / "index.csv").open(encoding="utf-8", newline="") as f:
        rows = [r for r in csv.DictReader(f) if r["image"] in wanted]
    count = Counter((r["source"], r["label"], (r.get("license") or "").strip() or "none stated") for r in rows)
    return [{"source": s, "label": n, "license": c, "images": k} for (s, n, c), k in sorted(count.items())]


def load_images(data: Path, samples: Sequence[Sample]) -> list[npt.NDArray[np.uint8]]:
    """uint8 [H, W] each. Raises RecipeError that names the file."""
    return list(_read(data, samples))


def _read(data: Path, samples: Sequence[Sample]) -> Iterator[npt.NDArray[np.uint8]]:
    for sample in samples:
        image = cv2.imread(str(data / "images" / sample.image), cv2.IMREAD_GRAYSCALE)
        if image is None:
            raise RecipeError(f"cannot read {data / 'images' / sample.image}: is the data folder whole?")
        yield np.asarray(image, np.uint8)


def sampling_weights(samples: Sequence[Sample], balance: float) -> npt.NDArray[np.float64]:
    """The probability of each sample: labels weigh the same; within a label, a source of n images weighs n^(1-balance).

    Sums to 1. Without it the two large sources decide what a label looks like.
    """
    count = Counter((s.label, s.source) for s in samples)
    weight = {key: n ** (1 - balance) for key, n in count.items()}
    of_label = {label: sum(w for (k, _), w in weight.items() if k == label) for label, _ in count}
    raw = [weight[s.label, s.source] / of_label[s.label] / count[s.label, s.source] for s in samples]
    total = sum(raw)
    return np.array([w / total for w in raw], np.float64)
