"""C-STORE, SCP side (PS3.4 annex B): a data set becomes a Part 10 file (PS3.10 section 7.1) while it arrives.

The bytes go from the socket's buffer into the file and through the hash; nothing holds the whole data set.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cxrnode import metrics
from cxrnode.bounded import Bounded, answer_by
from cxrnode.dicom.budget import OBJECT_BYTES
from cxrnode.dicom.dimse import Command
from cxrnode.dicom.negotiation import IMPLEMENTATION_VERSION, Context
from cxrnode.dicom.status import (
    CANNOT_UNDERSTAND,
    INVALID_SOP_INSTANCE,
    OUT_OF_RESOURCES,
    SOP_CLASS_NOT_SUPPORTED,
    SUCCESS,
    TOO_LARGE,
    comment,
)
from cxrnode.dicom.uids import IMPLEMENTATION_CLASS_UID, is_valid_uid
from cxrnode.errors import StoreAwayError
from cxrnode.types import Peer

_WRITE_BEHIND_BYTES = 1 << 20  # in each step: less is written sooner by fsync alone
_ASK_AGAIN_BYTES = 1 << 25  # of a data set, between two looks at the room on the disk
_DELETE_S = 2.0  # that a disk may take to delete what was refused, before its peer has the answer
_GRACE_S = 0.5  # for what knows itself that its time is over, and cleans up
_DISK = Bounded("the disk", threads=64)  # to make and to delete a file may hang like any write

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class IncomingInstance:
    """What C-STORE brought. The UIDs are the command's, valid as UIDs; nothing of the data set was looked at.

    `path` is a whole Part 10 file, not yet durable. Who wants it moves it away; what still lies there after the answer
    is deleted.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    peer: Peer
    path: Path
    data_set_at: int  # offset of the data set in the file, bytes
    size_bytes: int  # of the file
    sha256: str  # of the data set as it came, hex


