"""Labelled radiographs, split by group so that no patient stands on both sides."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from cxrnode.cli.output import say
from engines.base import FloatArray
from training.hospital import read_dicom
from training.recipe import DataSpec, Recipe, RecipeError
from training.rows import LeftOut, Row, counted
from training.sources import read_folder, read_picture
from training.transforms import to_grey


class Part(StrEnum):
    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    EXTERNAL = "external"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One labelled radiograph; `group` joins a patient's images and near duplicates."""

    image: str
    label: str
    source: str
    group: str
    age: float | None
    part: Part
    path: Path | None = None  # None: below images/
    dicom: bool = False


def load_index(data: Path, spec: DataSpec) -> list[Sample]:
    """Every labelled image of `data` (see training.sources) that the recipe may use, with its part.

    Files that are left out are counted by reason on standard error. Raises RecipeError where the folder is none, or
    where a group stands in two parts.
    """
    folder = read_folder(data)
    if folder.left_out:
        _tell(f"{len(folder.left_out)} files of {data} are left out: {counted(folder.left_out)}")
    told, merged = _told_parts(folder.rows), _merged(spec)
    samples = [_sample(row, merged, told, spec) for row in folder.rows]
    return _in_folds(_limited(samples, spec), spec)


def left_out(data: Path) -> list[LeftOut]:
    """The files of `data` that are no sample, and why."""
    return read_folder(data).left_out


@cache  # once a command, which lists the folder more than once
def _tell(text: str) -> None:
    say(text, err=True)


def _sample(row: Row, merged: dict[str, str], told: dict[str, Part], spec: DataSpec) -> Sample:
    """An external source stays external whatever its rows say: the recipe promises that no fit sees it."""
    part = told.get(row.group) or part_of_group(row.group, spec.split_seed, spec.test_tenths)
    return Sample(
        image=row.image, label=merged.get(row.label, row.label), source=row.source, group=row.group, age=row.age,
        part=Part.EXTERNAL if row.source in spec.external else part, path=row.path, dicom=row.dicom,
    )  # fmt: skip


def _merged(spec: DataSpec) -> dict[str, str]:
    """The recipe's label of each of the data's labels that it merges."""
    merged: dict[str, str] = {}
    for label, names in spec.merge.items():
        for name in names:
            if merged.setdefault(name, label) != label:
                raise RecipeError(f"data.merge counts '{name}' as '{merged[name]}' and as '{label}': choose one")
    return merged


def _told_parts(rows: Sequence[Row]) -> dict[str, Part]:
    """The part of each group that the data's column `part` gives one."""
    told: dict[str, Part] = {}
    for row in rows:
        if not row.part:
            continue
        if row.part not in set(Part):
            raise RecipeError(f"image {row.image} has part '{row.part}': write one of {', '.join(Part)}, or nothing")
        if told.setdefault(row.group, Part(row.part)) != row.part:
            raise RecipeError(
                f"group {row.group} stands in two parts, {told[row.group]} and {row.part}: a patient's images belong "
                "in one; mend the column 'part'"
            )
    return told


def part_of_group(group: str, seed: int, test_tenths: int = 1) -> Part:
    """By a hash of the group: a new image never moves an old one to another part. Tenth 1 validates, 0 and the last
    ones (as many as `test_tenths` wants) test, the rest trains."""
    tenth = int(hashlib.sha256(f"{seed}{group}".encode()).hexdigest(), 16) % 10
    if tenth == 1:
        return Part.VALIDATION
    return Part.TEST if tenth == 0 or tenth > 10 - test_tenths else Part.TRAIN


def _limited(samples: list[Sample], spec: DataSpec) -> list[Sample]:
    """Without a label's images of other sources than the recipe's, nor those beyond its most; external ones stay."""
    samples = [s for s in samples if s.part is Part.EXTERNAL or s.source in spec.sources.get(s.label, (s.source,))]
    dropped: set[tuple[str, str]] = set()
    for label, limit in spec.most.items():
        size = Counter(s.group for s in samples if s.label == label and s.part is not Part.EXTERNAL)
        drawn = sorted(size, key=lambda group: hashlib.sha256(f"most {spec.split_seed} {group}".encode()).digest())
        taken = _fill([size[group] for group in drawn], limit)
        dropped |= {(label, group) for group, take in zip(drawn, taken, strict=True) if not take}
    return [s for s in samples if s.part is Part.EXTERNAL or (s.label, s.group) not in dropped]


