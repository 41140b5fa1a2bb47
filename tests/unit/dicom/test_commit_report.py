"""The N-EVENT-REPORT that answers a commitment request (PS3.4 section J.3.3), to peers that take it or do not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from cxrnode.dicom import commit_report, requestor
from cxrnode.dicom.commit_report import report_commitment
from cxrnode.dicom.requestor import CONNECT_TIMEOUT_S, NoAssociationError, SendError
from cxrnode.dicom.scp import CommitmentReport
from cxrnode.dicom.tls import client_context, server_context
from cxrnode.types import Destination, Peer, Reference
from tests.support.awaiting import await_true
from tests.support.certificates import Authority
from tests.support.orthanc import free_port
from tests.support.raw import silent_port
from tests.support.receiving import HOST, NODE, running_node

CR = "1.2.840.10008.5.1.4.1.1.1"
KEPT: list[Reference] = [(CR, "1.2.1"), (CR, "1.2.2")]
MISSING: list[tuple[Reference, int]] = [((CR, "1.3.1"), 0x0112)]


def report(port: int, kept: Sequence[Reference] = KEPT, missing: Sequence[Any] = (), **how: Any) -> None:
    peer = Destination(ae_title="PACS", host=HOST, port=port, **how)
    report_commitment(peer, "2.25.7", kept, missing, calling_ae_title=NODE)


@contextmanager
def requester(
    answer: Callable[[Any], Any] = lambda _: 0,
    *,
    of: str = StorageCommitmentPushModel,
    accepted: Callable[[Any], object] = lambda _: None,
) -> Iterator[tuple[int, list[Any]]]:
    """A peer that asked for commitment: its port, and what happened there."""
    seen: list[Any] = []
    ae = AE(ae_title="PACS")
    ae.require_called_aet = True
    ae.add_supported_context(of, scu_role=True, scp_role=True)

    def take(event: Any) -> tuple[Any, None]:
        seen.append(event)
        return answer(event), None

    server = ae.start_server(
        (HOST, port := free_port()), block=False,
        evt_handlers=[
            (evt.EVT_N_EVENT_REPORT, take), (evt.EVT_RELEASED, seen.append), (evt.EVT_ACCEPTED, accepted),
        ],
    )  # fmt: skip
    assert server is not None
    try:
        yield port, seen
    finally:
        server.shutdown()


def refusal(port: int) -> str:
    with pytest.raises(SendError) as caught:
        report(port)
    assert not isinstance(caught.value, NoAssociationError)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kept", "missing", "event_type"),
    [(KEPT, [], 1), (KEPT, MISSING, 2), ([], MISSING, 2)],
    ids=["all", "some", "none"],
)
def test_what_is_kept_and_what_is_not_arrives_as_the_scp_on_an_association_of_its_own(
    kept: list[Reference], missing: list[Any], event_type: int
) -> None:
    with requester() as (port, seen):
        report(port, kept, missing)
        await_true(lambda: len(seen) == 2)  # it was released after the answer
    event, released = seen
    assert released.event == evt.EVT_RELEASED
    assert event.event_type == event_type
    assert (event.request.AffectedSOPClassUID, event.request.AffectedSOPInstanceUID) == (
        "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
    )  # fmt: skip
    said = event.event_information
    assert said.TransactionUID == "2.25.7"
    assert len(said.get("ReferencedSOPSequence", [])) == len(kept)
    assert len(said.get("FailedSOPSequence", [])) == len(missing)
    asked = event.assoc.requestor.primitive
    assert (asked.calling_ae_title.strip(), asked.called_ae_title.strip()) == (NODE, "PACS")
    (role,) = event.assoc.requestor.role_selection.values()
    assert (role.scu_role, role.scp_role) == (False, True)


def test_a_node_takes_it_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    theirs = authority.issue("peer")
    server = server_context(certificate=theirs.certificate, key=theirs.key, ca=authority.ca)
    client = client_context(ca=authority.ca, certificate=theirs.certificate, key=theirs.key)
    with running_node(tmp_path / "var", ssl_context=server, commitment_peers=(("CXRNODE", HOST),)) as node:
        there = Destination(ae_title=NODE, host=HOST, port=node.port, tls=lambda: client)
        report_commitment(there, "2.25.7", KEPT, MISSING, calling_ae_title="CXRNODE")
    assert node.commit_reports == [
        CommitmentReport(
            peer=Peer(calling_aet="CXRNODE", called_aet=NODE, host=HOST), transaction_uid="2.25.7",
            committed=tuple(KEPT), failed=tuple(MISSING),
        )
    ]  # fmt: skip


def test_an_answer_that_is_no_success_is_said() -> None:
    with requester(lambda _: 0x0110) as (port, _):
        assert refusal(port) == "N-EVENT-REPORT was answered with 0x0110"


def test_a_peer_that_aborts_gave_no_answer() -> None:
    with requester(lambda event: event.assoc.abort()) as (port, _):
        assert refusal(port) == "no answer to N-EVENT-REPORT"


def test_an_association_that_ends_before_anything_is_said_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real = commit_report._information

    def late(*what: Any) -> Any:
        await_true(lambda: not [t for t in threading.enumerate() if isinstance(t, Association) and t.is_requestor])
        return real(*what)

    monkeypatch.setattr(commit_report, "_information", late)
    with requester(accepted=lambda event: event.assoc.abort()) as (port, seen):
        assert refusal(port) == "the association is gone"
    assert seen == []


def test_nothing_can_be_said_to_who_takes_no_commitment_rejects_or_is_away() -> None:
    """What else there is for this peer would fare no better."""
    with requester(of=Verification) as (port, _), pytest.raises(NoAssociationError, match=r"^no connection$"):
        report(port)
    with pytest.raises(NoAssociationError, match=r"^no connection$"):
        report(free_port())
    with requester() as (port, _), pytest.raises(NoAssociationError, match=r"^association rejected$"):
        report_commitment(
            Destination(ae_title="OTHER", host=HOST, port=port), "2.25.7", KEPT, [], calling_ae_title=NODE
        )


def test_a_host_without_address_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(NoAssociationError, match=r"^no connection: Name or service not known$"):
        report_commitment(
            Destination(ae_title="PACS", host="pacs.example", port=104), "2.25.7", KEPT, [], calling_ae_title=NODE
        )


# -- how long it waits


def test_it_waits_half_a_minute_for_an_answer_and_ten_seconds_for_a_connection() -> None:
    assert (commit_report._TIMEOUT_S, CONNECT_TIMEOUT_S) == (30.0, 10.0)


@pytest.mark.parametrize("stage", ["connection", "association", "answer"])
def test_a_peer_that_says_nothing_holds_it_up_no_longer(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """Long before pynetdicom's own half minute is over, or the system's two."""
    monkeypatch.setattr(requestor, "_GRACE_S", 60.0)
    monkeypatch.setattr(commit_report, "_TIMEOUT_S", 0.2)
    monkeypatch.setattr(commit_report, "CONNECT_TIMEOUT_S", 0.2)
    over = threading.Event()
    began = time.monotonic()
    with ExitStack() as stack:
        if stage == "answer":
            port, _ = stack.enter_context(requester(lambda _: over.wait(60) and 0))
        else:
            port = stack.enter_context(silent_port(connects=stage == "association"))
        with pytest.raises(SendError, match="no answer to N-EVENT-REPORT" if stage == "answer" else "no connection"):
            report(port)
        over.set()
    assert time.monotonic() - began < 20
