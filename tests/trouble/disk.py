"""Four ways of a full disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.trouble.account import Account
from tests.trouble.database import filled
from tests.trouble.scene import Scene, scene, small_disk

_BEFORE_S, _TROUBLE_S, _AFTER_S = 5.0, 30.0, 5.0
_SIZE = "size=1g,nr_inodes=20k"


def full(folder: Path) -> Account:
    """To the last byte, with a watermark."""
    with _on_small_disk(folder) as play:
        return _with_trouble(play, "disk full to the last byte", filled(play.node.data_dir))


def full_without_watermark(folder: Path) -> Account:
    """The write itself fails, in every stage."""
    with _on_small_disk(folder, watermark_mb=0) as play:
        return _with_trouble(play, "disk full, no watermark", filled(play.node.data_dir))


def full_above_watermark(folder: Path) -> Account:
    """As much room as the watermark wants and a little more: it comes and goes with every film."""
    with _on_small_disk(folder, watermark_mb=8) as play:
        return _with_trouble(play, "disk full just above the watermark", _room_left(play.node.data_dir, 8 * 2**20))


def no_inodes(folder: Path) -> Account:
    with _on_small_disk(folder) as play:
        return _with_trouble(play, "no inodes", _no_inodes(play.node.data_dir))


@contextmanager
def _on_small_disk(folder: Path, *, watermark_mb: int = 1) -> Iterator[Scene]:
    with small_disk(folder / "node" / "var", _SIZE), scene(folder, watermark_mb=watermark_mb) as play:
        yield play


def _with_trouble(play: Scene, name: str, trouble: object) -> Account:
    with play.load.going_on():
        time.sleep(_BEFORE_S)
        with trouble:  # type: ignore[attr-defined]
            time.sleep(_TROUBLE_S)
        time.sleep(_AFTER_S)
    return play.judged(name)


@contextmanager
def _room_left(disk: Path, room: int) -> Iterator[None]:
    filler = disk / "filler"
    with filled(disk):
        filler.open("r+b").truncate(max(0, filler.stat().st_size - room))
        yield


@contextmanager
def _no_inodes(disk: Path) -> Iterator[None]:
    folder = disk / "names"
    folder.mkdir()
    made: list[Path] = []
    try:
        while True:
            made.append(folder / str(len(made)))
            made[-1].touch()
    except OSError:
        made.pop()
    try:
        yield
    finally:
        for path in made:
            path.unlink()
        folder.rmdir()


SCENES = (full, full_without_watermark, full_above_watermark, no_inodes)
