"""What archives hold, as real tools write them: every member is an item, and what is not read says why."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from cxrnode import members, tar_members
from cxrnode.archive import iter_items
from cxrnode.dicom.budget import OBJECT_BYTES
from cxrnode.errors import Rejected
from cxrnode.item import Item
from cxrnode.location import read_item
from cxrnode.types import Outcome, Reason

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.compress,
}
HOLES = b"A" * 4096 + bytes(1 << 20) + b"B" * 8192 + bytes(3 << 20) + b"C" * 100


def items(archive: Path, tmp_path: Path) -> list[Item]:
    return list(iter_items(archive, spool=tmp_path / "spool", skip=tmp_path / "out"))


def found(archive: Path, tmp_path: Path) -> dict[str, bytes | Reason]:
    """By the name in the archive: the content, or why there is none."""
    seen: dict[str, bytes | Reason] = {}
    for item in items(archive, tmp_path):
        name = item.path.rpartition("!/")[2]
        assert name not in seen
        try:
            seen[name] = item.rejection.reason if item.rejection else read_item(item.location())
        except Rejected as e:
            seen[name] = e.rejection.reason
    return seen


def tar(*arguments: str | Path) -> None:
    subprocess.run(["tar", *map(str, arguments)], check=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "one.dcm").write_bytes(b"first")
    (tree / "deep" / "er" / "two").write_bytes(b"second" * 500)
    return tree


# tar


def sparse(path: Path) -> None:
    dense = path.with_suffix(".dense")
    dense.write_bytes(HOLES)
    subprocess.run(["cp", "--sparse=always", dense, path], check=True)
    dense.unlink()


@pytest.mark.parametrize(
    "form",
    [
        ["--format=gnu"], ["--format=oldgnu"], ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"], ["--format=pax", "--sparse-version=1.0"],
    ],
)  # fmt: skip
def test_files_with_holes_are_read_whole(tree: Path, tmp_path: Path, form: list[str]) -> None:
    sparse(tree / "holes")
    (tree / "zz-after").write_bytes(b"after")
    tar(*form, "-S", "-cf", tmp_path / "x.tar", "-C", tree, "one.dcm", "holes", "zz-after")
    assert found(tmp_path / "x.tar", tmp_path) == {"one.dcm": b"first", "holes": HOLES, "zz-after": b"after"}


def test_a_sparse_file_of_many_pieces_is_read_whole(tmp_path: Path) -> None:
    data = b"".join(bytes([n % 255 + 1]) * 4096 + bytes(4096) for n in range(300))
    (tmp_path / "dense").write_bytes(data)
    subprocess.run(["cp", "--sparse=always", tmp_path / "dense", tmp_path / "holes"], check=True)
    for form in ("gnu", "pax"):
        tar(f"--format={form}", "-S", "-cf", tmp_path / f"{form}.tar", "-C", tmp_path, "holes")
        assert found(tmp_path / f"{form}.tar", tmp_path) == {"holes": data}


def test_a_sparse_file_of_nothing_but_a_hole(tmp_path: Path) -> None:
    with (tmp_path / "hole").open("wb") as f:
        f.truncate(100_000)
    for form in ("gnu", "pax"):
        tar(f"--format={form}", "-S", "-cf", tmp_path / f"{form}.tar", "-C", tmp_path, "hole")
        assert found(tmp_path / f"{form}.tar", tmp_path) == {"hole": bytes(100_000)}


@pytest.mark.parametrize("form", ["v7", "ustar", "gnu", "pax"])
def test_every_format_is_known_by_content(tree: Path, tmp_path: Path, form: str) -> None:
    tar(f"--format={form}", "-cf", tmp_path / "no-name", "-C", tree, "one.dcm", "deep")
    assert found(tmp_path / "no-name", tmp_path) == {"one.dcm": b"first", "deep/er/two": b"second" * 500}


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_long_and_odd_names(tmp_path: Path, form: str) -> None:
    name = os.fsdecode(b"r\xf6ntgen-" + b"x" * 200)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(b"x")
    tar(f"--format={form}", "-cf", tmp_path / "x.tar", "-C", tmp_path / "in", ".")
    assert found(tmp_path / "x.tar", tmp_path) == {"./r\\xf6ntgen-" + "x" * 200: b"x"}


def test_links_and_devices_have_a_row_each(tree: Path, tmp_path: Path) -> None:
    os.link(tree / "one.dcm", tree / "zz-hard")
    (tree / "deep" / "aa-inside").symlink_to("../one.dcm")
    (tree / "folder-inside").symlink_to("deep")
    (tree / "outside").symlink_to("/etc/passwd")
    (tree / "above").symlink_to("../../somewhere")
    os.mkfifo(tree / "pipe")
    for form in ("gnu", "pax", "ustar"):
        archive = tmp_path / f"{form}.tar"
        tar(f"--format={form}", "--sort=name", "-cf", archive, "-C", tree, ".")
        with tarfile.open(archive, "a") as t:
            device = tarfile.TarInfo("./device")
            device.type = tarfile.CHRTYPE
            t.addfile(device)
        assert found(archive, tmp_path) == {
            "./one.dcm": b"first", "./deep/er/two": b"second" * 500, "./zz-hard": Reason.LINK,
            "./deep/aa-inside": Reason.LINK, "./folder-inside": Reason.LINK, "./outside": Reason.UNREADABLE_FILE,
            "./above": Reason.UNREADABLE_FILE, "./pipe": Reason.UNREADABLE_FILE, "./device": Reason.UNREADABLE_FILE,
        }  # fmt: skip
        (hard,) = (i.rejection for i in items(archive, tmp_path) if i.path.endswith("zz-hard"))
        assert hard is not None
        assert "./one.dcm" in hard.detail


def test_a_name_twice_is_two_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as t:
        for content in (b"one", b"two", b"three"):
            add(t, "a", content)
        add(t, "a#1", b"four")
    assert list(found(tmp_path / "x.tar", tmp_path).values()) == [b"one", b"two", b"three", b"four"]


def add(t: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    t.addfile(info, io.BytesIO(content))


def test_a_tar_that_was_appended_to_another_is_read_on(tree: Path, tmp_path: Path) -> None:
    tar("-cf", tmp_path / "a.tar", "-C", tree, "one.dcm")
    tar("-cf", tmp_path / "b.tar", "-C", tree, "deep/er/two")
    both = tmp_path / "both.tar"
    both.write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    assert set(found(both, tmp_path)) == {"one.dcm", "deep/er/two"}


def test_a_damaged_header_in_the_middle_is_told(tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as t:
        add(t, "a", b"one")
        add(t, "b", b"two")
    data = bytearray(archive.read_bytes())
    data[1024 + 3] ^= 0xFF
    archive.write_bytes(data)
    seen = items(archive, tmp_path)
    assert [i.rejection is None for i in seen] == [True, False]
    assert seen[1].rejection is not None
    assert "1 members were taken" in seen[1].rejection.detail


def header(kind: bytes, size: int, name: bytes = b"x") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[124:136] = b"%011o\0" % size
    block[156:157] = kind
    block[257:265] = b"ustar\0" + b"00"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_an_extended_header_of_a_gigabyte_is_not_built(tmp_path: Path, kind: bytes) -> None:
    archive = tmp_path / "x.tar"
    with archive.open("wb") as f:
        f.write(header(kind, 2**30))
        f.truncate(2**30 + 10_000)
    (item,) = items(archive, tmp_path)
    assert item.rejection is not None
    assert "extended header" in item.rejection.detail


@pytest.mark.parametrize("kind", [b"x", b"L", b"g"])
def test_a_chain_of_extended_headers_is_refused(tmp_path: Path, kind: bytes) -> None:
    archive = tmp_path / "x.tar"
    archive.write_bytes((header(kind, 12) + b"12 path=abc\n".ljust(512, b"\0")) * 5000 + header(b"0", 0))
    (item,) = items(archive, tmp_path)
    assert item.rejection is not None


@pytest.mark.parametrize("records", [b"0 path=x\n", b"3 a=b\n", b"99 path=x\n", b"9 size=x\n", b"11 size=-9\n"])
def test_odd_pax_records_are_an_item(tmp_path: Path, records: bytes) -> None:
    archive = tmp_path / "x.tar"
    archive.write_bytes(header(b"x", len(records)) + records.ljust(512, b"\0") + header(b"0", 0) + bytes(1024))
    assert len(items(archive, tmp_path)) == 1


def test_a_sparse_bomb_is_told_and_not_read(tmp_path: Path) -> None:
    """Members of 90 MiB of holes each, which take 512 bytes in the tar."""
    with (tmp_path / "hole").open("wb") as f:
        f.truncate(90 * 2**20)
    for n in range(30):
        os.link(tmp_path / "hole", tmp_path / f"hole{n}")
    with tarfile.open(tmp_path / "x.tar", "w"):
        pass
    tar("-S", "--hard-dereference", "-cf", tmp_path / "x.tar", "-C", tmp_path, *(f"hole{n}" for n in range(30)))
    *taken, last = items(tmp_path / "x.tar", tmp_path)
    assert sum(i.at.size for i in taken) <= members._MAX_INFLATED
    assert last.rejection is not None
    assert f"{len(taken)} members were taken" in last.rejection.detail


def test_a_member_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as f:
        f.truncate(3 * 2**30)
    tar("-cf", tmp_path / "x.tar", "-S", "-C", tmp_path, "huge")
    assert found(tmp_path / "x.tar", tmp_path) == {"huge": Reason.TOO_LARGE}


def test_the_number_of_members_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "MAX_MEMBERS", 3)
    with tarfile.open(tmp_path / "x.tar", "w") as t, zipfile.ZipFile(tmp_path / "x.zip", "w") as z:
        for n in range(5):
            add(t, str(n), b"x")
            z.writestr(str(n), b"x")
    for name in ("x.tar", "x.zip"):
        *taken, last = items(tmp_path / name, tmp_path)
        assert len(taken) == 3
        assert last.rejection is not None
        assert "3 members were taken" in last.rejection.detail


# compressed


@pytest.mark.parametrize("kind", list(COMPRESS))
def test_one_compressed_file_is_one_item(tmp_path: Path, kind: str) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "film.dcm").write_bytes(COMPRESS[kind](data))
    assert found(tmp_path / "film.dcm", tmp_path) == {str(tmp_path / "film.dcm"): data}
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("kind", list(COMPRESS))
def test_streams_that_follow_each_other_are_one(tmp_path: Path, kind: str) -> None:
    (tmp_path / "film").write_bytes(COMPRESS[kind](b"first ") + COMPRESS[kind](b"second"))
    assert found(tmp_path / "film", tmp_path) == {str(tmp_path / "film"): b"first second"}


@pytest.mark.parametrize("kind", list(COMPRESS))
def test_a_compressed_tar_is_read_and_kept_for_the_next_start(tree: Path, tmp_path: Path, kind: str) -> None:
    tar("-cf", tmp_path / "x.tar", "-C", tree, "one.dcm", "deep")
    (tmp_path / "x").write_bytes(COMPRESS[kind]((tmp_path / "x.tar").read_bytes()))
    first = items(tmp_path / "x", tmp_path)
    assert found(tmp_path / "x", tmp_path) == {"one.dcm": b"first", "deep/er/two": b"second" * 500}
    assert first == items(tmp_path / "x", tmp_path)


@pytest.mark.parametrize("kind", list(COMPRESS))
def test_of_a_cut_compressed_tar_the_members_before_the_cut_are_read(tmp_path: Path, kind: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as t:
        for n in range(40):
            add(t, f"{n}", os.urandom(100_000))
    packed = COMPRESS[kind]((tmp_path / "x.tar").read_bytes())
    (tmp_path / "x").write_bytes(packed[: len(packed) // 2])
    for _ in range(2):  # and when the run is started again
        *taken, last = items(tmp_path / "x", tmp_path)
        assert last.path == str(tmp_path / "x")
        assert last.rejection is not None
        assert last.rejection.reason.outcome is Outcome.FAILED
        assert all(i.rejection is None for i in taken)
        assert len(taken) >= (5 if kind != "bzip2" else 1)


@pytest.mark.parametrize("kind", list(COMPRESS))
def test_a_compressed_bomb_is_told_and_bounded(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "_MAX_INFLATED", 2**24)
    block = bytes(2**20)
    (tmp_path / "x").write_bytes(COMPRESS[kind](header(b"0", 2**33) + block * 40))
    seen = items(tmp_path / "x", tmp_path)
    assert seen[-1].rejection is not None
    assert "bomb" in seen[-1].rejection.detail
    assert sum(f.stat().st_size for f in (tmp_path / "spool").iterdir()) < 2**24 + 2**20


@pytest.mark.parametrize("kind", list(COMPRESS))
def test_one_compressed_file_that_is_too_large_is_a_reason(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x").write_bytes(COMPRESS[kind](bytes(OBJECT_BYTES + 1)))
    assert found(tmp_path / "x", tmp_path) == {str(tmp_path / "x"): Reason.TOO_LARGE}


def test_an_xz_that_wants_gigabytes_of_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**20}]
    data = bytearray(lzma.compress(b"x" * 1000, lzma.FORMAT_XZ, filters=filters))
    at = data.index(b"\x21\x01", 12)
    data[at + 2] = 40  # of the dictionary: 4 GiB - 1
    size = (data[12] + 1) * 4
    data[12 + size - 4 : 12 + size] = struct.pack("<L", zlib.crc32(data[12 : 12 + size - 4]))
    (tmp_path / "x").write_bytes(data)
    assert found(tmp_path / "x", tmp_path) == {str(tmp_path / "x"): Reason.UNREADABLE_FILE}


def test_what_a_compressed_file_holds_may_be_an_archive_that_is_not_opened(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as z:
        z.writestr("x", b"y")
    (tmp_path / "x.zip.gz").write_bytes(gzip.compress(inner.getvalue()))
    (tmp_path / "x.gz.gz").write_bytes(gzip.compress(gzip.compress(b"x")))
    assert set(found(tmp_path / "x.zip.gz", tmp_path).values()) == {Reason.NESTED_ARCHIVE}
    assert set(found(tmp_path / "x.gz.gz", tmp_path).values()) == {Reason.NESTED_ARCHIVE}
    assert Reason.NESTED_ARCHIVE.outcome is Outcome.FAILED


# zip


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=str
)
def test_every_method_of_python_s_is_read(tmp_path: Path, method: int) -> None:
    data = os.urandom(5000) * 30
    with zipfile.ZipFile(tmp_path / "x", "w", method) as z:
        z.writestr("röntgen", data)
        z.mkdir("folder")
        with z.open("zip64", "w", force_zip64=True) as f:
            f.write(data)
    assert found(tmp_path / "x", tmp_path) == {"röntgen": data, "zip64": data}


def test_a_zip_as_the_zip_tool_writes_it(tree: Path, tmp_path: Path) -> None:
    (tree / "inside").symlink_to("one.dcm")
    (tree / "outside").symlink_to("/etc/passwd")
    (tree / "big").write_bytes(os.urandom(100_000))
    subprocess.run(["zip", "-q", "-r", "-y", tmp_path / "x.zip", "."], cwd=tree, check=True)
    expected = {
        "one.dcm": b"first", "deep/er/two": b"second" * 500, "big": (tree / "big").read_bytes(),
        "inside": Reason.LINK, "outside": Reason.UNREADABLE_FILE,
    }  # fmt: skip
    assert found(tmp_path / "x.zip", tmp_path) == expected
    with (tmp_path / "piped.zip").open("wb") as f:  # sizes behind the data, zip64
        subprocess.run(["zip", "-q", "-r", "-y", "-", "."], cwd=tree, stdout=f, check=True)
    assert found(tmp_path / "piped.zip", tmp_path) == expected
    subprocess.run(["zip", "-q", "-e", "-P", "secret", tmp_path / "secret.zip", "big"], cwd=tree, check=True)
    assert found(tmp_path / "secret.zip", tmp_path) == {"big": Reason.UNREADABLE_FILE}
    subprocess.run(["zip", "-q", "-s", "64k", "-0", tmp_path / "split.zip", "big"], cwd=tree, check=True)
    for part in ("split.zip", "split.z01"):
        assert set(found(tmp_path / part, tmp_path).values()) == {Reason.UNREADABLE_FILE}


@pytest.mark.parametrize("front", [b"MZ" + b"\x90" * 70_000, b"\x7fELF" + bytes(100), b"#!/bin/sh\nexit\n"])
@pytest.mark.parametrize("adjusted", [True, False])
def test_a_zip_behind_a_program_is_opened(tmp_path: Path, front: bytes, adjusted: bool) -> None:
    archive = tmp_path / "setup.exe"
    archive.write_bytes(front)
    if adjusted:
        with zipfile.ZipFile(archive, "a") as z:
            z.writestr("x", b"y")
    else:
        inner = io.BytesIO()
        with zipfile.ZipFile(inner, "w") as z:
            z.writestr("x", b"y")
        archive.write_bytes(front + inner.getvalue())
    assert found(archive, tmp_path) == {"x": b"y"}


def test_names_that_differ_in_case_alone_are_two_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as z:
        z.writestr("A", b"one")
        z.writestr("a", b"two")
    assert found(tmp_path / "x", tmp_path) == {"A": b"one", "a": b"two"}


def test_a_method_that_is_not_read_says_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as z:
        z.writestr("deflate64", b"data")
    data = bytearray((tmp_path / "x").read_bytes())
    data[8] = 9
    data[data.index(b"PK\x01\x02") + 10] = 9
    (tmp_path / "x").write_bytes(data)
    (item,) = items(tmp_path / "x", tmp_path)
    assert item.rejection is not None
    assert "method 9" in item.rejection.detail


def overlapping(count: int, size: int) -> bytes:
    """Every entry of the directory names the same member: a megabyte of zeros, and more."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("0000", bytes(size))
    data = inner.getvalue()
    at, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entries = b"".join(data[at:end].replace(b"0000", b"%04d" % n) for n in range(count))
    tail = bytearray(data[end:])
    struct.pack_into("<2HL", tail, 8, count, count, len(entries))
    return data[:at] + entries + bytes(tail)


