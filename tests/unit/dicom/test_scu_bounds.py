"""The sender on real associations: what it proposes, what it makes of each answer, and how long it waits."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE

from cxrnode.dicom.requestor import SendError
from cxrnode.dicom.scu import Answer, StoreScu
from cxrnode.types import Destination
from tests.support.answering import BOTH, PUSH, SC, SR, VERIFICATION, film, pacs
from tests.support.awaiting import await_true
from tests.support.faulty_pacs import AET, faulty_pacs
from tests.support.orthanc import free_port
from tests.support.receiving import HOST


def scu(there: Destination, **how: Any) -> StoreScu:
    return StoreScu(there, on_report=lambda _: 0, **how)


# -- what an answer means


@pytest.mark.parametrize(
    ("status", "code", "accepted", "transient"),
    [
        (None, "words", False, False), (0x0000, "0x0000", True, False), (0x0001, "0x0001", False, False),
        (0xB000, "0xB000", True, False), (0xB007, "0xB007", True, False), (0xC000, "0xC000", False, False),
        (0xAFFF, "0xAFFF", False, False), (0xA700, "0xA700", False, True), (0xA702, "0xA702", False, True),
        (0xA6FF, "0xA6FF", False, False), (0xA800, "0xA800", False, False), (0x0110, "0x0110", False, True),
        (0x0111, "0x0111", False, False), (0x0213, "0x0213", False, True), (0x0214, "0x0214", False, False),
    ],
)  # fmt: skip
def test_a_status_is_taken_as_the_standard_means_it(
    status: int | None, code: str, accepted: bool, transient: bool
) -> None:
    """PS3.4 table B.2-1, PS3.7 annex C."""
    answer = Answer(status=status, text="words")
    assert (answer.code, answer.accepted, answer.transient) == (code, accepted, transient)


# -- the association


@pytest.mark.parametrize("commitment", [False, True])
def test_what_is_proposed(commitment: bool) -> None:
    with pacs(commitment=commitment) as (there, seen):
        with scu(there) as sender:
            sender.echo()
        await_true(lambda: len(seen) == 3)
    requestor = seen[0].assoc.requestor
    contexts = [(str(cx.abstract_syntax), list(map(str, cx.transfer_syntax))) for cx in requestor.requested_contexts]
    one_each = [(sop_class, [str(syntax)]) for sop_class in (SR, SC) for syntax in BOTH]
    assert [context for context in contexts if context[0] in (SR, SC)] == one_each
    assert [uid for uid, _ in contexts if uid not in (SR, SC)] == [VERIFICATION] + [PUSH] * commitment
    asked = requestor.primitive
    assert (asked.calling_ae_title.strip(), asked.called_ae_title.strip()) == ("CXRNODE", "PACS")
    assert requestor.maximum_length == 131072
    assert seen[-1].event == evt.EVT_RELEASED


def test_it_calls_itself_as_it_is_told() -> None:
    with pacs() as (there, seen):
        scu(there, calling_ae_title="OTHER").open().close()
        await_true(lambda: len(seen) == 2)
    assert seen[0].assoc.requestor.primitive.calling_ae_title.strip() == "OTHER"


def test_it_is_open_until_it_is_closed_or_the_peer_ends_it(tmp_path: Path) -> None:
    with pacs(store=lambda event: event.assoc.abort()) as (there, _):
        sender = scu(there)
        assert sender.is_open is False
        assert sender.open() is sender
        assert sender.is_open is True
        assert sender._assoc is not None
        raw = sender._assoc.dul.socket.socket
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # else each data set waits for an acknowledgement
        sender.close()
        sender.close()
        assert sender.is_open is False
        sender.open()
        with pytest.raises(SendError, match="no answer to C-STORE"):
            sender.send(film(tmp_path))
        await_true(lambda: not sender.is_open)
        for ask in (
            sender.echo,
            lambda: sender.send(film(tmp_path)),
            lambda: sender.request_commitment("1.2", [(SC, "1.2.3")]),
        ):
            with pytest.raises(SendError, match="the association is gone"):
                ask()
        sender.close()


def test_an_answer_that_the_reactor_took_is_given_back_to_who_waits_for_it() -> None:
    """pynetdicom's reactor may take it where it has only just been told to pause."""
    with faulty_pacs() as pacs, StoreScu(pacs.destination) as sender:
        assoc = sender._assoc
        assert assoc is not None
        answer, request = C_STORE(), C_STORE()
        answer.MessageIDBeingRespondedTo, request.MessageID = 1, 1
        assoc._reactor_checkpoint.clear()  # as a request does that waits for its answer
        await_true(lambda: assoc._is_paused)
        assoc._serve_request(answer, 3)
        assert assoc.dimse.msg_queue.get_nowait() == (3, answer)
        assoc._serve_request(request, 3)
        assoc._reactor_checkpoint.set()
        assoc._serve_request(answer, 3)  # nobody waits: the next request must not take it for its own
        assert assoc.dimse.msg_queue.empty()


