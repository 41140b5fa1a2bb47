"""The same image again: a duplicate only where study, patient and outcome are the same too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread

from tests.support.batch import rows, run
from tests.support.make_dicom import chest, write

IDS = ("1.2.826.0.1.5", "1.2.826.0.1.5.1", "1.2.826.0.1.5.1.1")
OTHER_STUDY = ("1.2.826.0.1.6", "1.2.826.0.1.6.1", IDS[2])


def film(ids: tuple[str, str, str] = IDS, **changes: Any) -> Dataset:
    ds = chest(192, 160, seed=3, uids=ids)
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def outcomes(tmp_path: Path, *films: Dataset) -> list[tuple[str, str]]:
    for n, ds in enumerate(films):
        write(ds, tmp_path / "in" / f"{n}.dcm")
    done = run(tmp_path / "in", out=tmp_path / "out")
    assert done.returncode in (0, 1), done.stderr
    return [(row["outcome"], row["reason"]) for row in rows(tmp_path / "out")]


def captures(tmp_path: Path) -> list[str]:
    return [row["capture"] for row in rows(tmp_path / "out") if row["capture"]]


def test_the_same_file_twice_is_one_analysis(tmp_path: Path) -> None:
    assert outcomes(tmp_path, film(), film()) == [("analysed", ""), ("duplicate", "duplicate")]


def test_what_does_not_matter_makes_no_second_analysis(tmp_path: Path) -> None:
    again = film(StudyDescription="CHEST PA", InstitutionName="ELSEWHERE")
    assert outcomes(tmp_path, film(), again) == [("analysed", ""), ("duplicate", "duplicate")]


@pytest.mark.parametrize(
    "other",
    [film(OTHER_STUDY), film(PatientID="SOMEBODY-ELSE"), film(IssuerOfPatientID="OTHER HOSPITAL")],
    ids=["study", "patient", "issuer"],
)
def test_the_same_image_of_another_study_or_patient_has_results_of_its_own(tmp_path: Path, other: Dataset) -> None:
    found = outcomes(tmp_path, film(), other)
    assert [outcome for outcome, _ in found] == ["analysed", "analysed"]
    assert found[1][1] in ("uid_conflict", "several_patients")
    both = captures(tmp_path)
    assert len(set(both)) == 2
    patients = [dcmread(tmp_path / "out" / path) for path in both]
    assert [p.StudyInstanceUID for p in patients] == [IDS[0], other.StudyInstanceUID]
    assert [p.PatientID for p in patients] == [film().PatientID, other.PatientID]


def test_a_copy_whose_header_was_put_right_is_analysed(tmp_path: Path) -> None:
    lateral, again = film(ViewPosition="LL"), film(ViewPosition="LL")
    found = outcomes(tmp_path, lateral, again, film(), film())
    assert found == [
        ("not_analysed", "lateral"), ("duplicate", "duplicate"), ("analysed", ""), ("duplicate", "duplicate"),
    ]  # fmt: skip


def test_a_copy_that_comes_in_a_later_run_too(tmp_path: Path) -> None:
    assert outcomes(tmp_path, film(ViewPosition="LL")) == [("not_analysed", "lateral")]
    assert outcomes(tmp_path, film(ViewPosition="LL"), film(), film()) == [
        ("not_analysed", "lateral"), ("analysed", ""), ("duplicate", "duplicate"),
    ]  # fmt: skip
