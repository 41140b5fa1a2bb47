"""What a peer says of itself, as `cxrnode doctor` asks it: a pynetdicom peer that answers as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_FIND

from cxrnode.dicom import probe as module
from cxrnode.dicom import requestor
from cxrnode.dicom.probe import FIND, RESULTS, probe
from cxrnode.dicom.requestor import SendError
from cxrnode.types import Destination
from tests.support.awaiting import await_true
from tests.support.orthanc import free_port
from tests.support.raw import silent_port
from tests.support.receiving import HOST, NODE

SR, SC = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.7"
VERIFICATION, PUSH = "1.2.840.10008.1.1", "1.2.840.10008.1.20.1"
EXPLICIT, IMPLICIT = str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)
Answers = Callable[[Any], Iterator[tuple[Any, Dataset | None]]]


@contextmanager
def peer(
    *, takes: Sequence[str] = (VERIFICATION, PUSH, FIND, SR, SC), syntaxes: Sequence[str] = (EXPLICIT, IMPLICIT),
    echo: Callable[[Any], Any] = lambda _: 0, find: Answers | None = None,
) -> Iterator[tuple[Destination, list[Any]]]:  # fmt: skip
    """Where it is, and what happened there."""
    seen: list[Any] = []
    ae = AE(ae_title="PACS")
    for sop_class in takes:
        ae.add_supported_context(sop_class, [UID(syntax) for syntax in syntaxes])

    def told(event: Any) -> Any:
        seen.append(event)
        return echo(event)

    def found(event: Any) -> Iterator[tuple[Any, Dataset | None]]:
        seen.append(event)
        assert find
        yield from find(event)

    server = ae.start_server(
        (HOST, port := free_port()), block=False,
        evt_handlers=[
            (evt.EVT_C_ECHO, told), (evt.EVT_C_FIND, found), (evt.EVT_RELEASED, seen.append),
            (evt.EVT_ACCEPTED, seen.append),
        ],
    )  # fmt: skip
    assert server is not None
    try:
        yield Destination(ae_title="PACS", host=HOST, port=port), seen
    finally:
        server.shutdown()


def error(there: Destination, ask: Callable[[Any], Any] = lambda _: None) -> str:
    with pytest.raises(SendError) as caught, probe(there, calling_ae_title=NODE) as asked:
        ask(asked)
    return str(caught.value)


def test_it_asks_for_all_that_the_node_asks_of_a_destination_and_releases() -> None:
    with peer() as (there, seen):
        with probe(there, calling_ae_title=NODE) as asked:
            assert asked.echo() == 0
        await_true(lambda: len(seen) == 3)
    accepted, _, released = seen
    assert (accepted.event, released.event) == (evt.EVT_ACCEPTED, evt.EVT_RELEASED)
    requestor = accepted.assoc.requestor
    contexts = [(str(cx.abstract_syntax), list(map(str, cx.transfer_syntax))) for cx in requestor.requested_contexts]
    for sop_class in (SR, SC):  # a context a transfer syntax: which of them it takes is to be seen
        for syntax in (EXPLICIT, IMPLICIT):
            assert (sop_class, [syntax]) in contexts
    others = {sop_class: syntaxes for sop_class, syntaxes in contexts if sop_class not in (SR, SC)}
    assert set(others) == {VERIFICATION, PUSH, "1.2.840.10008.5.1.4.1.2.2.1"}
    assert all({EXPLICIT, IMPLICIT} <= set(syntaxes) for syntaxes in others.values())
    assert len(contexts) == 7
    asked_as = requestor.primitive
    assert (asked_as.calling_ae_title.strip(), asked_as.called_ae_title.strip()) == (NODE, "PACS")
    assert RESULTS == {SR: "Comprehensive 3D SR", SC: "Secondary Capture"}


def test_what_is_accepted_is_named() -> None:
    with peer(takes=(VERIFICATION, SR), syntaxes=(IMPLICIT,)) as (there, _), probe(there, calling_ae_title=NODE) as p:
        assert p.accepted == {VERIFICATION: ["Implicit VR Little Endian"], SR: ["Implicit VR Little Endian"]}
    with peer(takes=(SR,)) as (there, _), probe(there, calling_ae_title=NODE) as p:
        assert p.accepted == {SR: ["Explicit VR Little Endian", "Implicit VR Little Endian"]}


@pytest.mark.parametrize("status", [0, 0x0110])
def test_the_status_of_an_echo_is_given_as_it_is(status: int) -> None:
    with peer(echo=lambda _: status) as (there, _), probe(there, calling_ae_title=NODE) as asked:
        assert asked.echo() == status


def test_an_echo_that_cannot_be_is_said() -> None:
    with peer(takes=(SR,)) as (there, _):
        assert error(there, lambda asked: asked.echo()) == "Verification is not accepted"
    with peer(echo=lambda event: event.assoc.abort()) as (there, _):
        assert error(there, lambda asked: asked.echo()) == "no answer to C-ECHO"


def study(patient: str) -> Dataset:
    ds = Dataset()
    ds.QueryRetrieveLevel, ds.StudyInstanceUID, ds.PatientID = "STUDY", "1.2.3", patient
    return ds


def test_a_study_is_looked_for_by_its_uid() -> None:
    asked: list[Dataset] = []

    def find(event: Any) -> Iterator[tuple[Any, Dataset | None]]:
        asked.append(event.identifier)
        yield 0xFF00, study("P1")
        yield 0xFF01, study("P2")  # with a warning: an optional key was not supported

    with peer(find=find) as (there, _), probe(there, calling_ae_title=NODE) as p:
        assert [ds.PatientID for ds in p.find_study("1.2.3")] == ["P1", "P2"]
    assert [(ds.QueryRetrieveLevel, ds.StudyInstanceUID, ds.PatientID) for ds in asked] == [("STUDY", "1.2.3", "")]


def test_a_study_that_it_does_not_have_is_none() -> None:
    with peer(find=lambda _: iter(())) as (there, _), probe(there, calling_ae_title=NODE) as asked:
        assert asked.find_study("1.2.3") == []


def full(_event: Any) -> Iterator[tuple[Any, Dataset | None]]:
    status = Dataset()
    status.Status, status.ErrorComment = 0xA700, "too many matches"
    yield status, None


def unwell(_event: Any) -> Iterator[tuple[Any, Dataset | None]]:
    yield 0xC001, None


def damaged(event: Any) -> Iterator[tuple[Any, Dataset | None]]:
    """A match that cannot be read: pynetdicom's server would not send it."""
    answer = C_FIND()
    answer.Identifier = BytesIO(b"not deflated")
    answer.MessageIDBeingRespondedTo = event.request.MessageID
    answer.AffectedSOPClassUID, answer.Status = event.request.AffectedSOPClassUID, 0xFF00
    event.assoc.dimse.send_msg(answer, event.context.context_id)
    yield from ()


