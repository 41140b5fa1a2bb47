"""Archives: every file is seen once, whatever its name; nothing leaves the folder it belongs to."""

from __future__ import annotations

import io
import os
import socket
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrnode.archive import Item, check_archive, iter_items, open_item, read_item
from cxrnode.errors import ArchiveError, Rejected
from cxrnode.types import Reason

CONTENT = {"a.dcm": b"first", "deep/er/b": b"second" * 1000, "c.txt": b""}


def items(archive: Path, tmp_path: Path) -> list[Item]:
    return list(iter_items(archive, spool=tmp_path / "spool", skip=tmp_path / "out"))


def contents(found: list[Item]) -> dict[str, bytes]:
    return {i.path.rpartition("!/")[2]: read_item(i.location()) for i in found}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in CONTENT.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "in"


def test_a_folder_is_read_recursively_in_a_stable_order(folder: Path, tmp_path: Path) -> None:
    found = items(folder, tmp_path)
    assert {Path(i.path).relative_to(folder).as_posix(): read_item(i.location()) for i in found} == CONTENT
    assert found == items(folder, tmp_path)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tars_are_known_by_content(folder: Path, tmp_path: Path, mode: str) -> None:
    archive = tmp_path / "studies.dcm"
    with tarfile.open(archive, mode) as t:  # type: ignore[call-overload]
        t.add(folder, ".")
    assert {k.removeprefix("./"): v for k, v in contents(items(archive, tmp_path)).items()} == CONTENT


def test_zips_are_known_by_content_and_may_hold_a_name_twice(tmp_path: Path) -> None:
    archive = tmp_path / "no-extension"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("x", b"one")
        with pytest.warns(UserWarning, match="Duplicate name"):
            z.writestr("x", b"two")
    assert contents(items(archive, tmp_path)) == {"x": b"one", "x#1": b"two"}


def test_names_that_would_escape_are_only_names(tmp_path: Path) -> None:
    archive = tmp_path / "slip.zip"
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("../../etc/passwd", b"harmless")
    assert contents(items(archive, tmp_path)) == {"../../etc/passwd": b"harmless"}
    assert not (tmp_path / "spool").exists()


def test_a_damaged_zip_member_is_a_reason(tmp_path: Path) -> None:
    archive = tmp_path / "damaged.zip"
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("x", b"Y" * 1000)
    data = bytearray(archive.read_bytes())
    data[200] ^= 0xFF
    archive.write_bytes(data)
    (item,) = items(archive, tmp_path)
    with pytest.raises(Rejected) as e:
        read_item(item.location())
    assert e.value.rejection.reason is Reason.UNREADABLE_FILE


def test_encrypted_members_say_so(tmp_path: Path) -> None:
    archive = tmp_path / "secret.zip"
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("x", b"data")
    data = bytearray(archive.read_bytes())
    data[6] |= 1  # general purpose flag, local header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and central directory
    archive.write_bytes(data)
    (item,) = items(archive, tmp_path)
    assert item.rejection is not None
    assert "encrypted" in item.rejection.detail


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_a_cut_archive_is_a_reason_and_keeps_what_can_be_read(folder: Path, tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / f"cut.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(archive, "w") as z:
            z.writestr("x", os.urandom(5000))
    else:
        with tarfile.open(archive, "w:gz" if suffix.endswith("gz") else "w") as t:
            t.add(folder, ".")
            t.addfile(_tarinfo("big", 50_000), io.BytesIO(os.urandom(50_000)))
            t.addfile(_tarinfo("last", 5), io.BytesIO(b"extra"))
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    found = items(archive, tmp_path)
    rejected = [i for i in found if i.rejection]
    unreadable = [i for i in found if not i.rejection and _short(i)]
    assert rejected or unreadable


def _tarinfo(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def _short(item: Item) -> bool:
    return len(read_item(item.location())) < item.size


def test_special_files_and_loops_do_not_hang(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder)
    (folder / "dangling").symlink_to(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(folder / "socket"))
        found = items(folder, tmp_path)
    refused = {Path(i.path).name for i in found if i.rejection}
    assert refused == {"pipe", "dangling", "socket"}
    assert len(found) == len(CONTENT) + 3


def test_the_output_folder_inside_the_archive_is_left_out(folder: Path, tmp_path: Path) -> None:
    out = folder / "out"
    out.mkdir()
    (out / "result.dcm").write_bytes(b"x")
    found = list(iter_items(folder, spool=out / "spool", skip=out))
    assert len(found) == len(CONTENT)


def test_names_that_are_no_utf8_are_shown_and_read(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / os.fsdecode(b"r\xf6ntgen.dcm")).write_bytes(b"x")
    (item,) = items(folder, tmp_path)
    item.path.encode("utf-8")
    assert "\\xf6" in item.path
    assert read_item(item.location()) == b"x"


def test_a_missing_archive_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="does not exist"):
        check_archive(tmp_path / "nowhere")


def test_a_slice_of_a_tar_reads_like_a_file(tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as t:
        t.addfile(_tarinfo("a", 10), io.BytesIO(b"0123456789"))
        t.addfile(_tarinfo("b", 3), io.BytesIO(b"abc"))
    first = items(archive, tmp_path)[0]
    with open_item(first.location()) as f:
        assert f.read(4) == b"0123"
        assert f.seek(-3, io.SEEK_END) == 7
        assert f.read() == b"789"
        assert f.read() == b""


@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=600))
def test_any_bytes_are_an_item_or_a_reason(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "f").write_bytes(data)
    for item in iter_items(folder / "f", spool=folder / "spool", skip=folder / "out"):
        assert item.rejection or read_item(item.location()) == data
