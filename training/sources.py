"""What a data folder holds, told by what stands in it.

- index.csv and images/: columns image (its path below images/), label, source, group, age; optional part, license
- a folder of images a class: `covid/1.png`, or `covid/PATIENT/1.png`; the group is the image, or the patient's folder
- labels.csv and a hospital's DICOM files: see training.hospital
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from training.hospital import LABELS, files_below, read_hospital
from training.recipe import RecipeError
from training.rows import Folder, LeftOut, Row, few, inside, read_table

INDEX = "index.csv"
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jp2", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".pnm"})


def read_folder(data: Path) -> Folder:
    """Every labelled image of `data`, in whichever form. Raises RecipeError: no form or two, an image that is missing
    or listed twice, a CSV that cannot be read."""
    index, labels = (data / INDEX).is_file(), (data / LABELS).is_file()
    if index and labels:
        raise RecipeError(f"{data} holds {INDEX} and {LABELS}: which of them labels the images? Remove the other")
    folder = _indexed(data) if index else read_hospital(data) if labels else _classes(data)
    if not folder.rows:
        raise RecipeError(
            f"no {data / INDEX}: give the data folder with --data or CXRNODE_DATA ({INDEX} and images/, or a folder of "
            f"images a class, or DICOM files and {LABELS})"
        )
    return folder


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """uint8 [H, W] of an image file. Raises RecipeError that names it.

    From memory: OpenCV's reader of files paints what a JPEG lacks at its end grey, without a word.
    """
    try:
        raw = np.frombuffer(path.read_bytes(), np.uint8)
        image = cv2.imdecode(raw, cv2.IMREAD_GRAYSCALE) if raw.size else None
    except OSError as e:
        raise RecipeError(f"cannot read {path} ({e.strerror}): is the data folder whole?") from e
    except cv2.error as e:
        raise RecipeError(f"cannot read {path} ({e.err}): is the data folder whole?") from e
    if image is None:
        raise RecipeError(f"cannot read {path} (no image, or cut off): is the data folder whole?")
    return np.asarray(image, np.uint8)


def _indexed(data: Path) -> Folder:
    table = data / INDEX
    rows: dict[str, Row] = {}
    for line in read_table(table, ("image", "label", "source", "group", "age")):
        image = inside(table, line["image"])
        if image in rows:
            raise RecipeError(f"{table} has two rows for {image}: which is right? Remove the other")
        if lacks := next((column for column in ("label", "source", "group") if not line[column]), None):
            raise RecipeError(f"{table} gives image {image} no {lacks}: add it, or remove the row")
        rows[image] = Row(
            image=image, path=data / "images" / image, label=line["label"], source=line["source"],
            group=line["group"], age=_number(line["age"]), part=line.get("part", ""), license=line.get("license", ""),
        )  # fmt: skip
    if missing := [row.image for row in rows.values() if not _is_file(row.path)]:
        raise RecipeError(f"{len(missing)} of {len(rows)} images of {table} are missing below {data / 'images'}: "
                          f"{few(missing)}. Is the data folder whole?")  # fmt: skip
    return Folder(rows=list(rows.values()))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long
        return False


def _number(text: str) -> float | None:
    try:
        number = float(text.replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _classes(data: Path) -> Folder:
    folder, source = Folder(), data.resolve().name
    for path in files_below(data):
        name = path.relative_to(data)
        if reason := _no_row(name):
            folder.left_out.append(LeftOut(image=name.as_posix(), reason=reason))
            continue
        label, *patient, _ = name.parts
        group = patient[0] if patient else name.with_suffix("").as_posix()
        folder.rows.append(Row(image=name.as_posix(), path=path, label=label, source=source, group=group))
    return folder


def _no_row(name: Path) -> str:
    """Why a file of a folder a class is no labelled image, or ""."""
    if any("\ud800" <= letter <= "\udfff" for letter in str(name)):  # bytes that are no text: it could not be written
        return "its name is not UTF-8"
    if len(name.parts) == 1:
        return "lies in no class's folder"
    return "" if name.suffix.lower() in _SUFFIXES else "no image by its name"
