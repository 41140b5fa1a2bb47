"""Identifiers that break their VR: the results have the same, or they are held back and it is said; never another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydicom.uid import ImplicitVRLittleEndian

from tests.support.batch import by_name, objects, run
from tests.support.dirty import Element, dirty_file, item, sequence
from tests.support.encoded import EXPLICIT, flat, parse
from tests.support.make_dicom import chest

ISSUER = ("SQ", sequence(EXPLICIT, item(EXPLICIT, {"LocalNamespaceEntityID": ("UT", b"RIS\\2" + b"x" * 99)})))
WHOLE: dict[str, tuple[str, Element]] = {
    "two patient IDs": ("PatientID", ("LO", b"WARD\\4711")),
    "a patient ID of 71 characters": ("PatientID", ("LO", b"HOSPITAL-A|" + b"0123456789" * 6)),
    "a patient ID of 2000 characters": ("PatientID", ("LO", b"7" * 2000)),
    "an issuer of 80 characters": ("IssuerOfPatientID", ("LO", b"I" * 80)),
    "an accession number of 21 characters": ("AccessionNumber", ("SH", b"ACC-2024-000012345678")),
    "two accession numbers": ("AccessionNumber", ("SH", b"A1\\A2")),
    "an issuer of the accession number": ("IssuerOfAccessionNumberSequence", ISSUER),
    "a study ID of 40 characters": ("StudyID", ("SH", b"S" * 40)),
    "a patient ID of VR UN": ("PatientID", ("UN", b"4711")),
}


HELD_BACK: dict[str, tuple[str, Element, str, str]] = {
    "a patient ID that is a number": ("PatientID", ("US", b"\x67\x12"), EXPLICIT, "is no text"),
    "a patient ID of bytes": ("PatientID", ("OB", b"4711"), EXPLICIT, "is no text"),
    "an accession number that is a number": ("AccessionNumber", ("FD", b"\0" * 8), EXPLICIT, "is no text"),
    "an issuer that is no sequence": ("IssuerOfAccessionNumberSequence", ("LO", b"RIS"), EXPLICIT, "is no sequence"),
    "a patient ID longer than a value": ("PatientID", ("LO", b"7" * 65536), ImplicitVRLittleEndian, "than 64 KiB"),
}


def film(elements: dict[str, Element], study: int, instance: int = 1, syntax: str = EXPLICIT) -> bytes:
    uids = (f"1.2.826.0.1.{study}", f"1.2.826.0.1.{study}.1", f"1.2.826.0.1.{study}.1.{instance}")
    return dirty_file(elements, syntax=syntax, source=chest(192, 160, seed=study, uids=uids))


def analyse(folder: Path, films: dict[str, bytes]) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code of run-batch over these, and its rows."""
    (folder / "in").mkdir()
    for name, file in films.items():
        (folder / "in" / name).write_bytes(file)
    done = run(folder / "in", out=folder / "out")
    return done.returncode, by_name(folder / "out")


def copied(file: Path, keyword: str) -> list[tuple[str, bytes]]:
    tag = {"PatientID": "00100020", "IssuerOfPatientID": "00100021", "AccessionNumber": "00080050",
           "IssuerOfAccessionNumberSequence": "00080051", "StudyID": "00200010"}[keyword]  # fmt: skip
    return [(path, value) for path, _, value in flat(parse(file.read_bytes())) if path.startswith(tag)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("whole")
    films = {name: film({keyword: element}, n) for n, (name, (keyword, element)) in enumerate(WHOLE.items())}
    code, found = analyse(folder, films)
    assert code == 0
    return folder, found


@pytest.mark.parametrize("name", WHOLE)
def test_the_result_has_the_same_identifier(name: str, whole: tuple[Path, dict[str, dict[str, str]]]) -> None:
    folder, found = whole
    keyword, _ = WHOLE[name]
    for kind in ("sr", "capture"):
        assert copied(folder / "out" / found[name][kind], keyword) == copied(folder / "in" / name, keyword) != []


def test_or_it_is_held_back_and_said(tmp_path: Path) -> None:
    films = {
        name: film({keyword: element}, n, syntax=syntax)
        for n, (name, (keyword, element, syntax, _)) in enumerate(HELD_BACK.items())
    }
    code, found = analyse(tmp_path, films)
    assert code == 1
    for name, (keyword, _, _, why) in HELD_BACK.items():
        row = found[name]
        assert (row["outcome"], row["reason"], row["sr"], row["capture"]) == ("failed", "result_invalid", "", "")
        assert f"{keyword} of the source" in row["detail"]
        assert why in row["detail"]
        assert "send that again" in row["detail"]
    assert objects(tmp_path / "out") == {}


def test_of_one_study_each_patient_gets_what_is_sound(tmp_path: Path) -> None:
    """Two whose IDs share 64 characters are two; one whose ID is no text is held back, and holds back nobody else."""
    ids = {"one": b"HOSPITAL-A|" + b"0" * 60 + b"1", "two": b"HOSPITAL-A|" + b"0" * 60 + b"2"}
    films = {name: film({"PatientID": ("LO", i)}, 1, n) for n, (name, i) in enumerate(ids.items())}
    code, found = analyse(tmp_path, {**films, "bad": film({"PatientID": ("US", b"\x67\x12")}, 1, 9)})
    assert code == 1
    assert (found["bad"]["outcome"], found["bad"]["sr"], found["bad"]["capture"]) == ("failed", "", "")
    assert found["one"]["sr"] != found["two"]["sr"]
    for name, patient in ids.items():
        assert (found[name]["outcome"], found[name]["reason"]) == ("analysed", "several_patients")
        for kind in ("sr", "capture"):
            assert copied(tmp_path / "out" / found[name][kind], "PatientID") == [("00100020", patient)]
        command = ["audit", "query", "--out", str(tmp_path / "out"), "--patient", patient.decode(), "--format", "json"]
        asked = subprocess.run([sys.executable, "-m", "cxrnode", *command], capture_output=True, text=True, check=False)
        assert "1.2.826.0.1.1" in asked.stdout, asked.stderr