# -- requests


def test_an_echo_is_answered_or_the_peer_is_taken_to_be_there() -> None:
    with pacs(echo=lambda _: 0x0110) as (there, seen), scu(there) as sender:
        sender.echo()
        assert [event.event for event in seen[1:]] == [evt.EVT_C_ECHO]
    with pacs(takes=(SR,)) as (there, _), scu(there) as sender:
        sender.echo()
    with (
        pacs(echo=lambda event: event.assoc.abort()) as (there, _), scu(there) as sender,
        pytest.raises(SendError, match="no answer to C-ECHO"),
    ):  # fmt: skip
        sender.echo()


@pytest.mark.parametrize("syntax", BOTH)
def test_a_file_is_sent_as_it_is_where_the_peer_takes_it_so(tmp_path: Path, syntax: UID) -> None:
    got: list[tuple[str, bytes]] = []

    def store(event: Any) -> int:
        got.append((event.context.transfer_syntax, event.request.DataSet.getvalue()))
        return 0

    path = film(tmp_path)
    with pacs(syntaxes=[syntax], store=store) as (there, _), scu(there) as sender:
        assert sender.send(path) == Answer(status=0, text="0x0000")
    assert got[0][0] == syntax
    assert path.read_bytes().endswith(got[0][1]) is (dcmread(path).file_meta.TransferSyntaxUID == syntax)


def test_not_a_byte_of_a_file_is_written_anew(tmp_path: Path) -> None:
    """Elements in an order that no encoder would give them."""
    got: list[bytes] = []

    def store(event: Any) -> int:
        got.append(event.request.DataSet.getvalue())
        return 0

    path = film(tmp_path)
    last, first = b"\x20\0\x10\0SH\2\0B ", b"\x10\0\x10\0PN\2\0A "
    path.write_bytes(path.read_bytes() + last + first)
    with pacs(store=store) as (there, _), scu(there) as sender:
        assert sender.send(path).status == 0
    assert got[0].endswith(last + first)


def test_what_the_peer_says_is_in_the_answer(tmp_path: Path) -> None:
    def store(_event: Any) -> Dataset:
        status = Dataset()
        status.Status, status.ErrorComment = 0xA900, "who are you?"
        return status

    with pacs(store=store) as (there, _), scu(there) as sender:
        assert sender.send(film(tmp_path)) == Answer(status=0xA900, text="0xA900 who are you?")


@pytest.mark.parametrize(
    ("takes", "syntaxes", "said"),
    [
        ((VERIFICATION, SR), BOTH, "not accepted: the destination does not take Secondary Capture Image Storage "
         f"({SC}): enable this SOP class for the AE title CXRNODE at PACS"),
        ((VERIFICATION, SC), (ExplicitVRBigEndian, ImplicitVRLittleEndian), ""),
    ],
    ids=["class", "implicit"],
)  # fmt: skip
def test_what_is_not_taken_is_said_with_what_to_enable(
    tmp_path: Path, takes: Sequence[str], syntaxes: Sequence[str], said: str
) -> None:
    with pacs(takes=takes, syntaxes=syntaxes) as (there, _), scu(there) as sender:
        answer = sender.send(film(tmp_path))
    assert answer == (Answer(status=None, text=said) if said else Answer(status=0, text="0x0000"))


