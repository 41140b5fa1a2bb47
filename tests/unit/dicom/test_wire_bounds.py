"""What goes over the wire, and the small rules of the standard, at their edges."""

from __future__ import annotations

import struct
import uuid
from dataclasses import replace

import pytest
from pydicom import Dataset
from pynetdicom import dimse_messages
from pynetdicom.dimse_primitives import C_STORE

from cxrnode.dicom import budget, status
from cxrnode.dicom.commit_report import _information
from cxrnode.dicom.commitment import references
from cxrnode.dicom.dimse import (
    C_CANCEL_RQ,
    C_ECHO_RQ,
    C_STORE_RQ,
    N_ACTION_RQ,
    N_EVENT_REPORT_RQ,
    Command,
    decode_command,
    encode_response,
    even,
    fragments,
)
from cxrnode.dicom.identity import MANUFACTURER, MODEL_NAME, RESEARCH_USE, is_ae_title
from cxrnode.dicom.limits import Gate
from cxrnode.dicom.sockets import INVALID_PARAMETER, Malformed
from cxrnode.dicom.uids import IMPLEMENTATION_CLASS_UID, derive_uid, is_valid_uid

CR = "1.2.840.10008.5.1.4.1.1.1"

# -- limits that are stated elsewhere: in README, in docs, in answers to peers


def test_the_stated_limits() -> None:
    assert budget.OBJECT_BYTES == 100_663_296  # 96 MiB
    assert budget.PIXELS == 26_843_545  # a tenth of 16384 x 16384
    assert budget.DEPTH == 16
    assert (budget.HEADER.elements, budget.HEADER.kept) == (100_000, 10_000)
    assert (budget.HEADER.kept_bytes, budget.HEADER.table_bytes) == (262_144, 4_194_304)
    assert (budget.COMMITMENT.elements, budget.COMMITMENT.kept_bytes) == (600_000, 16_777_216)


def test_status_codes_are_those_of_the_standard() -> None:
    """PS3.7 annex C, PS3.4 tables B.2-1 and J.3-1."""
    assert {name: getattr(status, name) for name in dir(status) if isinstance(getattr(status, name), int)} == {
        "SUCCESS": 0x0000, "PROCESSING_FAILURE": 0x0110, "NO_SUCH_EVENT_TYPE": 0x0113, "INVALID_ARGUMENT": 0x0115,
        "INVALID_SOP_INSTANCE": 0x0117, "SOP_CLASS_NOT_SUPPORTED": 0x0122, "NO_SUCH_ACTION": 0x0123,
        "NOT_AUTHORISED": 0x0124, "UNRECOGNISED_OPERATION": 0x0211, "RESOURCE_LIMITATION": 0x0213,
        "OUT_OF_RESOURCES": 0xA700,
        "DOES_NOT_MATCH": 0xA900, "CANNOT_UNDERSTAND": 0xC000, "TOO_LARGE": 0xC002, "MISSING_UID": 0xC003,
        "OBJECT_BYTES": budget.OBJECT_BYTES,
    }  # fmt: skip
    failures = [v for name, v in vars(status).items() if isinstance(v, int) and name not in {"SUCCESS", "OBJECT_BYTES"}]
    for code in failures:
        assert 0 < len(status.comment(code)) <= 64, hex(code)  # Error Comment is LO
        assert status.comment(code).isascii()
    assert status.comment(status.SUCCESS) == ""
    assert "96 MiB" in status.comment(status.TOO_LARGE)


def test_what_each_failure_says_to_the_peer() -> None:
    said = {
        0x0110: "processing failure: see the node's log",
        0x0113: "event types are 1 and 2 (PS3.4 J.3.3)",
        0x0115: "Transaction UID or referenced SOP sequence missing or invalid",
        0x0117: "the SOP Instance UID is missing or invalid",
        0x0122: "not the SOP class of the presentation context",
        0x0123: "the only action type is 1 (PS3.4 J.3.2)",
        0x0124: "this peer may not do that here: see the node's allow list",
        0x0211: "not an operation of this SOP class",
        0x0213: "the node's database is away or full: ask again later",
        0xA700: "no room, or the node is not well: send again later",
        0xA900: "the UIDs of command and data set differ",
        0xC000: "the data set is empty, truncated or damaged",
        0xC002: "above 96 MiB, or too many elements: no radiograph",
        0xC003: "a study, series, instance or class UID is missing or invalid",
    }
    assert {code: status.comment(code) for code in said} == said
    assert status.comment(0xFFFF) == ""


