"""DIMSE messages on the wire: fragments (PS3.8 annex E) and command sets (PS3.7 section 6.3, annex E).

A command set is a dozen elements of three kinds in one fixed encoding. Decoding them here, strictly, makes what a peer
sends either a `Command` or `Malformed`; a general parser would hand out what it made of damaged bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from cxrnode.dicom import status as codes
from cxrnode.dicom.sockets import INVALID_PARAMETER, Malformed, pdu

P_DATA_TF = 0x04
COMMAND_BYTES_MAX = 1 << 16

# Command Field (PS3.7 section E.1)
C_STORE_RQ = 0x0001
C_ECHO_RQ = 0x0030
N_EVENT_REPORT_RQ = 0x0100
N_ACTION_RQ = 0x0130
C_CANCEL_RQ = 0x0FFF
_RESPONSE = 0x8000
_NO_DATA_SET = 0x0101

_AFFECTED_CLASS, _REQUESTED_CLASS = 0x0002, 0x0003
_COMMAND_FIELD, _MESSAGE_ID, _RESPONDED_TO = 0x0100, 0x0110, 0x0120
_DATA_SET_TYPE, _STATUS, _ERROR_COMMENT = 0x0800, 0x0900, 0x0902
_AFFECTED_INSTANCE, _REQUESTED_INSTANCE = 0x1000, 0x1001
_EVENT_TYPE, _ACTION_TYPE = 0x1002, 0x1008

_PDV_HEAD = struct.Struct(">LBB")
_ELEMENT_HEAD = struct.Struct("<HHL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A request. UIDs as sent, without padding, not validated; empty where absent. Numbers 0 where absent."""

    field: int
    message_id: int
    has_data_set: bool
    sop_class_uid: str  # Affected or Requested, whichever the operation has
    sop_instance_uid: str
    type_id: int  # Event Type ID or Action Type ID

    @property
    def expects_response(self) -> bool:
        return self.field != C_CANCEL_RQ


def fragments(content: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """(presentation context ID, message control header, bytes) of each PDV of a P-DATA-TF PDU. Raises Malformed."""
    at, end = 0, len(content)
    while at < end:
        if at + _PDV_HEAD.size > end:
            raise Malformed(INVALID_PARAMETER, "a PDV item without content")
        length, context_id, control = _PDV_HEAD.unpack_from(content, at)
        after = at + 4 + length
        if length < 2 or after > end:
            raise Malformed(INVALID_PARAMETER, "a PDV item of impossible length")
        yield context_id, control, content[at + _PDV_HEAD.size : after]
        at = after


def decode_command(raw: bytes) -> Command:
    """Raises Malformed for what is no command set, or no request."""
    elements = dict(_elements(raw))
    field = _number(elements, _COMMAND_FIELD)
    if field is None or field & _RESPONSE:
        raise Malformed(INVALID_PARAMETER, "a command set that is no request")
    return Command(
        field=field,
        message_id=_number(elements, _MESSAGE_ID) or 0,
        has_data_set=_number(elements, _DATA_SET_TYPE) != _NO_DATA_SET,
        sop_class_uid=_uid(elements, _AFFECTED_CLASS, _REQUESTED_CLASS),
        sop_instance_uid=_uid(elements, _AFFECTED_INSTANCE, _REQUESTED_INSTANCE),
        type_id=_number(elements, _EVENT_TYPE) or _number(elements, _ACTION_TYPE) or 0,
    )


def encode_response(command: Command, status: int, context_id: int, max_length: int) -> bytes:
    """The P-DATA-TF PDUs of the response to `command`, none longer than the peer's `max_length` (0: any).

    Every fragment is of even length (PS3.8 section E.1), whatever the peer announces.
    """
    raw = _response(command, status)
    size = max(even(max_length - _PDV_HEAD.size), 2) if max_length else len(raw)
    out = b""
    for at in range(0, len(raw), size):
        part = raw[at : at + size]
        control = 0b11 if at + size >= len(raw) else 0b01
        out += pdu(P_DATA_TF, _PDV_HEAD.pack(len(part) + 2, context_id, control) + part)
    return out


def even(length: int) -> int:
    return length - length % 2


def _response(command: Command, status: int) -> bytes:
    body = b"".join([
        _element(_AFFECTED_CLASS, _padded(command.sop_class_uid, b"\0")),
        _element(_COMMAND_FIELD, struct.pack("<H", command.field | _RESPONSE)),
        _element(_RESPONDED_TO, struct.pack("<H", command.message_id)),
        _element(_DATA_SET_TYPE, struct.pack("<H", _NO_DATA_SET)),
        _element(_STATUS, struct.pack("<H", status)),
        _element(_ERROR_COMMENT, _padded(codes.comment(status), b" ")),
        _element(_AFFECTED_INSTANCE, _padded(command.sop_instance_uid, b"\0")),
        _element(_EVENT_TYPE, _type_of(command, N_EVENT_REPORT_RQ)),
        _element(_ACTION_TYPE, _type_of(command, N_ACTION_RQ)),
    ])  # fmt: skip
    return _element(0x0000, struct.pack("<L", len(body))) + body


def _type_of(command: Command, field: int) -> bytes:
    return struct.pack("<H", command.type_id) if command.field == field and command.type_id else b""


def _element(number: int, value: bytes) -> bytes:
    """Implicit VR little endian, group 0000; an element without value is left out."""
    return _ELEMENT_HEAD.pack(0x0000, number, len(value)) + value if value else b""


def _padded(text: str, pad: bytes) -> bytes:
    raw = text.encode("ascii")
    return raw + pad * (len(raw) % 2)


def _elements(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at, end = 0, len(raw)
    while at < end:
        if at + _ELEMENT_HEAD.size > end:
            raise Malformed(INVALID_PARAMETER, "a command set that ends inside an element")
        group, number, length = _ELEMENT_HEAD.unpack_from(raw, at)
        at += _ELEMENT_HEAD.size
        if group != 0x0000 or at + length > end:
            raise Malformed(INVALID_PARAMETER, "no command set")
        yield number, raw[at : at + length]
        at += length


def _number(elements: dict[int, bytes], number: int) -> int | None:
    value = elements.get(number)
    return int.from_bytes(value, "little") if value is not None and len(value) == 2 else None


def _uid(elements: dict[int, bytes], *numbers: int) -> str:
    """Text that is no short ASCII is no UID either: empty."""
    value = next((elements[n] for n in numbers if n in elements), b"").rstrip(b"\0 ")
    return value.decode("ascii") if len(value) <= 64 and value.isascii() else ""
