"""C-STORE into a file, where the disk does not do what it should."""

from __future__ import annotations

import logging
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ImplicitVRLittleEndian

from cxrnode.dicom import storing
from cxrnode.dicom.dimse import C_STORE_RQ, Command
from cxrnode.dicom.negotiation import Context
from cxrnode.dicom.storing import IncomingInstance, StoreOperation, part10_head
from cxrnode.types import Peer

CR = "1.2.840.10008.5.1.4.1.1.1"
PEER = Peer(calling_aet="PACS", called_aet="CXRNODE", host="127.0.0.1")


def operation(folder: Path, *, store: Any = lambda _: 0, told: list[Any] | None = None) -> StoreOperation:
    command = Command(
        field=C_STORE_RQ, message_id=1, has_data_set=True, sop_class_uid=CR, sop_instance_uid="1.2.3", type_id=0
    )  # fmt: skip
    return StoreOperation(
        PEER, Context(abstract_syntax=CR, transfer_syntax=str(ImplicitVRLittleEndian)), command, folder=folder,
        has_room=lambda: True, store=store, refused=lambda *what: told.append(what) if told is not None else None,
    )  # fmt: skip


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_what_was_taken_away_is_not_missed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = tmp_path / "kept"

    def take(instance: IncomingInstance) -> int:
        instance.path.rename(kept)
        return 0

    op = operation(tmp_path, store=take)
    op.write(memoryview(b"data"))
    assert op.finish() == 0
    op.discard()
    op.discard()
    assert list(tmp_path.iterdir()) == [kept]
    assert errors(caplog) == []


def test_a_file_is_closed_once(tmp_path: Path) -> None:
    """Its number is another file's at once."""
    op = operation(tmp_path)
    op.discard()
    with (tmp_path / "other").open("wb") as other:
        op.discard()
        other.write(b"x")
        other.flush()
    assert (tmp_path / "other").read_bytes() == b"x"


def test_a_folder_that_cannot_be_written_asks_the_peer_to_send_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Any] = []
    op = operation(tmp_path / "none", told=told)
    op.write(memoryview(b"data"))
    assert op.finish() == 0xA700
    op.discard()
    assert told == [(PEER, "1.2.3", 0xA700, "no room, or the node is not well: send again later")]
    text = "cannot take an instance of PACS: No such file or directory. Make room; the peer sends again"
    assert errors(caplog) == [text]


def test_a_disk_that_errs_while_it_is_cleaned_up_is_said_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    op = operation(tmp_path)
    (path,) = tmp_path.iterdir()
    close = os.close

    def fail(fd: int) -> None:
        close(fd)
        raise OSError(5, "Input/output error")

    def stay(_path: Path, **_how: Any) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as broken:
        broken.setattr(os, "close", fail)
        broken.setattr(Path, "unlink", stay)
        op.discard()
    assert errors(caplog) == [f"cannot delete {path}: Read-only file system"]


def test_the_disk_begins_while_more_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In steps of a MiB; what comes in between is advised once, and in its order."""
    advised: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _fd, at, length, _advice: advised.append((at, length)))
    op = operation(tmp_path)
    head = op._size
    for size in (1 << 19, (1 << 19) - head, 1, (1 << 20) - 2, 1):
        op.write(memoryview(bytes(size)))
    op.discard()
    assert advised == [(0, 1 << 20), (1 << 20, 1 << 20)]
    assert storing._ASK_AGAIN_BYTES == 1 << 25  # of a data set, between two looks at the room


def test_room_is_asked_for_once_in_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "_ASK_AGAIN_BYTES", 10_000)
    op = operation(tmp_path)
    asked: list[int] = []
    monkeypatch.setattr(op, "_has_room", lambda: asked.append(op._size - op._at) or True)  # type: ignore[func-returns-value]
    for _ in range(100):
        op.write(memoryview(bytes(1000)))
    op.discard()
    assert asked == list(range(10_000, 100_000, 11_000))


def test_a_write_that_takes_a_part_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:100]))
    got: list[bytes] = []

    def take(instance: IncomingInstance) -> int:
        got.append(instance.path.read_bytes()[instance.data_set_at :])
        return 0

    op = operation(tmp_path, store=take)
    data = bytes(range(256)) * 3
    op.write(memoryview(data))
    assert op.finish() == 0
    assert got == [data]
    op.discard()


@pytest.mark.parametrize("title", ["PACS", "PACS1"])
@pytest.mark.parametrize("uid", ["1.2.3", "1.2.34"])
def test_every_value_of_the_head_is_of_even_length(title: str, uid: str) -> None:
    """PS3.5 section 6.2: a UID is padded with a null, text with a space."""
    command = Command(
        field=C_STORE_RQ, message_id=1, has_data_set=True, sop_class_uid=CR, sop_instance_uid=uid, type_id=0
    )  # fmt: skip
    peer = Peer(calling_aet=title, called_aet="CXRNODE", host="127.0.0.1")
    raw = part10_head(command, Context(abstract_syntax=CR, transfer_syntax=str(ImplicitVRLittleEndian)), peer)
    assert raw[:132] == bytes(128) + b"DICM"
    at, values = 132, {}
    while at < len(raw):
        group, element, vr, length = struct.unpack_from("<HH2sH", raw, at)
        long = vr == b"OB"
        at += 12 if long else 8
        length = struct.unpack_from("<L", raw, at - 4)[0] if long else length
        assert (group, length % 2) == (2, 0)
        values[element] = vr, raw[at : at + length]
        at += length
    assert list(values) == [0x0000, 0x0001, 0x0002, 0x0003, 0x0010, 0x0012, 0x0013, 0x0016]
    assert values[0x0000] == (b"UL", struct.pack("<L", len(raw) - 144))
    assert values[0x0001] == (b"OB", b"\0\1")
    assert values[0x0002] == (b"UI", CR.encode() + b"\0" * (len(CR) % 2))
    assert values[0x0003] == (b"UI", uid.encode() + b"\0" * (len(uid) % 2))
    assert values[0x0016] == (b"AE", title.encode() + b" " * (len(title) % 2))
    assert [vr for vr, _ in values.values()] == [b"UL", b"OB", b"UI", b"UI", b"UI", b"UI", b"SH", b"AE"]
