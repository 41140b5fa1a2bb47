"""Text and identifiers on their way through a PACS, DCMTK, the node and back: the same bytes, the same patient."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.conftest import require
from tests.support.awaiting import await_true
from tests.support.character_sets import CASES
from tests.support.dirty import Element, dirty_file
from tests.support.encoded import EXPLICIT, IMPLICIT, Elements, flat, parse
from tests.support.make_dicom import chest
from tests.support.node import SENDER, Node, running_node
from tests.support.orthanc import AET, Orthanc, free_port, missing_orthanc, running_orthanc

pytestmark = pytest.mark.interop


def named(case: str) -> dict[str, Element]:
    of = CASES[case]
    return {
        "SpecificCharacterSet": ("CS", of.terms),
        "PatientName": ("PN", of.value),
        "StudyDescription": ("LO", of.value),
    }


LONG = b"HOSPITAL-A|" + b"0123456789" * 6
SOURCES: dict[str, tuple[dict[str, Element], str]] = {
    "kanji with 3D": (named("kanji with 3D"), EXPLICIT),
    "kanji with 5C": (named("kanji with 5C"), EXPLICIT),
    "H.3.2": (named("H.3.2"), IMPLICIT),
    "I.2": (named("I.2"), EXPLICIT),
    "K.2": (named("K.2"), EXPLICIT),
    "J.3": (named("J.3"), EXPLICIT),
    "a misspelt term": (named("misspelt space"), EXPLICIT),
    "undeclared UTF-8": (named("undeclared UTF-8"), EXPLICIT),
    "two patient IDs": ({"PatientID": ("LO", b"WARD\\4711")}, EXPLICIT),
    "a patient ID of 71 characters": ({"PatientID": ("LO", LONG)}, EXPLICIT),
    "another that shares 64 of them": (
        {"PatientID": ("LO", LONG[:-1] + b"X")},
        EXPLICIT,
    ),
    "an accession number of 21 characters": ({"AccessionNumber": ("SH", b"ACC-2024-000012345678")}, EXPLICIT),
}
HELD_BACK = "1.2.826.0.1.77.99"
COPIED = (0x00080005, 0x00080050, 0x00080090, 0x00081030, 0x00100010, 0x00100020, 0x0020000D, 0x00200010)


@dataclass(frozen=True, slots=True)
class Way:
    node: Node
    orthanc: Orthanc
    sent: dict[str, Elements]  # by the name of the source
    before: tuple[int, int]  # patients and studies of the PACS without the node's results


def study_uid(number: int) -> str:
    return f"1.2.826.0.1.77.{number}"


def write(path: Path, elements: dict[str, Element], uid: str, seed: int, syntax: str = EXPLICIT) -> bytes:
    ids = {"SpecificCharacterSet": None, "PatientID": f"P-{seed}"}
    file = dirty_file(
        elements, syntax=syntax,
        source=chest(192, 160, seed=seed, uids=(uid, f"{uid}.1", f"{uid}.1.1"), overrides=ids),
    )  # fmt: skip
    path.write_bytes(file)
    return file


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    """Every source is in the PACS, was sent by DCMTK, and its results came back."""
    require(missing_orthanc())
    folder, port = tmp_path_factory.mktemp("text"), free_port()
    node = Node(folder=folder / "node", destinations=[("pacs", AET, port)], commitment=False)
    (folder / "files").mkdir()
    with running_orthanc(folder / "pacs", dicom_port=port) as orthanc, running_node(node):
        sent, paths = {}, []
        for number, (name, (elements, syntax)) in enumerate(SOURCES.items()):
            paths.append(folder / "files" / f"{number}.dcm")
            file = write(paths[-1], elements, study_uid(number), number, syntax)
            orthanc.upload(file)
            sent[name] = parse(file)
        paths.append(folder / "files" / "held.dcm")
        write(paths[-1], {"PatientID": ("US", b"\x67\x12")}, HELD_BACK, 99)
        before = counts(orthanc)
        storescu(node, paths)
        states = "SELECT COUNT(*) FROM job WHERE state != 'reported'"
        deliveries = "SELECT COUNT(*) FROM delivery WHERE state NOT IN ('sent', 'committed')"
        await_true(
            lambda: (
                len(node.rows("SELECT id FROM job")) == len(paths)
                and node.rows(states) == node.rows(deliveries) == [(0,)]
            ),
            lambda: node.log[-3000:],
        )
        yield Way(node, orthanc, sent, before)


def storescu(node: Node, paths: list[Path]) -> None:
    command = [
        "/usr/bin/storescu",
        "-xe",
        "-aet",
        SENDER,
        "-aec",
        "CXRNODE",
        "127.0.0.1",
        str(node.port),
        *map(str, paths),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "TCP_NODELAY": "1"}, timeout=120
    )
    assert done.returncode == 0, done.stderr + node.log[-2000:]


def counts(orthanc: Orthanc) -> tuple[int, int]:
    return len(orthanc.get_json("/patients")), len(orthanc.get_json("/studies"))


def results(orthanc: Orthanc, uid: str) -> list[Elements]:
    """What the PACS holds of the node's in a study."""
    found = []
    for study in orthanc.find("Study", StudyInstanceUID=uid):
        for instance in orthanc.get_json(f"/studies/{study}/instances"):
            elements = parse(orthanc.get(f"/instances/{instance['ID']}/file"))
            if elements[0x00080070].value.strip() == b"cxrnode":
                found.append(elements)
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_report_and_capture_come_back_with_the_source_s_bytes(name: str, way: Way) -> None:
    source = way.sent[name]
    made = results(way.orthanc, study_uid(list(SOURCES).index(name)))
    assert sorted(m[0x00080060].value for m in made) == [b"OT", b"SR"]
    for result in made:
        for tag in COPIED:
            assert (tag in result, tag) == (tag in source, tag)
            if tag in source:
                assert result[tag].value == source[tag].value, f"{tag:08X}"


def test_the_pacs_files_them_under_the_same_patients_and_studies(way: Way) -> None:
    assert counts(way.orthanc) == way.before == (len(SOURCES), len(SOURCES))
    for number in range(len(SOURCES)):
        (study,) = way.orthanc.find("Study", StudyInstanceUID=study_uid(number))
        assert len(way.orthanc.get_json(f"/studies/{study}/series")) == 3


def test_what_cannot_be_copied_whole_is_held_back_and_said(way: Way) -> None:
    assert results(way.orthanc, HELD_BACK) == []
    ((outcome, reason, detail),) = way.node.rows(
        f"SELECT outcome, reason, detail FROM job WHERE study_instance_uid = '{HELD_BACK}'"
    )
    assert (outcome, reason) == ("failed", "result_invalid")
    assert "PatientID of the source is no text" in detail
    assert "PatientID of the source is no text" in way.node.log


def test_the_report_says_its_own_words_in_ascii(way: Way) -> None:
    (report,) = (m for m in results(way.orthanc, study_uid(0)) if m[0x00080060].value == b"SR")
    texts = [value for path, vr, value in flat(report) if path.startswith("0040A730") and vr not in ("FD", "UI")]
    assert len(texts) > 50
    assert all(value.isascii() and b"\x1b" not in value for value in texts)
