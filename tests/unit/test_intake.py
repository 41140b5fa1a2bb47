"""What is acknowledged is safe; what is refused or left by a crash leaves nothing."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from cxrnode.dicom.dimse import C_STORE_RQ, Command
from cxrnode.dicom.header import header_from_bytes, header_to_bytes, report_header
from cxrnode.dicom.negotiation import Context
from cxrnode.dicom.storing import IncomingInstance, part10_head
from cxrnode.errors import StorageFullError, StoreAwayError, StoreError
from cxrnode.intake import Intake
from cxrnode.store.database import Database
from cxrnode.types import Peer, Receipt, ReceivedInstance
from tests.support.make_dicom import SYNTAXES, chest, to_bytes
from tests.support.receiving import knower, recorder

PEER = Peer(calling_aet="PACS", called_aet="CXRNODE", host="127.0.0.1")
Record = Callable[[Sequence[ReceivedInstance]], Sequence[Receipt]]


def intake(tmp_path: Path, record: Record, **options: int) -> Intake:
    return Intake(
        tmp_path, record=record, is_stat=lambda ds, _peer: ds.Modality == "DX",
        watermark_bytes=options.get("watermark_bytes", 0),
    )  # fmt: skip


def incoming(node: Intake, ds: Dataset, name: str = ".a.part", cut: int | None = None) -> IncomingInstance:
    raw = to_bytes(ds)
    data_set = raw[144 + int.from_bytes(raw[140:144], "little") :][:cut]
    syntax = str(ds.file_meta.TransferSyntaxUID)
    command = Command(
        field=C_STORE_RQ, message_id=1, has_data_set=True, sop_class_uid=ds.SOPClassUID,
        sop_instance_uid=ds.SOPInstanceUID, type_id=0,
    )  # fmt: skip
    head = part10_head(command, Context(abstract_syntax=ds.SOPClassUID, transfer_syntax=syntax), PEER)
    path = node.incoming / name
    path.write_bytes(head + data_set)
    return IncomingInstance(
        sop_class_uid=ds.SOPClassUID, sop_instance_uid=ds.SOPInstanceUID, transfer_syntax_uid=syntax, peer=PEER,
        path=path, data_set_at=len(head), size_bytes=len(head) + len(data_set),
        sha256=hashlib.sha256(data_set).hexdigest(),
    )  # fmt: skip


class Rows:
    """What record was called with; every instance is new."""

    def __init__(self) -> None:
        self.batches: list[list[ReceivedInstance]] = []

    def __call__(self, batch: Sequence[ReceivedInstance]) -> Sequence[Receipt]:
        self.batches.append(list(batch))
        return [Receipt.NEW] * len(batch)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "node.sqlite")


def test_a_stored_instance_is_whole_and_described(tmp_path: Path) -> None:
    rows = Rows()
    node = intake(tmp_path, rows)
    ds = chest(64, 64, kind="DX", syntax="j2k")
    arrived = incoming(node, ds)
    assert node.store(arrived) == 0
    ((row,),) = rows.batches
    assert row.path == Path("spool", ds.StudyInstanceUID, f"{ds.SOPInstanceUID}-{arrived.sha256[:16]}.dcm")
    assert (row.sha256, row.size_bytes) == (arrived.sha256, (tmp_path / row.path).stat().st_size)
    assert (row.study_instance_uid, row.series_instance_uid) == (ds.StudyInstanceUID, ds.SeriesInstanceUID)
    assert (row.transfer_syntax_uid, row.stat, row.peer) == (SYNTAXES["j2k"], True, PEER)
    kept = dcmread(tmp_path / row.path)
    assert kept == ds
    assert kept.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert not list(node.incoming.iterdir())


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big_endian", "deflated", "j2k"])
def test_what_is_kept_of_the_header_is_what_encoding_it_anew_gives(tmp_path: Path, syntax: str) -> None:
    rows = Rows()
    node = intake(tmp_path, rows)
    ds = chest(64, 64, kind="DX", bits_stored=8, syntax=syntax)
    assert node.store(incoming(node, ds)) == 0
    kept, whole = header_from_bytes(rows.batches[0][0].kept), header_from_bytes(header_to_bytes(report_header(ds)))
    assert kept == whole
    assert kept.ViewCodeSequence


def test_a_duplicate_is_acknowledged_and_kept_once(tmp_path: Path, database: Database) -> None:
    node = intake(tmp_path / "var", recorder(database))
    ds = chest(64, 64)
    assert node.store(incoming(node, ds)) == 0
    again = incoming(node, ds, ".b.part")
    assert node.store(again) == 0
    assert again.path.exists()  # the listener deletes what was not moved away
    assert len(list((tmp_path / "var/spool").rglob("*.dcm"))) == 1


def test_other_bytes_under_the_same_uid_are_kept_beside(tmp_path: Path, database: Database) -> None:
    node = intake(tmp_path / "var", recorder(database))
    ds, other = chest(64, 64, seed=1), chest(64, 64, seed=1, overrides={"StudyDescription": "Other"})
    assert [node.store(incoming(node, each)) for each in (ds, other)] == [0, 0]
    files = list((tmp_path / "var/spool").rglob("*.dcm"))
    assert sorted(str(dcmread(file).StudyDescription) for file in files) == ["Chest", "Other"]


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big_endian", "deflated", "rle", "jpeg_lossless"])
@pytest.mark.parametrize("missing", [2, 20, 1000])
def test_a_truncated_data_set_is_not_understood(tmp_path: Path, syntax: str, missing: int) -> None:
    rows = Rows()
    node = intake(tmp_path, rows)
    assert node.store(incoming(node, chest(64, 64, bits_stored=8, syntax=syntax), cut=-missing)) == 0xC000
    assert not rows.batches
    assert not list((tmp_path / "spool").iterdir())


@pytest.mark.parametrize(
    "error",
    [
        StorageFullError("full"),
        StoreAwayError("locked"),
        StoreError("foreign"),
        OSError(5, "I/O error"),
        RuntimeError("?"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_what_was_not_committed_is_not_acknowledged(tmp_path: Path, error: Exception) -> None:
    def record(_batch: Sequence[ReceivedInstance]) -> Sequence[Receipt]:
        raise error

    ds = chest(64, 64)
    broken = intake(tmp_path, record)
    assert broken.store(incoming(broken, ds)) == 0xA700  # never 0xCxxx, which is final: nothing is wrong with it
    mended = Rows()
    node = intake(tmp_path, mended)  # sent again after a start
    assert node.store(incoming(node, ds)) == 0
    assert (tmp_path / mended.batches[0][0].path).exists()


def test_below_the_watermark_nothing_is_kept(tmp_path: Path) -> None:
    node = intake(tmp_path, Rows(), watermark_bytes=1 << 60)
    assert not node.has_room()
    assert node.store(incoming(node, chest(64, 64))) == 0xA700
    assert not list((tmp_path / "spool").iterdir())


def test_a_start_deletes_what_was_still_arriving_and_nothing_of_the_spool(tmp_path: Path, database: Database) -> None:
    var = tmp_path / "var"
    node = intake(var, recorder(database))
    assert node.store(incoming(node, chest(64, 64))) == 0
    (acknowledged,) = (var / "spool").rglob("*.dcm")
    orphan = acknowledged.with_name("1.2.3-0123456789abcdef.dcm")
    orphan.write_bytes(b"renamed, and killed before the commit")
    (node.incoming / ".dead.part").write_bytes(b"killed while receiving")
    intake(var, recorder(database))
    assert acknowledged.exists()
    assert orphan.exists()
    assert not list(node.incoming.iterdir())


def test_what_arrives_while_one_commits_shares_the_next_commit(tmp_path: Path) -> None:
    rows, committing, go_on = Rows(), threading.Event(), threading.Event()

    def record(batch: Sequence[ReceivedInstance]) -> Sequence[Receipt]:
        committing.set()
        assert go_on.wait(10)
        return rows(batch)

    node = intake(tmp_path, record)
    arrived = [incoming(node, chest(64, 64, seed=i), f".{i}.part") for i in range(5)]
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(node.store, arrived[0])
        assert committing.wait(10)
        others = [pool.submit(node.store, each) for each in arrived[1:]]
        while len(list((tmp_path / "spool").rglob("*.dcm"))) < 5 or len(node._commits._waiting) < 4:
            pass
        go_on.set()
        assert [future.result(10) for future in (first, *others)] == [0] * 5
    assert [len(batch) for batch in rows.batches] == [1, 4]


def test_one_bad_instance_does_not_fail_those_that_share_its_commit(tmp_path: Path) -> None:
    rows, committing, go_on = Rows(), threading.Event(), threading.Event()
    bad = chest(64, 64, seed=2)

    def record(batch: Sequence[ReceivedInstance]) -> Sequence[Receipt]:
        committing.set()
        assert go_on.wait(10)
        if any(row.sop_instance_uid == bad.SOPInstanceUID for row in batch):
            raise StoreError("this one")
        return rows(batch)

    node = intake(tmp_path, record)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(node.store, incoming(node, chest(64, 64, seed=9), ".9.part"))
        assert committing.wait(10)
        others = [pool.submit(node.store, incoming(node, chest(64, 64, seed=i), f".{i}.part")) for i in range(1, 4)]
        while len(node._commits._waiting) < 3:
            pass
        go_on.set()
        assert first.result(10) == 0
        assert [future.result(10) for future in others] == [0, 0xA700, 0]


def test_the_same_instance_on_several_associations_is_one_row_and_one_file(tmp_path: Path, database: Database) -> None:
    var = tmp_path / "var"
    node = intake(var, recorder(database))
    ds = chest(64, 64)
    arrived = [incoming(node, ds, f".{i}.part") for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(node.store, arrived)) == [0] * 8
    (file,) = (var / "spool").rglob("*.dcm")
    assert knower(database)([file.relative_to(var)]) == {file.relative_to(var)}
