"""Intake: from a received file to a durable file and a committed row; only then is the sender told (rule 1).

    incoming/.NAME.part  --fsync-->  spool/STUDY/INSTANCE-DIGEST.dcm  --fsync of the folders-->  row  -->  0x0000

A crash or an error before the row leaves at most a file that nobody was told about; the next start sets it aside (see
`set_aside`). That is not done sooner: its sender may just be sending it again, and then its row names that very file.
Below the data folder, `incoming` and `spool` belong to the intake alone.

The sender has its answer in time (see `bounded`) whatever hangs, the disk or the database: then it is 0xA700.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydicom import Dataset

from cxrnode.bounded import Bounded, answer_by
from cxrnode.dicom.header import instance_header
from cxrnode.dicom.read import SourceDataset, read_header
from cxrnode.dicom.scp import IncomingInstance
from cxrnode.dicom.status import (
    CANNOT_UNDERSTAND,
    DOES_NOT_MATCH,
    MISSING_UID,
    OUT_OF_RESOURCES,
    SUCCESS,
    TOO_LARGE,
    comment,
)
from cxrnode.errors import CxrnodeError, DataDirAwayError, Rejected, StorageFullError, StoreAwayError
from cxrnode.logs import words
from cxrnode.store.spool import storage_errors
from cxrnode.types import Peer, Reason, Receipt, ReceivedInstance

_FAULTS = {Reason.TOO_LARGE: TOO_LARGE, Reason.MISSING_UID: MISSING_UID}
_THREADS = 64  # instances that are made durable at the same time
_GRACE_S = 1.0  # for what knows itself that its time is over, and says why

SPOOL = "spool"

log = logging.getLogger(__name__)

Record = Callable[[Sequence[ReceivedInstance]], Sequence[Receipt]]


class Intake:
    """The spool of one data folder.

    record: commits the rows of several instances in one transaction, whole or not at all; StorageFullError when the
    disk is full. is_stat: whether an instance
    goes before what is routine, from its header and its sender; stat_tags: the elements that it looks at. Nothing is
    taken with less than `watermark_bytes` free.
    on_refused: told of what is not taken, (peer, SOP Instance UID, status, why), to say and to record it. check: raises
    DataDirAwayError where `data_dir` is not there just now.

    Raises StorageFullError when the folders cannot be made. What a crash left of files that were still arriving is
    swept first.
    """

    def __init__(
        self, data_dir: Path, *, record: Record,
        is_stat: Callable[[Dataset, Peer], bool], watermark_bytes: int, stat_tags: frozenset[int] = frozenset(),
        on_refused: Callable[[Peer, str, int, str], None] = lambda _peer, _uid, _status, _why: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.incoming = data_dir / "incoming"
        self._data_dir = data_dir
        self._spool = data_dir / SPOOL
        self._is_stat = is_stat
        self._stat_tags = stat_tags
        self._watermark_bytes = watermark_bytes
        self._on_refused = on_refused
        self._check = check
        self._takers = Bounded("the disk", threads=_THREADS)
        self._commits = _GroupCommit(record)
        with storage_errors(data_dir):
            self.incoming.mkdir(parents=True, exist_ok=True)
            self._spool.mkdir(exist_ok=True)
            sync(data_dir)
            for leftover in self.incoming.iterdir():  # never acknowledged: its sender still has it
                leftover.unlink()

    def has_room(self) -> bool:
        """False also while the disk or the database hangs: what comes then would wait for nothing."""
        return not (self._takers.hangs or self._commits.hangs) and self._is_above_watermark()

    def _is_above_watermark(self) -> bool:
        try:
            self._check()
            return shutil.disk_usage(self._data_dir).free >= self._watermark_bytes
        except DataDirAwayError:  # `_take`, and /readyz, say so
            return False
        except OSError as error:
            log.error("cannot see how much room %s has: %s", self._data_dir, error.strerror)  # noqa: TRY400 (in words)
            return False

    def store(self, incoming: IncomingInstance) -> int:
        """The status of the C-STORE response; 0x0000 only after file, folder and row are durable."""
        until = answer_by()
        try:
            status, why = self._takers.do(partial(self._take, incoming, until), until=until + _GRACE_S)
        except StoreAwayError as error:
            status, why = OUT_OF_RESOURCES, str(error)
        if status != SUCCESS:
            self._on_refused(incoming.peer, incoming.sop_instance_uid, status, why)
        return status

    def _take(self, incoming: IncomingInstance, until: float) -> tuple[int, str]:
        """The status, and why it is no success. 0xCxxx says that the object is at fault, and its sender gives up: what
        is wrong with us, known or not, is 0xA700, and the sender comes again.
        """
        try:
            ds = read_received(incoming, self._stat_tags)
            if (ds.SOPInstanceUID, ds.SOPClassUID) != (incoming.sop_instance_uid, incoming.sop_class_uid):
                return DOES_NOT_MATCH, comment(DOES_NOT_MATCH)
            self._check()
            if not self._is_above_watermark():
                return OUT_OF_RESOURCES, "less free space than the watermark"
            sync(incoming.path)
            if time.monotonic() > until:
                raise StoreAwayError("the disk does not answer in time")
            instance = received(incoming, ds, stat=self._is_stat(ds, incoming.peer))
            receipt = self._commits.add(instance, self._place(incoming.path, instance.path), until=until)
        except Rejected as rejected:
            why = rejected.rejection
            return _FAULTS.get(why.reason, CANNOT_UNDERSTAND), why.text
        except CxrnodeError as error:
            return OUT_OF_RESOURCES, str(error)
        except Exception as error:
            log.exception("an instance of %s could not be taken", incoming.peer.calling_aet, extra=_named(incoming))
            return OUT_OF_RESOURCES, words(error)
        if receipt is not Receipt.NEW:
            log.warning(
                "%s from %s: %s", receipt, incoming.peer.calling_aet, instance.sop_instance_uid,
                extra=_named(incoming) | {"study_instance_uid": instance.study_instance_uid},
            )  # fmt: skip
        return SUCCESS, ""

    def _place(self, durable: Path, path: Path) -> tuple[Path, ...]:
        """Rename into the spool; the folders to sync. A file of that name holds the same bytes, and stays."""
        final = self._data_dir / path
        with storage_errors(final):
            final.parent.mkdir(exist_ok=True)
            if not final.exists():
                durable.rename(final)
        return self._spool, final.parent


@dataclass(slots=True, kw_only=True, eq=False)
class _Entry:
    instance: ReceivedInstance
    folders: tuple[Path, ...]
    receipt: Receipt | None = None
    error: Exception | None = None
    given_up: bool = False


class _GroupCommit:
    """Instances that arrive at the same time share the fsyncs of the folders and one transaction.

    One thread commits, for whoever waits just then; nobody waits for company. Whose time is over is in no transaction
    that begins later. One that was already begun may commit its row all the same: it is sent again, as a duplicate.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._waiting: deque[_Entry] = deque()
        self._lock = threading.Lock()
        self._turn = Bounded("the database or the disk", threads=1)

    @property
    def hangs(self) -> bool:
        return self._turn.hangs

    def add(self, instance: ReceivedInstance, folders: tuple[Path, ...], *, until: float) -> Receipt:
        """Raises what the folders' fsync or `record` raised; StoreAwayError at `until`."""
        entry = _Entry(instance=instance, folders=folders)
        with self._lock:
            self._waiting.append(entry)
        try:
            self._turn.do(partial(self._commit_with, entry), until=until)
        except StoreAwayError:
            self._give_up(entry)
            if entry.receipt is None:
                raise
        if entry.receipt is None:
            raise entry.error or RuntimeError("the thread that committed for this one failed")
        return entry.receipt

    def _give_up(self, entry: _Entry) -> None:
        with self._lock, suppress(ValueError):
            entry.given_up = True
            self._waiting.remove(entry)

    def _commit_with(self, entry: _Entry) -> None:
        """All that wait, where this one still does."""
        if entry.receipt is None and entry.error is None:
            with self._lock:
                batch, self._waiting = list(self._waiting), deque()
            self._commit(batch)

    def _commit(self, batch: list[_Entry]) -> None:
        try:
            for folder in sorted({folder for entry in batch for folder in entry.folders}):
                sync(folder)
            batch = [entry for entry in batch if not entry.given_up]
            receipts = self._record([entry.instance for entry in batch]) if batch else []
        except Exception as error:  # noqa: BLE001 (whoever waits for it raises it)
            if len(batch) > 1 and not isinstance(error, StorageFullError | StoreAwayError):
                for entry in batch:  # one of them may be to blame
                    self._commit([entry])
                return
            for entry in batch:
                entry.error = error
            return
        for entry, receipt in zip(batch, receipts, strict=True):
            entry.receipt = receipt


