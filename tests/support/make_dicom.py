"""Valid CR, DX and SC objects of a synthetic chest, in every encoding a PACS may send.

    ds = chest(512, 420, kind="DX", bits_stored=12, syntax="jpeg_lossless")
    path = write(ds, tmp_path / "a.dcm")

The same `seed` gives the same picture whatever the encoding, and the same picture has the same UIDs: a test
that needs two objects uses two seeds or passes `uids=`.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pydicom import Dataset, FileDataset
from pydicom import uid as uids
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import dcmread

from tests.support.pixel_encodings import LOSSY, SYNTAXES, Coding, encode, store_picture

__all__ = ["LOSSY", "SYNTAXES", "Coding", "chest", "code", "phantom", "recode", "store_picture", "to_bytes", "write"]

SOP_CLASSES = {
    "CR": uids.ComputedRadiographyImageStorage,
    "DX": uids.DigitalXRayImageStorageForPresentation,
    "DX_PROCESSING": uids.DigitalXRayImageStorageForProcessing,
    "SC": uids.SecondaryCaptureImageStorage,
}
TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "ReferringPhysicianName", "StudyID", "AccessionNumber", "SeriesNumber", "Manufacturer", "InstanceNumber",
    "PatientOrientation", "BodyPartExamined", "ViewPosition", "AcquisitionContextSequence", "DetectorType",
    "Laterality",
)  # fmt: skip


def phantom(rows: int = 512, columns: int = 420, seed: int = 0) -> npt.NDArray[np.float32]:
    """A frontal chest: float32 [rows, columns] in 0..1 (both reached), dense bone white, the border black."""
    rng = np.random.default_rng(seed)
    y = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, columns, dtype=np.float32)[None, :]
    image = 0.08 + 0.5 * _soft(1 - (x / 0.92) ** 4 - (y / 1.3) ** 4)
    for side in (-1, 1):
        lung = 1 - ((x - side * (0.42 + 0.02 * rng.random())) / 0.3) ** 2 - ((y + 0.05) / 0.66) ** 2
        image -= 0.36 * _soft(3 * lung)
    heart = 1 - ((x - 0.12) / (0.26 + 0.08 * rng.random())) ** 2 - ((y - 0.25) / 0.33) ** 2
    image += 0.22 * _soft(3 * heart) + 0.3 * np.exp(-((x / 0.09) ** 2)) * _soft(4 - 4 * np.abs(y))
    ribs = np.sin(14 * (y + 0.35 * x * x) + rng.random()) > 0.55
    image += 0.07 * ribs * (np.abs(x) < 0.8) + 0.25 * _soft(6 * (y - 0.62 + 0.25 * x * x))
    coarse = rng.random((max(4, rows // 48), max(4, columns // 48)), dtype=np.float32) - 0.5
    image += 0.12 * cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)
    image += rng.normal(0, 0.006, (rows, columns)).astype(np.float32)
    image *= (np.abs(x) < 0.95) & (np.abs(y) < 0.97)
    image = np.clip(image, 0.0, 0.97)
    image[rows // 14 : rows // 9, columns // 12 : columns // 8] = 1.0  # the lead marker
    blurred = cv2.GaussianBlur(image, (5, 5), 0.7)  # no detector draws a hard edge
    return np.asarray(blurred, np.float32)


def _soft(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return a.clip(0, 1)


def chest(
    rows: int = 512,
    columns: int = 420,
    *,
    seed: int = 0,
    kind: str = "CR",
    view: str = "PA",
    body_part: str = "CHEST",
    image: npt.NDArray[np.float32] | None = None,
    uids: tuple[str, str, str] | None = None,
    drop_type2: bool = False,
    overrides: dict[str, Any] | None = None,
    **coding: Any,
) -> FileDataset:
    """A complete object. kind: CR, DX, DX_PROCESSING, SC.

    overrides: keyword -> value; None deletes the element.
    uids: (study, series, instance). Further keywords are those of `Coding`, for instance syntax="j2k".
    """
    how = Coding(**coding)
    picture = phantom(rows, columns, seed) if image is None else image
    ds = _new_file(SOP_CLASSES[kind], uids or _uids_of(picture, kind, view), how)
    _patient_and_study(ds, kind, body_part)
    {"CR": _cr, "DX": _dx, "DX_PROCESSING": _dx, "SC": _sc}[kind](ds, view)
    store_picture(ds, picture, how)
    if kind.startswith("DX"):
        _dx_pixel_attributes(ds, how)
    for keyword in TYPE_2 if drop_type2 else ():
        if keyword in ds:
            del ds[keyword]
    for keyword, value in (overrides or {}).items():
        if value is None:
            ds.pop(keyword, None)
        else:
            setattr(ds, keyword, value)
    return ds


def to_bytes(ds: Dataset) -> bytes:
    """The whole file."""
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write(ds: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_bytes(ds))
    return path


def recode(ds: Dataset, syntax: str) -> FileDataset:
    """The same object (same UIDs) in another lossless transfer syntax; `ds` is native little endian."""
    again = dcmread(BytesIO(to_bytes(ds)))
    stored = again.pixel_array
    again.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    again.set_original_encoding(syntax == "implicit", syntax != "big_endian")
    encode(again, stored, Coding(bits_stored=again.BitsStored, syntax=syntax))
    return again


# --- everything but the picture


def _new_file(sop_class: str, three: tuple[str, str, str], how: Coding) -> FileDataset:
    meta = Dataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, three[2]
    meta.TransferSyntaxUID = SYNTAXES[how.syntax]
    meta.ImplementationClassUID = "2.25.337799"
    ds = FileDataset("", {}, file_meta=FileMetaDataset(meta), preamble=b"\0" * 128)
    ds.set_original_encoding(how.syntax == "implicit", how.syntax != "big_endian")
    ds.SOPClassUID = sop_class
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = three
    return ds


def _uids_of(picture: npt.NDArray[np.float32], kind: str, view: str) -> tuple[str, str, str]:
    digest = hashlib.sha256(picture.tobytes()).hexdigest()

    def derived(*causes: str) -> str:
        return f"2.25.{int(hashlib.sha256(' '.join(causes).encode()).hexdigest()[:30], 16)}"

    return derived(digest), derived(digest, kind), derived(digest, kind, view)


def _patient_and_study(ds: Dataset, kind: str, body_part: str) -> None:
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName, ds.PatientID = "Phantom^Chest", "PHANTOM-1"
    ds.PatientBirthDate, ds.PatientSex = "19600229", "O"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20240102", "030405", "1", "ACC1"
    ds.ReferringPhysicianName, ds.StudyDescription = "Ref^Phys", "Chest"
    ds.Modality = kind[:2] if kind != "SC" else "OT"
    ds.SeriesNumber, ds.InstanceNumber = 1, 1
    ds.Manufacturer, ds.ManufacturerModelName = "Phantom Works", "P1"
    ds.BodyPartExamined = body_part
    ds.AcquisitionDate = ds.ContentDate = ds.SeriesDate = "20240102"
    ds.AcquisitionTime = ds.ContentTime = ds.SeriesTime = "030406"


def _cr(ds: Dataset, view: str) -> None:
    ds.ViewPosition, ds.PatientOrientation = view, ["L", "F"]
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.ImagerPixelSpacing = ["0.2", "0.2"]


def _dx(ds: Dataset, view: str) -> None:
    ds.ViewPosition, ds.PatientOrientation, ds.ImageLaterality = view, ["L", "F"], "U"
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    processing = ds.SOPClassUID == uids.DigitalXRayImageStorageForProcessing
    ds.PresentationIntentType = "FOR PROCESSING" if processing else "FOR PRESENTATION"
    ds.AnatomicRegionSequence = [code("816094009", "SCT", "Chest")]
    ds.ViewCodeSequence = [code(*_VIEWS.get(view, _VIEWS["PA"]))]
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = []
    ds.PatientOrientationCodeSequence = [code("10904000", "SCT", "erect")]
    ds.AcquisitionContextSequence = []
    ds.DetectorType, ds.ImagerPixelSpacing = "DIRECT", ["0.2", "0.2"]
    ds.PositionerType = ""


_VIEWS = {
    "PA": ("272479007", "SCT", "postero-anterior"),
    "AP": ("399348003", "SCT", "antero-posterior"),
    "LL": ("399173006", "SCT", "left lateral"),
    "RL": ("399198007", "SCT", "right lateral"),
}


def _dx_pixel_attributes(ds: Dataset, how: Coding) -> None:
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = 1 if how.photometric == "MONOCHROME1" else -1
    if how.modality == "none":  # DX has an identity rescale (PS3.3 C.8.11.3.1.2)
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    if ds.PresentationIntentType == "FOR PROCESSING":  # no VOI LUT module there
        for keyword in ("WindowCenter", "WindowWidth"):
            ds.pop(keyword, None)
    if not how.shape_inverse:
        ds.PresentationLUTShape = "INVERSE" if how.photometric == "MONOCHROME1" else "IDENTITY"
    ds.BurnedInAnnotation = "NO"
    ds.LossyImageCompression = "01" if how.syntax in LOSSY else "00"


def _sc(ds: Dataset, view: str) -> None:
    ds.ConversionType, ds.PatientOrientation = "DF", ["L", "F"]
    ds.ViewPosition = view
    ds.ImageType = ["DERIVED", "SECONDARY"]


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """One item of a code sequence (PS3.3 section 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


if __name__ == "__main__":  # python -m tests.support.make_dicom FOLDER: one file a transfer syntax
    for name in SYNTAXES:
        bits = 8 if name == "jpeg_baseline" else 12
        write(chest(syntax=name, bits_stored=bits), Path(sys.argv[1]) / f"{name}.dcm")
