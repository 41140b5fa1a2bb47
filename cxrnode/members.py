"""What one archive holds, member by member: a zip, a tar, a compressed tar, or one compressed file.

Every member is an item: what is not read (a link, a device, an encrypted member) is one that says why. Nothing is
unpacked under a name that an archive chose. A compressed tar, which can only be read from its start, is decompressed
once into the run's spool, and then read at random.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from cxrnode import tar_members, zip_members
from cxrnode.container import is_empty_tar, recognise
from cxrnode.dicom.budget import OBJECT_BYTES
from cxrnode.errors import Damaged, Rejected
from cxrnode.inflate import head, unpack
from cxrnode.item import Item, nested, path_text, refused, unreadable
from cxrnode.location import Location, open_regular, read_item, too_large
from cxrnode.types import Reason, Rejection

MAX_MEMBERS = 10**6
_MAX_INFLATED = 2**30  # bytes in one archive, or
_MAX_RATIO = 30  # times its own size, where that is more: films shrink to a half or a third, black ones further
_MAX_TARGET = 4096  # bytes of a link's target
_MAX_SHOWN = 1024  # characters of a member's name
_HEAD = 64 * 1024  # of what a compressed file holds: enough to tell what it is


def zip_items(path: Path, f: BinaryIO, real: Path) -> Iterator[Item]:
    names, budget = _Names(path), _Budget.of(f)
    links: list[tuple[Item, str]] = []
    taken = 0
    try:
        for index, m in enumerate(zip_members.members(f)):
            if m.is_folder:
                names.folder(m.name)
                budget.take(0)
                continue
            at = Location(
                container=str(real), kind="zip", offset=m.offset, size=m.size, packed=m.packed, method=m.method,
                crc=m.crc,
            )  # fmt: skip
            item = Item(path=names.path(m.name, index), at=at, rejection=_zip_refusal(m))
            budget.take(0 if item.rejection else m.size)
            if stat.S_ISLNK(m.mode) and not item.rejection:
                links.append((item, _zip_target(item, m.name)))
            else:
                yield item
            taken += 1
    except Damaged as e:
        yield refused(path, unreadable(f"zip: {e}; {taken} members were taken"))
    yield from (item.refused(names.link(target)) for item, target in links)


def _zip_refusal(m: zip_members.Member) -> Rejection | None:
    kind = stat.S_IFMT(m.mode)
    if m.encrypted:
        return unreadable("encrypted: decrypt the archive first")
    if m.method not in zip_members.METHODS:
        return unreadable(f"compressed by method {m.method}, which is not read here: unpack it and give the folder")
    if kind and kind not in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR):
        return unreadable("not a regular file")
    limit = _MAX_TARGET if kind == stat.S_IFLNK else OBJECT_BYTES
    return too_large(m.size).rejection if m.size > limit else None


def _zip_target(link: Item, name: str) -> str:
    """A link's content is its target."""
    try:
        target = read_item(link.location()).decode("utf-8", "surrogateescape")
    except Rejected:
        return ""
    return posixpath.join(posixpath.dirname(name), target)


def tar_items(path: Path, f: BinaryIO, real: Path, *, budget: _Budget | None = None, wrong: str = "") -> Iterator[Item]:
    """Members of the tar that the user knows as `path` and that lies, uncompressed, in `f`.

    wrong: what is known of it already, where only its beginning could be had.
    """
    names, budget = _Names(path), budget or _Budget.of(f)
    links: list[tuple[Item, str]] = []
    taken = 0
    try:
        for index, m in enumerate(tar_members.members(f)):
            at = Location(container=str(real), kind="tar", offset=m.offset, size=m.size, pieces=m.pieces)
            item = Item(path=names.path(m.name, index), at=at)
            budget.take(m.size if m.size <= OBJECT_BYTES else 0)
            if m.type in (
                "1",
                "2",
            ):  # a hard link's target is a path in the archive, a symbolic one's a path from there
                links.append((item, m.target if m.type == "1" else posixpath.join(posixpath.dirname(m.name), m.target)))
            elif m.type != "0":
                yield item.refused(unreadable("not a regular file"))
            else:
                yield item.refused(too_large(m.size).rejection) if m.size > OBJECT_BYTES else item
            taken += 1
    except Damaged as e:
        wrong = wrong or str(e)
    yield from (item.refused(names.link(target)) for item, target in links)
    if wrong:
        yield refused(path, unreadable(f"tar: {wrong}; {taken} members were taken"))