def _named(incoming: IncomingInstance) -> dict[str, str]:
    """For the log."""
    return {
        "sop_instance_uid": incoming.sop_instance_uid,
        "calling_aet": incoming.peer.calling_aet,
        "host": incoming.peer.host,
    }


def read_received(incoming: IncomingInstance, also: frozenset[int]) -> SourceDataset:
    """The header of a data set that is all there. Raises Rejected."""
    with incoming.path.open("rb") as f:
        return read_header(f, also=also, whole=True)


def received(incoming: IncomingInstance, ds: SourceDataset, *, stat: bool) -> ReceivedInstance:
    header, instance = instance_header(ds), incoming.sop_instance_uid
    study = header.study_instance_uid  # read_header and StoreOperation: valid
    return ReceivedInstance(
        sop_instance_uid=instance,
        sop_class_uid=incoming.sop_class_uid,
        study_instance_uid=study,
        series_instance_uid=header.series_instance_uid,
        transfer_syntax_uid=incoming.transfer_syntax_uid,
        peer=incoming.peer,
        path=Path(SPOOL, study, f"{instance}-{incoming.sha256[:16]}.dcm"),
        sha256=incoming.sha256,
        size_bytes=incoming.size_bytes,
        received_at=time.time(),
        stat=stat,
        kept=header.kept,
        patient_id=header.patient_id,
        accession_number=header.accession_number,
    )


def sync(path: Path) -> None:
    """fsync of a file or a folder. Raises StorageFullError."""
    with storage_errors(path):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
