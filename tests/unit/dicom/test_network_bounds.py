"""PDUs, refusals, operations: what the listener does at each limit, without a listener (PS3.8 section 9, PS3.7)."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom import uid as uids
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from cxrnode.dicom import budget, negotiation, storing
from cxrnode.dicom.client_certificate import identity
from cxrnode.dicom.commitment import (
    PUSH_MODEL_INSTANCE,
    CommitmentOperation,
    CommitmentReport,
    CommitmentRequest,
    references,
)
from cxrnode.dicom.dimse import C_STORE_RQ, N_ACTION_RQ, N_EVENT_REPORT_RQ, Command
from cxrnode.dicom.negotiation import COMMITMENT, STORAGE, TRANSFER_SYNTAXES, VERIFICATION, Context, supported
from cxrnode.dicom.sockets import HEADER_BYTES, Malformed, PeerGone, Wire, force_down, pdu
from cxrnode.dicom.status import (
    CANNOT_UNDERSTAND,
    INVALID_ARGUMENT,
    INVALID_SOP_INSTANCE,
    NO_SUCH_ACTION,
    NO_SUCH_EVENT_TYPE,
    OUT_OF_RESOURCES,
    SOP_CLASS_NOT_SUPPORTED,
    SUCCESS,
    TOO_LARGE,
)
from cxrnode.dicom.storing import IncomingInstance, StoreOperation
from cxrnode.types import Peer

CR = "1.2.840.10008.5.1.4.1.1.1"
PEER = Peer(calling_aet="PACS", called_aet="CXRNODE", host="127.0.0.1")

TLS_HERE = "it speaks TLS, and this port does not: send to the TLS port (receive.tls.port), or switch TLS off there"
HTTP_HERE = "it speaks HTTP, it seems, and this is a DICOM port"

# -- the wire


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_pdus_come_whole_and_one_by_one(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    wire = Wire(ours, 5.0)
    theirs.sendall(pdu(4, b"first") + pdu(5, b"") + pdu(4, b"x" * 10))
    got = [(kind, bytes(content)) for kind, content in (wire.read_pdu({4: 10, 5: 0}) for _ in range(3))]
    assert got == [(4, b"first"), (5, b""), (4, b"x" * 10)]
    assert pdu(4, b"first") == b"\4\0\0\0\0\5first"
    assert HEADER_BYTES == 6


@pytest.mark.parametrize(
    ("sent", "reason", "what"),
    [(pdu(4, b"x" * 11), 6, "a PDU of 11 bytes"), (pdu(1, b""), 2, "PDU type 0x01"), (pdu(7, b""), 2, "PDU type 0x07"),
     (pdu(8, b""), 1, "PDU type 0x08"), (pdu(0, b""), 1, "PDU type 0x00"), (b"X-HTTP", 1, "PDU type 0x58"),
     (b"\x16\x03\x01\2\0\1", 1, TLS_HERE),
     *[(verb + b" / HTTP/1.1", 1, HTTP_HERE) for verb in (b"GET", b"HEAD", b"POST", b"OPTIONS")]],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_pdu_that_may_come_is_refused_by_its_head(
    sockets: tuple[socket.socket, socket.socket], sent: bytes, reason: int, what: str
) -> None:
    ours, theirs = sockets
    theirs.sendall(sent)
    with pytest.raises(Malformed) as caught:
        Wire(ours, 5.0).read_pdu({4: 10})
    assert (caught.value.reason, str(caught.value)) == (reason, what)


def test_many_pdus_pass_through_a_buffer_that_is_smaller(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    wire, size = Wire(ours, 5.0), 100_000
    for n in range(12):
        sent = pdu(4, bytes([n]) * size)
        theirs.settimeout(5.0)
        theirs.sendall(sent[: size // 2])
        theirs.sendall(sent[size // 2 :] + pdu(5, bytes([n])))
        assert bytes(wire.read_pdu({4: size})[1]) == bytes([n]) * size
        assert bytes(wire.read_pdu({5: 1})[1]) == bytes([n])


def test_a_peer_that_is_gone_is_said(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    with pytest.raises(PeerGone, match="TimeoutError"):
        Wire(ours, 0.01).read_pdu({4: 10})
    theirs.sendall(pdu(4, b"whole")[:-1])
    theirs.close()
    with pytest.raises(PeerGone, match="closed"):
        Wire(ours, 5.0).read_pdu({4: 10})
    with pytest.raises(PeerGone):
        Wire(ours, 5.0).send(b"x")


def test_a_connection_that_is_forced_down_ends_at_once(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, _theirs = sockets
    force_down(ours)
    with pytest.raises(PeerGone):
        Wire(ours, 60.0).read_pdu({4: 10})


# -- negotiation


def test_refusals_are_those_of_the_standard() -> None:
    """Result, source and reason of PS3.8 table 9-21; each as an A-ASSOCIATE-RJ of ten bytes."""
    known = {
        "NO_REASON": (1, 1, 1), "CONTEXT_NAME_NOT_SUPPORTED": (1, 1, 2), "CALLING_NOT_RECOGNISED": (1, 1, 3),
        "WITHOUT_TLS": (1, 1, 3), "NOT_ITS_CERTIFICATE": (1, 1, 3), "FROM_ANOTHER_ADDRESS": (1, 1, 3),
        "CALLED_NOT_RECOGNISED": (1, 1, 7),
        "VERSION_NOT_SUPPORTED": (1, 2, 2), "LIMIT_EXCEEDED": (2, 3, 2),
    }  # fmt: skip
    for name, numbers in known.items():
        assert getattr(negotiation, name).encode() == bytes([3, 0, 0, 0, 0, 4, 0, *numbers]), name


def test_uncompressed_is_preferred_and_what_loses_nothing_before_what_does() -> None:
    assert TRANSFER_SYNTAXES[:2] == (uids.ExplicitVRLittleEndian, uids.ImplicitVRLittleEndian)
    lossy = {uids.JPEGBaseline8Bit, uids.JPEGExtended12Bit, uids.JPEGLSNearLossless, uids.JPEG2000, uids.HTJ2K}
    assert set(TRANSFER_SYNTAXES[-5:]) == lossy
    assert not lossy & set(TRANSFER_SYNTAXES[:-5])
    assert len(set(TRANSFER_SYNTAXES)) == 18


@pytest.mark.parametrize(
    ("storage", "commitment", "classes"),
    [
        (False, False, {VERIFICATION}),
        (True, False, {VERIFICATION, *STORAGE}),
        (False, True, {VERIFICATION, COMMITMENT}),
    ],
)
def test_a_peer_is_offered_what_it_may_do(storage: bool, commitment: bool, classes: set[str]) -> None:
    offered = {str(cx.abstract_syntax): cx for cx in supported(storage=storage, commitment=commitment)}
    assert set(offered) == classes
    assert offered[VERIFICATION].transfer_syntax == list(TRANSFER_SYNTAXES[:2])
    for uid in STORAGE & classes:
        assert offered[uid].transfer_syntax == list(TRANSFER_SYNTAXES)
    if commitment:
        both = offered[COMMITMENT]
        assert (both.scu_role, both.scp_role, both.transfer_syntax) == (True, True, list(TRANSFER_SYNTAXES[:2]))


# -- C-STORE


class Store:
    """What comes of a data set, and what was said of one that did not come so far."""

    def __init__(self, folder: Path, *, rooms: list[bool] | None = None, status: int = SUCCESS, **command: Any) -> None:
        self.got: list[IncomingInstance] = []
        self.refused: list[tuple[str, int, str]] = []
        self._rooms, self._status = rooms, status
        fields: dict[str, Any] = {"field": C_STORE_RQ, "message_id": 1, "has_data_set": True, "sop_class_uid": CR,
                  "sop_instance_uid": "1.2.3", "type_id": 0} | command  # fmt: skip
        self.operation = StoreOperation(
            PEER, Context(abstract_syntax=CR, transfer_syntax=str(uids.ImplicitVRLittleEndian)), Command(**fields),
            folder=folder, has_room=self._room, store=self._take,
            refused=lambda _peer, uid, status, why: self.refused.append((uid, status, why)),
        )  # fmt: skip

    def _room(self) -> bool:
        return self._rooms.pop(0) if self._rooms is not None else True

    def _take(self, instance: IncomingInstance) -> int:
        self.got.append(instance)
        return self._status

    def send(self, *fragments: bytes) -> int:
        for fragment in fragments:
            self.operation.write(memoryview(fragment))
        return self.operation.finish()


def data_set() -> bytes:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.PatientID = CR, "1.2.3", "P1"
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, True
    write_dataset(buffer, ds)
    return bytes(buffer.getvalue())


def test_a_data_set_becomes_a_file_of_part_10(tmp_path: Path) -> None:
    store, raw = Store(tmp_path), data_set()
    assert store.send(raw[:7], raw[7:]) == SUCCESS
    (got,) = store.got
    ds = dcmread(got.path)
    meta = ds.file_meta
    assert ds.PatientID == "P1"
    assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == (CR, "1.2.3")
    assert (meta.TransferSyntaxUID, meta.SourceApplicationEntityTitle) == (uids.ImplicitVRLittleEndian, "PACS")
    assert meta.FileMetaInformationVersion == b"\0\1"
    assert meta.FileMetaInformationGroupLength == got.data_set_at - 144
    assert (got.size_bytes, got.sha256) == (got.path.stat().st_size, hashlib.sha256(raw).hexdigest())
    assert got.path.read_bytes()[got.data_set_at :] == raw
    assert got.path.stat().st_mode & 0o777 == 0o600
    assert (got.sop_class_uid, got.sop_instance_uid, got.transfer_syntax_uid, got.peer) == (
        CR, "1.2.3", uids.ImplicitVRLittleEndian, PEER,
    )  # fmt: skip
    store.operation.discard()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "status", "uid"),
    [({"sop_class_uid": "1.2"}, SOP_CLASS_NOT_SUPPORTED, "1.2.3"),
     ({"sop_instance_uid": "../x"}, INVALID_SOP_INSTANCE, ""),
     ({"rooms": [False]}, OUT_OF_RESOURCES, "1.2.3")],
    ids=str,
)  # fmt: skip
def test_what_may_not_come_leaves_no_file(tmp_path: Path, command: dict[str, Any], status: int, uid: str) -> None:
    store = Store(tmp_path, **command)
    assert store.send(data_set()) == status
    assert [(u, s) for u, s, _ in store.refused] == [(uid, status)]
    assert not store.got
    assert not list(tmp_path.iterdir())


def test_nothing_at_all_is_no_data_set(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.send() == CANNOT_UNDERSTAND
    assert [s for _, s, _ in store.refused] == [CANNOT_UNDERSTAND]


@pytest.mark.parametrize(("more", "status"), [(0, SUCCESS), (1, TOO_LARGE)])
def test_a_data_set_may_be_as_large_as_an_object_and_no_larger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int, status: int
) -> None:
    monkeypatch.setattr(storing, "OBJECT_BYTES", 1000)
    store = Store(tmp_path)
    assert store.send(bytes(600), bytes(400 + more)) == status
    assert len(store.got) == (status == SUCCESS)
    assert bool(list(tmp_path.iterdir())) is (status == SUCCESS)


@pytest.mark.parametrize(("sizes", "asked"), [((500, 500, 500), 2), ((500, 400), 1)])
def test_room_is_asked_for_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], asked: int
) -> None:
    monkeypatch.setattr(storing, "_ASK_AGAIN_BYTES", 1000)
    rooms = [True, False, False]
    store = Store(tmp_path, rooms=rooms)
    status = store.send(*(bytes(size) for size in sizes))
    assert 3 - len(rooms) == asked
    assert status == (OUT_OF_RESOURCES if asked == 2 else SUCCESS)


def test_a_disk_that_is_full_asks_the_peer_to_send_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)

    def full(_fd: int, _data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    assert store.send(data_set(), data_set()) == OUT_OF_RESOURCES
    assert not list(tmp_path.iterdir())


def test_what_the_store_answers_is_the_answer_and_an_error_is_ours(tmp_path: Path) -> None:
    assert Store(tmp_path, status=0xA900).send(data_set()) == 0xA900
    broken = Store(tmp_path)

    def fails(_instance: IncomingInstance) -> int:
        raise KeyError("x")

    broken.operation._store = fails
    with pytest.raises(KeyError):
        broken.send(data_set())
    assert [s for _, s, _ in broken.refused] == [OUT_OF_RESOURCES]


# -- storage commitment


def commitment(
    field: int, raw: bytes, *, type_id: int = 1, instance: str = PUSH_MODEL_INSTANCE
) -> tuple[int, list[Any]]:
    """The status, and what was handed over."""
    got: list[Any] = []

    def take(asked: Any) -> int:
        got.append(asked)
        return SUCCESS

    command = Command(
        field=field, message_id=1, has_data_set=True, sop_class_uid=COMMITMENT, sop_instance_uid=instance,
        type_id=type_id,
    )  # fmt: skip
    context = Context(abstract_syntax=COMMITMENT, transfer_syntax=str(uids.ImplicitVRLittleEndian))
    operation = CommitmentOperation(PEER, context, command, requested=take, reported=take)
    for at in range(0, len(raw), 1 << 16):
        operation.write(memoryview(raw)[at : at + (1 << 16)])
    status = operation.finish()
    operation.discard()
    assert not operation._raw
    return status, got


def said(*, referenced: int = 0, failed: int = 0, transaction: str = "2.25.7", filler: int = 0) -> bytes:
    ds = Dataset()
    ds.TransactionUID = transaction
    if referenced:
        ds.ReferencedSOPSequence = references((CR, f"1.2.{n}") for n in range(referenced))
    if failed:
        ds.FailedSOPSequence = references((CR, f"1.3.{n}") for n in range(failed))
        for item in ds.FailedSOPSequence:
            item.FailureReason = 0x0112
    if filler:
        ds.add_new(0x00091010, "OB", bytes(filler))
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, True
    write_dataset(buffer, ds)
    return bytes(buffer.getvalue())


def test_a_request_and_a_report_are_handed_over_whole() -> None:
    kept, lost = ((CR, "1.2.0"), (CR, "1.2.1")), (((CR, "1.3.0"), 0x0112),)
    assert commitment(N_ACTION_RQ, said(referenced=2)) == (
        SUCCESS, [CommitmentRequest(peer=PEER, transaction_uid="2.25.7", instances=kept)],
    )  # fmt: skip
    for event, raw, committed, failed in (
        (1, said(referenced=2), kept, ()), (2, said(referenced=2, failed=1), kept, lost), (2, said(failed=1), (), lost),
    ):  # fmt: skip
        report = CommitmentReport(peer=PEER, transaction_uid="2.25.7", committed=committed, failed=failed)
        assert commitment(N_EVENT_REPORT_RQ, raw, type_id=event) == (SUCCESS, [report])


@pytest.mark.parametrize(
    ("field", "how", "raw", "status"),
    [
        (N_ACTION_RQ, {"type_id": 2}, said(referenced=1), NO_SUCH_ACTION),
        (N_ACTION_RQ, {"type_id": 0}, said(referenced=1), NO_SUCH_ACTION),
        (N_EVENT_REPORT_RQ, {"type_id": 3}, said(referenced=1), NO_SUCH_EVENT_TYPE),
        (N_EVENT_REPORT_RQ, {"type_id": 0}, said(referenced=1), NO_SUCH_EVENT_TYPE),
        (N_ACTION_RQ, {"instance": "1.2.3"}, said(referenced=1), INVALID_SOP_INSTANCE),
        (N_ACTION_RQ, {}, said(), INVALID_ARGUMENT),
        (N_EVENT_REPORT_RQ, {}, said(), INVALID_ARGUMENT),
        (N_ACTION_RQ, {}, b"", INVALID_ARGUMENT),
        (N_ACTION_RQ, {}, said(referenced=1, transaction="1"), INVALID_ARGUMENT),
    ],
)
def test_what_asks_for_nothing_sensible_is_answered_so(
    field: int, how: dict[str, Any], raw: bytes, status: int
) -> None:
    assert commitment(field, raw, **how) == (status, [])


@pytest.mark.parametrize(("more", "status"), [(0, SUCCESS), (1, INVALID_ARGUMENT)])
def test_a_request_may_have_so_many_bytes(more: int, status: int) -> None:
    least = len(said(referenced=1, filler=2)) - 2
    most = budget.COMMITMENT.kept_bytes
    raw = said(referenced=1, filler=most - least)
    assert len(raw) == most
    assert commitment(N_ACTION_RQ, raw + bytes(more))[0] == status


# -- who a certificate is


@pytest.mark.parametrize(
    ("text", "form"),
    [(" CT1.Hospital.example ", "ct1.hospital.example"), ("AB:" * 31 + "AB", "ab" * 32), ("10.0.0.7", "10.0.0.7"),
     ("FE80:0::1", "fe80::1"), ("ab" * 31, "ab" * 31)],
)  # fmt: skip
def test_an_identity_is_written_in_many_ways(text: str, form: str) -> None:
    assert identity(text) == form


@pytest.mark.parametrize(
    ("text", "what"), [("ab" * 20, "SHA-1"), ("", "should be"), (" ", "should be"), ("a\x07b", "should be")]
)
def test_what_is_no_identity_is_said(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        identity(text)