def test_a_class_without_its_transfer_syntax_is_said_as_such(tmp_path: Path) -> None:
    """Verification in both, storage in big endian alone."""
    ae = AE(ae_title="PACS")
    ae.add_supported_context(VERIFICATION)
    ae.add_supported_context(SC, ExplicitVRBigEndian)
    server = ae.start_server((HOST, port := free_port()), block=False)
    assert server is not None
    try:
        with scu(Destination(ae_title="PACS", host=HOST, port=port), calling_ae_title="NODE2") as sender:
            answer = sender.send(film(tmp_path))
    finally:
        server.shutdown()
    assert answer == Answer(
        status=None,
        text=f"not accepted: of Secondary Capture Image Storage ({SC}) the destination takes neither explicit nor "
        "implicit VR little endian: enable one for the AE title NODE2 at PACS",
    )


def test_a_file_that_is_at_fault_itself_is_not_blamed_on_the_peer(tmp_path: Path) -> None:
    path = film(tmp_path)
    ds = dcmread(path)
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.save_as(path)
    with pacs() as (there, _), scu(there) as sender:
        answer = sender.send(path)
    assert answer.status is None
    assert answer.text.startswith("not accepted: ")
    assert "enable" not in answer.text


# -- storage commitment


def test_commitment_is_asked_for_as_the_standard_wants_it() -> None:
    with pacs(commitment=True) as (there, seen), scu(there) as sender:
        asked = sender.request_commitment("2.25.7", [(SC, "1.2.3"), (SR, "1.2.4")])
        await_true(lambda: len(seen) == 2)
        event = seen[1]
    assert asked == Answer(status=0, text="0x0000")
    assert (event.action_type, event.request.RequestedSOPClassUID) == (1, PUSH)
    assert event.request.RequestedSOPInstanceUID == "1.2.840.10008.1.20.1.1"
    said = event.action_information
    assert said.TransactionUID == "2.25.7"
    assert [(i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID) for i in said.ReferencedSOPSequence] == [
        (SC, "1.2.3"), (SR, "1.2.4"),
    ]  # fmt: skip


def test_commitment_that_is_not_to_be_had_is_said() -> None:
    instances = [(SC, "1.2.3")]
    with pacs(commitment=True, action=lambda _: 0x0110) as (there, _), scu(there) as sender:
        assert sender.request_commitment("2.25.7", instances).status == 0x0110
    with pacs(commitment=True, takes=(VERIFICATION, SC)) as (there, _), scu(there) as sender:
        assert sender.request_commitment("2.25.7", instances) == Answer(
            status=None, text="storage commitment is not accepted by this destination"
        )
    with (
        pacs(commitment=True, action=lambda event: event.assoc.abort()) as (there, _), scu(there) as sender,
        pytest.raises(SendError, match="no answer to N-ACTION"),
    ):  # fmt: skip
        sender.request_commitment("2.25.7", instances)


@pytest.mark.parametrize(("answer", "reported"), [(0x0000, True), (0x0110, False)])
def test_a_report_on_the_same_association_is_handed_over_and_answered(answer: int, reported: bool) -> None:
    got: list[Any] = []

    def take(report: Any) -> int:
        got.append(report)
        return answer

    with faulty_pacs(commitment="same", lose=["1.2.4"]) as there:
        there.stored["1.2.3"] = 1
        destination = Destination(ae_title=AET, host=HOST, port=there.port, storage_commitment=True)
        with StoreScu(destination, on_report=take) as sender:
            assert sender.request_commitment("2.25.7", [(SC, "1.2.3"), (SC, "1.2.4")]).status == 0
            assert sender.await_report(20.0 if reported else 0.5) is reported
            await_true(lambda: there.reports)
    (report,) = got
    assert there.reports == [answer]
    assert (report.transaction_uid, report.committed, report.failed) == (
        "2.25.7", ((SC, "1.2.3"),), (((SC, "1.2.4"), 0x0112),)
    )  # fmt: skip
    assert (report.peer.calling_aet, report.peer.called_aet, report.peer.host) == (AET, "CXRNODE", HOST)


def test_an_older_report_does_not_pass_for_that_of_a_later_request() -> None:
    with faulty_pacs(commitment="same") as there:
        there.stored["1.2.3"] = 1
        destination = Destination(ae_title=AET, host=HOST, port=there.port, storage_commitment=True)
        with scu(destination) as sender:
            sender.request_commitment("2.25.7", [(SC, "1.2.3")])
            assert sender.await_report(20.0)
            there.commitment = "never"
            sender.request_commitment("2.25.8", [(SC, "1.2.3")])
            assert not sender.await_report(0.2)