@pytest.mark.parametrize(
    ("find", "said"),
    [(full, "C-FIND was answered with 0xA700 too many matches"), (unwell, "C-FIND was answered with 0xC001"),
     (damaged, "C-FIND was answered with 0xFF00"), (lambda e: e.assoc.abort(), "no answer to C-FIND")],
)  # fmt: skip
def test_a_query_that_fails_is_said(find: Answers, said: str) -> None:
    with peer(find=find, syntaxes=[DeflatedExplicitVRLittleEndian]) as (there, _):
        assert error(there, lambda asked: asked.find_study("1.2.3")) == said


def test_a_peer_that_is_not_there_or_will_not_is_said() -> None:
    port = free_port()
    assert error(Destination(ae_title="PACS", host=HOST, port=port)) == f"no connection: refused by {HOST}:{port}"
    nowhere = Destination(ae_title="PACS", host="no-such-host.invalid", port=104)
    assert error(nowhere).startswith("no connection: no-such-host.invalid: ")


def test_what_fails_inside_releases_the_association_all_the_same() -> None:
    with peer() as (there, seen):
        with pytest.raises(KeyError), probe(there, calling_ae_title=NODE):
            raise KeyError
        await_true(lambda: len(seen) == 2)
    assert seen[1].event == evt.EVT_RELEASED


def test_it_waits_ten_seconds_for_anything() -> None:
    assert module._TIMEOUT_S == 10.0


@pytest.mark.parametrize("stage", ["connection", "association", "answer"])
def test_a_peer_that_says_nothing_holds_it_up_no_longer(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """Long before pynetdicom's own half minute is over, or the system's two."""
    monkeypatch.setattr(requestor, "_GRACE_S", 60.0)
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.2)
    over = threading.Event()
    began = time.monotonic()
    with ExitStack() as stack:
        if stage == "answer":
            there, _ = stack.enter_context(peer(echo=lambda _: over.wait(60) and 0))
        else:
            port = stack.enter_context(silent_port(connects=stage == "association"))
            there = Destination(ae_title="PACS", host=HOST, port=port)
        said = error(there, lambda asked: asked.echo())
        over.set()
    assert time.monotonic() - began < 20
    assert said.startswith("no answer to C-ECHO" if stage == "answer" else "no ")
