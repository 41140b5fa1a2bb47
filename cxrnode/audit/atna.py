"""A record of the ledger as a DICOM audit message: PS3.15 section A.5, the schema of A.5.1 and the messages of A.5.3.

A record is one message, always. What the standard has no message for has its kind for an EventID, in a coding scheme of
our own; the kind is an EventTypeCode of all the others too. The last object of a message says where in the ledger the
record stands, and its hash. The ledger knows a patient's ID and not the name: where the schema wants a name, the ID
stands there too.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, tostring

from sqlalchemy import Connection, Row, select, union

from cxrnode.audit.kinds import in_words
from cxrnode.audit.story import sop_of
from cxrnode.store import ledger
from cxrnode.store.chunks import chunks
from cxrnode.store.schema import instance, result
from cxrnode.store.schema import ledger as table
from cxrnode.types import AuditEvent

SCHEME = "99CXRNODE"  # private coding schemes begin with 99 (PS3.16 section 8.2)
_LONGEST = 1024  # characters of a value that a peer, or a path, may make long: receivers take 32 KiB at least (A.6)
_PAGE = 200
_INSTANCES = 50  # UIDs listed; all are counted
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0 section 2.2
_OPERATOR = "operator:"

# PS3.16 CID 400, 401, 402, 403, 404 and 405
_DCM = {
    "110100": "Application Activity",
    "110101": "Audit Log Used",
    "110102": "Begin Transferring DICOM Instances",
    "110103": "DICOM Instances Accessed",
    "110104": "DICOM Instances Transferred",
    "110105": "DICOM Study Deleted",
    "110107": "Import",
    "110113": "Security Alert",
    "110037": "URI",
    "110120": "Application Start",
    "110121": "Application Stop",
    "110126": "Node Authentication",
    "110150": "Application",
    "110151": "Application Launcher",
    "110152": "Destination Role ID",
    "110153": "Source Role ID",
    "110155": "Source Media",
    "110180": "Study Instance UID",
    "110182": "Node ID",
}
_ACTIVITY, _LOG_USED, _BEGIN, _ACCESSED = "110100", "110101", "110102", "110103"
_TRANSFERRED, _DELETED, _IMPORT, _ALERT = "110104", "110105", "110107", "110113"
_START, _STOP, _AUTHENTICATION = "110120", "110121", "110126"
_APPLICATION, _LAUNCHER, _DESTINATION, _SOURCE, _MEDIA = "110150", "110151", "110152", "110153", "110155"
_STUDY, _NODE, _URI = "110180", "110182", "110037"
_SUCCESS, _MINOR, _SERIOUS = 0, 4, 8  # EventOutcomeIndicator; minor: it will be tried again, or was warded off


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    """What a kind of record is in the standard's words; without `event` it has none."""

    event: str = ""
    action: str = "E"
    type_code: str = ""
    outcome: int = _SUCCESS
    node: str = ""  # role of this node
    peer: str = ""  # role of the peer, which then there must be
    from_peer: bool = False  # it asked for what happened


def _activity(type_code: str, outcome: int = _SUCCESS) -> _Message:
    return _Message(event=_ACTIVITY, type_code=type_code, outcome=outcome, node=_APPLICATION)


def _accessed(action: str, outcome: int = _SUCCESS) -> _Message:
    return _Message(event=_ACCESSED, action=action, outcome=outcome)


def _received(outcome: int) -> _Message:
    return _Message(
        event=_TRANSFERRED, action="C", outcome=outcome, node=_DESTINATION, peer=_SOURCE, from_peer=True
    )  # fmt: skip


def _sent(outcome: int) -> _Message:
    return _Message(event=_TRANSFERRED, action="R", outcome=outcome, node=_SOURCE, peer=_DESTINATION)


def _authentication(outcome: int) -> _Message:
    return _Message(event=_ALERT, type_code=_AUTHENTICATION, outcome=outcome, from_peer=True)


