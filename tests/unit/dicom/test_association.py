"""One association as the acceptor sees it: a peer of bytes on the other end of a socket pair, no listener."""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from cxrnode import metrics
from cxrnode.dicom.association import Acceptor
from cxrnode.dicom.dimse import Command
from cxrnode.dicom.negotiation import (
    CALLING_NOT_RECOGNISED,
    CONTEXT_NAME_NOT_SUPPORTED,
    MAX_PDU_BYTES,
    VERIFICATION,
    Context,
    Offer,
    Refusal,
    Request,
    supported,
)
from cxrnode.dicom.sockets import Wire, pdu
from cxrnode.types import Peer
from tests.support.receiving import HOST, NODE, PACS, associate_rq, c_store_rq, command, p_data

CR, CT = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.2"
US = Peer(calling_aet=PACS, called_aet=NODE, host=HOST)
ECHO = command({0x0002: VERIFICATION.encode() + b"\0", 0x0100: b"\x30\0", 0x0110: b"\7\0", 0x0800: b"\1\1"})
CANCEL = command({0x0100: b"\xff\x0f", 0x0120: b"\7\0", 0x0800: b"\1\1"})
STORE = command(c_store_rq(CR, b"1.2.3"))
RQ = associate_rq((1, VERIFICATION, ImplicitVRLittleEndian), (3, CR, ExplicitVRLittleEndian))
RELEASE, RELEASED, ABORT = pdu(5, bytes(4)), pdu(6, bytes(4)), pdu(7, bytes(4))
GONE = pdu(7, b"\0\0\2\0")  # what is said to a peer whose connection seems lost: PS3.8 table 9-26, no reason given


@dataclass
class Operation:
    """What a request comes to: its bytes, and how often it was cleaned up."""

    answer: Callable[[], int]
    data: bytes = b""
    discarded: int = 0

    def write(self, fragment: memoryview) -> None:
        self.data += fragment

    def finish(self) -> int:
        return self.answer()

    def discard(self) -> None:
        self.discarded += 1


@dataclass
class Owner:
    """Offers storage, and notes what it is told."""

    verdict: Refusal | None = None
    detail: str = ""
    tell: bool = False
    storage: bool = True
    idle_timeout_s: float = 30.0
    answer: Callable[[], int] = lambda: 0
    told: list[tuple[Any, ...]] = field(default_factory=list)
    warned: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    begun: list[tuple[Peer, Context, Command]] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)

    def admit(self, request: Request, host: str) -> Offer | Refusal:
        assert (request.calling_aet, host) == (PACS, HOST)
        contexts = supported(storage=self.storage, commitment=False)
        return self.verdict or Offer(
            contexts=contexts, idle_timeout_s=self.idle_timeout_s, detail=self.detail, tell=self.tell
        )

    def answered(self, peer: Peer, refusal: Refusal | None) -> None:
        self.told.append((peer, refusal and refusal.text))

    def aborted(self, peer: Peer, why: str) -> None:
        self.told.append((peer, "aborted", why))

    def warn(self, text: str, kind: str, **extra: str) -> None:
        self.warned.append((text, kind, extra))

    def begin(self, peer: Peer, context: Context, command: Command) -> Operation:
        self.begun.append((peer, context, command))
        self.operations.append(Operation(self.answer))
        return self.operations[-1]


@dataclass(frozen=True)
class Heard:
    """What came back, PDU by PDU, and whether the node said that it has no more to say."""

    pdus: list[bytes]
    ended: bool

    @property
    def statuses(self) -> list[int]:
        marks = (p.find(struct.pack("<HHL", 0, 0x0900, 2)) for p in self.pdus if p[0] == 4)
        found = [p[at + 8 : at + 10] for p, at in zip([p for p in self.pdus if p[0] == 4], marks, strict=True)]
        return [int.from_bytes(two, "little") for two in found]


