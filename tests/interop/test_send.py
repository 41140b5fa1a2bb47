"""`run-batch --send` to a real PACS: results beside their source, statuses recorded, a dead peer tried again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.conftest import require
from tests.support.batch import objects, rows, run, studies
from tests.support.orthanc import AET, Orthanc, free_port, missing_orthanc, running_orthanc

pytestmark = pytest.mark.interop


def test_results_land_in_the_study_of_their_source(orthanc: Orthanc, tmp_path: Path) -> None:
    folder = studies(tmp_path / "in", 2, 2)
    for path in sorted(folder.rglob("i*")):
        orthanc.upload(path.read_bytes())
    done = run(folder, out=tmp_path / "out", options=("--send", f"{AET}@127.0.0.1:{orthanc.dicom_port}"))
    assert done.returncode == 0, done.stderr
    for row in rows(tmp_path / "out"):
        assert (row["sr_status"], row["capture_status"]) == ("0x0000", "0x0000")
    for ds in objects(tmp_path / "out").values():
        (study,) = orthanc.find("Study", StudyInstanceUID=ds.StudyInstanceUID)
        held = orthanc.get_json(f"/studies/{study}/instances")
        uids = {i["MainDicomTags"]["SOPInstanceUID"] for i in held}
        assert ds.SOPInstanceUID in uids
        assert len(uids) == 2 + 1 + 2  # two films, one report, two captures


def test_a_dead_destination_is_said_and_tried_again_by_the_next_call(tmp_path: Path) -> None:
    require(missing_orthanc())
    folder, port = studies(tmp_path / "in", 1), free_port()
    send = ("--send", f"{AET}@127.0.0.1:{port}")
    dead = run(folder, out=tmp_path / "out", options=send)
    assert dead.returncode == 1
    assert "not delivered" in dead.stderr
    assert {row["sr_status"] for row in rows(tmp_path / "out")} == {"no connection"}
    assert len(objects(tmp_path / "out")) == 2  # the results are kept
    with running_orthanc(tmp_path / "peer", dicom_port=port) as peer:
        again = run(folder, out=tmp_path / "out", options=send)
        assert again.returncode == 0, again.stderr
        assert len(peer.get_json("/instances")) == 2
    assert {row["sr_status"] for row in rows(tmp_path / "out")} == {"0x0000"}


def test_a_rejected_association_is_said(orthanc: Orthanc, tmp_path: Path) -> None:
    send = ("--send", f"NOBODY@127.0.0.1:{orthanc.dicom_port}")  # Orthanc checks the called AE title
    done = run(studies(tmp_path / "in", 1), out=tmp_path / "out", options=send)
    assert done.returncode == 1
    assert {row["sr_status"] for row in rows(tmp_path / "out")} == {"association rejected"}
