"""Archives: every file is seen once, whatever its name; nothing leaves the folder it belongs to."""

from __future__ import annotations

import errno
import gzip
import io
import os
import socket
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from cxrnode import archive as archive_module
from cxrnode import dicomdir
from cxrnode.archive import check_archive, iter_items
from cxrnode.errors import ArchiveError, Rejected
from cxrnode.item import Item
from cxrnode.location import open_item, read_item
from cxrnode.types import Outcome, Reason

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
    return len(read_item(item.location())) < item.at.size


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


def test_links_out_of_the_folder_are_not_followed_and_told(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "other.dcm").write_bytes(b"another patient's")
    (folder / "to-file").symlink_to("../outside/other.dcm")
    (folder / "to-folder").symlink_to(outside)
    (folder / "up").symlink_to("..")
    (folder / "aa-inside").symlink_to("c.txt")
    (folder / "deep" / "in-folder").symlink_to("er")
    (folder / "itself").symlink_to("itself")
    found = items(folder, tmp_path)
    assert {Path(i.path).name for i in found if i.rejection} == {"to-file", "to-folder", "up", "itself"}
    assert {Path(i.path).name for i in found if not i.rejection} == {"a.dcm", "b", "c.txt", "aa-inside"}
    assert all(Path(i.at.container).is_relative_to(folder) for i in found if not i.rejection)


def test_the_archive_itself_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "one").symlink_to(folder / "a.dcm")
    assert len(items(tmp_path / "link", tmp_path)) == len(CONTENT)
    (item,) = items(tmp_path / "one", tmp_path)
    assert read_item(item.location()) == CONTENT["a.dcm"]


def test_folders_deeper_than_any_recursion_and_any_path(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(2100):  # of 2 bytes each: more than the 4096 that a path may have
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    found = items(tmp_path / "d", tmp_path)
    assert len([i for i in found if not i.rejection]) > 1900
    assert any(i.rejection and "too long" in i.rejection.detail for i in found)
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # pytest's own cleaning does not reach so deep


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_files_of_proc_do_not_hold_up_the_walk(tmp_path: Path) -> None:
    found = items(Path(f"/proc/{os.getpid()}/fdinfo"), tmp_path)
    assert found
    for item in [*found, *items(Path("/proc/self/mem"), tmp_path), *items(Path("/proc/self/pagemap"), tmp_path)]:
        assert item.rejection or read_item(item.location()) == b""  # as much as their size says


def test_a_file_in_whose_place_a_pipe_or_a_link_was_put_is_a_reason(folder: Path, tmp_path: Path) -> None:
    found = {Path(i.path).name: i for i in items(folder, tmp_path)}
    (folder / "a.dcm").unlink()
    os.mkfifo(folder / "a.dcm")
    (folder / "c.txt").unlink()
    (folder / "c.txt").symlink_to("/etc/passwd")
    (folder / "deep/er/b").unlink()
    for name in ("a.dcm", "c.txt", "b"):
        with pytest.raises(Rejected):
            read_item(found[name].location())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_told(folder: Path, tmp_path: Path) -> None:
    (folder / "a.dcm").chmod(0)
    (folder / "deep").chmod(0)
    try:
        assert {Path(i.path).name for i in items(folder, tmp_path) if i.rejection} == {"a.dcm", "deep"}
    finally:
        (folder / "deep").chmod(0o700)


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "Permission denied"), FileNotFoundError(errno.ENOENT, "No such file"),
              OSError(errno.EIO, "I/O error"), IndexError("3"), RecursionError(), MemoryError(), UnicodeError("x"),
              KeyError("Smith^John")],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
@pytest.mark.parametrize("seam", ["open_regular", "recognise", "zip_items", "tar_items", "compressed_items"])
def test_whatever_one_file_raises_is_its_own_row(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seam: str, error: Exception
) -> None:
    with tarfile.open(folder / "m.tar", "w") as t, tarfile.open(folder / "n.tgz", "w:gz") as gz:
        t.add(folder / "a.dcm", "a.dcm")
        gz.add(folder / "a.dcm", "a.dcm")
    with zipfile.ZipFile(folder / "z.zip", "w") as z:
        z.writestr("x", b"y")
    before = items(folder, tmp_path)
    whole = getattr(archive_module, seam)
    wanted = {"zip_items": "z.zip", "tar_items": "m.tar", "compressed_items": "n.tgz"}.get(seam, "a.dcm")

    def raising(first: Any, *more: Any) -> Any:
        name = first.name if isinstance(first, Path) else os.readlink(f"/proc/self/fd/{first.fileno()}")
        if name.endswith(wanted):
            raise error
        return whole(first, *more)

    monkeypatch.setattr(archive_module, seam, raising)
    after = items(folder, tmp_path)
    assert len(after) == len(before)
    (failed,) = (i for i in after if i.rejection)
    assert failed.path == str(folder / wanted)
    assert failed.rejection is not None
    assert failed.rejection.reason.outcome is Outcome.FAILED
    assert "Smith" not in failed.rejection.text