def converse(owner: Owner, *sent: bytes, closing: Callable[[], bool] = lambda: False) -> Heard:
    """The peer says all that it has to say, and no more: what the acceptor makes of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def speak() -> None:
            theirs.sendall(b"".join(sent))
            theirs.shutdown(socket.SHUT_WR)

        speaker = threading.Thread(target=speak)
        speaker.start()
        acceptor = Acceptor(Wire(ours, 30.0), HOST, owner, closing)
        acceptor.run()
        ours.setblocking(False)
        while True:  # an acceptor that aborted leaves what it did not read
            try:
                if not ours.recv(1 << 20):
                    break
            except BlockingIOError:
                if not speaker.is_alive():
                    break
        speaker.join()
        return heard(theirs)


def heard(peer: socket.socket) -> Heard:
    raw, ended = b"", False
    peer.setblocking(False)
    try:
        while part := peer.recv(1 << 20):
            raw += part
        ended = True
    except BlockingIOError:
        pass
    pdus = []
    while raw:
        whole = 6 + int.from_bytes(raw[2:6], "big")
        pdus.append(raw[:whole])
        raw = raw[whole:]
    return Heard(pdus, ended)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(metrics, "connection_aborted", found.append)
    monkeypatch.setattr(metrics, "association_rejected", found.append)
    return found


# -- from the request to the release


def test_requests_are_answered_one_after_the_other_until_the_release(counted: list[str]) -> None:
    owner = Owner()
    got = converse(owner, RQ, p_data(1, 3, ECHO), p_data(1, 1, ECHO[:9]), p_data(1, 3, ECHO[9:]), RELEASE, b"ignored")
    assert [p[0] for p in got.pdus] == [2, 4, 4, 6]
    assert got.statuses == [0, 0]
    assert got.pdus[-1] == RELEASED
    assert got.ended
    context = Context(abstract_syntax=VERIFICATION, transfer_syntax=ImplicitVRLittleEndian)
    assert [(peer, cx, c.field, c.message_id) for peer, cx, c in owner.begun] == [(US, context, 0x0030, 7)] * 2
    assert [op.discarded for op in owner.operations] == [1, 1]
    assert (owner.told, owner.warned, counted) == ([(US, None)], [], [])


def test_a_data_set_is_handed_over_as_it_comes_and_carried_out_at_its_end() -> None:
    owner = Owner(answer=lambda: 0xB007)
    got = converse(owner, RQ, p_data(3, 3, STORE), p_data(3, 0, b"first "), p_data(3, 2, b"last"), RELEASE)
    assert got.statuses == [0xB007]
    (operation,) = owner.operations
    assert (operation.data, operation.discarded) == (b"first last", 1)
    assert owner.begun[0][1] == Context(abstract_syntax=CR, transfer_syntax=ExplicitVRLittleEndian)


def test_several_fragments_of_a_pdu_are_taken_one_by_one() -> None:
    owner = Owner()
    pdvs = b"".join(p_data(3, control, part)[6:] for control, part in ((3, STORE), (0, b"a"), (2, b"b")))
    assert converse(owner, RQ, pdu(4, pdvs), RELEASE).statuses == [0]
    assert owner.operations[0].data == b"ab"


def test_a_cancel_is_carried_out_without_an_answer() -> None:
    owner = Owner()
    got = converse(owner, RQ, p_data(1, 3, CANCEL), p_data(1, 3, ECHO), RELEASE)
    assert [p[0] for p in got.pdus] == [2, 4, 6]
    assert len(owner.operations) == 2


def test_an_answer_is_cut_as_the_peer_asks() -> None:
    asked = struct.pack(">BBHL", 0x51, 0, 4, 32) + struct.pack(">BBH", 0x52, 0, 7) + b"1.2.3.4"
    got = converse(Owner(), associate_rq((1, VERIFICATION, ImplicitVRLittleEndian), user=asked), p_data(1, 3, ECHO))
    answers = [p for p in got.pdus if p[0] == 4]
    assert len(answers) > 1
    assert max(map(len, answers)) == 32 + 6


@pytest.mark.parametrize(
    ("request_", "status"), [(p_data(3, 3, STORE) + p_data(3, 2, b"x"), 0xA700), (p_data(1, 3, ECHO), 0x0110)],
    ids=["C-STORE", "C-ECHO"],
)  # fmt: skip
def test_an_error_of_ours_asks_the_peer_to_try_again_and_says_where_it_was(
    caplog: pytest.LogCaptureFixture, request_: bytes, status: int
) -> None:
    def fail() -> int:
        raise KeyError("Phantom^Chest")

    owner = Owner(answer=fail)
    assert converse(owner, RQ, request_, RELEASE).statuses == [status]
    assert [op.discarded for op in owner.operations] == [1]
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert line == f"{HOST}: request failed: KeyError at {__file__}:{fail.__code__.co_firstlineno + 1}"


# -- who does not get so far


def test_a_refusal_is_told_counted_and_answered(counted: list[str]) -> None:
    owner = Owner(verdict=Refusal(1, 1, 3, "calling AE title not recognised", detail="add it"))
    got = converse(owner, RQ, p_data(1, 3, ECHO))
    assert (got.pdus, got.ended) == ([CALLING_NOT_RECOGNISED.encode()], True)
    why = "calling AE title not recognised"
    assert (owner.told, counted) == ([(US, why)], [why])
    text = f"association of 'PACS' to 'CXRNODE' rejected: {why} (add it)"
    assert owner.warned == [(text, why, {"host": HOST, "reason": why})]


def test_a_request_of_another_application_is_refused_before_anybody_is_asked(counted: list[str]) -> None:
    owner = Owner()
    got = converse(owner, RQ.replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.9"))
    assert got.pdus == [CONTEXT_NAME_NOT_SUPPORTED.encode()]
    nobody = Peer(calling_aet="", called_aet="", host=HOST)
    assert owner.told == [(nobody, CONTEXT_NAME_NOT_SUPPORTED.text)]
    assert owner.warned[0][0] == f"association rejected: {CONTEXT_NAME_NOT_SUPPORTED.text}"
    assert counted == [CONTEXT_NAME_NOT_SUPPORTED.text]


def test_who_asks_for_nothing_that_is_offered_is_told_what_it_asked_for() -> None:
    owner = Owner()
    got = converse(owner, associate_rq((1, CT, ImplicitVRLittleEndian)))
    assert got.pdus == [pdu(3, bytes([0, 1, 1, 1]))]
    assert owner.warned[0][0].endswith("is offered to it (CT Image Storage in Implicit VR Little Endian)")


@pytest.mark.parametrize(
    ("contexts", "storage", "detail", "why"),
    [([VERIFICATION], True, "", None), ([VERIFICATION, CR], True, "", None), ([CR], True, "", None),
     ([VERIFICATION, CT], True, "", "not offered to it: CT Image Storage in Implicit VR Little Endian"),
     ([VERIFICATION, CR], False, "not in the list", "not in the list")],
)  # fmt: skip
def test_who_gets_no_more_than_an_echo_though_it_asks_for_more_is_told(
    contexts: Sequence[str], storage: bool, detail: str, why: str | None
) -> None:
    owner = Owner(storage=storage, detail=detail)
    asked = [(2 * n + 1, uid, str(ImplicitVRLittleEndian)) for n, uid in enumerate(contexts)]
    assert converse(owner, associate_rq(*asked), RELEASE).pdus[-1] == RELEASED
    text = f"'PACS' may do no more than C-ECHO here: {why}"
    assert owner.warned == ([(text, "echo", {"host": HOST, "calling_aet": PACS})] if why else [])


def test_who_asks_for_no_more_than_an_echo_is_told_where_it_should_have_more() -> None:
    owner = Owner(storage=False, detail="from another address", tell=True)
    converse(owner, associate_rq((1, VERIFICATION, ImplicitVRLittleEndian)), RELEASE)
    assert [text for text, *_ in owner.warned] == ["'PACS' may do no more than C-ECHO here: from another address"]


def test_who_aborts_or_goes_without_a_request_hears_nothing() -> None:
    for sent in (ABORT + RELEASE, b"", RQ[:40]):
        owner = Owner()
        got = converse(owner, sent)
        assert (got.pdus, owner.told, owner.warned) == ([], [], [])


def test_an_abort_ends_the_association_without_a_word(counted: list[str]) -> None:
    owner = Owner()
    got = converse(owner, RQ, p_data(3, 3, STORE), p_data(3, 0, b"half"), ABORT)
    assert ([p[0] for p in got.pdus], counted, owner.warned) == ([2], [], [])
    assert [(op.data, op.discarded) for op in owner.operations] == [(b"half", 1)]


def test_a_connection_that_breaks_leaves_nothing_behind(counted: list[str]) -> None:
    owner = Owner()
    got = converse(owner, RQ, p_data(3, 3, STORE), p_data(3, 0, b"half"))
    assert (got.pdus[1:], got.ended) == ([GONE], True)
    assert [op.discarded for op in owner.operations] == [1]
    assert (counted, owner.warned) == ([], [])


def test_a_peer_that_is_gone_for_good_ends_it_too() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(RQ)
        theirs.close()
        Acceptor(Wire(ours, 30.0), HOST, Owner(), lambda: False).run()  # the answer finds nobody, nor does the A-ABORT


def test_an_idle_association_ends_after_the_time_that_it_was_given() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(20.0)
        theirs.sendall(RQ)
        acceptor = Acceptor(Wire(ours, 60.0), HOST, Owner(idle_timeout_s=0.02), lambda: False)
        thread = threading.Thread(target=acceptor.run)
        thread.start()
        said = b""
        while not said.endswith(GONE):
            said += theirs.recv(1 << 16)
        theirs.close()
        thread.join()


# -- what is no DICOM

DAMAGED_RQ = pdu(1, b"\0\1" + bytes(10))
LONG_COMMAND = p_data(1, 1, bytes(65536))


@pytest.mark.parametrize(
    ("sent", "reason", "what"),
    [
        ([DAMAGED_RQ], 6, "no A-ASSOCIATE-RQ (ValueError)"),
        ([RELEASE], 2, "PDU type 0x05"),
        ([b"\x08\0\0\0\0\0"], 1, "PDU type 0x08"),
        ([pdu(1, bytes((1 << 18) + 1))], 6, "a PDU of 262145 bytes"),
        ([pdu(7, bytes(65))], 6, "a PDU of 65 bytes"),
        ([RQ, RQ], 2, "PDU type 0x01"),
        ([RQ, pdu(7, bytes(65))], 6, "a PDU of 65 bytes"),
        ([RQ, pdu(5, bytes(65))], 6, "a PDU of 65 bytes"),
        ([RQ, pdu(4, bytes(MAX_PDU_BYTES + 1025))], 6, f"a PDU of {MAX_PDU_BYTES + 1025} bytes"),
        ([RQ, p_data(3, 3, STORE), p_data(3, 3, STORE)], 2, "a command inside a data set"),
        ([RQ, LONG_COMMAND, p_data(1, 1, b"x")], 6, "a command set without end"),
        ([RQ, p_data(5, 3, ECHO)], 6, "a presentation context that was not accepted"),
        ([RQ, p_data(1, 3, b"")], 6, "a command set that is no request"),
        ([RQ, p_data(3, 2, b"x")], 2, "a data set without its command"),
        ([RQ, p_data(3, 3, STORE), p_data(1, 2, b"x")], 2, "a data set without its command"),
    ],
    ids=lambda value: None if isinstance(value, int | list) else str(value),
)  # fmt: skip
def test_what_is_no_dicom_is_told_counted_and_aborted(
    counted: list[str], sent: list[bytes], reason: int, what: str
) -> None:
    owner = Owner()
    got = converse(owner, *sent)
    assert (got.pdus[-1], got.ended) == (pdu(7, bytes((0, 0, 2, reason))), True)
    peer = US if sent[0] == RQ else Peer(calling_aet="", called_aet="", host=HOST)
    assert owner.told[-1] == (peer, "aborted", what)
    assert owner.warned == [(f"{what}: association aborted", "aborted", {"host": HOST})]
    assert counted == [{1: "unrecognised PDU", 2: "unexpected PDU", 6: "invalid PDU parameter"}[reason]]
    assert all(op.discarded == 1 for op in owner.operations)


@pytest.mark.parametrize(
    "sent",
    [[pdu(7, bytes(64))], [RQ, pdu(7, bytes(64))], [RQ, pdu(5, bytes(64))],
     [RQ, p_data(3, 3, STORE), p_data(3, 0, bytes(MAX_PDU_BYTES + 1024 - 6))], [RQ, LONG_COMMAND]],
    ids=["abort", "abort-later", "release", "data", "command"],
)  # fmt: skip
def test_what_just_fits_is_taken(counted: list[str], sent: list[bytes]) -> None:
    owner = Owner()
    converse(owner, *sent)
    assert (owner.warned, counted) == ([], [])


def test_a_request_of_256_kib_is_still_read() -> None:
    owner = Owner()
    converse(owner, pdu(1, bytes(1 << 18)))
    assert owner.told[0][2].startswith("no A-ASSOCIATE-RQ (")


# -- the node stops


def test_a_node_that_stops_answers_what_is_under_way_and_aborts() -> None:
    """The user's abort: PS3.8 table 9-26, source 0."""
    stopping = threading.Event()
    owner = Owner()
    begin = owner.begin

    def begin_and_stop(peer: Peer, context: Context, command: Command) -> Operation:
        stopping.set()
        return begin(peer, context, command)

    owner.begin = begin_and_stop  # type: ignore[method-assign]
    sent = (RQ, p_data(3, 3, STORE), p_data(3, 0, b"half"), p_data(3, 2, b"whole"), p_data(1, 3, ECHO))
    got = converse(owner, *sent, closing=stopping.is_set)
    assert got.statuses == [0]
    assert owner.operations[0].data == b"halfwhole"
    assert (got.pdus[-1], got.ended) == (ABORT, True)


def test_a_node_that_stops_awaits_the_rest_of_a_command() -> None:
    answers = iter([False, True, True])
    owner = Owner()
    got = converse(owner, RQ, p_data(1, 1, ECHO[:9]), p_data(1, 3, ECHO[9:]), closing=lambda: next(answers))
    assert (got.statuses, got.pdus[-1]) == ([0], ABORT)
