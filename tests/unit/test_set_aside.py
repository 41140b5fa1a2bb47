"""What lies in the spool without a row is set aside with a record, and can be taken in again; nothing is deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydicom import Dataset

from cxrnode.errors import Rejected, StorageFullError, StoreError
from cxrnode.intake import Intake
from cxrnode.set_aside import FOLDER, TakeIn, files, set_aside
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.queue import Queue
from cxrnode.types import AuditEvent, Peer, Receipt
from tests.support.make_dicom import chest
from tests.support.receiving import recorder
from tests.unit.test_intake import incoming

QUEUE = Queue("intake")


@pytest.fixture
def var(tmp_path: Path) -> Path:
    return tmp_path / "var"


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "node.sqlite")


def receive(var: Path, database: Database, *seeds: int) -> list[Path]:
    """Where they lie, below `var`."""
    node = Intake(var, record=recorder(database), is_stat=lambda _ds, _peer: False, watermark_bytes=0)
    for seed in seeds:
        assert node.store(incoming(node, chest(64, 64, seed=seed))) == 0
    return sorted(path.relative_to(var) for path in (var / "spool").rglob("*.dcm"))


def into(var: Path, database: Database, *, watermark_bytes: int = 0) -> TakeIn:
    def is_stat(_ds: Dataset, peer: Peer) -> bool:
        return peer.calling_aet == "PACS"

    return TakeIn(
        data_dir=var, database=database, queue=Queue("operator:me"), called_aet="CXRNODE", is_stat=is_stat,
        stat_tags=frozenset(), watermark_bytes=watermark_bytes,
    )  # fmt: skip


def lost_rows(var: Path, database: Database, tmp_path: Path) -> tuple[Database, list[Path]]:
    """Three files that were acknowledged, and a database that knows the first of them."""
    receive(var, database, 1)
    database.close()
    shutil.copy(tmp_path / "node.sqlite", tmp_path / "copy.sqlite")
    paths = receive(var, Database(tmp_path / "node.sqlite"), 2, 3)
    restored = Database(tmp_path / "copy.sqlite")
    with restored.read() as c:
        known = QUEUE.known_paths(c, [path.as_posix() for path in paths])
    return restored, [path for path in paths if path.as_posix() not in known]


def events(database: Database, kind: str) -> list[AuditEvent]:
    with database.read() as c:
        return [event for event in ledger.events(c) if event.kind == kind]


def aside(var: Path, path: Path) -> Path:
    return var / FOLDER / path.relative_to("spool")


def test_after_a_restore_nothing_is_lost_and_all_is_taken_in_again(
    var: Path, database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    restored, orphans = lost_rows(var, database, tmp_path)
    before = {path: (var / path).read_bytes() for path in orphans}
    assert set_aside(var, restored, QUEUE, actor="intake") == 2
    assert "2 files of the spool had no row" in caplog.text
    assert {path: aside(var, path).read_bytes() for path in orphans} == before
    assert len(list((var / "spool").rglob("*.dcm"))) == 1
    recorded = events(restored, "set_aside")
    assert sorted(str(event.detail["path"]) for event in recorded) == [path.as_posix() for path in orphans]
    assert {event.study_instance_uid for event in recorded} == {path.parent.name for path in orphans}
    assert all(event.sop_instance_uid and event.sop_instance_uid in str(event.detail["path"]) for event in recorded)
    assert set_aside(var, restored, QUEUE, actor="intake") == 0

    take_in = into(var, restored)
    assert [take_in.take(path) for path in sorted(files(var))] == [Receipt.NEW] * 2
    assert {path: (var / path).read_bytes() for path in orphans} == before
    assert list((var / FOLDER).iterdir()) == []
    assert set_aside(var, restored, QUEUE, actor="intake") == 0
    with restored.read() as c:
        rows = c.exec_driver_sql(
            "SELECT calling_aet, called_aet, host, priority, state FROM instance JOIN job USING (id) ORDER BY id"
        )
        assert rows.fetchall()[1:] == [("PACS", "CXRNODE", FOLDER, 0, "received")] * 2
    assert [event.actor for event in events(restored, "received")] == ["intake", "operator:me", "operator:me"]


def test_what_its_sender_sent_again_meanwhile_is_a_duplicate(var: Path, database: Database, tmp_path: Path) -> None:
    restored, orphans = lost_rows(var, database, tmp_path)
    set_aside(var, restored, QUEUE, actor="intake")
    assert [path for path in receive(var, restored, 2, 3) if path in orphans] == orphans
    assert [into(var, restored).take(path) for path in sorted(files(var))] == [Receipt.DUPLICATE] * 2
    assert list(files(var)) == []
    assert all((var / path).is_file() for path in orphans)


@pytest.mark.parametrize("damage", ["cut", "text", "other"])
def test_what_is_damaged_is_refused_and_stays(var: Path, database: Database, tmp_path: Path, damage: str) -> None:
    restored, orphans = lost_rows(var, database, tmp_path)
    set_aside(var, restored, QUEUE, actor="intake")
    path, other = (aside(var, path) for path in orphans)
    whole = path.read_bytes()
    at = 144 + int.from_bytes(whole[140:144], "little")
    bad = {"cut": whole[:-100], "text": b"text" * 100, "other": whole[:at] + other.read_bytes()[at:]}[damage]
    path.write_bytes(bad)
    with pytest.raises(Rejected):
        into(var, restored).take(path)
    assert path.read_bytes() == bad
    assert into(var, restored).take(other) is Receipt.NEW


def test_below_the_watermark_nothing_is_taken_in(var: Path, database: Database, tmp_path: Path) -> None:
    restored, _ = lost_rows(var, database, tmp_path)
    set_aside(var, restored, QUEUE, actor="intake")
    path = min(files(var))
    with pytest.raises(StorageFullError, match="watermark"):
        into(var, restored, watermark_bytes=1 << 60).take(path)
    assert path.exists()


def test_a_row_that_does_not_come_leaves_the_file_for_the_next_start(
    var: Path, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored, _ = lost_rows(var, database, tmp_path)
    set_aside(var, restored, QUEUE, actor="intake")
    path = min(files(var))

    def fails(*_: object) -> None:
        raise StoreError("away")

    with monkeypatch.context() as patched:
        patched.setattr(Queue, "receive", fails)
        with pytest.raises(StoreError):
            into(var, restored).take(path)
    assert set_aside(var, restored, QUEUE, actor="intake") == 1
    assert into(var, restored).take(path) is Receipt.NEW


def test_names_that_are_none_of_ours_are_set_aside_too(var: Path, database: Database) -> None:
    for name in ("a/notes.dcm", "b/notes.dcm"):
        (var / "spool" / name).parent.mkdir(parents=True)
        (var / "spool" / name).write_text(name)
    assert set_aside(var, database, QUEUE, actor="intake") == 2
    assert [path.read_text() for path in sorted(files(var))] == ["a/notes.dcm", "b/notes.dcm"]
    assert {(event.study_instance_uid, event.sop_instance_uid) for event in events(database, "set_aside")} == {
        (None, None)
    }


def test_a_large_spool_is_looked_through_in_pages(var: Path, database: Database) -> None:
    (var / "spool" / "1.2.3").mkdir(parents=True)
    for n in range(1201):
        (var / "spool" / "1.2.3" / f"1.2.3.{n}-0123456789abcdef.dcm").touch()
    assert set_aside(var, database, QUEUE, actor="intake") == 1201
    assert len(list(files(var))) == 1201
    assert len(events(database, "set_aside")) == 1201
