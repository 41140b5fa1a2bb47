"""How a frontal film lies, as its header says, and the turn that sets it upright.

Upright, for PA and AP alike: head up, and the patient's left at the viewer's right. Rows then run to L and columns to F
(PS3.3 section C.7.6.1.1.1).

Patient Orientation decides: it speaks of the stored pixels and of the patient. Where it is empty or invalid, Image
Orientation (Patient) does, which has to agree with it. Field of View Rotation and Horizontal Flip say how the stored
pixels were turned away from the detector (section C.8.11.4.1.1), and nothing says how the detector stood to the
patient. So they add nothing to the other two, and without them nobody can tell how a film so turned lies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

_AXES = {"L": "x", "R": "x", "P": "y", "A": "y", "H": "z", "F": "z"}
# Both directions of a quadruped (PS3.3 section C.7.6.1.1.1), where left, right, cranial and caudal have other codes
_QUADRUPED = re.compile(r"(?=.*(LE|RT|CR|CD))((LE|RT|CR|CD|PR|DI|PA|PL|D|V|R|M|L){1,3}(\\|$)){2}")
_POSITIVE, _NEGATIVE = "LPH", "RAF"  # of the patient's x, y and z (PS3.3 section C.7.6.2.1.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lie:
    """Where the rows and the columns of the stored pixels run to: the dominant letter of each."""

    rows: str
    columns: str

    @property
    def is_frontal(self) -> bool:
        return {_AXES[self.rows], _AXES[self.columns]} == {"x", "z"}

    @property
    def is_upright(self) -> bool:
        return (self.rows, self.columns) == ("L", "F")

    def upright(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[h, w] as stored -> [h, w] or [w, h] upright. For frontal films."""
        rows, columns = self.rows, self.columns
        if _AXES[rows] == "z":
            image, rows, columns = image.T, columns, rows
        if rows == "R":
            image = image[:, ::-1]
        if columns == "H":
            image = image[::-1]
        return np.ascontiguousarray(image)

    def __str__(self) -> str:
        return f"{self.rows}\\{self.columns}"


def lie_of(ds: Dataset) -> Lie | None:
    """None where the header does not say, or nothing that makes sense."""
    codes = _codes(ds)
    if not (len(codes) == 2 and all(re.fullmatch("[LRPAHF]{1,3}", code) for code in codes)):
        codes = _by_cosines(ds)
    if len(codes) != 2 or _AXES[codes[0][0]] == _AXES[codes[1][0]]:
        return None
    return Lie(rows=codes[0][0], columns=codes[1][0])


def is_quadruped(ds: Dataset) -> bool:
    """By its Patient Orientation, in codes that people have not."""
    return bool(_QUADRUPED.fullmatch("\\".join(_codes(ds))))


def is_turned_from_detector(ds: Dataset) -> bool:
    """By Field of View Rotation (0, 90, 180 or 270 degrees) or Horizontal Flip (YES or NO)."""
    rotation, flip = _values(ds, "FieldOfViewRotation"), _values(ds, "FieldOfViewHorizontalFlip")
    degrees = _numbers(rotation[:1])
    return bool(degrees and degrees[0] % 360) or [str(f).strip().upper()[:1] for f in flip[:1]] == ["Y"]


def _codes(ds: Dataset) -> list[str]:
    return [str(value).strip().upper() for value in _values(ds, "PatientOrientation")]


def _by_cosines(ds: Dataset) -> list[str]:
    cosines = _numbers(_values(ds, "ImageOrientationPatient"))
    if len(cosines) != 6:
        return []
    return [_letter(cosines[:3]), _letter(cosines[3:])] if any(cosines[:3]) and any(cosines[3:]) else []


def _letter(direction: list[float]) -> str:
    axis = max(range(3), key=lambda k: abs(direction[k]))
    return (_POSITIVE if direction[axis] > 0 else _NEGATIVE)[axis]


def _values(ds: Dataset, keyword: str) -> list[Any]:
    value = ds.get(keyword)
    if isinstance(value, bytes):  # a header that was kept, see `verbatim`
        value = value.decode("ascii", "replace").strip("\0 ")
    if value is None or isinstance(value, Dataset):
        return []
    if isinstance(value, str):
        return value.split("\\")
    try:
        return list(value)
    except TypeError:
        return [value]


def _numbers(values: list[Any]) -> list[float]:
    """Empty where one is no finite number."""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        return []
    return numbers if all(map(np.isfinite, numbers)) else []
