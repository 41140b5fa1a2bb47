"""Archives of every kind as a user gives them: a row for each file and member, whatever it is, and an exit code that
says whether all were read."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import zstandard

from tests.support.batch import rows, run
from tests.support.make_dicom import chest, to_bytes


def film(seed: int) -> bytes:
    return to_bytes(
        chest(256, 220, seed=seed, uids=(f"1.2.826.0.1.{seed}", f"1.2.826.0.1.{seed}.1", f"1.2.826.0.1.{seed}.2"))
    )


def dark(seed: int) -> bytes:
    """A film whose upper half is air: the file has holes once it lies on a disk that knows them."""
    ds = chest(512, 512, seed=seed, uids=(f"1.2.826.0.1.{seed}", f"1.2.826.0.1.{seed}.1", f"1.2.826.0.1.{seed}.2"))
    pixels = bytearray(ds.PixelData)
    pixels[: len(pixels) // 4] = bytes(len(pixels) // 4)
    ds.PixelData = bytes(pixels)
    return to_bytes(ds)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("archives")
    folder = top / "in"
    folder.mkdir()
    work = top / "work"
    work.mkdir()
    (work / "one.dcm").write_bytes(film(1))
    (work / "dense").write_bytes(dark(2))
    subprocess.run(["cp", "--sparse=always", work / "dense", work / "two.dcm"], check=True)
    (work / "alias.dcm").symlink_to("one.dcm")
    subprocess.run(["tar", "-S", "-cf", folder / "a.tar", "-C", work, "one.dcm", "two.dcm", "alias.dcm"], check=True)
    (folder / "b.dcm.gz").write_bytes(gzip.compress(film(3)))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        info = tarfile.TarInfo("zst.dcm")
        info.size = len(film(4))
        t.addfile(info, io.BytesIO(film(4)))
    (folder / "c").write_bytes(zstandard.compress(out.getvalue()))
    (folder / "d.exe").write_bytes(b"MZ" + bytes(1000))
    with zipfile.ZipFile(folder / "d.exe", "a", zipfile.ZIP_DEFLATED) as z:
        z.writestr("sfx.dcm", film(5))
        z.writestr("inner.tar.gz", gzip.compress(out.getvalue()))
    (folder / "e.7z").write_bytes(b"7z\xbc\xaf\x27\x1c\0\4" + bytes(100))
    with (folder / "f.dcm").open("wb") as f:
        f.write(film(6))
        f.truncate(3 * 2**30)
    (folder / "g.dcm").symlink_to(work / "one.dcm")
    os.mkfifo(folder / "h.dcm")
    zipfile.ZipFile(folder / "i.zip", "w").close()
    return top


EXPECTED = {
    "a.tar!/one.dcm": ("analysed", ""),
    "a.tar!/two.dcm": ("analysed", ""),
    "a.tar!/alias.dcm": ("not_analysed", "link"),
    "b.dcm.gz": ("analysed", ""),
    "c!/zst.dcm": ("analysed", ""),
    "d.exe!/sfx.dcm": ("analysed", ""),
    "d.exe!/inner.tar.gz": ("failed", "nested_archive"),
    "e.7z": ("failed", "unreadable_file"),
    "f.dcm": ("failed", "too_large"),
    "g.dcm": ("failed", "unreadable_file"),
    "h.dcm": ("failed", "unreadable_file"),
}


def test_every_file_and_member_has_its_row_and_the_exit_code_says_that_some_failed(mixed: Path) -> None:
    done = run(mixed / "in", out=mixed / "out")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    found = {r["path"].removeprefix(f"{mixed / 'in'}/"): (r["outcome"], r["reason"]) for r in rows(mixed / "out")}
    assert found == EXPECTED
    assert f"{mixed / 'in' / 'i.zip'} holds no files" in done.stderr
    assert json.loads((mixed / "out" / "run.json").read_text())["warnings"] == [
        f"{mixed / 'in' / 'i.zip'} holds no files"
    ]
    before = (mixed / "out" / "results.csv").read_bytes()
    again = run(mixed / "in", out=mixed / "out", options=("--quiet",))
    assert again.returncode == 1
    assert (mixed / "out" / "results.csv").read_bytes() == before


def test_an_empty_folder_warns(tmp_path: Path) -> None:
    (tmp_path / "in" / "below").mkdir(parents=True)
    done = run(tmp_path / "in", out=tmp_path / "out", options=("--quiet",))
    assert done.returncode == 0
    assert done.stderr == f"warning: {tmp_path / 'in'} holds no files\n"


@pytest.mark.parametrize("form", ["zip", "tar.gz", "gz"])
def test_an_archive_that_was_read_alone_ends_with_0(tmp_path: Path, form: str) -> None:
    archive = tmp_path / f"x.{form}"
    if form == "zip":
        with zipfile.ZipFile(archive, "w") as z:
            z.writestr("film", film(1))
    elif form == "gz":
        archive.write_bytes(gzip.compress(film(1)))
    else:
        (tmp_path / "film").write_bytes(film(1))
        shutil.make_archive(str(tmp_path / "x"), "gztar", tmp_path, "film")
    done = run(archive, out=tmp_path / "out", options=("--quiet",))
    assert (done.returncode, done.stderr) == (0, "")
    assert [r["outcome"] for r in rows(tmp_path / "out")] == ["analysed"]
