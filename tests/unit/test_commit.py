"""Answers to storage commitment requests: one that cannot be answered, or a peer that is away, holds up no other."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom.uid import ImplicitVRLittleEndian
from sqlalchemy import update

from cxrnode.commit import CommitmentAnswers
from cxrnode.dicom.commitment import PUSH_MODEL_INSTANCE
from cxrnode.dicom.negotiation import COMMITMENT
from cxrnode.errors import StoreAwayError
from cxrnode.loops import running
from cxrnode.store import ledger
from cxrnode.store.commitments import Commitments
from cxrnode.store.database import Database
from cxrnode.store.schema import commitment_request
from cxrnode.types import Destination
from tests.support.awaiting import await_true
from tests.support.orthanc import free_port
from tests.support.receiving import Node, associate_rq, command, p_data, running_node

CR = "1.2.840.10008.5.1.4.1.1.1"
HOST = "127.0.0.1"
OURS = ("CXRNODE", HOST)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "store.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Node]:
    with running_node(tmp_path / "peer", commitment_peers=(OURS,)) as peer:
        yield peer


def answering(database: Database, root: Path, peer: Node) -> CommitmentAnswers:
    there = Destination(ae_title="CXRNODE", host=HOST, port=peer.port)
    nobody = Destination(ae_title="CXRNODE", host=HOST, port=free_port())
    return CommitmentAnswers(
        database=database, commitments=Commitments("intake"), root=root, calling_ae_title="CXRNODE",
        peers={("PACS", HOST): there, ("AWAY", HOST): nobody},
    )  # fmt: skip


@contextmanager
def at_work(answers: CommitmentAnswers) -> Iterator[None]:
    stopping = threading.Event()
    with running([answers.loop()], stopping):
        try:
            yield
        finally:
            stopping.set()


def ask(database: Database, number: int, *, ae_title: str = "PACS", instances: int = 1) -> None:
    with database.begin() as c:
        asked = [(CR, f"1.2.3.{n}") for n in range(instances)]
        Commitments("intake").ask(c, f"2.25.{number}", ae_title, HOST, asked)


def kinds(database: Database) -> list[str]:
    with database.begin(shared=True) as c:
        return [e.kind for e in ledger.events(c)]


def test_a_poisoned_request_is_a_dead_letter_and_the_others_are_answered(
    database: Database, tmp_path: Path, peer: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cxrnode.commit._FIRST_WAIT_S", 0.02)
    ask(database, 1)
    with database.begin() as c:  # what it asks for cannot be read
        c.execute(update(commitment_request).values(instances=[["1.2.3"], 7]))
    for number in (2, 3):
        ask(database, number)
    with at_work(answering(database, tmp_path, peer)):
        await_true(lambda: "commitment_given_up" in kinds(database), lambda: str(kinds(database)))
        await_true(lambda: len(peer.commit_reports) == 2)
    assert {r.transaction_uid for r in peer.commit_reports} == {"2.25.2", "2.25.3"}
    with database.begin(shared=True) as c:
        assert Commitments("intake").due(c, now=1e12) is None  # nobody tries it for ever
        (given_up,) = [e for e in ledger.events(c) if e.kind == "commitment_given_up"]
    assert (given_up.detail["transaction_uid"], given_up.outcome) == ("2.25.1", "failed")
    assert given_up.detail["why"] == "ValueError"
    assert "is given up" in caplog.text


def test_a_database_that_errs_for_a_while_ends_nothing(
    database: Database, tmp_path: Path, peer: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [StoreAwayError("away"), OSError(5, "I/O error"), RuntimeError("?")]
    real = Commitments.due

    def due(*args: object, **how: object) -> object:
        if errors:
            raise errors.pop(0)
        return real(*args, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Commitments, "due", due)
    ask(database, 1)
    with at_work(answering(database, tmp_path, peer)):
        await_true(lambda: len(peer.commit_reports) == 1)
    assert not errors


def test_a_peer_that_is_away_holds_up_no_other(database: Database, tmp_path: Path, peer: Node) -> None:
    for number in range(1, 20):
        ask(database, number, ae_title="AWAY")
    ask(database, 20)
    with at_work(answering(database, tmp_path, peer)):
        await_true(lambda: len(peer.commit_reports) == 1, seconds=20.0)
    with database.begin(shared=True) as c:
        tried = c.exec_driver_sql("SELECT sum(attempts) FROM commitment_request WHERE calling_aet = 'AWAY'")
        assert tried.scalar_one() < 5  # once, and then its others wait with it
    assert "commitment_given_up" not in kinds(database)


@pytest.mark.slow
def test_a_hundred_thousand_instances(database: Database, tmp_path: Path, peer: Node) -> None:
    ask(database, 1, instances=100_000)
    with at_work(answering(database, tmp_path, peer)):
        await_true(lambda: peer.commit_reports, seconds=180.0)
    (report,) = peer.commit_reports
    assert len(report.failed) == 100_000
    assert not report.committed


def element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 8, number, len(value)) + value


def test_a_hundred_thousand_instances_are_asked_for_in_one_request(tmp_path: Path) -> None:
    asked = [(CR, f"1.2.3.{n:07d}1") for n in range(100_000)]
    items = [element(0x1150, CR.encode() + b"\0") + element(0x1155, uid.encode()) for _, uid in asked]
    sequence = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item for item in items)
    data = element(0x1195, b"2.25.1") + element(0x1199, sequence)
    uid = COMMITMENT.encode()
    n_action = command(
        {0x0003: uid, 0x0100: b"\x30\x01", 0x0110: b"\1\0", 0x0800: b"\0\0", 0x1001: PUSH_MODEL_INSTANCE.encode(),
         0x1008: b"\1\0"}
    )  # fmt: skip
    with (
        running_node(tmp_path / "node", idle_timeout_s=600.0) as node,
        socket.create_connection((HOST, node.port), 600) as raw,
    ):
        raw.sendall(associate_rq((1, COMMITMENT, ImplicitVRLittleEndian)))
        raw.recv(1 << 16)
        raw.sendall(p_data(1, 3, n_action))
        for at in range(0, len(data), 1 << 16):
            raw.sendall(p_data(1, 2 * (at + (1 << 16) >= len(data)), data[at : at + (1 << 16)]))
        answer = raw.recv(1 << 16)
    assert struct.pack("<HHLH", 0, 0x0900, 2, 0) in answer  # Status: success
    (request,) = node.commit_requests
    assert (request.transaction_uid, list(request.instances)) == ("2.25.1", asked)
