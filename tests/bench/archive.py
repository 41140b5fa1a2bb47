"""The benchmark's archive: 2048x2500 films, 16 bits allocated: a quarter each raw, JPEG lossless, JPEG 2000, RLE."""

from __future__ import annotations

from pathlib import Path

from pydicom import dcmread
from pydicom.uid import UID

from tests.support.make_dicom import chest, to_bytes

ROWS, COLUMNS = 2500, 2048
SYNTAXES = ("explicit", "jpeg_lossless", "j2k", "rle")
_PICTURES = 4  # different films; encoding JPEG 2000 is slow, so each file is one of them under its own UIDs


def make_archive(folder: Path, count: int) -> Path:
    """`count` films, each a study of its own; made once, kept for the next run."""
    if len(list(folder.glob("*.dcm"))) == count:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    films = [
        chest(ROWS, COLUMNS, seed=seed, kind="DX", bits_stored=14, syntax=syntax)
        for seed in range(_PICTURES)
        for syntax in SYNTAXES
    ]
    for n in range(count):
        ds = films[n % len(films)]
        root = f"1.2.826.0.1.77.{count}.{n}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{root}.1", f"{root}.2"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(f"{root}.3")
        (folder / f"{n:05}.dcm").write_bytes(to_bytes(ds))
    return folder


def paths(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.dcm"))
    assert dcmread(found[0], stop_before_pixels=True).Rows == ROWS
    return found
