"""A full or unwritable disk stops the run with a clear error, and the same command goes on once there is room."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.batch import command, objects, rows, run, studies


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 6 MB."""
    mount = tmp_path / "small"
    mount.mkdir()
    options = ["-t", "tmpfs", "-o", "size=6m", "tmpfs"]
    if os.geteuid() or subprocess.run(["mount", *options, str(mount)], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system here (needs root)")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=False)


def test_a_full_disk_stops_the_run_and_room_resumes_it(tmp_path: Path, small_disk: Path) -> None:
    folder = studies(tmp_path / "in", 12)
    full = run(folder, out=small_disk / "out", options=("--batch-size", "2"))
    assert full.returncode == 1
    assert "No space left" in full.stderr or "disk is full" in full.stderr
    assert "same command" in full.stderr
    assert "Traceback" not in full.stderr
    assert not list(small_disk.rglob("*.part"))
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    assert run(folder, out=small_disk / "out", options=("--batch-size", "2")).returncode == 0
    assert [row["outcome"] for row in rows(small_disk / "out")] == ["analysed"] * 12
    assert len(objects(small_disk / "out")) == 24


def test_a_file_size_limit_is_a_full_disk_too(tmp_path: Path) -> None:
    folder = studies(tmp_path / "in", 2)
    limit = 256 * 1024  # less than a capture
    done = subprocess.run(
        command(folder, out=tmp_path / "out"),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert "error: cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert run(folder, out=tmp_path / "out").returncode == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    done = run(studies(tmp_path / "in", 1), out=tmp_path / "locked" / "out")
    assert done.returncode == 2
    assert "Choose a folder" in done.stderr


def test_an_output_path_that_is_a_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    done = run(studies(tmp_path / "in", 1), out=tmp_path / "out")
    assert done.returncode == 2
    assert "cannot use --out" in done.stderr
