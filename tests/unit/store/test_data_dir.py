"""Whose data folder is it: an empty mount point, another database's folder, and one of before are told apart."""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cxrnode.errors import DataDirAwayError, StoreAwayError
from cxrnode.store.data_dir import MARKER, DataDir, establish, recorded, wait_until
from cxrnode.store.database import Database
from cxrnode.store.queue import Queue
from tests.support.awaiting import await_true
from tests.support.store import received


def take_in(database: Database) -> None:
    with database.begin() as c:
        Queue("intake").receive(c, [received(1, 1)])


def test_a_new_database_makes_its_folder_and_knows_it_again(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "srv" / "data"
    made = establish(database, folder, make=True)
    assert (folder / MARKER).read_text() == f"{made.id}\n"
    assert establish(database, folder, make=True) == establish(database, folder, make=False) == made
    with database.read() as c:
        assert recorded(c, folder) == made
    assert sorted(path.name for path in folder.iterdir()) == [MARKER]


def test_who_makes_none_waits_until_it_is_made(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with pytest.raises(DataDirAwayError, match="start `cxrnode serve` with its intake first"):
        establish(database, folder, make=False)
    assert not folder.exists()
    with database.read() as c:
        assert recorded(c, folder) is None


def test_an_empty_mount_point_and_no_folder_at_all_are_waited_for(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    made = establish(database, folder, make=True)
    share = folder.rename(tmp_path / "share")
    for _ in range(2):
        with pytest.raises(DataDirAwayError, match="Is it mounted"):
            establish(database, folder, make=True)
        with pytest.raises(StoreAwayError):
            made.check()
        assert not folder.exists() or not list(folder.iterdir())
        folder.mkdir(exist_ok=True)
    folder.rmdir()
    share.rename(folder)
    made.check()


def test_a_file_in_its_place_is_waited_for(database: Database, tmp_path: Path) -> None:
    made = establish(database, tmp_path / "data", make=True)
    with pytest.raises(DataDirAwayError, match="Not a directory"):
        DataDir(path=tmp_path / "data" / MARKER, id=made.id).check()


def test_another_database_s_folder_is_not_taken_and_the_words_mend_it(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / MARKER).write_text("another\n")
    with pytest.raises(DataDirAwayError, match=r"another database's .*another") as caught:
        establish(database, folder, make=True)
    (folder / MARKER).unlink()
    assert f"rm {folder / MARKER}" in str(caught.value)
    made = establish(database, folder, make=True)
    (folder / MARKER).write_text("another\n")
    with pytest.raises(DataDirAwayError) as caught:
        establish(database, folder, make=True)
    said = str(caught.value).partition("If it is the right folder: echo ")[2].split()
    assert said == [made.id, ">", str(folder / MARKER)]
    (folder / MARKER).write_text(f"{said[0]}\n")
    assert establish(database, folder, make=False) == made


def test_a_database_of_before_takes_the_folder_that_an_intake_worked_in(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    take_in(database)
    with pytest.raises(DataDirAwayError, match="has received images, and it has no spool"):
        establish(database, folder, make=True)
    assert list(folder.iterdir()) == []
    (folder / "spool").mkdir()
    establish(database, folder, make=True).check()


def test_what_a_crash_left_half_made_is_gone_on_with(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    for dies_at in ("write_atomic", "update"):
        with monkeypatch.context() as patched:
            patched.setattr(f"cxrnode.store.data_dir.{dies_at}", die)
            with pytest.raises(KeyboardInterrupt):
                establish(database, folder, make=True)
        with pytest.raises(DataDirAwayError, match="none yet"):
            establish(database, folder, make=False)
    establish(database, folder, make=True)
    establish(database, folder, make=False)


def die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_it_asks_in_a_worker_too(database: Database, tmp_path: Path) -> None:
    made = establish(database, tmp_path / "data", make=True)
    check = pickle.loads(pickle.dumps(made.check))
    check()
    (tmp_path / "data" / MARKER).unlink()
    with pytest.raises(DataDirAwayError, match="it has no") as caught:
        check()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_who_waits_says_so_once_and_goes_on_or_stops(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder, stopping = tmp_path / "data", threading.Event()
    found: list[DataDir | None] = []
    pages: list[str] = []

    def attempt() -> DataDir:
        return establish(database, folder, make=True)

    @contextmanager
    def page(why: Callable[[], str]) -> Iterator[None]:
        yield
        pages.append(why())

    made = establish(database, folder, make=True)
    share = folder.rename(tmp_path / "share")
    waiting = [
        threading.Thread(target=lambda: found.append(wait_until(attempt, stopping, page=page))),
        threading.Thread(target=made.wait, args=(stopping,)),
    ]
    for thread in waiting:
        thread.start()
    await_true(lambda: caplog.text.count("then goes on by itself") == 2)
    share.rename(folder)
    for thread in waiting:
        thread.join()
    assert found == [made]
    assert len(pages) == 1
    assert "Is it mounted?" in pages[0]
    assert caplog.text.count("goes on by itself") == 2
    assert caplog.text.count("the data folder is there") == 2
    stopping.set()
    folder.rename(share)
    assert wait_until(attempt, stopping) is None
    made.wait(stopping)
