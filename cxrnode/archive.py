"""Archives as a stream of items: a file, a folder, a zip, a tar or a DICOMDIR, known by content and never by name.

Nothing is unpacked under a name that an archive chose. A compressed tar, which can only be read from its start, is
decompressed once into the run's spool and then read at random like a plain one.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, cast

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import MediaStorageDirectoryStorage

from cxrnode.errors import ArchiveError, Rejected
from cxrnode.store.spool import storage_errors
from cxrnode.types import Reason, Rejection

MAX_ITEM_BYTES = 2**30  # far above any radiograph: a zip bomb must not fill the memory
_HEAD = 512
_DECOMPRESS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file, wherever it lies. `path` is what the user reads; the rest says how to read it again."""

    path: str
    container: str  # the file itself, or the zip or tar that holds it
    kind: Literal["file", "zip", "tar"] = "file"
    offset: int = 0  # of the data in a tar; index in a zip's directory
    size: int = 0
    rejection: Rejection | None = None  # known before reading: unreadable folder, listed but missing, ...

    def location(self) -> dict[str, Any]:
        kept = ("container", "kind", "offset", "size")
        return {k: v for k, v in asdict(self).items() if k in kept}


def iter_items(archive: Path, *, spool: Path, skip: Path) -> Iterator[Item]:
    """Every file in `archive`, in a stable order. `skip` is the run's own output folder, left out of a walk."""
    if archive.is_dir():
        yield from _walk(archive, spool=spool, skip=skip.resolve())
    elif _is_dicomdir(archive):
        yield from _dicomdir(archive)
    else:
        yield from _expand(archive, spool)


def check_archive(archive: Path) -> None:
    """Raises ArchiveError where `archive` is missing or unreadable: before any work is done."""
    try:
        if archive.is_dir():
            os.scandir(archive).close()
        elif archive.is_file():
            archive.open("rb").close()
        else:
            raise ArchiveError(f"archive {archive} does not exist, or is neither file nor folder: check the path")
    except OSError as e:
        raise ArchiveError(f"cannot read archive {archive}: {e.strerror}. Check its permissions") from e


def _walk(folder: Path, *, spool: Path, skip: Path) -> Iterator[Item]:
    seen: set[tuple[int, int]] = set()
    denied: list[OSError] = []
    for root, folders, files in os.walk(folder, followlinks=True, onerror=denied.append):
        here = Path(root)
        status = here.stat()
        if here.resolve() == skip or (status.st_dev, status.st_ino) in seen:  # a loop of links
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for name in sorted(files):
            yield from _expand(here / name, spool)
        while denied:
            error = denied.pop()
            yield _refused(Path(error.filename), Reason.UNREADABLE_FILE, error.strerror or "cannot be listed")
    for error in denied:
        yield _refused(Path(error.filename), Reason.UNREADABLE_FILE, error.strerror or "cannot be listed")


def _expand(path: Path, spool: Path) -> Iterator[Item]:
    """The file itself, or what it holds where it is a zip or a tar."""
    if not path.is_file():  # a pipe, a socket, a dangling link: opening it could wait for ever
        yield _refused(path, Reason.UNREADABLE_FILE, "not a regular file")
        return
    try:
        with path.open("rb") as f:
            head = f.read(_HEAD)
    except OSError as e:
        yield _refused(path, Reason.UNREADABLE_FILE, e.strerror or "cannot be opened")
        return
    if head[128:132] == b"DICM":
        yield Item(path=printable(path), container=str(path))
    elif head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        yield from _zip(path)
    elif head[257:262] == b"ustar":
        yield from _tar(path, path)
    elif opener := next((o for magic, o in _DECOMPRESS.items() if head.startswith(magic)), None):
        yield from _compressed_tar(path, spool, opener)
    else:
        yield Item(path=printable(path), container=str(path))


def _zip(path: Path) -> Iterator[Item]:
    try:
        with zipfile.ZipFile(path) as z:
            members = z.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as e:
        yield _refused(path, Reason.UNREADABLE_FILE, f"damaged zip: {e}")
        return
    names: set[str] = set()
    for index, info in enumerate(members):
        if info.is_dir():
            continue
        again = f"#{index}" if info.filename in names else ""  # a zip may hold a name twice
        names.add(info.filename)
        shown = f"{printable(path)}!/{printable(info.filename)}{again}"
        item = Item(path=shown, container=str(path), kind="zip", offset=index, size=info.file_size)
        yield _checked(item, encrypted=bool(info.flag_bits & 1))


def _tar(path: Path, data: Path) -> Iterator[Item]:
    """Members of the tar that the user knows as `path` and that lies, uncompressed, at `data`."""
    try:
        with tarfile.open(data, "r:") as t:
            for info in t:
                if info.isfile() and not info.issparse():
                    shown = f"{printable(path)}!/{printable(info.name)}"
                    yield _checked(
                        Item(
                            path=shown,
                            container=str(data),
                            kind="tar",
                            offset=info.offset_data,
                            size=info.size,
                        )
                    )
                t.members = []  # type: ignore[attr-defined]  # tarfile keeps every member it has seen: memory must not grow with the archive
    except (tarfile.TarError, OSError, ValueError) as e:
        yield _refused(path, Reason.UNREADABLE_FILE, f"damaged tar: {e}; members after the damage were not read")


