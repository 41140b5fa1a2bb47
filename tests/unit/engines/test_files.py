"""A file is there whole or not at all, whoever writes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.files import whole


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
