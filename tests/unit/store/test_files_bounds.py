"""What stands around the tables: settings, locks, errors of the disk, permissions, and what an operator is shown."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from cxrnode.errors import StorageFullError, StoreError
from cxrnode.store.chunks import CHUNK, chunks
from cxrnode.store.database import Database
from cxrnode.store.ledger import GENESIS
from cxrnode.store.outbox import REFUSED, SENT, Outbox
from cxrnode.store.overview import Wanted, deliveries_of, job_row, jobs, oldest_waiting, totals
from cxrnode.store.queue import ROUTINE, Queue
from cxrnode.store.spool import keep_private, locked, storage_errors, sweep_partial, write_atomic
from cxrnode.store.studies import Studies
from cxrnode.types import Kind
from tests.support.postgres import Postgres
from tests.support.store import NOW, analysed, claim, header, lease, made, received, reports, study_uid

# -- keys


@pytest.mark.parametrize(
    ("keys", "sizes"), [(0, []), (1, [1]), (300, [300]), (301, [300, 1]), (600, [300, 300]), (601, [300, 300, 1])]
)
def test_a_look_up_has_three_hundred_keys_at_most(keys: int, sizes: list[int]) -> None:
    found = list(chunks(iter(range(keys))))
    assert [len(some) for some in found] == sizes
    assert [key for some in found for key in some] == list(range(keys))
    assert 3 * CHUNK < 999  # SQLite's oldest limit, with the keys three times in a statement


# -- how a database is opened


def test_a_sqlite_file_is_opened_to_wait_and_to_keep(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.sqlite")
    with database.begin() as c:
        found = {p: c.execute(text(f"PRAGMA {p}")).scalar_one() for p in ("busy_timeout", "journal_mode", "synchronous",
                                                                         "foreign_keys", "user_version")}  # fmt: skip
    database.close()
    assert found == {
        "busy_timeout": 10000,
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "user_version": 2,
    }


def test_a_postgresql_connection_is_told_how_long_to_wait(postgres: Postgres) -> None:
    url = postgres.new_database()
    database = Database(url)
    wanted = {"synchronous_commit": "on", "statement_timeout": "1min", "lock_timeout": "30s",
              "idle_in_transaction_session_timeout": "20s", "transaction_isolation": "read committed",
              "default_transaction_read_only": "off"}  # fmt: skip
    with database.begin() as c:
        assert {name: c.execute(text(f"SHOW {name}")).scalar_one() for name in wanted} == wanted
    database.close()
    reader = Database(url, read_only=True)
    with reader.begin() as c:
        assert c.execute(text("SHOW transaction_isolation")).scalar_one() == "repeatable read"
        assert c.execute(text("SHOW transaction_read_only")).scalar_one() == "on"
    reader.close()


def test_a_reader_waits_for_no_writer_and_writes_nothing(tmp_path: Path) -> None:
    writer = Database(tmp_path / "x.sqlite")
    reader = Database(tmp_path / "x.sqlite", read_only=True)
    with writer.begin() as c:
        Queue("test").receive(c, [received(1, 1)])
        began = time.monotonic()
        with reader.begin() as other:
            assert Queue("test").count_all(other) == 0
        assert time.monotonic() - began < 5.0  # and not until the writer is done, nor until it gives up
    with pytest.raises(StoreError), reader.begin() as other:
        Queue("test").receive(other, [received(1, 2)])
    reader.close()
    writer.close()


def test_the_first_record_follows_sixty_four_noughts() -> None:
    assert GENESIS == "0" * 64


# -- files


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO]
)
def test_the_disk_s_errors_are_said_in_words(number: int, tmp_path: Path) -> None:
    words = os.strerror(number)
    with (
        pytest.raises(StorageFullError, match=f"cannot write {tmp_path}: {words}. Make room"),
        storage_errors(tmp_path),
    ):
        raise OSError(number, words)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EINVAL, errno.ENAMETOOLONG])
def test_other_errors_pass_as_they_are(number: int, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="its words") as caught, storage_errors(tmp_path):
        raise OSError(number, "its words")
    assert not isinstance(caught.value, StorageFullError)


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in (".a.part", "below/.b.part", "a.part", ".a.partial", "below/c.dcm"):
        (tmp_path / name).touch()
    write_atomic(tmp_path / "whole.dcm", b"data")
    sweep_partial(tmp_path)
    left = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"a.part", ".a.partial", "below/c.dcm", "whole.dcm"}
    assert (tmp_path / "whole.dcm").read_bytes() == b"data"


def test_a_folder_and_what_is_in_it_become_the_owner_s_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    (folder / "open").touch(mode=0o644)
    (folder / "tool").touch(mode=0o755)
    (folder / "own").touch(mode=0o600)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").touch(mode=0o644)
    keep_private(folder)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (folder, *folder.iterdir())}
    assert modes == {"data": 0o700, "open": 0o600, "tool": 0o700, "own": 0o600, "link": 0o644}
    (folder / "later").touch()
    assert stat.S_IMODE((folder / "later").stat().st_mode) == 0o600
    keep_private(tmp_path / "not there")


def test_a_lock_is_one_process_s_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, clock = tmp_path / "lock", [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += 1.0

    monkeypatch.setattr(time, "sleep", sleep)
    with locked(path, "another one has it") as fd:
        assert fcntl.fcntl(fd, fcntl.F_GETFD) >= 0
        with pytest.raises(StoreError, match="another one has it"), locked(path, "another one has it"):
            pytest.fail("it was held")
        assert slept == []
        with pytest.raises(StoreError), locked(path, "busy", wait_s=3.0):
            pytest.fail("it was held")
        assert slept == [0.1] * 3  # at the third second it is given up
    with locked(path, "busy"):
        pass


# -- what an operator sees


def test_jobs_are_listed_newest_first_by_all_that_is_wanted(database: Database) -> None:
    queue, studies, outbox = Queue("test"), Studies("test"), Outbox("test")
    with database.begin() as c:
        for n in (1, 2):
            one = replace(received(n, 1), patient_id=f"P{n}")
            queue.receive(c, [one, received(n, 2)])
        first, second, *_ = claim(c, limit=2)
        for done in (first, second):
            queue.finish(c, analysed(done), owner="a")
        (whole,) = studies.claim(c, lease(), quiet_s=0.0, limit=9)
        uids = studies.reported(c, whole, reports(whole, made("2.25.901", 1, Kind.SR)), owner="a")
        assert uids
        outbox.enqueue(c, uids, ["near", "far"], now=NOW)
        (sr, *_) = outbox.claim(c, "near", lease("s"), now=NOW, limit=1)
        outbox.sent(c, sr, owner="s", now=NOW, status="0x0000")

        def found(limit: int = 9, **wanted: object) -> list[int]:
            return [row["id"] for row in jobs(c, Wanted(**wanted), limit=limit)]  # type: ignore[arg-type]

        assert found() == [4, 3, 2, 1]
        assert found(limit=2) == [4, 3]
        assert found(states=("reported",)) == [2, 1]
        assert found(states=("received", "reported")) == [4, 3, 2, 1]
        assert found(study=study_uid(2)) == [4, 3]
        assert found(patient="P1") == [2, 1]
        assert found(patient="P1", study=study_uid(2)) == []
        assert found(deliveries=(SENT,)) == [2, 1]
        assert found(deliveries=(SENT,), destination="far") == []
        assert found(deliveries=(REFUSED,)) == []
        assert found(destination="far") == [2, 1]
        assert found(destination="nowhere") == []
        row = job_row(c, 2)
        assert row
        assert (row["id"], row["sop_instance_uid"], row["state"]) == (2, header(1, 2).sop_instance_uid, "reported")
        assert job_row(c, 99) is None
        told = [(d["kind"], d["sop_instance_uid"], d["destination"], d["state"]) for d in deliveries_of(c, row)]
        assert sorted(told) == [
            ("capture", "2.25.2", "far", "pending"), ("capture", "2.25.2", "near", "pending"),
            ("sr", "2.25.901", "far", "pending"), ("sr", "2.25.901", "near", "sent"),
        ]  # fmt: skip
        assert totals(c) == {
            ("job", "received"): 2, ("job", "reported"): 2, ("delivery", "near", "sent"): 1,
            ("delivery", "near", "pending"): 2, ("delivery", "far", "pending"): 3,
        }  # fmt: skip
        claim(c, limit=1)
        assert oldest_waiting(c) == {ROUTINE: NOW}


def test_a_file_that_goes_meanwhile_keeps_no_stage_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite deletes its -wal and -shm when the last of its users leaves."""
    there = tmp_path / "ledger.sqlite"
    there.write_bytes(b"")
    there.chmod(0o644)
    found = [tmp_path / "ledger.sqlite-shm", there]
    monkeypatch.setattr(Path, "iterdir", lambda _folder: iter(found))
    keep_private(tmp_path)
    assert there.stat().st_mode & 0o777 == 0o600
