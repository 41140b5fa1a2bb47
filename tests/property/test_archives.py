"""Archives at random: as many rows as files; and damaged ones: never an exception, never endless, never too much."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrnode.archive import iter_items
from cxrnode.dicom.budget import OBJECT_BYTES
from cxrnode.errors import Rejected
from cxrnode.item import Item
from cxrnode.location import read_item
from cxrnode.types import Reason

# DEL: Info-ZIP writes a damaged archive of files that have it in their name
NAME = st.text(st.characters(exclude_characters="/\0\x7f", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)
KINDS = st.sampled_from(["file", "file", "file", "sparse", "hard", "inside", "outside", "pipe", "folder"])
TREE = st.dictionaries(st.tuples(NAME, NAME), st.tuples(KINDS, st.binary(max_size=2000)), max_size=12)


def grow(top: Path, tree: dict[tuple[str, str], tuple[str, bytes]]) -> dict[Path, bytes | None]:
    """Make the tree; what must have a row, with its content where it is a file of its own."""
    made: dict[Path, bytes | None] = {}
    first: Path | None = None
    for (folder, name), (kind, content) in tree.items():
        path = top / folder / name
        path.parent.mkdir(exist_ok=True)
        if kind == "folder":
            path.mkdir()
            continue
        made[path] = None
        if kind == "sparse":
            whole = content + bytes(200_000) + content
            (top.parent / "dense").write_bytes(whole)
            subprocess.run(["cp", "--sparse=always", top.parent / "dense", path], check=True)
            made[path] = whole
            first = first or path
        elif kind == "file":
            path.write_bytes(content)
            made[path] = content
            first = first or path
        elif kind == "hard" and first:
            os.link(first, path)
        elif kind == "inside" and first:
            path.symlink_to(os.path.relpath(first, path.parent))
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/etc/hostname")
    return made


def contents(items: list[Item]) -> list[bytes]:
    return sorted(read_item(i.location()) for i in items if not i.rejection)


def walked(archive: Path, top: Path) -> list[Item]:
    found = list(iter_items(archive, spool=top / "spool", skip=top / "out"))
    assert len({i.path for i in found}) == len(found)
    return found


@settings(max_examples=25, deadline=None)
@given(tree=TREE, form=st.sampled_from(["gnu", "oldgnu", "pax", "pax -S", "gnu -S", "oldgnu -S", "zip", "gz", "zst"]))
def test_there_are_as_many_rows_as_members_that_are_no_folders(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[tuple[str, str], tuple[str, bytes]], form: str
) -> None:
    top = tmp_path_factory.mktemp("tree")
    source = top / "in"
    source.mkdir()
    made = grow(source, tree)
    archive = top / "archive.zip"
    if form == "zip":
        for pipe in [path for path in made if path.is_fifo()]:  # zip waits for what comes out of a pipe
            pipe.unlink()
            del made[pipe]
        done = subprocess.run(["zip", "-q", "-r", "-y", archive, "."], cwd=source, check=False)
        if done.returncode == 12:  # nothing to do
            zipfile.ZipFile(archive, "w").close()
    else:
        how, *more = form.replace("gz", "pax").replace("zst", "pax").split()
        subprocess.run(["tar", f"--format={how}", *more, "-cf", archive, "-C", source, "."], check=True)
        if form == "gz":
            archive.write_bytes(gzip.compress(archive.read_bytes()))
        elif form == "zst":
            archive.write_bytes(zstandard.compress(archive.read_bytes()))
    found = walked(archive, top)
    assert len(found) == len(made)
    assert contents(found) == sorted(c for c in made.values() if c is not None) or form == "zip"
    assert set(contents(found)) >= {c for c in made.values() if c is not None}
    in_folder = walked(source, top)
    assert len(in_folder) == len(made)
    assert {i.rejection.reason for i in in_folder if i.rejection} <= {Reason.UNREADABLE_FILE}


def small_archives() -> list[bytes]:
    made = []
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as t:
            for name in ("a", "b" * 90 + "/" + "c" * 60, "röntgen"):
                info = tarfile.TarInfo(name)
                info.size = 700
                t.addfile(info, io.BytesIO(os.urandom(700)))
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "a"
            t.addfile(link)
        made.append(out.getvalue())
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as z:
            for name in ("a", "dir/", "röntgen"):
                z.writestr(name, b"" if name.endswith("/") else b"content" * 100)
            with z.open("z64", "w", force_zip64=True) as f:
                f.write(b"x" * 1000)
        made.append(out.getvalue())
    made += [gzip.compress(made[0]), zstandard.compress(made[1])]
    return made


def mutated(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(out))
        match chance.randrange(5):
            case 0:
                out[at] = chance.randrange(256)
            case 1:
                del out[at : at + chance.randrange(1, 600)]
            case 2:
                out[at:at] = out[at : at + chance.randrange(1, 1100)]
            case 3:
                out[at : at + 4] = b"\xff\xff\xff\xff"
            case _:
                del out[at:]
        if not out:
            return b""
    return bytes(out)


def restamped(data: bytes) -> bytes:
    """Headers of a tar with their checksums made right again, so that what was changed is believed."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)


@pytest.mark.parametrize("seed", range(9))
def test_damaged_archives_are_items_and_nothing_else(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    original = small_archives()[seed]
    for n in range(150):
        data = mutated(original, chance)
        if seed < 3 and n % 2:
            data = restamped(data)
        (tmp_path / "x").write_bytes(data)
        found = list(iter_items(tmp_path / "x", spool=tmp_path / "spool", skip=tmp_path / "out"))
        assert len(found) < 100
        for item in found:
            if item.rejection:
                assert item.rejection.reason is not Reason.UNEXPECTED_ERROR, item.rejection
                continue
            with suppress(Rejected):
                assert len(read_item(item.location())) <= OBJECT_BYTES
