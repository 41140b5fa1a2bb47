"""Archives as a stream of items: a file, a folder, a zip, a tar or a DICOMDIR, known by content and never by name.

Every file is an item: what is not read (a link out of the archive, a pipe, a container of a kind that is not opened) is
one that says why.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cxrnode.container import COMPRESSED, is_empty_tar, recognise
from cxrnode.dicom.budget import OBJECT_BYTES
from cxrnode.dicomdir import file_ids, is_dicomdir
from cxrnode.errors import ArchiveError, CxrnodeError, Damaged, Rejected, unexpected
from cxrnode.item import Item, path_text, refused, unreadable
from cxrnode.location import Location, open_regular, too_large
from cxrnode.members import MAX_MEMBERS, compressed_items, tar_items, zip_items
from cxrnode.types import Rejection

_TOGETHER = 1024  # files of a folder that `known` is asked about at once


def iter_items(
    archive: Path,
    *,
    spool: Path,
    skip: Path,
    on_empty: Callable[[Path], None] = lambda _: None,
    known: Callable[[Sequence[str]], set[str]] = lambda _: set(),
) -> Iterator[Item]:
    """Every file in `archive`, in a stable order. `skip` is the run's own output folder, left out of a walk.

    known: which of these paths were found to be images before; those of a folder are not opened to see what they are.

    What goes wrong with one file or one archive in it, expected or not, is an item with a rejection, and the walk goes
    on. on_empty: told of what holds no file at all, `archive` or an archive in it. Raises StorageFullError where the
    spool is full.
    """
    walk = _Walk(spool=spool, skip=skip, on_empty=on_empty, known=known)
    yield from _guarded(archive, walk.items(archive))


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


def _guarded(path: Path, items: Iterable[Item]) -> Iterator[Item]:
    """The boundary: whatever one archive or file raises is that one's item, after those that were found in it."""
    taken = 0
    try:
        for item in items:
            yield item
            taken += 1
    except CxrnodeError:
        raise  # the spool's disk, which is no fault of this archive
    except Rejected as e:
        yield refused(path, e.rejection)
    except OSError as e:
        yield refused(path, unreadable(e.strerror or type(e).__name__))
    except Exception as e:  # noqa: BLE001 (nobody expects it, and its neighbours go on)
        why = unexpected(e)
        yield refused(path, Rejection(reason=why.reason, detail=f"{why.detail}; {taken} of its files were taken"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Walk:
    """One archive, from the outside in. A `path` is what the user reads; `real` is what it is without links."""

    spool: Path
    skip: Path
    on_empty: Callable[[Path], None]
    known: Callable[[Sequence[str]], set[str]]

    def items(self, archive: Path) -> Iterator[Item]:
        real = archive.resolve()
        if real.is_dir():
            yield from self._counted(archive, self._folders(archive, real))
        elif is_dicomdir(real):
            yield from self._counted(archive, _dicomdir(archive, real))
        else:
            yield from self._file(archive, real)

    def _counted(self, path: Path, items: Iterable[Item]) -> Iterator[Item]:
        empty = True
        for item in items:
            empty = False
            yield item
        if empty:
            self.on_empty(path)

    def _folders(self, folder: Path, real: Path) -> Iterator[Item]:
        """Files of a folder before its sub-folders."""
        waiting = [(folder, real)]
        skip = self.skip.resolve()
        while waiting:
            path, here = waiting.pop()
            if here != skip:
                folders: list[tuple[Path, Path]] = []
                yield from _guarded(path, self._folder(path, here, real, folders))
                waiting += reversed(folders)

    def _folder(self, path: Path, real: Path, root: Path, folders: list[tuple[Path, Path]]) -> Iterator[Item]:
        with os.scandir(real) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for start in range(0, len(found), _TOGETHER):
            some = [(entry, path / entry.name) for entry in found[start : start + _TOGETHER]]
            known = self.known([path_text(shown) for _, shown in some])
            for entry, shown in some:
                if path_text(shown) in known and not entry.is_dir(follow_symlinks=False):
                    yield Item(path=path_text(shown), at=Location(container=entry.path))
                else:
                    yield from _guarded(shown, self._entry(entry, shown, root, folders))

    def _entry(
        self, entry: os.DirEntry[str], path: Path, root: Path, folders: list[tuple[Path, Path]]
    ) -> Iterator[Item]:
        real = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            folders.append((path, real))
        elif entry.is_symlink():
            yield from self._link(path, real, root)
        else:
            yield from self._file(path, real)

    def _link(self, path: Path, link: Path, root: Path) -> Iterator[Item]:
        """A link to a file of the archive is that file once more, one to a folder of it nothing: that is walked where
        it is. One that leads out of the archive is not followed."""
        try:
            target = link.resolve(strict=True)
        except RuntimeError:  # what a loop raises before Python 3.13
            yield refused(path, unreadable("a link that leads to itself"))
            return
        if not target.is_relative_to(root):
            yield refused(
                path, unreadable("a link out of the archive is not followed: give what it leads to by itself")
            )
        elif not target.is_dir():
            yield from self._file(path, target)

    def _file(self, path: Path, real: Path) -> Iterator[Item]:
        """The file itself, or what it holds."""
        if not stat.S_ISREG(real.stat().st_mode):  # a pipe, a socket, a device: opening it could wait, or act
            yield refused(path, unreadable("not a regular file"))
            return
        with open_regular(real) as f:
            kind = recognise(f)
            if kind == "zip":
                yield from self._counted(path, zip_items(path, f, real))
            elif kind == "tar":
                yield from self._counted(path, tar_items(path, f, real))
            elif kind in COMPRESSED:
                yield from self._counted(path, compressed_items(path, f, real, str(kind), self.spool))
            elif kind:
                yield refused(path, unreadable(f"{kind}: not opened here; unpack it and give the folder"))
            else:
                if is_empty_tar(f):
                    self.on_empty(path)
                item = Item(path=path_text(path), at=Location(container=str(real)))
                size = os.fstat(f.fileno()).st_size
                yield item.refused(too_large(size).rejection) if size > OBJECT_BYTES else item


def _dicomdir(path: Path, real: Path) -> Iterator[Item]:
    """The files that the records reference, never one outside the DICOMDIR's folder."""
    base = real.parent
    try:
        for count, parts in enumerate(file_ids(real)):
            if count == MAX_MEMBERS:
                raise Damaged(f"more than {MAX_MEMBERS} files")
            shown = path.parent.joinpath(*parts)
            if found := _referenced(base, parts):
                yield Item(path=path_text(path.parent / found.relative_to(base)), at=Location(container=str(found)))
            else:
                yield refused(shown, unreadable("listed in the DICOMDIR but missing"))
    except Damaged as e:
        yield refused(path, unreadable(f"damaged DICOMDIR: {e}"))


def _referenced(base: Path, parts: list[str]) -> Path | None:
    for spelled in (parts, [p.lower() for p in parts]):  # ISO 9660 mounts show lower case
        try:
            if not os.path.lexists(os.path.join(base, *spelled)):  # noqa: PTH118 (a hostile one lists a million)
                continue
            candidate = base.joinpath(*spelled).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):  # not there, or no name that a file can have
            continue
        if candidate.is_file() and candidate.is_relative_to(base):
            return candidate
    return None
