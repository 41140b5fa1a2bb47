"""A hospital's DICOM files, labelled by a CSV, as serving would read them.

labels.csv has a column `path` (below the folder), `sop_instance_uid` or `study_instance_uid`, and `label`; optional
`source`, `group`, `part`, `license`. What is no frontal chest radiograph is left out, with the gate's reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from pydicom import Dataset

from cxrnode.dicom.pixels import PREVIEW_LONG_SIDE, REDUCED_LEAST, load_grey
from cxrnode.dicom.read import read_header, read_instance
from cxrnode.dicom.select import select
from cxrnode.dicom.uids import is_valid_uid
from cxrnode.errors import Rejected
from engines.base import FloatArray
from training.recipe import RecipeError
from training.rows import Folder, LeftOut, Row, counted, few, inside, read_table

LABELS = "labels.csv"
_KEYS = ("path", "sop_instance_uid", "study_instance_uid")  # the first that a row gives names its images
Key = tuple[str, str]
Line = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Instance:
    """What the header of a DICOM file says; of the patient and the institution only digests."""

    sop_instance_uid: str
    study_instance_uid: str
    group: str
    institution: str
    age: float | None
    refusal: str  # why the gate refuses it, "" where it does not


def read_hospital(data: Path) -> Folder:
    """Every labelled frontal chest radiograph below `data`. Raises RecipeError: a row without a file, a row or a file
    with two labels, nothing left."""
    table = data / LABELS
    wanted = _wanted(table)
    folder, found, unreadable = Folder(), set[Key](), list[LeftOut]()
    label_of: dict[str, str] = {}  # of each instance that was seen
    for name in _names(data, wanted):
        instance = _instance(data / name)
        if isinstance(instance, str):
            unreadable.append(LeftOut(image=name, reason=instance))
            continue
        uid = instance.sop_instance_uid
        keys = zip(_KEYS, (name, uid, instance.study_instance_uid), strict=True)
        named = [key for key in keys if key in wanted]
        found.update(named)
        line = wanted[named[0]] if named else None
        if reason := _reason(instance, line, label_of.get(uid), table):
            folder.left_out.append(LeftOut(image=uid, reason=reason))
        elif line:
            folder.rows.append(_row(data, name, instance, line))
        if line:
            label_of[uid] = line["label"]
    if missing := [key[1] for key in wanted if key not in found]:
        broken = "".join(f"; {x.image}: {x.reason}" for x in unreadable[:3])
        lacks = f"{len(missing)} of {len(wanted)} rows of {table} have no file that can be read"
        raise RecipeError(f"{lacks} ({few(missing)}{broken}): take them out, or mend the files")
    folder.left_out.extend(unreadable)
    if not folder.rows:
        raise RecipeError(f"{data} holds no labelled frontal chest radiograph: {counted(folder.left_out)}")
    return folder


def read_dicom(path: Path) -> FloatArray:
    """float32 [H, W] in 0..1, decoded and shown as serving does. Raises RecipeError that names the file."""
    try:
        return load_grey(read_instance(path), long_side=PREVIEW_LONG_SIDE, least=REDUCED_LEAST).pixels
    except Rejected as e:
        raise RecipeError(f"cannot use {path} ({e}): take it out of {LABELS}") from e
    except OSError as e:
        raise RecipeError(f"cannot read {path}: {e.strerror}") from e


def files_below(data: Path) -> Iterator[Path]:
    """In a stable order, without hidden ones."""
    for path in sorted(data.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(data).parts):
            yield path


def _wanted(table: Path) -> dict[Key, Line]:
    """The rows of labels.csv by what names their images."""
    wanted: dict[Key, Line] = {}
    for number, line in enumerate(read_table(table, ["label"]), start=1):
        key = next((key for key in _KEYS if line.get(key)), None)
        if key is None or not line["label"]:
            lacks = "a label" if key else f"any of {', '.join(_KEYS)}"
            raise RecipeError(f"row {number} of {table} has not {lacks}: add it, or remove the row")
        name = line[key]
        if key == "path":
            name = Path(inside(table, name)).as_posix()
        elif not is_valid_uid(name):
            raise RecipeError(f"{table} names the {key} '{name}', which is no UID (PS3.5 section 9.1)")
        if (key, name) in wanted:
            raise RecipeError(f"{table} has two rows for {name}: which is right? Remove the other")
        wanted[key, name] = line
    return wanted


def _names(data: Path, wanted: dict[Key, Line]) -> list[str]:
    """The files to look at, by their path below `data`: all, unless every row names its own."""
    if all(key == "path" for key, _ in wanted):
        return sorted(name for _, name in wanted)
    return [path.relative_to(data).as_posix() for path in files_below(data) if path != data / LABELS]


def _reason(instance: _Instance, line: Line | None, labelled: str | None, table: Path) -> str:
    """Why an instance is left out, or ""."""
    if line is None:
        return f"no row of {LABELS}"
    if labelled is None:
        return instance.refusal
    if labelled != line["label"]:
        uid = instance.sop_instance_uid
        raise RecipeError(f"{table} labels two copies of {uid} '{labelled}' and '{line['label']}': which is right?")
    return "a copy of another file"


def _row(data: Path, name: str, instance: _Instance, line: Line) -> Row:
    return Row(
        image=instance.sop_instance_uid, path=data / name, dicom=True, label=line["label"],
        source=line.get("source") or instance.institution or data.resolve().name,
        group=line.get("group") or instance.group, age=instance.age, part=line.get("part", ""),
        license=line.get("license", ""),
    )  # fmt: skip


def _instance(path: Path) -> _Instance | str:
    """From the header alone; or why that cannot be read."""
    try:
        stat = path.stat()
        return _header(path, stat.st_size, stat.st_mtime_ns)
    except Rejected as e:
        return str(e)
    except OSError as e:
        return e.strerror or str(e)


@cache  # one command lists the folder more than once
def _header(path: Path, _size: int, _changed_ns: int) -> _Instance:
    with path.open("rb") as f:
        ds = read_header(f)
    refusal, patient, institution = select(ds), _text(ds, "PatientID"), _text(ds, "InstitutionName")
    study = str(ds.StudyInstanceUID)
    return _Instance(
        sop_instance_uid=str(ds.SOPInstanceUID),
        study_instance_uid=study,
        group=_digest(_text(ds, "IssuerOfPatientID"), patient) if patient else _digest(study),
        institution=f"institution-{_digest(institution)[:8]}" if institution else "",
        age=_years(_text(ds, "PatientAge")),
        refusal=refusal.text if refusal else "",
    )


def _text(ds: Dataset, keyword: str) -> str:
    return str(ds.get(keyword) or "").strip()


def _digest(*texts: str) -> str:
    """The same for the same patient. A pseudonym: who can guess the hospital's numbers can try which one it is."""
    return sha256("\0".join(texts).encode()).hexdigest()[:16]


def _years(age: str) -> float | None:
    """Age String (PS3.5 section 6.2): 045Y, 018M, 003W, 010D."""
    match = re.fullmatch(r"(\d{3})([DWMY])", age)
    return round(int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[match[2]], 2) if match else None
