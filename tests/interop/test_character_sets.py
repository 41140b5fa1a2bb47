"""Results in every character set, as others read them: dicom3tools, DCMTK and pydicom."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pydicom import dcmread

from tests.support.character_sets import CASES, Case
from tests.support.copied_text import results
from tests.support.dirty import Element, dirty_file
from tests.support.make_dicom import chest
from tests.support.validators import dciodvfy, dsrdump

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("validators")]


def named(case: Case, folder: Path) -> tuple[bytes, Path, Path]:
    """A source with this name and description, and its report and capture."""
    elements: dict[str, Element] = {"PatientName": ("PN", case.value), "StudyDescription": ("LO", case.value)}
    if case.terms:
        elements["SpecificCharacterSet"] = ("CS", case.terms)
    file = dirty_file(elements, source=chest(64, 56, overrides={"SpecificCharacterSet": None}))
    made = []
    for name, data in zip(("report", "capture"), results(folder, file), strict=True):
        made.append(folder / f"{name}.dcm")
        made[-1].write_bytes(data)
    return file, made[0], made[1]


@pytest.mark.parametrize("name", CASES)
def test_others_read_the_results_as_they_read_the_source(name: str, tmp_path: Path) -> None:
    """What a validator says of a result's text it says of the source's: some sets it does not know, some break a VR."""
    file, report, capture = named(CASES[name], tmp_path)
    source = tmp_path / "source.dcm"
    source.write_bytes(file)
    known = set(dciodvfy(source))
    theirs = dcmread(source)
    for path in (report, capture):
        assert [e for e in dciodvfy(path) if e not in known] == []
        subprocess.run(["/usr/bin/dcmdump", "-q", path], check=True, capture_output=True)
        ours = dcmread(path)
        assert (str(ours.PatientName), ours.StudyDescription) == (str(theirs.PatientName), theirs.StudyDescription)
    assert dsrdump(report) == []