def _fill(sizes: Sequence[int], limit: int) -> list[bool]:
    """Which of `sizes` to take, the earlier the rather, so that their sum is the greatest that is not above `limit`."""
    limit = max(0, limit)
    sums = [1]  # bit n of sums[k]: some of the last k sizes sum to n
    for size in reversed(sizes):
        sums.append((sums[-1] | sums[-1] << size) & (1 << limit + 1) - 1)
    left, taken = sums[-1].bit_length() - 1, []
    for size, rest in zip(sizes, reversed(sums[:-1]), strict=True):
        take = size <= left and bool(rest >> (left - size) & 1)
        left -= size * take
        taken.append(take)
    return taken


def _in_folds(samples: list[Sample], spec: DataSpec) -> list[Sample]:
    """With the recipe's fold as the validation part, and all but the test part and that fold as the training part."""
    if spec.fold is None:
        return samples
    pooled = [k for k, s in enumerate(samples) if s.part in (Part.TRAIN, Part.VALIDATION)]
    folds = StratifiedGroupKFold(spec.folds, shuffle=True, random_state=spec.split_seed)
    labels, groups = [samples[k].label for k in pooled], [samples[k].group for k in pooled]
    try:
        with warnings.catch_warnings():  # of a label with fewer images than folds; `check_labels` says what matters
            warnings.simplefilter("ignore", UserWarning)
            held = {pooled[k] for k in list(folds.split(labels, labels, groups))[spec.fold][1]}
    except ValueError as e:
        raise RecipeError(f"{len(pooled)} images cannot make {spec.folds} folds ({e}): set data.folds lower") from e
    return [
        replace(s, part=Part.VALIDATION if k in held else Part.TRAIN) if s.part in (Part.TRAIN, Part.VALIDATION) else s
        for k, s in enumerate(samples)
    ]


def select(samples: Sequence[Sample], part: Part, labels: Sequence[str]) -> list[Sample]:
    return [s for s in samples if s.part is part and s.label in labels]


def used(samples: Sequence[Sample], part: Part, recipe: Recipe) -> list[Sample]:
    """What the recipe takes of a part: the auxiliary findings are only learnt from."""
    return select(samples, part, recipe.fitted_names if part is Part.TRAIN else recipe.label_names)


def unseen(external: Sequence[Sample], samples: Sequence[Sample]) -> list[Sample]:
    """Without the groups that also hold an image of a source that is not external: a fit may have seen the patient."""
    inside = {s.group for s in samples if s.part is not Part.EXTERNAL}
    return [s for s in external if s.group not in inside]


def count_rows(data: Path, samples: Sequence[Sample]) -> list[dict[str, object]]:
    """How many of `samples` each source, label (as the data have it) and licence has."""
    wanted = {s.image for s in samples}
    rows = [row for row in read_folder(data).rows if row.image in wanted]
    count = Counter((row.source, row.label, row.license or "none stated") for row in rows)
    return [{"source": s, "label": n, "license": c, "images": k} for (s, n, c), k in sorted(count.items())]


def load_images(data: Path, samples: Sequence[Sample]) -> list[npt.NDArray[np.uint8]]:
    """uint8 [H, W] each. Raises RecipeError that names the file."""
    return [read_image(data, sample) for sample in samples]


def image_path(data: Path, sample: Sample) -> Path:
    return sample.path or data / "images" / sample.image


def read_image(data: Path, sample: Sample) -> npt.NDArray[np.uint8]:
    """uint8 [H, W]. Raises RecipeError that names the file."""
    if sample.dicom:
        return np.asarray(np.rint(read_grey(data, sample) * 255), np.uint8)
    return read_picture(image_path(data, sample))


def read_grey(data: Path, sample: Sample) -> FloatArray:
    """float32 [H, W] in 0..1, as serving hands it to `prepare`. Raises RecipeError that names the file."""
    if sample.dicom:
        return read_dicom(image_path(data, sample))
    return to_grey(read_image(data, sample))


def sampling_weights(
    samples: Sequence[Sample], balance: float, auxiliary: Sequence[str] = ()
) -> npt.NDArray[np.float64]:
    """The probability of each sample: labels weigh the same, an auxiliary finding half as much; within a label, a
    source of n images weighs n^(1-balance).

    Sums to 1. Without it the two large sources decide what a label looks like.
    """
    count = Counter((s.label, s.source) for s in samples)
    weight = {key: n ** (1 - balance) for key, n in count.items()}
    of_label = {label: sum(w for (k, _), w in weight.items() if k == label) for label, _ in count}
    share = {label: 0.5 if label in auxiliary else 1.0 for label in of_label}
    raw = [share[s.label] * weight[s.label, s.source] / of_label[s.label] / count[s.label, s.source] for s in samples]
    total = sum(raw)
    return np.array([w / total for w in raw], np.float64)