_MESSAGES = {
    "configuration_loaded": _activity(_START),  # of the node
    "stage_started": _activity(_START),
    "stage_stopped": _activity(_STOP),
    "run_started": _activity(_START),
    "run_resumed": _activity(_START),
    "run_complete": _activity(_STOP),
    "run_interrupted": _activity(_STOP),
    "run_incomplete": _activity(_STOP, _SERIOUS),
    "run_failed": _activity(_STOP, _SERIOUS),
    "engine_failed": _Message(outcome=_SERIOUS),
    "engine_fallback": _Message(outcome=_MINOR),
    "clock_doubted": _Message(outcome=_MINOR),
    "writes_resumed": _Message(outcome=_MINOR),
    "clock_believed": _Message(),
    "anchored": _Message(event=_LOG_USED, action="R"),
    "exported": _Message(event=_LOG_USED, action="R"),
    "association_accepted": _authentication(_SUCCESS),
    "association_rejected": _authentication(_MINOR),
    "association_aborted": _authentication(_MINOR),
    "received": _received(_SUCCESS),
    "refused": _received(_SERIOUS),
    "scanned": _Message(event=_IMPORT, action="C", node=_DESTINATION),
    "claimed": _accessed("R"),
    "retried": _accessed("R"),
    "analysed": _accessed("R"),
    "duplicate": _accessed("R"),
    "not_analysed": _accessed("R", _MINOR),
    "failed": _accessed("R", _SERIOUS),
    "report_made": _accessed("C"),
    "report_failed": _accessed("C", _SERIOUS),
    "delivery_queued": _Message(event=_BEGIN, node=_SOURCE, peer=_DESTINATION),
    "delivered": _sent(_SUCCESS),
    "delivery_postponed": _sent(_MINOR),
    "delivery_failed": _sent(_SERIOUS),
    "commitment_requested": _accessed("R"),
    "commitment_postponed": _Message(outcome=_MINOR),
    "committed": _accessed("R"),
    "commitment_failed": _accessed("R", _SERIOUS),
    "commitment_report_refused": _authentication(_MINOR),
    "commitment_asked": _Message(from_peer=True),
    "commitment_answered": _Message(from_peer=True),
    "commitment_given_up": _Message(outcome=_SERIOUS, from_peer=True),
    "spool_deleted": _Message(event=_DELETED, action="D"),  # retention takes whole studies
    "result_deleted": _Message(event=_DELETED, action="D"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who reports: the node's AE title, and its machine."""

    ae_title: str
    host: str

    def record(self, seq: int) -> str:
        """The URI of a record."""
        return f"cxrnode://{quote(self.host)}/{quote(self.ae_title)}/ledger#{seq}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What other rows say of what records name: by study its patients and accession numbers, by SOP instance its SOP
    class."""

    patients: Mapping[str, Sequence[str]] = field(default_factory=dict)
    accession_numbers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sop_classes: Mapping[str, str] = field(default_factory=dict)


def known(c: Connection, events: Sequence[AuditEvent]) -> Known:
    """What the database knows beyond these records; a few queries, however many they are."""
    studies = {e.study_instance_uid for e in events if e.study_instance_uid}
    uids = {uid for e in events for uid in _instances(e)[:_INSTANCES]}
    return Known(
        patients=_told(c, studies, "patient_id"),
        accession_numbers=_told(c, studies, "accession_number"),
        sop_classes={row.sop_instance_uid: row.sop_class_uid for some in chunks(uids) for row in _classes(c, some)},
    )


def _classes(c: Connection, uids: Sequence[str]) -> Sequence[Row[Any]]:
    return c.execute(
        union(*(
            select(t.c.sop_instance_uid, t.c.sop_class_uid).where(
                t.c.sop_instance_uid.in_(uids), t.c.sop_class_uid.is_not(None)
            )
            for t in (instance, result)
        ))
    ).all()  # fmt: skip


def _told(c: Connection, studies: set[str], name: str) -> dict[str, list[str]]:
    column = table.c[name]
    query = select(table.c.study_instance_uid, column).where(
        table.c.study_instance_uid.in_(studies), column.is_not(None)
    )
    found: dict[str, list[str]] = {}
    for uid, value in c.execute(query.distinct().order_by(column)):
        found.setdefault(uid, []).append(value)
    return found


def xml(event: AuditEvent, source: Source, known: Known, *, encoding: str = "utf-8") -> bytes:
    """The message, on one line, without an XML declaration. encoding: utf-8, or us-ascii (all else as references)."""
    encoded: bytes = tostring(message(event, source, known), encoding=encoding)
    return encoded


def messages(c: Connection, source: Source, *, after: int = 0) -> Generator[str, None, None]:
    """The records after this seq, each a message on a line, in ASCII; never all in memory."""
    query = select(*table.c).where(table.c.seq > after).order_by(table.c.seq)
    events = ledger.events(c, query)
    while page := list(islice(events, _PAGE)):
        told = known(c, page)
        for event in page:
            yield xml(event, source, told, encoding="us-ascii").decode("ascii") + "\n"


def message(event: AuditEvent, source: Source, known: Known) -> Element:
    """The AuditMessage of a record; the same record, with the same things known, is the same message."""
    root, shape = Element("AuditMessage"), _MESSAGES.get(event.kind, _Message())
    _identify(root, event, shape)
    _participants(root, event, shape, source)
    at = SubElement(root, "AuditSourceIdentification", AuditSourceID=_clean(source.ae_title))
    SubElement(at, "AuditSourceTypeCode", {"csd-code": "4"})  # application server process
    _objects(root, event, shape, source, known)
    return root


def _identify(root: Element, e: AuditEvent, shape: _Message) -> None:
    outcome = shape.outcome or (_SERIOUS if e.outcome == "failed" else _SUCCESS)
    identified = SubElement(
        root, "EventIdentification", EventActionCode="R" if _held_before(e) else shape.action,
        EventDateTime=e.at.isoformat(timespec="milliseconds"), EventOutcomeIndicator=str(outcome),
    )  # fmt: skip
    if shape.event:
        _code(identified, "EventID", shape.event)
        if shape.type_code:
            _code(identified, "EventTypeCode", shape.type_code)
        _code(identified, "EventTypeCode", e.kind, SCHEME)
    else:
        _code(identified, "EventID", e.kind, SCHEME)
    SubElement(identified, "EventOutcomeDescription").text = _clean(in_words(e))


def _held_before(e: AuditEvent) -> bool:
    """A.5.3.7: then the transfer created nothing."""
    return e.kind == "received" and "duplicate" in (e.outcome, e.detail.get("receipt"))


# --- who ------------------------------------------------------------------------------------------------------------


def _participants(root: Element, e: AuditEvent, shape: _Message, source: Source) -> None:
    person = e.actor.removeprefix(_OPERATOR) if e.actor.startswith(_OPERATOR) else _text(e, "user")
    peer = e.ae_title or _text(e, "calling_aet") or _text(e, "destination")
    node = _participant(root, source.ae_title, requestor=not person and not shape.from_peer, role=shape.node,
                        host=source.host, name=f"cxrnode {e.actor}")  # fmt: skip
    node.set("AlternativeUserID", f"AETITLES={_clean(source.ae_title)}")
    if person:
        host = _text(e, "host") if shape.event == _ACTIVITY else ""
        launcher = _LAUNCHER if shape.event == _ACTIVITY else ""
        _participant(root, f"{person}@{host or source.host}", requestor=True, role=launcher, host=host or source.host)
    if peer or shape.peer:
        calling = shape.from_peer and not person
        added = _participant(
            root, peer or _text(e, "host") or "unknown", requestor=calling, role=shape.peer, host=_text(e, "host")
        )
        if peer:
            added.set("AlternativeUserID", f"AETITLES={_clean(peer)}")
    if shape.event == _IMPORT:
        media = _participant(root, _text(e, "path") or "archive", requestor=False, role=_MEDIA)
        _code(SubElement(media, "MediaIdentifier"), "MediaType", _URI)


def _participant(
    root: Element, user_id: str, *, requestor: bool, role: str = "", host: str = "", name: str = ""
) -> Element:
    added = SubElement(
        root, "ActiveParticipant", UserID=_clean(user_id), UserIsRequestor="true" if requestor else "false"
    )
    if name:
        added.set("UserName", _clean(name))
    if host:
        added.set("NetworkAccessPointID", _clean(host))
        added.set("NetworkAccessPointTypeCode", "2" if _is_address(host) else "1")
    if role:
        _code(added, "RoleIDCode", role)
    return added


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


# --- what -----------------------------------------------------------------------------------------------------------


def _objects(root: Element, e: AuditEvent, shape: _Message, source: Source, known: Known) -> None:
    study = e.study_instance_uid or ""
    instances = _instances(e)
    if study:
        named = [e.accession_number] if e.accession_number else known.accession_numbers.get(study, ())
        added = _object(root, study, (_STUDY, "DCM"), type_code="2", role="3")
        _describe(added, [n for n in named if n], instances, known.sop_classes)
    elif instances:  # of an instance that was refused, say, its study is not known
        added = _object(root, instances[0], ("sop_instance_uid", SCHEME), type_code="2", role="3")
        _describe(added, [], instances, known.sop_classes)
    for patient in [e.patient_id] if e.patient_id else known.patients.get(study, ()):
        _object(root, patient, ("2", "RFC-3881"), type_code="1", role="1")
    if shape.event == _ALERT:
        node = e.ae_title or _text(e, "calling_aet") or _text(e, "host") or "unknown"
        alert = _object(root, node, (_NODE, "DCM"), type_code="2", role="13")
        _detail(alert, "Alert Description", in_words(e))
    log = _object(
        root, source.record(e.seq), ("12", "RFC-3881"), type_code="2", role="13", name="Security Audit Log"
    )  # fmt: skip
    _detail(log, "ledger hash", e.hash)


def _object(root: Element, uid: str, code: tuple[str, str], *, type_code: str, role: str, name: str = "") -> Element:
    added = SubElement(
        root, "ParticipantObjectIdentification", ParticipantObjectID=_clean(uid), ParticipantObjectTypeCode=type_code,
        ParticipantObjectTypeCodeRole=role,
    )  # fmt: skip
    _code(added, "ParticipantObjectIDTypeCode", *code)
    SubElement(added, "ParticipantObjectName").text = " ".join(_clean(name or uid).split())  # a line is a message
    return added


def _describe(
    added: Element, accession_numbers: Sequence[str], instances: Sequence[str], sop_classes: Mapping[str, str]
) -> None:
    described = SubElement(added, "ParticipantObjectDescription")
    for number in accession_numbers:
        SubElement(described, "Accession", Number=_clean(number))
    by_class: dict[str, list[str]] = {}
    for uid in instances:
        by_class.setdefault(sop_classes.get(uid, ""), []).append(uid)
    for sop_class, uids in by_class.items():
        of_class = SubElement(described, "SOPClass", NumberOfInstances=str(len(uids)))
        if sop_class:
            of_class.set("UID", _clean(sop_class))
        for uid in uids[:_INSTANCES]:
            SubElement(of_class, "Instance", UID=_clean(uid)[:64])


def _detail(added: Element, kind: str, value: str) -> None:
    encoded = base64.b64encode(_clean(value).encode()).decode()
    SubElement(added, "ParticipantObjectDetail", type=kind, value=encoded)


def _instances(e: AuditEvent) -> list[str]:
    several = e.detail.get("sop_instance_uids")
    uids: Iterator[str] = map(str, several) if isinstance(several, list) else iter(())
    return [uid for uid in (sop_of(e), *uids) if uid]


_OTHER_CODES = {
    ("2", "RFC-3881"): "Patient Number",
    ("12", "RFC-3881"): "URI",
    ("sop_instance_uid", SCHEME): "SOP Instance UID",
}


def _code(parent: Element, tag: str, code: str, scheme: str = "DCM") -> None:
    text = _DCM[code] if scheme == "DCM" else _OTHER_CODES.get((code, scheme)) or _clean(code).replace("_", " ")
    SubElement(parent, tag, {"csd-code": _clean(code), "codeSystemName": scheme, "originalText": text})


def _text(e: AuditEvent, key: str) -> str:
    value = e.detail.get(key)
    return value if isinstance(value, str) else ""


def _clean(text: str) -> str:
    """What XML can hold: the rest is U+FFFD, as in text that was not Unicode."""
    return _NOT_XML.sub("\ufffd", text)[:_LONGEST]