def test_a_folder_that_cannot_be_listed_costs_itself_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def failing(path: Any) -> Any:
        if Path(path).name == "er":
            raise OSError(errno.EIO, "Input/output error")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    found = items(folder, tmp_path)
    assert [Path(i.path).name for i in found if i.rejection] == ["er"]
    assert len(found) == len(CONTENT)


def test_names_that_are_shown_alike_are_two_files(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"r\xf6", b"r\\xf6", b"r\\\\xf6", b"r\\\xf6", b"r\\"):
        (folder / os.fsdecode(name)).write_bytes(name)
    assert len({i.path for i in items(folder, tmp_path)}) == 5


def test_what_holds_no_file_is_told(folder: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(folder / "empty.zip", "w").close()
    (tmp_path / "nothing" / "below").mkdir(parents=True)
    empty: list[Path] = []
    for archive in (folder, tmp_path / "nothing", folder / "a.dcm"):
        list(iter_items(archive, spool=tmp_path / "spool", skip=tmp_path / "out", on_empty=empty.append))
    assert empty == [folder / "empty.zip", tmp_path / "nothing"]


@pytest.mark.parametrize("blocks", [2, 20])
def test_an_empty_tar_is_told(tmp_path: Path, blocks: int) -> None:
    """A file of zeros may be a film that was lost, too: it has its row besides."""
    plain, packed, odd = tmp_path / "plain.tar", tmp_path / "packed.tar.gz", tmp_path / "odd"
    plain.write_bytes(bytes(512 * blocks))
    packed.write_bytes(gzip.compress(bytes(512 * blocks)))
    odd.write_bytes(bytes(512 * blocks - 1))
    empty: list[Path] = []
    for archive, rows in ((plain, 1), (packed, 0), (odd, 1)):
        assert len(list(iter_items(archive, spool=tmp_path / "s", skip=tmp_path / "o", on_empty=empty.append))) == rows
    assert empty == [plain, packed]


def test_a_file_that_is_too_large_is_told_and_not_read(tmp_path: Path) -> None:
    huge = tmp_path / "huge.dcm"
    with huge.open("wb") as f:
        f.truncate(3 * 2**30)
    (item,) = items(huge, tmp_path)
    assert item.rejection is not None
    assert item.rejection.reason is Reason.TOO_LARGE
    with pytest.raises(Rejected):
        read_item(item.location())


def test_a_dicomdir_lists_files_of_its_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "other.dcm").write_bytes(b"another patient's")
    folder = tmp_path / "cd"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "im1").write_bytes(b"x")
    os.mkfifo(folder / "PIPE")
    listed = [["IMAGES", "IM1"], ["..", "OTHER.DCM"], ["..", "other.dcm"], ["X" * 300], ["PIPE"], ["A\0B"],
              ["", "etc", "passwd"], ["IMAGES"]]  # fmt: skip
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    ds.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.DirectoryRecordSequence = []
    for parts in listed:
        record = Dataset()
        record.OffsetOfTheNextDirectoryRecord = 0
        value = "\\".join(parts).encode()
        value += b" " * (len(value) % 2)
        tag = Tag("ReferencedFileID")
        record[tag] = RawDataElement(tag, "CS", len(value), value, 0, False, True)
        ds.DirectoryRecordSequence.append(record)
    ds.save_as(folder / "DICOMDIR", enforce_file_format=True)
    found = items(folder / "DICOMDIR", tmp_path)
    assert [i.rejection is None for i in found] == [True] + [False] * 7
    assert found[0].path == str(folder / "images" / "im1")
    data = (folder / "DICOMDIR").read_bytes()
    (folder / "DICOMDIR").write_bytes(data[: len(data) - 3])
    *_, last = items(folder / "DICOMDIR", tmp_path)
    assert last.rejection is not None
    assert "damaged DICOMDIR" in last.rejection.detail


@pytest.mark.parametrize("value", [b"", b"A "])
def test_a_dicomdir_has_a_budget(value: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomdir, "MAX_ELEMENTS", 9)  # eight and the SOP class
    monkeypatch.setattr(archive_module, "MAX_MEMBERS", 4)
    head = bytes(128) + b"DICM" + b"\x02\0\x02\0UI" + struct.pack("<H", 20) + b"1.2.840.10008.1.3.10"
    element = b"\x04\0\0\x15CS" + struct.pack("<H", len(value)) + value
    for count, whole in ((4, True), (8, not value), (9, False)):
        (tmp_path / "DICOMDIR").write_bytes(head + element * count)
        found = items(tmp_path / "DICOMDIR", tmp_path)
        said = found[-1].rejection.detail if found and found[-1].rejection else ""
        assert ("more than" not in said) is whole, (count, said)
        assert len(found) <= 5


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