class StoreOperation:
    """Receives one data set into `folder`, then asks `store` for the status.

    A full disk, or `has_room` saying no, turns the rest of the data set away and answers 0xA700; a data set that is
    larger than any radiograph is turned away with 0xC002. `refused` is told of
    what did not come as far as `store`, or broke it: (peer, SOP Instance UID, status, why).
    """

    def __init__(
        self, peer: Peer, context: Context, command: Command, *,
        folder: Path, has_room: Callable[[], bool], store: Callable[[IncomingInstance], int],
        refused: Callable[[Peer, str, int, str], None],
    ) -> None:  # fmt: skip
        self._peer = peer
        self._context = context
        self._command = command
        self._has_room = has_room
        self._store = store
        self._tell_refused = refused
        self._path = folder / f".{uuid.uuid4().hex}.part"
        self._fd = -1
        self._exists = self._taken = False
        self._at = self._size = self._asked_at = self._behind_at = 0
        self._began = time.monotonic()
        self._sha256 = hashlib.sha256()
        self._refused = self._check()
        if self._refused == SUCCESS:
            self._open()

    def write(self, fragment: memoryview) -> None:
        if self._refused != SUCCESS:
            return
        if self._size - self._at + len(fragment) > OBJECT_BYTES:
            log.warning("turned away an instance of %s: more than %d bytes", self._peer.calling_aet, OBJECT_BYTES)
            self._turn_away(TOO_LARGE)
            return
        if self._size - self._asked_at > _ASK_AGAIN_BYTES:
            self._asked_at = self._size
            if not self._has_room():
                self._refuse("no room")
                return
        self._write(fragment)
        self._sha256.update(fragment)

    def finish(self) -> int:
        status = OUT_OF_RESOURCES  # where `store` raises: that is our fault, and the peer is to send again
        try:
            with metrics.answering():
                status = self._finish()
            self._taken = status == SUCCESS
            return status
        except BaseException:
            self._turned_away(status)
            raise
        finally:
            metrics.received(status, self._size, time.monotonic() - self._began)

    def _finish(self) -> int:
        if self._refused != SUCCESS:
            return self._turned_away(self._refused)
        if self._size == self._at:
            return self._turned_away(CANNOT_UNDERSTAND)
        self._close()
        return self._store(
            IncomingInstance(
                sop_class_uid=self._command.sop_class_uid, sop_instance_uid=self._command.sop_instance_uid,
                transfer_syntax_uid=self._context.transfer_syntax, peer=self._peer, path=self._path,
                data_set_at=self._at, size_bytes=self._size, sha256=self._sha256.hexdigest(),
            )
        )  # fmt: skip

    def _turned_away(self, status: int) -> int:
        uid = self._command.sop_instance_uid
        self._tell_refused(self._peer, uid if is_valid_uid(uid) else "", status, comment(status))
        return status

    def discard(self) -> None:
        with suppress(OSError):
            self._close()
        if not self._exists:
            return
        self._exists = False
        delete = partial(self._path.unlink, missing_ok=True)
        try:
            if self._taken:  # and so most likely moved away
                delete()
            else:
                _DISK.do(delete, until=time.monotonic() + _DELETE_S)
        except (OSError, StoreAwayError) as error:  # the next start deletes it, if nobody does before
            log.error("cannot delete %s: %s", self._path, _why(error))  # noqa: TRY400 (in words)

    def _check(self) -> int:
        if self._command.sop_class_uid != self._context.abstract_syntax:
            return SOP_CLASS_NOT_SUPPORTED
        if not is_valid_uid(self._command.sop_instance_uid):
            return INVALID_SOP_INSTANCE
        return SUCCESS if self._has_room() and not _DISK.hangs else OUT_OF_RESOURCES

    def _open(self) -> None:
        until = answer_by()
        try:
            self._fd = _DISK.do(partial(_create, self._path, until), until=until + _GRACE_S)
        except (OSError, StoreAwayError) as error:
            self._refuse(_why(error))
            return
        self._exists = True
        head = part10_head(self._command, self._context, self._peer)
        self._write(memoryview(head))
        self._at = len(head)

    def _write(self, data: memoryview) -> None:
        self._size += len(data)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
            self._write_behind()
        except OSError as error:
            self._refuse(str(error.strerror))

    def _write_behind(self) -> None:
        """Let the disk begin while more arrives: fsync then waits for the rest alone (10 MB: 5 instead of 14 ms).

        What the advice says, "not needed again", makes Linux start to write dirty pages; those it keeps in memory.
        """
        length = self._size - self._behind_at
        if length >= _WRITE_BEHIND_BYTES:
            os.posix_fadvise(self._fd, self._behind_at, length, os.POSIX_FADV_DONTNEED)
            self._behind_at = self._size

    def _refuse(self, why: str) -> None:
        log.error("cannot take an instance of %s: %s. Make room; the peer sends again", self._peer.calling_aet, why)
        self._turn_away(OUT_OF_RESOURCES)

    def _turn_away(self, status: int) -> None:
        """Keep nothing of the data set, and let the rest of it pass."""
        self._refused = status
        self.discard()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1  # closed once, whatever it says: its number is another file's at once
        if fd >= 0:
            os.close(fd)


def _create(path: Path, until: float) -> int:
    """A new file; its descriptor."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    if time.monotonic() > until:  # nobody waits for it any more
        os.close(fd)
        path.unlink()
        raise StoreAwayError("the disk does not answer in time")
    return fd


def _why(error: OSError | StoreAwayError) -> str:
    return str(error.strerror) if isinstance(error, OSError) else str(error)


def part10_head(command: Command, context: Context, peer: Peer) -> bytes:
    """Preamble and File Meta Information (PS3.10 table 7.1-1), explicit VR little endian."""
    body = b"".join([
        struct.pack("<HH2sHL", 2, 0x0001, b"OB", 0, 2) + b"\0\1",
        _text(0x0002, b"UI", command.sop_class_uid),
        _text(0x0003, b"UI", command.sop_instance_uid),
        _text(0x0010, b"UI", context.transfer_syntax),
        _text(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
        _text(0x0013, b"SH", IMPLEMENTATION_VERSION),
        _text(0x0016, b"AE", peer.calling_aet),
    ])  # fmt: skip
    return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(body)) + body


def _text(element: int, vr: bytes, text: str) -> bytes:
    raw = text.encode("ascii")
    raw += (b"\0" if vr == b"UI" else b" ") * (len(raw) % 2)
    return struct.pack("<HH2sH", 2, element, vr, len(raw)) + raw