# -- UIDs and AE titles


@pytest.mark.parametrize(
    ("uid", "valid"),
    [("1.2", True), ("0.0", True), ("1", False), ("", False), ("1.", False), (".1", False), ("1..2", False),
     ("1.2.", False), ("1.2a", False), ("1.2\n", False), ("1.2/../3", False), ("..", False), ("1.02", True),
     ("1.2 ", False), ("-1.2", False), ("1." + "2" * 62, True), ("1." + "2" * 63, False), (None, False),
     ("\u0661.\u0662", False)],
    ids=ascii,
)  # fmt: skip
def test_a_uid_is_digits_and_dots_and_at_most_64_characters(uid: object, valid: bool) -> None:
    assert is_valid_uid(uid) is valid


def test_a_derived_uid_is_that_of_all_its_causes_in_their_order() -> None:
    """A name-based UUID (RFC 9562, version 5) as PS3.5 B.2 writes it: the same from release to release."""
    space = uuid.uuid5(uuid.NAMESPACE_DNS, "cxrnode.results")
    assert derive_uid("1.2.3", "sr") == f"2.25.{uuid.uuid5(space, '1.2.3' + chr(0) + 'sr').int}"
    others = {
        derive_uid(*causes) for causes in (("1.2.3", "sr"), ("sr", "1.2.3"), ("1.2.3", "capture"), ("1.2.3s", "r"))
    }
    assert len(others) == 4
    assert all(is_valid_uid(uid) for uid in others)
    assert f"2.25.{uuid.uuid5(space, 'implementation').int}" == IMPLEMENTATION_CLASS_UID


@pytest.mark.parametrize(
    ("title", "valid"),
    [("A", True), ("A" * 16, True), ("A" * 17, False), ("", False), ("A B", True), ("A\\B", False), ("A\tB", False),
     ("\u00c4", False)],
    ids=ascii,
)  # fmt: skip
def test_an_ae_title_has_1_to_16_printable_characters(title: str, valid: bool) -> None:
    assert is_ae_title(title) is valid


# -- command sets


def request(field: int = C_STORE_RQ, *, type_id: int = 0, uid: str = "1.2.3") -> Command:
    return Command(
        field=field, message_id=7, has_data_set=True, sop_class_uid=CR, sop_instance_uid=uid, type_id=type_id
    )


def element(number: int, value: bytes, group: int = 0) -> bytes:
    return struct.pack("<HHL", group, number, len(value)) + value


def test_a_command_that_pynetdicom_encodes_is_read_as_it_is_meant() -> None:
    primitive = C_STORE()
    primitive.MessageID, primitive.Priority = 7, 2
    primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = CR, "1.2.3"
    message = dimse_messages.C_STORE_RQ()
    message.primitive_to_message(primitive)
    raw = b"".join(
        pdv[1:] for p in message.encode_msg(1, 16384) for _, pdv in p.presentation_data_value_list if pdv[0] & 1
    )
    assert decode_command(raw) == replace(request(), has_data_set=False)  # none was given to pynetdicom
    assert decode_command(raw).expects_response


@pytest.mark.parametrize(
    ("raw", "what"),
    [(b"", "no request"), (element(0x0100, b"\x01\x80"), "no request"), (element(0x0100, b"\x01"), "no request"),
     (element(0x0100, b"\x01\x00", group=8), "no command set"), (element(0x0100, b"\x01\x00")[:-1], "no command set"),
     (element(0x0100, b"\x01\x00") + bytes(7), "inside an element")],
)  # fmt: skip
def test_what_is_no_command_set_is_said(raw: bytes, what: str) -> None:
    with pytest.raises(Malformed, match=what) as caught:
        decode_command(raw)
    assert caught.value.reason == INVALID_PARAMETER == 6


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (b"1.2.3\0", "1.2.3"),
        (b"1.2.3 ", "1.2.3"),
        (b"1" * 64, "1" * 64),
        (b"1" * 65, ""),
        (b"\xe4", ""),
        (b"1.2X", "1.2X"),
    ],
)
def test_a_uid_of_a_command_is_text_of_at_most_64_characters(value: bytes, read: str) -> None:
    raw = element(0x0100, b"\x01\x00") + element(0x0800, b"\x01\x01") + element(0x0002, value)
    command = decode_command(raw)
    assert (command.sop_class_uid, command.has_data_set, command.message_id) == (read, False, 0)
    requested = decode_command(element(0x0100, b"\x30\x01") + element(0x0003, value) + element(0x1001, value))
    assert (requested.sop_class_uid, requested.sop_instance_uid) == (read, read)


