"""The sender on real associations: what it proposes, what it makes of each answer, and how long it waits."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)
from pynetdicom import AE, evt

from cxrnode.dicom.negotiation import Request, accept, parse_request, supported
from cxrnode.dicom.requestor import SendError
from cxrnode.dicom.scu import Answer, StoreScu
from cxrnode.dicom.tls import client_context, server_context
from cxrnode.report.encode import encode
from cxrnode.types import Destination
from tests.support.awaiting import await_true
from tests.support.certificates import Authority
from tests.support.faulty_pacs import AET, faulty_pacs
from tests.support.orthanc import free_port
from tests.support.raw import silent_port
from tests.support.receiving import HOST, NODE, running_node

SR, SC = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.7"
VERIFICATION, PUSH = "1.2.840.10008.1.1", "1.2.840.10008.1.20.1"
BOTH = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


def film(folder: Path, *, filler: int = 0, sop_class: str = SC) -> Path:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = UID(sop_class), UID("1.2.3.4")
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.PatientID = UID("1.2"), UID("1.2.3"), "P1"
    if filler:
        ds.EncapsulatedDocument = bytes(filler)
    path = folder / "film.dcm"
    path.write_bytes(encode(ds))
    return path


@contextmanager
def pacs(
    *, takes: Sequence[str] = (VERIFICATION, PUSH, SR, SC), syntaxes: Sequence[str] = BOTH, max_pdu: int = 16382,
    store: Callable[[Any], Any] = lambda _: 0, echo: Callable[[Any], Any] = lambda _: 0,
    action: Callable[[Any], Any] = lambda _: 0, commitment: bool = False,
) -> Iterator[tuple[Destination, list[Any]]]:  # fmt: skip
    """Where it is, and what happened there."""
    seen: list[Any] = []
    ae = AE(ae_title="PACS")
    ae.maximum_pdu_size = max_pdu
    for sop_class in takes:
        ae.add_supported_context(sop_class, [UID(syntax) for syntax in syntaxes])

    def told(answer: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def handler(event: Any) -> Any:
            seen.append(event)
            return answer(event)

        return handler

    server = ae.start_server(
        (HOST, port := free_port()), block=False,
        evt_handlers=[
            (evt.EVT_C_ECHO, told(echo)), (evt.EVT_C_STORE, told(store)), (evt.EVT_ACCEPTED, seen.append),
            (evt.EVT_N_ACTION, told(lambda event: (action(event), None))), (evt.EVT_RELEASED, seen.append),
        ],
    )  # fmt: skip
    assert server is not None
    try:
        yield Destination(ae_title="PACS", host=HOST, port=port, storage_commitment=commitment), seen
    finally:
        server.shutdown()


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


def test_it_asks_for_even_fragments_that_just_fit(tmp_path: Path) -> None:
    for announced, most in ((8, 8), (17, 16), (0, 1 << 20)):
        parts: list[int] = []

        def sizes(event: Any, parts: list[int] = parts) -> None:
            items = getattr(event.pdu, "presentation_data_value_items", [])
            parts.extend(len(item.presentation_data_value) - 1 for item in items)

        with pacs(max_pdu=announced) as (there, seen), scu(there) as sender:
            await_true(lambda seen=seen: seen)  # type: ignore[misc]
            seen[0].assoc.bind(evt.EVT_PDU_RECV, sizes)
            assert sender.send(film(tmp_path)).status == 0
        assert all(size % 2 == 0 and size + 6 <= most for size in parts)
        assert max(parts) == most - 6 or most > 100


def test_connections_that_fail_leave_no_descriptor_open() -> None:
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(SendError):
                scu(Destination(ae_title="PACS", host=HOST, port=free_port())).open()
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


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


# -- why there is no association


def refused(there: Destination, **how: Any) -> str:
    with pytest.raises(SendError) as caught:
        scu(there, **how).open()
    return str(caught.value)


def test_a_peer_that_is_not_there_is_named() -> None:
    port = free_port()
    assert refused(Destination(ae_title="PACS", host=HOST, port=port)) == f"no connection: refused by {HOST}:{port}"
    assert refused(Destination(ae_title="PACS", host="::1", port=port)) == f"no connection: refused by [::1]:{port}"
    nowhere = refused(Destination(ae_title="PACS", host="no-such-host.invalid", port=104))
    assert nowhere.startswith("no connection: no-such-host.invalid: ")
    assert "None" not in nowhere
    broadcast = refused(Destination(ae_title="PACS", host="255.255.255.255", port=104))
    assert broadcast.startswith("no connection: 255.255.255.255:104: ")
    assert broadcast.rpartition(": ")[2] in {"Network is unreachable", "Permission denied"}


def test_a_peer_that_takes_nothing_or_hangs_up_is_said() -> None:
    with pacs(takes=("1.2.840.10008.5.1.4.1.1.2",)) as (there, _):
        assert refused(there) == (
            "none of the node's SOP classes is accepted: enable Comprehensive 3D SR and Secondary Capture for it"
        )
    with faulty_pacs(associations=["reject"]) as rejecting:
        assert refused(rejecting.destination).startswith("association rejected: ")
    with hanging_up() as port:
        said = f"no answer: {HOST}:{port} ended the connection; it may not know our AE title, or want TLS"
        assert refused(Destination(ae_title="PACS", host=HOST, port=port)) == said


@contextmanager
def hanging_up() -> Iterator[int]:
    """Reads the request, and ends the connection."""
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(1 << 16)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def test_tls_that_does_not_come_to_terms_is_said(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path), Authority(tmp_path, "theirs")
    client = client_context(ca=ours.ca)
    foreign, own = theirs.issue("peer"), ours.issue("peer")

    def tls(port: int, context: ssl.SSLContext = client) -> Destination:
        return Destination(ae_title=NODE, host=HOST, port=port, tls=lambda: context)

    with running_node(tmp_path / "plain") as plain:
        where = f"{HOST}:{plain.port}"
        assert refused(tls(plain.port)) in {
            f"no connection: {where} does not speak TLS",
            f"no connection: the TLS handshake with {where} failed: unexpected eof while reading",
        }
    server = server_context(certificate=foreign.certificate, key=foreign.key, ca=theirs.ca)
    with running_node(tmp_path / "foreign", ssl_context=server) as node:
        said = f"no connection: the certificate of {HOST}:{node.port} is not good: self-signed certificate in"
        assert refused(tls(node.port)).startswith(said)
    server = server_context(certificate=own.certificate, key=own.key, ca=ours.ca)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    with running_node(tmp_path / "older", ssl_context=server) as node:
        newest = client_context(ca=ours.ca)
        newest.minimum_version = ssl.TLSVersion.TLSv1_3
        said = f"no connection: the TLS handshake with {HOST}:{node.port} failed: tlsv1 alert protocol version"
        assert refused(tls(node.port, newest)) == said
    server.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    with running_node(tmp_path / "certificate", ssl_context=server) as node:  # wants one of ours, and hangs up
        assert "TLS" in refused(tls(node.port))


# -- how long it waits


@pytest.mark.parametrize("stage", ["connection", "association", "answer"])
def test_a_peer_that_says_nothing_holds_it_up_no_longer_than_it_is_told(stage: str) -> None:
    """Long before pynetdicom's own half minute is over, or the system's two."""
    over = threading.Event()
    began = time.monotonic()
    with ExitStack() as stack:
        if stage == "answer":
            there, _ = stack.enter_context(pacs(echo=lambda _: over.wait(60) and 0))
            sender = stack.enter_context(scu(there, timeout_s=0.2))
            with pytest.raises(SendError, match="no answer to C-ECHO"):
                sender.echo()
        else:
            port = stack.enter_context(silent_port(connects=stage == "association"))
            said = refused(Destination(ae_title="PACS", host=HOST, port=port), timeout_s=0.2)
            assert stage == "association" or said == f"no connection: {HOST}:{port} does not answer"
        over.set()
    assert time.monotonic() - began < 20


def test_a_peer_that_stops_reading_holds_it_up_no_longer_than_it_is_told(tmp_path: Path) -> None:
    """Nor does it keep the sender from giving up: pynetdicom's own socket waits for ever."""
    path, over = film(tmp_path, filler=30_000_000), threading.Event()
    with socket.create_server((HOST, 0)) as server:

        def accept_and_stall() -> None:
            peer, _ = server.accept()
            with peer:
                raw = peer.recv(1 << 18)
                request = parse_request(raw[6:])
                assert isinstance(request, Request)
                peer.sendall(accept(request, supported(storage=True, commitment=False))[1])
                over.wait(60)

        thread = threading.Thread(target=accept_and_stall)
        thread.start()
        there = Destination(ae_title="PACS", host=HOST, port=server.getsockname()[1])
        began = time.monotonic()
        with scu(there, timeout_s=0.5) as sender, pytest.raises(SendError, match="no answer to C-STORE"):
            sender.send(path)
        assert time.monotonic() - began < 20
        over.set()
        thread.join()
