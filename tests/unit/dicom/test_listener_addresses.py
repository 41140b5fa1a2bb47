"""An AE title that is allowed, from an address that is not: a NAT, or a second network card, shows as just that."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.uid import ComputedRadiographyImageStorage
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from cxrnode import doctor, metrics
from cxrnode.dicom.scp import Handlers, Listener, ListenerOptions, start_listener
from cxrnode.intake_ledger import Seen
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.types import Peer
from tests.support.awaiting import await_true
from tests.support.receiving import associate_rq, associated

IMPLICIT = "1.2.840.10008.1.2"
WHY = "calling AE title allowed from another address"
FAR = "192.0.2.7, 192.0.2.8"


@pytest.fixture
def told() -> list[tuple[Peer, str]]:
    return []


@pytest.fixture
def listener(tmp_path: Path, told: list[tuple[Peer, str]]) -> Iterator[Listener]:
    options = ListenerOptions(
        ae_title="CXRNODE", bind="127.0.0.1", port=0, incoming=tmp_path,
        allow=(("PACS", "192.0.2.7"), ("PACS", "192.0.2.8"), ("CT1", "127.0.0.1")),
        commitment_peers=(("ARCHIVE", "192.0.2.9"),),
    )  # fmt: skip
    handlers = Handlers(
        store=lambda _: 0, has_room=lambda: True, commit_requested=lambda _: 0, commit_reported=lambda _: 0,
        association=lambda peer, why: told.append((peer, why)), echo_only=lambda peer, why: told.append((peer, why)),
    )  # fmt: skip
    with start_listener(options, handlers) as running:
        yield running


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    found = {"wrong_address": 0}
    monkeypatch.setattr(metrics, "wrong_address", lambda: found.update(wrong_address=found["wrong_address"] + 1))
    return found


def test_a_rejection_says_which_addresses_are_allowed_and_which_was_seen(
    listener: Listener, told: list[tuple[Peer, str]], counted: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    with associated(listener.port, ComputedRadiographyImageStorage, calling="PACS") as assoc:
        assert assoc.is_rejected
    assert told == [
        (Peer(calling_aet="PACS", called_aet="CXRNODE", host="127.0.0.1"), f"{WHY}: {FAR}, and this is 127.0.0.1")
    ]
    await_true(lambda: f"{WHY} ([receive] allow has it from {FAR}, and this is 127.0.0.1" in caplog.text)
    assert counted == {"wrong_address": 1}


def test_one_that_may_echo_is_told_of_too_and_a_stranger_is_not(
    listener: Listener, told: list[tuple[Peer, str]], counted: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    for calling in ("STRANGER", "CT1", "PACS"):
        with associated(listener.port, Verification, calling=calling) as assoc:
            assert assoc.is_established
    assert [(peer.calling_aet, why) for peer, why in told] == [
        ("STRANGER", ""), ("CT1", ""), ("PACS", f"{WHY}: {FAR}, and this is 127.0.0.1"),
    ]  # fmt: skip
    await_true(lambda: f"[receive] allow has it from {FAR}, and this is 127.0.0.1" in caplog.text)
    assert "STRANGER" not in caplog.text
    assert counted == {"wrong_address": 1}


def test_a_destination_that_reports_from_another_address_is_told_of(
    listener: Listener, told: list[tuple[Peer, str]], caplog: pytest.LogCaptureFixture
) -> None:
    with associated(listener.port, StorageCommitmentPushModel, calling="ARCHIVE") as assoc:
        assert assoc.is_rejected
    assert told[0][1] == f"{WHY}: 192.0.2.9, and this is 127.0.0.1"
    await_true(lambda: "[[destination]] has it at 192.0.2.9, and this is 127.0.0.1" in caplog.text)


def test_the_peer_hears_what_every_stranger_hears(listener: Listener) -> None:
    def answer(calling: str) -> bytes:
        with socket.create_connection(("127.0.0.1", listener.port), 5) as raw:
            raw.sendall(associate_rq((1, str(ComputedRadiographyImageStorage), IMPLICIT), calling=calling))
            return raw.recv(100)

    assert answer("PACS") == answer("STRANGER") == answer("ARCHIVE") == bytes([3, 0, 0, 0, 0, 4, 0, 1, 1, 3])


def test_the_ledger_has_the_address_of_one_that_only_echoes(tmp_path: Path) -> None:
    database = Database(tmp_path / "store.sqlite")
    seen = Seen(database, actor="intake")
    peer = Peer(calling_aet="PACS", called_aet="CXRNODE", host="10.9.9.9")
    seen.echo_only(peer, f"{WHY}: 10.0.0.5, and this is 10.9.9.9")
    seen.echo_only(peer, "")
    seen.flush(everything=True)
    with database.begin() as c:
        first, second = ledger.events(c)
    assert (first.kind, first.detail["why"]) == ("association_accepted", f"{WHY}: 10.0.0.5, and this is 10.9.9.9")
    assert "why" not in second.detail
    (check,) = doctor._senders(database)
    assert check.found == f"PACS, in the last day: {WHY}: 10.0.0.5, and this is 10.9.9.9"
    database.close()