def test_a_command_set_may_end_with_an_element_that_is_empty() -> None:
    raw = element(0x0100, b"\x01\x00") + element(0x1000, b"")
    assert decode_command(raw).sop_instance_uid == ""


@pytest.mark.parametrize(("number", "type_id"), [(0x1002, 2), (0x1008, 1)])
def test_the_type_is_that_of_the_event_or_of_the_action(number: int, type_id: int) -> None:
    raw = element(0x0100, b"\x30\x01") + element(number, struct.pack("<H", type_id))
    assert decode_command(raw).type_id == type_id


def test_a_cancel_gets_no_response() -> None:
    assert not request(C_CANCEL_RQ).expects_response
    assert request(C_ECHO_RQ).expects_response


def answered(command: Command, code: int, max_length: int = 0) -> dict[int, bytes]:
    """The response's elements, of all its fragments."""
    raw = b"".join(bytes(part) for _, _, part in pdvs(encode_response(command, code, 5, max_length)))
    found, at = {}, 0
    while at < len(raw):
        group, number, length = struct.unpack_from("<HHL", raw, at)
        assert group == 0
        assert length % 2 == 0
        found[number] = raw[at + 8 : at + 8 + length]
        at += 8 + length
    assert struct.unpack("<L", found.pop(0)) == (len(raw) - 12,)  # Command Group Length
    return found


def pdvs(out: bytes) -> list[tuple[int, int, bytes]]:
    found, at = [], 0
    while at < len(out):
        kind, reserved, length = struct.unpack_from(">BBL", out, at)
        assert (kind, reserved) == (4, 0)
        found += [
            (i, control, bytes(part)) for i, control, part in fragments(memoryview(out[at + 6 : at + 6 + length]))
        ]
        at += 6 + length
    return found


def test_a_response_says_what_the_standard_wants() -> None:
    """PS3.7 tables 9.3-2 and 10.3-1 and 10.3-8."""
    assert answered(request(uid="1.2.34"), 0x0000) == {
        0x0002: CR.encode() + b"\0", 0x0100: b"\x01\x80", 0x0120: b"\x07\x00", 0x0800: b"\x01\x01", 0x0900: b"\0\0",
        0x1000: b"1.2.34",
    }  # fmt: skip
    for code in (0xA700, 0xA900, 0xC000):  # of odd and of even length
        full, said = answered(request(), code), status.comment(code)
        assert full[0x0900] == struct.pack("<H", code)
        assert full[0x0902].decode() == said + " " * (len(said) % 2)
    action = answered(request(N_ACTION_RQ, type_id=1), 0)
    event = answered(request(N_EVENT_REPORT_RQ, type_id=2), 0)
    assert (action[0x0100], action[0x1008], event[0x0100], event[0x1002]) == (b"\x30\x81", b"\1\0", b"\0\x81", b"\2\0")
    assert 0x1002 not in action
    assert 0x1008 not in event


@pytest.mark.parametrize("most", [7, 8, 9, 13, 64, 0])
def test_fragments_are_even_and_no_longer_than_announced_and_the_last_says_so(most: int) -> None:
    parts = pdvs(encode_response(request(), 0, 5, most))
    assert {context for context, _, _ in parts} == {5}
    assert [control for _, control, _ in parts] == [1] * (len(parts) - 1) + [3]
    assert all(len(part) % 2 == 0 and (not most or len(part) + 6 <= max(most, 8)) for _, _, part in parts)
    assert len(parts) == 1 or all(len(part) == max(even(most - 6), 2) for _, _, part in parts[:-1])
    assert answered(request(), 0, most) == answered(request(), 0)


