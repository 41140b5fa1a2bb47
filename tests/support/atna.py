"""Whether an element is an AuditMessage of the schema (PS3.15 section A.5.1.1): what, how often, in what order."""

from __future__ import annotations

import base64
import re
from datetime import datetime
from xml.etree.ElementTree import Element

TOKEN, TEXT = r"\S(?: ?\S)*", r"[^\x00]*"
_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"
_CODE = {"csd-code": TOKEN, "codeSystemName": TOKEN, "originalText": TOKEN, "displayName?": TOKEN}
_BASE64 = "[A-Za-z0-9+/]*={0,2}"

# element: its attributes (? where it may be absent) with their values; its children in their order
_SCHEMA: dict[str, tuple[dict[str, str], str]] = {
    "AuditMessage": (
        {},
        "EventIdentification ActiveParticipant+ AuditSourceIdentification ParticipantObjectIdentification*",
    ),
    "EventIdentification": (
        {"EventActionCode?": "[CRUDE]", "EventDateTime": _TIME, "EventOutcomeIndicator": "0|4|8|12"},
        "EventID EventTypeCode* EventOutcomeDescription?",
    ),
    "ActiveParticipant": (
        {"UserID": TEXT, "AlternativeUserID?": TEXT, "UserName?": TEXT, "UserIsRequestor": "true|false",
         "NetworkAccessPointID?": TOKEN, "NetworkAccessPointTypeCode?": "[1-5]"},
        "RoleIDCode* MediaIdentifier?",
    ),
    "MediaIdentifier": ({}, "MediaType"),
    "AuditSourceIdentification": ({"AuditEnterpriseSiteID?": TOKEN, "AuditSourceID": TOKEN}, "AuditSourceTypeCode*"),
    "AuditSourceTypeCode": ({"csd-code": "[1-9]"}, ""),
    "ParticipantObjectIdentification": (
        {"ParticipantObjectID": TOKEN, "ParticipantObjectTypeCode?": "[1-4]",
         "ParticipantObjectTypeCodeRole?": "[1-9]|1[0-9]|2[0-6]", "ParticipantObjectDataLifeCycle?": "[1-9]|1[0-5]",
         "ParticipantObjectSensitivity?": TOKEN},
        "ParticipantObjectIDTypeCode (ParticipantObjectName|ParticipantObjectQuery) ParticipantObjectDetail* "
        "ParticipantObjectDescription*",
    ),
    "ParticipantObjectName": ({}, ""),
    "ParticipantObjectDetail": ({"type": TOKEN, "value": _BASE64}, ""),
    "ParticipantObjectDescription": (
        {}, "MPPS* Accession* SOPClass* ParticipantObjectContainsStudy? Encrypted? Anonymized?"
    ),
    "Accession": ({"Number": TOKEN}, ""),
    "SOPClass": ({"UID?": TOKEN, "NumberOfInstances": r"\d+"}, "Instance*"),
    "Instance": ({"UID": TOKEN}, ""),
    "EventOutcomeDescription": ({}, ""),
    **dict.fromkeys(
        ("EventID", "EventTypeCode", "RoleIDCode", "MediaType", "ParticipantObjectIDTypeCode"), (_CODE, "")
    ),
}  # fmt: skip
_WITH_TEXT = {"EventOutcomeDescription", "ParticipantObjectName"}


def check_message(root: Element) -> None:
    """Asserts that it is one."""
    assert root.tag == "AuditMessage"
    for element in root.iter():
        attributes, children = _SCHEMA[element.tag]
        _check_attributes(element, attributes)
        order = re.sub(r"(\w+)", r"(?:\1,)", children).replace(" ", "")
        found = "".join(f"{child.tag}," for child in element)
        assert re.fullmatch(order, found), (element.tag, found)
        assert element.tag in _WITH_TEXT or not (element.text or "").strip()
    datetime.fromisoformat(root[0].attrib["EventDateTime"])
    for detail in root.iter("ParticipantObjectDetail"):
        base64.b64decode(detail.attrib["value"], validate=True)


def _check_attributes(element: Element, known: dict[str, str]) -> None:
    values = {name.rstrip("?"): value for name, value in known.items()}
    assert set(element.attrib) <= set(values), element.attrib
    assert {name for name in known if not name.endswith("?")} <= set(element.attrib), (element.tag, element.attrib)
    for name, value in element.attrib.items():
        # a token's white space is collapsed before it is looked at (XML Schema part 2, section 4.3.6)
        read = " ".join(value.split()) if values[name] == TOKEN else value
        assert re.fullmatch(values[name], read, re.DOTALL), (element.tag, name, value)


# --- reading them -----------------------------------------------------------------------------------------------------


def event_id(root: Element) -> tuple[str, str]:
    """(code, coding scheme)."""
    code = root.find("EventIdentification/EventID")
    assert code is not None
    return code.attrib["csd-code"], code.attrib["codeSystemName"]


def roles(root: Element) -> dict[str, Element]:
    """Role code -> who has it; each has one."""
    found: dict[str, Element] = {}
    for participant in root.iter("ActiveParticipant"):
        for role in participant.iter("RoleIDCode"):
            assert found.setdefault(role.attrib["csd-code"], participant) is participant
    return found


def objects(root: Element) -> dict[str, list[Element]]:
    """Type code of the ID -> the objects that have one."""
    found: dict[str, list[Element]] = {}
    for o in root.iter("ParticipantObjectIdentification"):
        found.setdefault(o[0].attrib["csd-code"], []).append(o)
    return found


def seq_of(root: Element) -> int:
    """Which record of the ledger it says it is."""
    return int(objects(root)["12"][0].attrib["ParticipantObjectID"].rpartition("#")[2])
