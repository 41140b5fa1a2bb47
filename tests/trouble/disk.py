"""Four ways of a full disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.small_disk import small_disk
from tests.trouble.account import Account
from tests.trouble.database import filled
from tests.trouble.scene import Scene, scene

_TROUBLE_S = 30.0
_SIZE = "size=1g,nr_inodes=20k"


def full(folder: Path) -> Account:
    """To the last byte, with a watermark."""
    with _on_small_disk(folder) as play:
        return play.through("disk full to the last byte", filled(play.node.data_dir), _TROUBLE_S)


def full_without_watermark(folder: Path) -> Account:
    """The write itself fails, in every stage."""
    with _on_small_disk(folder, watermark_mb=0) as play:
        return play.through("disk full, no watermark", filled(play.node.data_dir), _TROUBLE_S)


def full_above_watermark(folder: Path) -> Account:
    """As much room as the watermark wants and a little more: it comes and goes with every film."""
    with _on_small_disk(folder, watermark_mb=8) as play:
        return play.through("disk full just above the watermark", _room_left(play.node.data_dir, 8 * 2**20), _TROUBLE_S)


def no_inodes(folder: Path) -> Account:
    with _on_small_disk(folder) as play:
        return play.through("no inodes", _no_inodes(play.node.data_dir), _TROUBLE_S)


@contextmanager
def _on_small_disk(folder: Path, *, watermark_mb: int = 1) -> Iterator[Scene]:
    with small_disk(folder / "node" / "var", _SIZE), scene(folder, watermark_mb=watermark_mb) as play:
        yield play


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