@pytest.mark.parametrize(("length", "expected"), [(0, 0), (1, 0), (2, 2), (16383, 16382)])
def test_even(length: int, expected: int) -> None:
    assert even(length) == expected


@pytest.mark.parametrize(
    ("content", "what"),
    [(bytes(5), "without content"), (struct.pack(">LBB", 1, 1, 3), "impossible length"),
     (struct.pack(">LBB", 3, 1, 3), "impossible length")],
)  # fmt: skip
def test_a_pdv_that_lies_is_malformed(content: bytes, what: str) -> None:
    with pytest.raises(Malformed, match=what) as caught:
        list(fragments(memoryview(content)))
    assert caught.value.reason == INVALID_PARAMETER


def test_a_pdv_may_be_empty_and_another_may_follow() -> None:
    content = struct.pack(">LBB", 2, 1, 3) + struct.pack(">LBB", 3, 9, 0) + b"x"
    assert [(i, c, bytes(p)) for i, c, p in fragments(memoryview(content))] == [(1, 3, b""), (9, 0, b"x")]


# -- how many connections


class Connection:
    def __init__(self, host: str) -> None:
        self.host = host
        self.ended = False

    def force_down(self) -> None:
        self.ended = True


def test_the_oldest_silent_connection_makes_room_for_one_more_than_the_limit() -> None:
    gate = Gate(most=3, most_per_host=2)
    of_a = [Connection("a") for _ in range(3)]
    for c in of_a[:2]:
        gate.enter(c)
    assert not any(c.ended for c in of_a)
    gate.enter(of_a[2])
    assert [c.ended for c in of_a] == [True, False, False]
    b, d = Connection("b"), Connection("d")
    gate.enter(b)
    assert not of_a[1].ended
    gate.enter(d)
    assert [c.ended for c in (of_a[1], of_a[2], b, d)] == [True, False, False, False]


def test_associations_are_counted_in_all_and_for_each_host() -> None:
    gate = Gate(most=3, most_per_host=2)
    a, b = [Connection("a") for _ in range(3)], [Connection("b") for _ in range(2)]
    assert [gate.establish(c) for c in a] == [True, True, False]
    assert [gate.establish(c) for c in b] == [True, False]
    gate.leave(a[0])
    assert gate.establish(b[1])
    assert not gate.establish(a[2])


def test_an_association_makes_room_for_nobody() -> None:
    gate = Gate(most=2, most_per_host=2)
    first = Connection("a")
    gate.enter(first)
    assert gate.establish(first)
    silent = [Connection("a") for _ in range(2)]
    for c in silent:
        gate.enter(c)
    assert not first.ended
    assert not any(c.ended for c in silent)
    gate.leave(silent[0])
    gate.enter(Connection("a"))
    assert not any(c.ended for c in silent)


# -- storage commitment: the report (PS3.4 tables J.3-1 and J.3-2)


def test_a_report_lists_what_is_kept_and_what_is_not_with_its_reason() -> None:
    ds = _information("2.25.7", [(CR, "1.2.1")], [((CR, "1.2.2"), 0x0112), ((CR, "1.2.3"), 0x0110)])
    assert ds.TransactionUID == "2.25.7"
    assert [(i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID) for i in ds.ReferencedSOPSequence] == [(CR, "1.2.1")]
    failed = [(i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID, i.FailureReason) for i in ds.FailedSOPSequence]
    assert failed == [(CR, "1.2.2", 0x0112), (CR, "1.2.3", 0x0110)]
    assert "ReferencedSOPSequence" not in _information("2.25.7", [], [((CR, "1.2.2"), 0x0112)])
    assert "FailedSOPSequence" not in _information("2.25.7", [(CR, "1.2.1")], [])
    assert [type(i) for i in references([(CR, "1.2")])] == [Dataset]


def test_the_loop_guard_knows_the_results_of_every_version() -> None:
    """Results of years ago come back from an archive: the name that they carry never changes."""
    assert (MANUFACTURER, MODEL_NAME) == ("cxrnode", "cxrnode chest radiograph analysis")
    assert RESEARCH_USE == "Research use only. Not for diagnostic use."
