"""The store's own trouble is no outcome of what it was given: not of an item, an image, a study or a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select, text

from cxrnode.errors import StorageFullError, StoreAwayError, StoreError
from cxrnode.inference import infer_bisecting
from cxrnode.intake_archive import _store_alone
from cxrnode.store.database import Database
from cxrnode.store.queue import Queue
from cxrnode.store.schema import instance, job
from cxrnode.store.trouble import is_trouble
from engines.base import EngineError, EngineOutput, FloatArray
from tests.support.store import item


def caught(do: Callable[[], object]) -> Exception:
    with pytest.raises(StoreError) as told:
        do()
    return told.value


@pytest.mark.parametrize(
    ("statement", "trouble"),
    [
        ("INSERT INTO settings (key, value) VALUES ('a', NULL)", False),  # will not have this value
        ("INSERT INTO no_such_table (a) VALUES (1)", True),  # somebody dropped it, or took the right to it away
    ],
)
def test_whose_fault_it_is(database: Database, statement: str, trouble: bool) -> None:
    def do() -> None:
        with database.begin() as c:
            c.execute(text(statement))

    assert is_trouble(caught(do)) is trouble


def test_what_else_is_no_trouble_of_the_store() -> None:
    assert is_trouble(StorageFullError("full"))
    assert is_trouble(StoreAwayError("stopped"))
    assert not is_trouble(ValueError("a lone surrogate"))


def test_a_locked_database_is_no_outcome_of_an_item(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    queue, tries, add = Queue("test"), 0, Queue.add

    def locked_once(*args: object, **more: object) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise StoreAwayError("database is locked")
        add(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Queue, "add", locked_once)
    with pytest.raises(StoreAwayError):
        _store_alone(item(1, 1), database, queue, 1.0)
    with database.read() as c:
        assert not c.execute(select(instance.c.id)).all()


def test_an_item_that_the_store_cannot_hold_is_its_own_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database, tries, add = Database(tmp_path / "x.sqlite"), 0, Queue.add

    def refused_once(*args: object, **more: object) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates not allowed")
        add(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Queue, "add", refused_once)
    _store_alone(item(1, 1), database, Queue("test"), 1.0)
    with database.read() as c:
        assert c.execute(select(job.c.reason)).scalars().all() == ["unexpected_error"]
    database.close()


class Telling:
    """An engine whose record of what it found raises, as when the database is away, or the memory used up."""

    name = "gpu"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def activate(self) -> None: ...

    def deactivate(self) -> None: ...

    def infer(self, batch: FloatArray) -> EngineOutput:
        raise self._error


@pytest.mark.parametrize("error", [StoreAwayError("stopped"), StorageFullError("full"), MemoryError()], ids=repr)
def test_what_an_engine_could_not_tell_is_no_images_fault(error: Exception) -> None:
    with pytest.raises(type(error)):
        infer_bisecting(Telling(error), [np.zeros((2, 2), np.float32)] * 3)


def test_what_an_engine_says_of_an_image_is(tmp_path: Path) -> None:
    said = infer_bisecting(Telling(EngineError("bad pixels")), [np.zeros((2, 2), np.float32)] * 3)
    assert [one.error for one in said] == ["bad pixels"] * 3
