"""A file is there whole or not at all, whoever writes it."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from engines.files import remove_abandoned, whole


class KilledError(BaseException):
    """Stands for the signal."""


def test_it_is_there_when_all_went_well(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "name.txt"
    with whole(path) as part:
        assert part.parent == path.parent
        part.write_text("all of it")
        assert not path.exists()
    assert path.read_text() == "all of it"
    assert os.listdir(path.parent) == ["name.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("bad"), KilledError()])
def test_what_stood_there_still_stands_after_an_error(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "name.txt"
    path.write_text("before")
    with pytest.raises(type(error)), whole(path) as part:  # noqa: PT012 (the error comes after the writing)
        part.write_text("half of")
        raise error
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["name.txt"]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "name.txt"
    with whole(path) as one, whole(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # whose block ended last
    assert os.listdir(tmp_path) == ["name.txt"]


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_nobody_may_ever_read_what_is_private(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    with whole(path, mode=mode) as part:
        assert part.stat().st_mode & 0o777 == mode  # before anything is in it
        part.write_bytes(b"x")
    assert path.stat().st_mode & 0o777 == mode


def test_a_folder_in_its_place_is_an_error_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "name"
    path.mkdir()
    with pytest.raises(OSError), whole(path) as part:  # noqa: PT011 (which of them, the system decides)
        part.write_text("x")
    assert os.listdir(tmp_path) == ["name"]


def test_one_that_was_swept_before_it_was_locked_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock
    swept: list[Path] = []

    def flock(fd: int, how: int) -> None:
        if not swept:
            swept.append(next(tmp_path.glob(".*.part")))
            monkeypatch.setattr(fcntl, "flock", real)
            remove_abandoned(swept[0])
            assert not swept[0].exists()
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with whole(tmp_path / "a") as part:
        part.write_bytes(b"data")
    assert swept
    assert (tmp_path / "a").read_bytes() == b"data"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_without_locks_files_are_written_and_nothing_counts_as_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with whole(tmp_path / "a") as part:
        remove_abandoned(part)
        part.write_bytes(b"data")
    assert (tmp_path / "a").read_bytes() == b"data"
