"""One film, lying in every way that Patient Orientation can say: one picture, upright."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from cxrnode.dicom.orientation import Lie, lie_of
from cxrnode.dicom.pixels import load_grey
from cxrnode.types import FloatArray
from tests.support.make_dicom import chest, phantom

PICTURE = phantom(160, 130, 3)  # rows run to the patient's left, columns to the feet
# (rows, columns) -> the upright picture as it then lies in the file
LYING = {
    ("L", "F"): PICTURE,
    ("R", "F"): PICTURE[:, ::-1],
    ("L", "H"): PICTURE[::-1],
    ("R", "H"): np.rot90(PICTURE, 2),
    ("F", "R"): np.rot90(PICTURE, 1),
    ("H", "L"): np.rot90(PICTURE, 3),
    ("F", "L"): PICTURE.T,
    ("H", "R"): np.rot90(PICTURE.T, 2),
}


def film(picture: FloatArray, **said: Any) -> Dataset:
    return chest(image=np.ascontiguousarray(picture), overrides=said)


def pixels(ds: Dataset) -> FloatArray:
    return load_grey(ds).pixels


@pytest.mark.parametrize("lie", LYING, ids="".join)
def test_every_way_of_lying_gives_the_upright_picture(lie: tuple[str, str]) -> None:
    ds = film(LYING[lie], PatientOrientation=list(lie))
    upright = pixels(ds)
    assert upright.shape == PICTURE.shape
    assert np.abs(upright - PICTURE).max() < 0.01
    grey = load_grey(ds)
    assert (grey.rows, grey.columns) == LYING[lie].shape  # of the source


def test_the_dominant_letter_counts() -> None:
    assert np.array_equal(pixels(film(LYING["R", "H"], PatientOrientation=["RFA", "HP"])), pixels(film(PICTURE)))


@pytest.mark.parametrize("orientation", ["", None, "nonsense", ["L", ""], ["L", "R"], ["F", "F"], ["LEFT", "FOOT"],
                                         ["X", "F"], ["L", "F", "H"]])  # fmt: skip
def test_what_says_nothing_turns_nothing(orientation: Any) -> None:
    ds = film(LYING["R", "H"], PatientOrientation=orientation)
    assert lie_of(ds) is None
    assert np.abs(pixels(ds) - LYING["R", "H"]).max() < 0.01


@pytest.mark.parametrize("orientation", ["", None, "nonsense"])
def test_image_orientation_stands_in(orientation: Any) -> None:
    said = {"PatientOrientation": orientation, "ImageOrientationPatient": [-1, 0, 0, 0, 0.1, 0.99]}
    assert np.abs(pixels(film(LYING["R", "H"], **said)) - PICTURE).max() < 0.01


@pytest.mark.parametrize("cosines", [[0, 0, 0, 0, 0, 0], [1, 0, 0], ["", "", "", "", "", ""], [1, 0, 0, 0.9, 0, 0.1]])
def test_cosines_that_say_nothing(cosines: list[Any]) -> None:
    assert lie_of(film(PICTURE, PatientOrientation="", ImageOrientationPatient=cosines)) is None


@pytest.mark.parametrize(("rotation", "flip"), [("90", "NO"), ("270", "YES"), ("180", "NO")])
def test_patient_orientation_wins_over_the_field_of_view(rotation: str, flip: str) -> None:
    """The field of view speaks of the detector (PS3.3 C.8.11.4.1.1): the pixels may stand upright as they are."""
    said = {"FieldOfViewRotation": rotation, "FieldOfViewHorizontalFlip": flip}
    assert np.array_equal(pixels(film(PICTURE, **said)), pixels(film(PICTURE)))
    lying = film(LYING["H", "L"], PatientOrientation=["H", "L"], **said)
    assert np.abs(pixels(lying) - PICTURE).max() < 0.01


@pytest.mark.parametrize(
    ("rows", "columns", "frontal", "upright"),
    [("L", "F", True, True), ("R", "F", True, False), ("L", "H", True, False), ("F", "L", True, False),
     ("A", "F", False, False), ("L", "P", False, False), ("P", "A", False, False)],
)  # fmt: skip
def test_what_is_frontal_and_what_is_upright(rows: str, columns: str, frontal: bool, upright: bool) -> None:
    lie = Lie(rows=rows, columns=columns)
    assert (lie.is_frontal, lie.is_upright, str(lie)) == (frontal, upright, f"{rows}\\{columns}")
