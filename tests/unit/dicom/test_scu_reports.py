"""Commitment reports on the association that asked, from a peer of bytes: each is recorded, then answered."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom.dsutils import encode

from cxrnode.dicom import scu
from cxrnode.dicom.commitment import references
from cxrnode.dicom.scu import StoreScu
from tests.support.answering import PUSH, SC, accepting
from tests.support.awaiting import await_true
from tests.support.receiving import command, p_data

WELL_KNOWN = b"1.2.840.10008.1.20.1.1"
DATA, RELEASE_RQ, ABORT = 4, 5, 7
CONTEXT = 11  # of commitment, which is proposed last: after Verification and two classes in two syntaxes


def information() -> bytes:
    ds = Dataset()
    ds.TransactionUID = UID("2.25.7")
    ds.ReferencedSOPSequence = references([(SC, "1.2.3")])
    return encode(ds, is_implicit_vr=False, is_little_endian=True) or b""


def report(context: int = CONTEXT, data: bytes | None = None, **changed: bytes) -> bytes:
    elements = {
        "0002": PUSH.encode(), "0100": b"\x00\x01", "0110": b"\x07\0", "0800": b"\0\0",
        "1000": WELL_KNOWN, "1002": b"\1\0", **{name[1:]: value for name, value in changed.items()},
    }  # fmt: skip
    rq = command({int(number, 16): value for number, value in elements.items() if value})
    return p_data(context, 3, rq) + p_data(context, 2, information() if data is None else data)


class Reporting:
    """Sends what it has to say, and hears the rest until the connection is over; no release is answered."""

    def __init__(self, *sent: bytes, later: list[bytes] | None = None) -> None:
        """later: each after an answer."""
        self._sent, self._later = sent, later or []
        self.heard: list[bytes] = []
        self.go = threading.Event()
        self._raw = b""

    def __call__(self, raw: socket.socket) -> None:
        raw.settimeout(60)
        self.go.wait(60)  # pynetdicom takes nothing before it has noted what was accepted
        raw.sendall(b"".join(self._sent))
        with suppress(OSError):
            while part := raw.recv(1 << 16):
                self._take(part, raw)

    def _take(self, part: bytes, raw: socket.socket) -> None:
        self._raw += part
        while len(self._raw) >= 6 and len(self._raw) >= (end := 6 + int.from_bytes(self._raw[2:6], "big")):
            self.heard.append(self._raw[:end])
            if self._raw[0] == RELEASE_RQ:
                raw.sendall(b"\6\0\0\0\0\4\0\0\0\0")
            if self._raw[0] == DATA and self._later:
                raw.sendall(self._later.pop())
            self._raw = self._raw[end:]

    @property
    def kinds(self) -> list[int]:
        return [pdu[0] for pdu in self.heard]

    @property
    def statuses(self) -> list[int]:
        mark = struct.pack("<HHL", 0, 0x0900, 2)
        found = [pdu[at + 8 : at + 10] for pdu in self.heard if (at := pdu.find(mark)) >= 0]
        return [int.from_bytes(two, "little") for two in found]


@contextmanager
def asked(peer: Reporting, on_report: Callable[[Any], int] | None) -> Iterator[StoreScu]:
    with accepting(peer, commitment=True) as there:
        sender = StoreScu(there, on_report=on_report).open()
        peer.go.set()
        try:
            yield sender
        finally:
            sender.close()


def test_a_report_is_recorded_and_answered_with_its_numbers() -> None:
    got: list[Any] = []
    peer = Reporting(report())
    with asked(peer, lambda said: got.append(said) or 0) as sender:  # type: ignore[func-returns-value]
        assert sender.await_report(30.0)
        await_true(lambda: peer.heard)
    (said,) = got
    assert (said.transaction_uid, said.committed, said.failed) == ("2.25.7", ((SC, "1.2.3"),), ())
    answer = peer.heard[0]
    for number, value in (
        (0x0002, PUSH.encode()), (0x0100, b"\x00\x81"), (0x0120, b"\x07\0"), (0x0800, b"\1\1"), (0x0900, b"\0\0"),
        (0x1000, WELL_KNOWN), (0x1002, b"\1\0"),
    ):  # fmt: skip
        assert struct.pack("<HHL", 0, number, len(value)) + value in answer, hex(number)
    assert answer[10] == CONTEXT
    assert peer.kinds == [DATA, RELEASE_RQ]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (report(_1002=b""), 0x0113), (report(_1002=b"\3\0"), 0x0113), (report(_1000=b"1.2.3\0"), 0x0117),
        (report(_0002=SC.encode() + b"\0"), 0x0211), (report(99), 0x0211), (report(data=b""), 0x0115),
    ],
    ids=["no-type", "other-type", "other-instance", "other-class", "no-context", "nothing"],
)  # fmt: skip
def test_what_is_no_report_is_refused_and_wakes_nobody(sent: bytes, status: int) -> None:
    got: list[Any] = []
    peer = Reporting(sent)
    with asked(peer, lambda said: got.append(said) or 0) as sender:  # type: ignore[func-returns-value]
        await_true(lambda: peer.statuses, seconds=30)
        assert not sender.await_report(0)
    assert (peer.statuses, got) == ([status], [])


def test_an_error_of_ours_is_answered_as_such_and_said(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_report: Any) -> int:
        raise KeyError("Phantom^Chest")

    peer = Reporting(report())
    with asked(peer, fail) as sender:
        await_true(lambda: peer.statuses, seconds=30)
        assert not sender.await_report(0)
    assert peer.statuses == [0x0110]
    (line,) = [r.getMessage() for r in caplog.records if r.name == "cxrnode.dicom.scu"]
    assert "a storage commitment report: " in line


def test_who_takes_no_reports_proposes_no_commitment() -> None:
    peer = Reporting()
    with asked(peer, None) as sender:
        answer = sender.request_commitment("2.25.7", [(SC, "1.2.3")])
    assert (answer.status, answer.text) == (None, "storage commitment is not accepted by this destination")


def test_closing_waits_for_the_answer_to_a_report_that_is_being_recorded() -> None:
    began, go_on = threading.Event(), threading.Event()

    def record(_report: Any) -> int:
        began.set()
        assert go_on.wait(30)
        return 0

    peer = Reporting(report())
    with asked(peer, record) as sender:
        assert began.wait(30)
        closer = threading.Thread(target=sender.close)
        closer.start()
        time.sleep(0.2)
        assert peer.heard == []
        go_on.set()
        closer.join()
    assert peer.kinds == [DATA, RELEASE_RQ]
    assert peer.statuses == [0]


def test_closing_does_not_wait_for_ever_for_a_report_to_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded after all has no answer any more; its peer may repeat it."""
    assert scu._RECORD_S == 30.0
    monkeypatch.setattr(scu, "_RECORD_S", 0.1)
    began, go_on, recorded = threading.Event(), threading.Event(), threading.Event()

    def record(_report: Any) -> int:
        began.set()
        go_on.wait(30)
        recorded.set()
        return 0

    peer = Reporting(report())
    with asked(peer, record) as sender:
        assert began.wait(30)
        since = time.monotonic()
        sender.close()
        assert time.monotonic() - since < 20
        go_on.set()
        assert recorded.wait(30)
    assert peer.kinds == [ABORT]


@pytest.mark.parametrize(("reports", "kinds"), [(16, [DATA] * 16 + [RELEASE_RQ]), (17, [ABORT])])
def test_there_are_no_more_reports_at_a_time_than_16(reports: int, kinds: list[int]) -> None:
    go_on = threading.Event()

    def record(_report: Any) -> int:
        go_on.wait(30)
        return 0

    peer = Reporting(*[report()] * reports)
    with asked(peer, record) as sender:
        if reports > 16:
            await_true(lambda: not sender.is_open, seconds=30)
        else:
            await_true(lambda: sender._reports._value == 0, seconds=30)
        go_on.set()
        await_true(lambda: len(peer.heard) >= len(kinds) - 1, seconds=30)
    assert peer.kinds == kinds


def test_one_after_the_other_there_may_be_any_number() -> None:
    peer = Reporting(report(), later=[report()] * 19)
    with asked(peer, lambda _: 0):
        await_true(lambda: len(peer.statuses) == 20, lambda: str(peer.kinds), seconds=30)
    assert set(peer.statuses) == {0}