def test_overlapping_members_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(overlapping(200, 64 * 2**20))
    *taken, last = items(tmp_path / "bomb", tmp_path)
    assert sum(i.at.size for i in taken) <= members._MAX_INFLATED
    assert last.rejection is not None
    assert "bomb" in last.rejection.detail
    assert len({i.path for i in taken}) == len(taken) == 16


def test_a_member_that_is_larger_than_it_says_is_a_reason(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("x", bytes(2**26))
    data = bytearray((tmp_path / "x").read_bytes())
    at = data.index(b"PK\x01\x02")
    struct.pack_into("<L", data, at + 24, 1000)
    (tmp_path / "x").write_bytes(data)
    assert found(tmp_path / "x", tmp_path) == {"x": Reason.UNREADABLE_FILE}


def test_a_directory_of_many_entries_costs_no_memory(tmp_path: Path) -> None:
    import tracemalloc

    (tmp_path / "x").write_bytes(overlapping(9999, 1))
    tracemalloc.start()
    count = sum(1 for _ in iter_items(tmp_path / "x", spool=tmp_path / "spool", skip=tmp_path / "out"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 9999
    assert peak < 5_000_000


def test_fewer_entries_than_the_directory_says_is_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as z:
        z.writestr("x", b"y")
    data = bytearray((tmp_path / "x").read_bytes())
    struct.pack_into("<2H", data, data.index(b"PK\x05\x06") + 8, 7, 7)
    (tmp_path / "x").write_bytes(data)
    assert [i.rejection is None for i in items(tmp_path / "x", tmp_path)] == [True, False]


def test_special_members_of_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as z:
        info = zipfile.ZipInfo("pipe")
        info.create_system, info.external_attr = 3, (stat.S_IFIFO | 0o600) << 16
        z.writestr(info, b"")
        info = zipfile.ZipInfo("endless")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        z.writestr(info, b"x" * 10_000)
    assert found(tmp_path / "x", tmp_path) == {"pipe": Reason.UNREADABLE_FILE, "endless": Reason.TOO_LARGE}


# named, not opened


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"7z\xbc\xaf\x27\x1c\0\4" + bytes(30), "7z"),
        (b"Rar!\x1a\x07\x01\0" + bytes(30), "RAR"),
        (b"Rar!\x1a\x07\0" + bytes(30), "RAR"),
        (bytes(0x8001) + b"CD001\1\0" + bytes(2041), "ISO 9660"),
        (b"MSCF\0\0\0\0" + bytes(30), "CAB"),
        (lzma.compress(b"film", format=lzma.FORMAT_ALONE), "LZMA"),
        (b"\x21\x00-lh5-" + bytes(30), "LHA"),
        (bytes(5000) + b"koly" + bytes(508), "DMG"),
    ],
)
def test_what_is_not_opened_is_named(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / "film.dcm").write_bytes(content)
    (item,) = items(tmp_path, tmp_path)
    assert item.rejection is not None
    assert name in item.rejection.detail
    assert item.rejection.reason.outcome is Outcome.FAILED


