"""Scanning is committed as it goes, in archive order, and what has its row is not read again."""

from __future__ import annotations

import shutil
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from cxrnode import archive, intake_archive, location
from cxrnode.item import Item
from cxrnode.pool import Pool
from cxrnode.store.database import Database
from cxrnode.store.queue import Queue
from cxrnode.store.schema import instance
from tests.support.batch import studies

_PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool(1, preload="cxrnode.workers")
    yield pool
    pool.close()


def take_in(folder: Path, tmp_path: Path, pool: Pool) -> int:
    database = Database(tmp_path / "q.sqlite")
    try:
        return intake_archive.take_in(
            [folder], out=tmp_path / "out", spool=tmp_path / "spool", database=database, queue=Queue("test"), pool=pool,
            now=1.0, on_scanned=lambda _: None,
        )  # fmt: skip
    finally:
        database.close()


def paths(tmp_path: Path) -> list[str]:
    database = Database(tmp_path / "q.sqlite")
    with database.read() as c:
        found = list(c.execute(select(instance.c.path).order_by(instance.c.id)).scalars())
    database.close()
    return found


def test_a_slow_archive_is_committed_while_it_is_walked(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far fewer files than a chunk: what was scanned when the process is killed is there."""
    (film,) = [p for p in studies(tmp_path / "in", 1, size=(64, 64)).rglob("*") if p.is_file()]
    item = next(archive.iter_items(film, spool=tmp_path / "spool", skip=tmp_path / "out"))
    walked = 0

    def slowly(*_: Any, **__: Any) -> Iterator[Item]:
        nonlocal walked
        until = time.monotonic() + _PATIENCE_S
        while not paths(tmp_path) and time.monotonic() < until:
            walked += 1
            time.sleep(intake_archive._GROUP_S)
            yield replace(item, path=f"{item.path}-{walked}")

    monkeypatch.setattr(intake_archive, "iter_items", slowly)
    assert take_in(film, tmp_path, pool) == walked
    assert walked < _PATIENCE_S / intake_archive._GROUP_S / 2


def test_what_has_its_row_is_not_opened_again(tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = studies(tmp_path / "in", 3, 2, size=(64, 64))
    (folder / "s000" / "text").write_text("no image")
    with tarfile.open(folder / "s001" / "i1.tar", "w") as tar:
        tar.add(folder / "s001" / "i0", "member")
    assert take_in(folder, tmp_path, pool) == 8
    first = paths(tmp_path)
    studies(folder / "z", 1, size=(64, 64))
    (folder / "s002" / "i1").unlink()
    shutil.copytree(folder / "z", folder / "s002" / "i1")
    opened: list[str] = []

    def watched(path: Path) -> Any:
        opened.append(path.name)
        return open_regular(path)

    open_regular = location.open_regular
    monkeypatch.setattr(archive, "open_regular", watched)
    assert take_in(folder, tmp_path, pool) == 10
    assert opened == ["text", "i1.tar", "i0", "i0"]
    assert paths(tmp_path) == [*first, str(folder / "s002" / "i1" / "s000" / "i0"), str(folder / "z" / "s000" / "i0")]