def _compressed_tar(path: Path, spool: Path, opener: Callable[..., Any]) -> Iterator[Item]:
    """Decompress into the spool, then read as a plain tar; a compressed file that is no tar is one item."""
    plain = spool / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.tar"
    try:
        with opener(path, "rb") as compressed:
            if compressed.read(_HEAD)[257:262] != b"ustar":
                yield Item(path=printable(path), container=str(path))
                return
            if not plain.exists():
                compressed.seek(0)
                _decompress(compressed, plain)
    except (OSError, EOFError, lzma.LZMAError) as e:
        yield _refused(path, Reason.UNREADABLE_FILE, f"damaged compressed tar: {e}")
        return
    yield from _tar(path, plain)


def _decompress(compressed: IO[bytes], plain: Path) -> None:
    partial = plain.with_suffix(".part")
    plain.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as out:
            while block := compressed.read(2**20):  # errors of the source are the source's, not the disk's
                with storage_errors(plain):
                    out.write(block)
        partial.rename(plain)
    finally:
        partial.unlink(missing_ok=True)


def _checked(item: Item, *, encrypted: bool = False) -> Item:
    if encrypted:
        return _with(item, Reason.UNREADABLE_FILE, "encrypted: decrypt the archive first")
    if item.size > MAX_ITEM_BYTES:
        return _with(item, Reason.UNREADABLE_FILE, f"declares {item.size} bytes, more than {MAX_ITEM_BYTES}")
    return item


def _with(item: Item, reason: Reason, detail: str) -> Item:
    return Item(path=item.path, **item.location(), rejection=Rejection(reason=reason, detail=detail))


def _refused(path: Path, reason: Reason, detail: str) -> Item:
    return Item(path=printable(path), container=str(path), rejection=Rejection(reason=reason, detail=detail))


def _is_dicomdir(path: Path) -> bool:
    try:
        with path.open("rb") as f:
            if f.read(132)[128:] != b"DICM":
                return False
        meta = dcmread(path, specific_tags=["MediaStorageSOPClassUID"], stop_before_pixels=True).file_meta
    except (OSError, InvalidDicomError, ValueError, EOFError, AttributeError, KeyError, TypeError):
        return False
    return bool(meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage)


def _dicomdir(path: Path) -> Iterator[Item]:
    """The files that the records reference (PS3.3 section F.3.2.2), never one outside the DICOMDIR's folder."""
    base = path.parent
    try:
        records = dcmread(path).get("DirectoryRecordSequence") or []
        references = [r.ReferencedFileID for r in records if r.get("ReferencedFileID")]
    except Exception as e:  # noqa: BLE001 (whatever pydicom raises on a damaged file, the user gets the outcome)
        yield _refused(path, Reason.UNREADABLE_FILE, f"damaged DICOMDIR: {type(e).__name__}")
        return
    for reference in references:
        parts = [reference] if isinstance(reference, str) else [str(part) for part in reference]
        found = _referenced(base, parts)
        if found is None:
            yield _refused(base.joinpath(*parts), Reason.UNREADABLE_FILE, "listed in the DICOMDIR but missing")
        else:
            yield Item(path=printable(found), container=str(found))


def _referenced(base: Path, parts: list[str]) -> Path | None:
    for spelled in (parts, [p.lower() for p in parts]):  # ISO 9660 mounts show lower case
        candidate = base.joinpath(*spelled)
        if candidate.is_file() and candidate.resolve().is_relative_to(base.resolve()):
            return candidate
    return None


def printable(path: Path | str) -> str:
    """A name that can be printed and stored: bytes that are no UTF-8 are shown as escapes."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_item(location: dict[str, Any]) -> bytes:
    """The bytes of the item at `location` (see Item.location). Raises Rejected where they cannot be had."""
    with open_item(location) as f:
        return f.read()


@contextmanager
def open_item(location: dict[str, Any]) -> Iterator[BinaryIO]:
    """The item as a stream: a header can be read without the pixels behind it.

    Raises Rejected where it cannot be opened, and for what goes wrong while the caller reads.
    """
    container, kind = Path(location["container"]), location["kind"]
    try:
        if kind == "zip":
            stream = _open_zip_member(container, location["offset"])
        elif kind == "tar":
            stream = io.BufferedReader(_Slice(container, location["offset"], location["size"]))
        else:
            stream = container.open("rb")
        with stream:
            yield stream
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError) as e:
        raise Rejected(Reason.UNREADABLE_FILE, f"{type(e).__name__}: {getattr(e, 'strerror', None) or e}") from e


class _Slice(io.RawIOBase):
    """`size` bytes of a file from `offset` on, as a stream of its own."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._offset, self._size, self._at = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = min(max(base + offset, 0), self._size)
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._offset + self._at)
        wanted = memoryview(buffer)[: self._size - self._at]
        count = self._file.readinto(wanted) or 0
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_zip_member(container: Path, index: int) -> BinaryIO:
    archive = _open_zip(container)
    return cast(BinaryIO, archive.open(archive.infolist()[index]))


@lru_cache(maxsize=2)
def _open_zip(path: Path) -> zipfile.ZipFile:
    """Kept open: a zip's directory is read once a worker, not once a member."""
    return zipfile.ZipFile(path)


def is_nested(head: bytes) -> bool:
    """True where an item's first bytes are those of an archive: an archive inside an archive is not opened."""
    return head[:4] == b"PK\x03\x04" or head[257:262] == b"ustar"
