"""What a stage could not write is remembered until it can be written again, and the stage finds that out by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cxrnode import metrics, writable
from cxrnode.errors import StorageFullError, StoreAwayError
from cxrnode.loops import running
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.writable import FILES, ROWS, Writable, failing, prove_file
from tests.support.awaiting import await_true
from tests.support.small_disk import small_disk
from tests.support.sqlite import locked

MB = 1 << 20


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the stage says: since when it cannot write what."""
    said: dict[str, float] = {}
    monkeypatch.setattr(metrics, "not_written", said.__setitem__)
    return said


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "small"
    with small_disk(folder, "size=8m,nr_inodes=10"):
        yield folder


def resumed(database: Database) -> list[str]:
    with database.begin(shared=True) as c:
        return [str(e.detail["what"]) for e in ledger.events(c) if e.kind == "writes_resumed"]


def test_a_file_that_failed_is_remembered_until_one_succeeds(
    database: Database, tmp_path: Path, told: dict[str, float]
) -> None:
    stage = Writable(stage="intake", database=database, data_dir=tmp_path)
    assert told == {FILES: 0.0, ROWS: 0.0}
    stage.failed(FILES, size_bytes=7)
    since = told[FILES]
    stage.failed(FILES)
    assert told == {FILES: since, ROWS: 0.0}
    assert since > 0
    stage.succeeded(ROWS)
    assert told[FILES] == since
    stage.succeeded(FILES)
    assert told == {FILES: 0.0, ROWS: 0.0}


def test_a_transaction_that_fails_is_remembered_until_one_is_committed(
    database: Database, tmp_path: Path, told: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    Writable(stage="intake", database=database, data_dir=tmp_path)
    with locked(tmp_path / "ledger.sqlite"), pytest.raises(StoreAwayError), database.begin():
        pass
    assert told[ROWS] > 0
    with database.begin(shared=True):
        pass
    assert told[ROWS] > 0, "to read proves nothing"
    with database.begin():
        pass
    assert told[ROWS] == 0


def test_an_error_of_the_caller_says_nothing_of_the_database(
    database: Database, tmp_path: Path, told: dict[str, float]
) -> None:
    Writable(stage="intake", database=database, data_dir=tmp_path)
    with pytest.raises(ValueError, match="mine"), database.begin():
        raise ValueError("mine")
    assert told[ROWS] == 0


def test_the_stage_finds_out_by_itself_and_records_it(
    database: Database, tmp_path: Path, told: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writable, "_POLL_S", 0.01)
    stage, stopping = Writable(stage="intake", database=database, data_dir=tmp_path), threading.Event()
    stage.failed(FILES, size_bytes=3 * MB)
    stage.failed(ROWS)
    with running([stage.loop()], stopping):
        try:
            await_true(lambda: told == {FILES: 0.0, ROWS: 0.0})
        finally:
            stopping.set()
    assert resumed(database) in ([FILES, ROWS], [FILES])  # the record of the files is a row
    assert [p.name for p in tmp_path.iterdir() if "proof" in p.name] == []


def test_there_is_room_for_a_small_file_and_not_for_the_one_that_failed(
    database: Database, small: Path, told: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writable, "_POLL_S", 0.01)
    stage, stopping = Writable(stage="intake", database=database, data_dir=small), threading.Event()
    (small / "filler").write_bytes(bytes(5 * MB))
    stage.failed(FILES, size_bytes=6 * MB)
    with running([stage.loop()], stopping):
        try:
            assert not threading.Event().wait(0.3)
            assert told[FILES] > 0
            (small / "filler").unlink()
            await_true(lambda: told[FILES] == 0)
        finally:
            stopping.set()


@pytest.mark.parametrize(("size", "free", "fits"), [
    (2 * MB, 0, True), (9 * MB, 0, False), (2 * MB, 6 * MB, True), (2 * MB + 4096, 6 * MB, False),
])  # fmt: skip
def test_a_file_fits_where_it_leaves_the_watermark_free(small: Path, size: int, free: int, fits: bool) -> None:
    if fits:
        prove_file(small, ".proof", size, free_bytes=free)
    else:
        with pytest.raises(StorageFullError):
            prove_file(small, ".proof", size, free_bytes=free)
    assert list(small.iterdir()) == []


def test_without_an_inode_no_file_can_be_made(small: Path) -> None:
    with suppress(OSError):
        for n in range(20):
            (small / str(n)).touch()
    with pytest.raises(StorageFullError):
        prove_file(small, ".proof", 1)


def test_in_words() -> None:
    states = {("intake", FILES): 90.0, ("deliver", ROWS): 0.0, ("analyse", ROWS): 98.0}
    said = "analyse could not write rows for 2 s; intake could not write files for 10 s (tried again; the log says why)"
    assert failing(states, 100.0) == said
    assert failing({("intake", FILES): 0.0}, 100.0) is None
