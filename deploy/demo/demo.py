"""make demo: run-batch on real chest radiographs and a few hostile files, a table, and a contact sheet to look at.

The radiographs are RG1 of the pydicom-data package (one film in four encodings: CR, 1841x1955, MONOCHROME1).
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import UID

RG1 = ("RG1_UNCI.dcm", "RG1_UNCR.dcm", "RG1_J2KR.dcm", "RG1_J2KI.dcm")
TOLERANCE = 0.02  # of a probability, between the encodings of one film (two of them are lossy)
_TILE = 640  # px, contact sheet


def main(folder: Path) -> int:
    shutil.rmtree(folder, ignore_errors=True)
    archive, out = folder / "archive", folder / "results"
    make_archive(archive)
    command = [sys.executable, "-m", "cxrnode", "run-batch", str(archive), "--out", str(out)]
    print("$ cxrnode run-batch", archive, "--out", out, flush=True)
    code = subprocess.run(command, check=False).returncode
    if code != 1:  # the archive holds a truncated film and damaged pixels: 1 says that not all could be analysed
        print(f"run-batch ended with {code}; 1 was expected (the archive holds damaged films)")
        return 1
    rows = list(csv.DictReader((out / "results.csv").open(encoding="utf-8")))
    sheet = folder / "contact-sheet.png"
    cv2.imwrite(str(sheet), contact_sheet([out / row["capture"] for row in rows if row["capture"]]))
    print(f"Look at {sheet}; the DICOM results are in {out / 'dicom'}.")
    return compare_encodings([row for row in rows if Path(row["path"]).name in RG1])


def make_archive(folder: Path) -> None:
    """Four real films, two of them in a zip, and what an archive holds besides: all under misleading names."""
    folder.mkdir(parents=True)
    for name in RG1[:2]:
        shutil.copy(film(name), folder / name)
    with zipfile.ZipFile(folder / "old-archive.bin", "w") as z:
        for name in RG1[2:]:
            z.write(film(name), name)
    shutil.copy(film(RG1[1]), folder / "copy-of-RG1_UNCR")
    raw = film(RG1[1]).read_bytes()
    (folder / "truncated.dcm").write_bytes(raw[: len(raw) // 2])
    (folder / "notes.dcm").write_text("this is no DICOM file")
    (folder / "empty.dcm").touch()
    shutil.copy(film("CT_small.dcm"), folder / "ct.dcm")
    changes: dict[str, dict[str, object]] = {
        "lateral.dcm": {"ViewPosition": "LL", "PatientOrientation": ["A", "F"]},
        "hand.dcm": {"BodyPartExamined": "HAND", "StudyDescription": "HAND"},
        "black.dcm": {"PixelData": bytes(len(dcmread(film(RG1[1])).PixelData))},
    }
    for number, (name, change) in enumerate(changes.items()):
        ds = dcmread(film(RG1[1]))
        for keyword, value in change.items():
            setattr(ds, keyword, value)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(f"{ds.SOPInstanceUID}.{number}")
        ds.save_as(folder / name)


def film(name: str) -> Path:
    found = get_testdata_file(name)
    if not isinstance(found, str):
        raise SystemExit(f"{name} is missing: pip install pydicom-data==1.0.0")
    return Path(found)


def contact_sheet(captures: list[Path]) -> npt.NDArray[np.uint8]:
    """The captures side by side, BGR uint8, two a row."""
    tiles = [_tile(np.asarray(dcmread(path).pixel_array, np.uint8)) for path in captures]
    if len(tiles) % 2:
        tiles.append(np.zeros_like(tiles[0]))
    rows = [np.hstack(tiles[i : i + 2]) for i in range(0, len(tiles), 2)]
    return np.vstack(rows)


def _tile(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    scale = _TILE / max(rgb.shape[:2])
    small = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    tile = np.zeros((_TILE, _TILE, 3), np.uint8)
    y, x = (_TILE - small.shape[0]) // 2, (_TILE - small.shape[1]) // 2
    tile[y : y + small.shape[0], x : x + small.shape[1]] = small[..., ::-1]
    return tile


def compare_encodings(rows: list[dict[str, str]]) -> int:
    """0 where the four encodings got the same class and probabilities within TOLERANCE."""
    labels = [column for column in rows[0] if column.startswith("p_")]
    p = np.array([[float(row[label]) for label in labels] for row in rows])
    spread = float((p.max(axis=0) - p.min(axis=0)).max())
    same_class = all(a["class"] == b["class"] for a, b in pairwise(rows))
    good = len(rows) == len(RG1) and same_class and spread <= TOLERANCE
    print(
        f"One film in {len(rows)} encodings: {'the same class' if same_class else 'DIFFERENT CLASSES'}, "
        f"probabilities within {spread:.4f} (tolerance {TOLERANCE}): {'ok' if good else 'FAILED'}"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-out")))
