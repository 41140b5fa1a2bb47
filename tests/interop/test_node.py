"""The node beside a real PACS: a study comes by C-STORE, its results come back and are committed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage

from tests.interop.conftest import require
from tests.support.awaiting import await_true
from tests.support.make_dicom import chest, write
from tests.support.node import Node, running_node
from tests.support.orthanc import AET, Orthanc, free_port, missing_orthanc, running_orthanc
from tests.support.validators import dciodvfy, dsrdump, pixelmed_sr

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def pair(validators: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Orthanc]]:
    """A node and an Orthanc that know each other."""
    require(missing_orthanc())
    folder = tmp_path_factory.mktemp("node")
    dicom_port = free_port()
    node = Node(folder=folder / "node", destinations=[("pacs", AET, dicom_port)])
    modalities = {"cxrnode": ["CXRNODE", "127.0.0.1", node.port]}
    with running_orthanc(folder / "pacs", modalities, dicom_port=dicom_port) as orthanc, running_node(node):
        yield node, orthanc


def films(study: int, *instances: int) -> list[Dataset]:
    root = f"1.2.826.0.1.55.{study}"
    return [
        chest(256, 220, seed=study * 10 + n, uids=(f"{root}.1", f"{root}.1.2", f"{root}.1.2.{n}")) for n in instances
    ]


def in_study(orthanc: Orthanc, ds: Dataset) -> list[dict[str, Any]]:
    """The data sets of the study, as the PACS gives them over DICOMweb."""
    found: list[dict[str, Any]] = orthanc.get_json(f"/dicom-web/studies/{ds.StudyInstanceUID}/metadata")
    return found


def results(orthanc: Orthanc, ds: Dataset) -> list[Dataset]:
    bulk = "BulkDataURI"
    held = [Dataset.from_json({k: v for k, v in m.items() if bulk not in v}) for m in in_study(orthanc, ds)]
    wanted = (Comprehensive3DSRStorage, SecondaryCaptureImageStorage)
    return [h for h in held if h.SOPClassUID in wanted and h.get("Manufacturer") == "cxrnode"]


def states(node: Node) -> set[str]:
    return {row[0] for row in node.rows("SELECT state FROM delivery")}


def test_a_study_that_the_pacs_sends_gets_its_results_committed(pair: tuple[Node, Orthanc], tmp_path: Path) -> None:
    node, orthanc = pair
    sent = films(1, 1, 2)
    for ds in sent:
        path = write(ds, tmp_path / f"{ds.SOPInstanceUID}.dcm")
        orthanc.upload(path.read_bytes())
    (study,) = orthanc.find("Study", StudyInstanceUID=sent[0].StudyInstanceUID)
    orthanc.store(study, "cxrnode")
    made = await_true(lambda: r if len(r := results(orthanc, sent[0])) == 3 else [], lambda: node.log[-3000:])
    assert sorted(m.SOPClassUID for m in made) == sorted(
        [Comprehensive3DSRStorage, SecondaryCaptureImageStorage, SecondaryCaptureImageStorage]
    )
    await_true(lambda: states(node) == {"committed"}, lambda: f"{states(node)}\n{node.log[-3000:]}")
    for path in (node.data_dir / "dicom").rglob("*.dcm"):
        assert not dciodvfy(path)
    reports = list((node.data_dir / "dicom").rglob("sr-*.dcm"))
    assert not any(map(dsrdump, reports))
    assert not any(pixelmed_sr(reports).values())


def test_a_late_film_makes_a_second_report_that_names_the_first(pair: tuple[Node, Orthanc], tmp_path: Path) -> None:
    node, orthanc = pair
    early, late = films(2, 1, 2)
    assert node.send(write(early, tmp_path / "1.dcm")) == [0]
    await_true(
        lambda: len(results(orthanc, early)) == 2 if in_pacs(orthanc, early) else False, lambda: node.log[-3000:]
    )
    assert node.send(write(late, tmp_path / "2.dcm")) == [0]
    made = await_true(lambda: r if len(r := results(orthanc, early)) == 4 else [], lambda: node.log[-3000:])
    reports = [m for m in made if m.SOPClassUID == Comprehensive3DSRStorage]
    named = {
        item.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for m in reports
        for item in m.get("PredecessorDocumentsSequence", [])
    }
    (first,) = (m for m in reports if "PredecessorDocumentsSequence" not in m)
    assert named == {first.SOPInstanceUID}


def in_pacs(orthanc: Orthanc, ds: Dataset) -> bool:
    return bool(orthanc.find("Study", StudyInstanceUID=ds.StudyInstanceUID))


def test_sent_twice_is_analysed_once_and_other_bytes_are_kept_beside(
    pair: tuple[Node, Orthanc], tmp_path: Path
) -> None:
    node, orthanc = pair
    (ds,) = films(3, 1)
    path = write(ds, tmp_path / "1.dcm")
    assert node.send(path, path) == [0, 0]
    other = chest(256, 220, seed=999, uids=(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID))
    assert node.send(write(other, tmp_path / "2.dcm")) == [0]
    await_true(
        lambda: in_pacs(orthanc, ds) and len(results(orthanc, ds)) == 3, lambda: node.log[-3000:]
    )  # one report on both, two captures
    kept = node.rows(f"SELECT path FROM instance WHERE sop_instance_uid = '{ds.SOPInstanceUID}'")
    assert len(kept) == 2
    of_it = f"kind = 'received' AND sop_instance_uid = '{ds.SOPInstanceUID}'"
    receipts = node.rows(f"SELECT outcome FROM ledger WHERE {of_it}")
    assert [r[0] for r in receipts] == ["new", "duplicate", "conflict"]


def test_the_pacs_asks_the_node_to_commit(pair: tuple[Node, Orthanc], tmp_path: Path) -> None:
    node, orthanc = pair
    (ds,) = films(4, 1)
    assert node.send(write(ds, tmp_path / "1.dcm")) == [0]
    for uid, expected in ((ds.SOPInstanceUID, "Success"), ("1.2.3.4", "Failure")):
        asked = orthanc.post_json("/modalities/cxrnode/storage-commitment", {"DicomInstances": [[ds.SOPClassUID, uid]]})
        await_true(
            lambda asked=asked: orthanc.get_json(asked["Path"])["Status"] != "Pending",  # type: ignore[misc]
            lambda: node.log[-3000:],
        )
        assert orthanc.get_json(asked["Path"])["Status"] == expected


def test_a_stranger_may_echo_and_not_store(pair: tuple[Node, Orthanc], tmp_path: Path) -> None:
    node, _ = pair
    (ds,) = films(5, 1)
    with pytest.raises(ConnectionError):
        node.send(write(ds, tmp_path / "1.dcm"), ae_title="STRANGER")


def test_sigterm_drains_and_the_next_start_goes_on(tmp_path: Path) -> None:
    require(missing_orthanc())
    port = free_port()
    node = Node(folder=tmp_path / "node", destinations=[("pacs", AET, port)])
    with running_orthanc(tmp_path / "pacs", dicom_port=port) as orthanc:
        try:
            node.start()
            sent = films(6, *range(1, 7))
            assert set(node.send(*(write(ds, tmp_path / f"{n}.dcm") for n, ds in enumerate(sent)))) == {0}
            assert node.stop() == 0
            node.start()
            await_true(
                lambda: in_pacs(orthanc, sent[0]) and len(results(orthanc, sent[0])) == 7, lambda: node.log[-3000:]
            )
        finally:
            node.kill()
