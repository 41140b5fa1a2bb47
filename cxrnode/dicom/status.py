"""DIMSE status codes that the node answers with (PS3.7 annex C, PS3.4 sections B.2.3 and J.3.2)."""

from __future__ import annotations

from cxrnode.dicom.budget import OBJECT_BYTES

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
NO_SUCH_EVENT_TYPE = 0x0113
INVALID_ARGUMENT = 0x0115
INVALID_SOP_INSTANCE = 0x0117
SOP_CLASS_NOT_SUPPORTED = 0x0122
NO_SUCH_ACTION = 0x0123
NOT_AUTHORISED = 0x0124
UNRECOGNISED_OPERATION = 0x0211
RESOURCE_LIMITATION = 0x0213
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
TOO_LARGE = 0xC002
MISSING_UID = 0xC003

# Error Comment (0000,0902), LO: at most 64 characters
_TEXT = {
    PROCESSING_FAILURE: "processing failure: see the node's log",
    NO_SUCH_EVENT_TYPE: "event types are 1 and 2 (PS3.4 J.3.3)",
    INVALID_ARGUMENT: "Transaction UID or referenced SOP sequence missing or invalid",
    INVALID_SOP_INSTANCE: "the SOP Instance UID is missing or invalid",
    SOP_CLASS_NOT_SUPPORTED: "not the SOP class of the presentation context",
    NO_SUCH_ACTION: "the only action type is 1 (PS3.4 J.3.2)",
    NOT_AUTHORISED: "this peer may not do that here: see the node's allow list",
    UNRECOGNISED_OPERATION: "not an operation of this SOP class",
    RESOURCE_LIMITATION: "the node's database is away or full: ask again later",
    OUT_OF_RESOURCES: "no room, or the node is not well: send again later",
    DOES_NOT_MATCH: "the UIDs of command and data set differ",
    CANNOT_UNDERSTAND: "the data set is empty, truncated or damaged",
    TOO_LARGE: f"above {OBJECT_BYTES // 2**20} MiB, or too many elements: no radiograph",
    MISSING_UID: "a study, series, instance or class UID is missing or invalid",
}


def comment(status: int) -> str:
    """The Error Comment that goes with a failure; empty for a status that needs none."""
    return _TEXT.get(status, "")