def compressed_items(path: Path, f: BinaryIO, real: Path, kind: str, spool: Path) -> Iterator[Item]:
    """A compressed tar, or one compressed file."""
    try:
        f.seek(0)
        content = BytesIO(head(kind, f, _HEAD))
        inner = recognise(content)
    except Damaged as e:
        yield refused(path, unreadable(str(e)))
        return
    if inner == "tar" or is_empty_tar(content):
        yield from _compressed_tar(path, f, real, kind, spool)
    elif inner:
        yield refused(path, nested(inner))
    else:
        yield Item(path=path_text(path), at=Location(container=str(real), kind=kind))


def _compressed_tar(path: Path, f: BinaryIO, real: Path, kind: str, spool: Path) -> Iterator[Item]:
    budget = _Budget.of(f)
    status = os.fstat(f.fileno())
    key = f"{os.fsencode(real)!r} {status.st_size} {status.st_mtime_ns}"
    plain = spool.resolve() / f"{hashlib.sha256(key.encode()).hexdigest()}.tar"
    f.seek(0)
    wrong = unpack(kind, f, plain, most=budget.most)
    with open_regular(plain) as data:
        yield from tar_items(path, data, plain, budget=budget, wrong=wrong)


class _Budget:
    """What one archive may hold. Raises Damaged where it is used up."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._bytes = self._members = 0

    @classmethod
    def of(cls, f: BinaryIO) -> _Budget:
        return cls(max(_MAX_INFLATED, _MAX_RATIO * os.fstat(f.fileno()).st_size))

    def take(self, size: int) -> None:
        self._members += 1
        self._bytes += size
        if self._members > MAX_MEMBERS:
            raise Damaged(f"more than {MAX_MEMBERS} members")
        if self._bytes > self.most:
            raise Damaged(f"its members have more than {self.most} bytes: a bomb, or far from any archive of images")


class _Names:
    """The members of one archive: the path that each is shown under, once; and which links stay inside."""

    def __init__(self, archive: Path) -> None:
        self._archive = path_text(archive)
        self._shown: set[int] = set()  # hashes: a million names would take much more
        self._known: set[int] = set()

    def path(self, name: str, index: int) -> str:
        """Of the member `name`, the `index`-th: an archive may hold a name twice."""
        self.folder(name)
        shown = path_text(name)
        if len(shown) > _MAX_SHOWN:
            shown = f"{shown[:_MAX_SHOWN]}... ({len(shown)} characters)#{index}"
        while hash(shown) in self._shown:
            shown += f"#{index}"
        self._shown.add(hash(shown))
        return f"{self._archive}!/{shown}"

    def folder(self, name: str) -> None:
        """It is there, and so are the folders above it."""
        known = posixpath.normpath(name).lstrip("/")
        while known and hash(known) not in self._known:
            self._known.add(hash(known))
            known = posixpath.dirname(known)

    def link(self, target: str) -> Rejection:
        """Why a link to `target`, a path in the archive, is not read: asked once all members are known."""
        shown = path_text(target)[:_MAX_SHOWN]
        if hash(posixpath.normpath(target).lstrip("/")) in self._known:
            return Rejection(reason=Reason.LINK, detail=f"to {shown}, which is in the same archive")
        return unreadable(f"a link to {shown}, which is not in the archive")