@pytest.mark.skipif(not shutil.which("cpio"), reason="no cpio")
@pytest.mark.parametrize("form", ["bin", "odc", "newc", "crc"])
def test_cpio_is_named(tree: Path, tmp_path: Path, form: str) -> None:
    done = subprocess.run(["cpio", "-o", "-H", form], input=b"one.dcm\n", cwd=tree, capture_output=True, check=True)
    (tmp_path / "x").write_bytes(done.stdout)
    (item,) = items(tmp_path / "x", tmp_path)
    assert item.rejection is not None
    assert "cpio" in item.rejection.detail


def test_ar_and_binary_cpio_are_named(tree: Path, tmp_path: Path) -> None:
    subprocess.run(["ar", "-rc", tmp_path / "x.a", "one.dcm"], cwd=tree, check=True)
    mode = (0o100644).to_bytes(2, "little")
    old = b"\xc7\x71" + bytes(4) + mode + bytes(12) + b"\x08\0" + b"\0\0\5\0" + b"one.dcm\0" + b"first\0"
    (tmp_path / "x.cpio").write_bytes(old)
    for name, kind in (("x.a", "ar archive"), ("x.cpio", "cpio")):
        (item,) = items(tmp_path / name, tmp_path)
        assert item.rejection is not None
        assert kind in item.rejection.detail


def test_plain_files_are_no_containers(tmp_path: Path) -> None:
    names = {"zeros": bytes(20_480), "text": b"hello", "empty": b"", "dicm": b"PK\x03\x04".ljust(128, b"\0") + b"DICM"}
    for name, content in names.items():
        (tmp_path / name).write_bytes(content)
        assert found(tmp_path / name, tmp_path) == {str(tmp_path / name): content}


def test_the_budget_of_pieces_is_that_of_a_film_s_worst_holes() -> None:
    assert tar_members._MAX_PIECES >= OBJECT_BYTES // 8192
