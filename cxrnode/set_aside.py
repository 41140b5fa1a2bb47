"""Files of the spool that no row names: set aside at the intake's start, and taken in again by `cxrnode queue take-in`.

    spool/STUDY/NAME.dcm  --record in the ledger, rename-->  set-aside/STUDY/NAME.dcm  --TakeIn-->  spool/STUDY/NAME.dcm

Such a file was perhaps never acknowledged (a crash between its rename and its row), or it was, and its row went when an
older copy of the database was restored: nothing tells the two apart, so nothing is deleted. To take in what its sender
has sent again meanwhile does no harm: it is a duplicate, by its digest. What is set aside stays until somebody takes it
in or removes it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from itertools import islice
from pathlib import Path

from pydicom import Dataset, dcmread

from cxrnode.dicom.negotiation import STORAGE, TRANSFER_SYNTAXES
from cxrnode.dicom.scp import IncomingInstance
from cxrnode.dicom.uids import is_valid_uid
from cxrnode.errors import Rejected, StorageFullError
from cxrnode.intake import SPOOL, read_received, received, sync
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.queue import Queue
from cxrnode.store.spool import storage_errors
from cxrnode.types import Peer, Reason, Receipt
from cxrnode.words import counted

FOLDER = "set-aside"  # below the data folder
_PATHS = 500  # asked of the database at a time
_UIDS = "MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID"
_HEAD = 144  # bytes: preamble, DICM, and the length of the File Meta Information

log = logging.getLogger(__name__)


def set_aside(data_dir: Path, database: Database, queue: Queue, *, actor: str) -> int:
    """Before anything is received; returns how many files. Raises StoreError, StorageFullError."""
    files = (path.relative_to(data_dir) for path in (data_dir / SPOOL).glob("*/*.dcm"))
    moved = 0
    while paths := list(islice(files, _PATHS)):
        with database.read() as c:
            known = queue.known_paths(c, [path.as_posix() for path in paths])
        if orphans := [path for path in paths if path.as_posix() not in known]:
            moved += _move(data_dir, database, queue, orphans, actor)
    if moved:
        log.warning(
            "%s of the spool had no row in the database and went to %s: was an older copy of it restored? "
            "`cxrnode queue take-in` takes them in", counted(moved, "file"), data_dir / FOLDER,
        )  # fmt: skip
    return moved


def _move(data_dir: Path, database: Database, queue: Queue, paths: Sequence[Path], actor: str) -> int:
    """In the transaction of the record: who takes a file in just now has it placed and its row in one, too."""
    with database.begin() as c, storage_errors(data_dir / FOLDER):
        known = queue.known_paths(c, [path.as_posix() for path in paths])
        orphans = [path for path in paths if path.as_posix() not in known]
        for path in orphans:
            uid = path.stem.rpartition("-")[0]
            ledger.append(
                c, "set_aside", actor=actor, study_instance_uid=path.parent.name if is_valid_uid(path.parent.name) else
                None, sop_instance_uid=uid if is_valid_uid(uid) else None, path=path.as_posix(),
            )  # fmt: skip
            to = data_dir / FOLDER / path.relative_to(SPOOL)
            to.parent.mkdir(parents=True, exist_ok=True)
            (data_dir / path).rename(to)
        for folder in {data_dir, data_dir / FOLDER, *(data_dir / FOLDER / path.parent.name for path in orphans)}:
            if folder.is_dir():
                sync(folder)
    return len(orphans)


def files(data_dir: Path) -> Iterator[Path]:
    """What is set aside."""
    return (data_dir / FOLDER).glob("*/*.dcm")


# --- and back again ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeIn:
    """The same checks as for what comes by C-STORE, and the same row. stat_tags, is_stat: see Intake."""

    data_dir: Path
    database: Database
    queue: Queue
    called_aet: str
    is_stat: Callable[[Dataset, Peer], bool]
    stat_tags: frozenset[int]
    watermark_bytes: int

    def take(self, path: Path) -> Receipt:
        """One file that is set aside: it lies in the spool then. Raises Rejected, StoreError, StorageFullError."""
        with storage_errors(self.data_dir):
            if shutil.disk_usage(self.data_dir).free < self.watermark_bytes:
                raise StorageFullError("less free space than receive.disk_watermark_mb: make room first")
        incoming = _incoming(path, self.called_aet)
        ds = read_received(incoming, self.stat_tags)
        if (ds.SOPInstanceUID, ds.SOPClassUID) != (incoming.sop_instance_uid, incoming.sop_class_uid):
            raise Rejected(Reason.UNREADABLE_FILE, "its data set is another instance than its head says")
        instance = received(incoming, ds, stat=self.is_stat(ds, incoming.peer))
        final = self.data_dir / instance.path
        with self.database.begin() as c:  # what is placed has its row before `_move` looks again
            with storage_errors(final):
                sync(path)
                final.parent.mkdir(parents=True, exist_ok=True)
                if final.exists():
                    path.unlink()
                else:
                    path.rename(final)
                for folder in (path.parent, final.parent, final.parent.parent):
                    sync(folder)
            (receipt,) = self.queue.receive(c, [instance])
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
        return receipt


def _incoming(path: Path, called_aet: str) -> IncomingInstance:
    """As the listener hands on what it has received, of a file that it wrote. Raises Rejected."""
    with storage_errors(path), path.open("rb") as f:
        head = f.read(_HEAD)
        length = int.from_bytes(head[140:144], "little")
        if head[128:140] != b"DICM\x02\0\0\0UL\x04\0" or length > path.stat().st_size:
            raise Rejected(Reason.NOT_DICOM, "no file that an intake wrote")
        meta = dcmread(BytesIO(head + f.read(length)), force=True).file_meta
        digest = sha256()
        while block := f.read(1 << 20):
            digest.update(block)
    uids = [
        str(meta.get(k, "")) for k in ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
    ]
    if uids[0] not in STORAGE or not is_valid_uid(uids[1]) or uids[2] not in TRANSFER_SYNTAXES:
        raise Rejected(Reason.UNREADABLE_FILE, "nothing that is taken by C-STORE")
    peer = Peer(calling_aet=str(meta.get("SourceApplicationEntityTitle", "")), called_aet=called_aet, host=FOLDER)
    return IncomingInstance(
        sop_class_uid=uids[0], sop_instance_uid=uids[1], transfer_syntax_uid=uids[2], peer=peer, path=path,
        data_set_at=_HEAD + length, size_bytes=path.stat().st_size, sha256=digest.hexdigest(),
    )  # fmt: skip
