"""Every kind of record as an audit message, by tables that are not ours: PS3.15 section A.5.3, PS3.16."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from xml.etree.ElementTree import Element, fromstring

import pytest
from pydicom.sr._concepts_dict import concepts
from sqlalchemy import Connection

from cxrnode.audit import atna
from cxrnode.audit.atna import Known, Source, known, messages, xml
from cxrnode.audit.kinds import PHRASES, in_words
from cxrnode.audit.syslog import syslog_message
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.types import AuditEvent
from tests.support.atna import check_message

SOURCE = Source(ae_title="CXR NODE", host="node.example")
AT = datetime(2026, 11, 22, 10, 30, 5, 123456, tzinfo=UTC)
STUDY: dict[str, Any] = {"study_instance_uid": "1.2.3", "sop_instance_uid": "1.2.3.4", "patient_id": "P1"}
PEER: dict[str, Any] = {"ae_title": "PACS"}


def event(kind: str, *, detail: dict[str, Any] | None = None, **more: Any) -> AuditEvent:
    told: dict[str, Any] = {"at": AT, "actor": "analyse", "study_instance_uid": None, **more}
    return AuditEvent(seq=7, kind=kind, prev_hash="0" * 64, hash="f" * 64, detail=detail or {}, **told)


def read(e: AuditEvent, k: Known | None = None) -> Element:
    root = fromstring(xml(e, SOURCE, k or Known()))
    check_message(root)
    return root


# --- codes

DCM: dict[str, tuple[str, list[int]]] = {
    value: said
    for meanings in concepts["DCM"].values()
    for value, said in meanings.items()  # type: ignore[attr-defined]
}
GROUPS = {"EventID": {400}, "EventTypeCode": {401}, "RoleIDCode": {402}, "ParticipantObjectIDTypeCode": {404},
          "MediaType": {405}}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(PHRASES))
def test_every_code_is_the_standard_s(kind: str) -> None:
    root = read(event(kind, **STUDY, **PEER, detail={"user": "ada", "host": "10.0.0.9", "path": "a"}))
    for code in (e for e in root.iter() if "codeSystemName" in e.attrib):
        value, scheme, text = (code.attrib[k] for k in ("csd-code", "codeSystemName", "originalText"))
        if scheme == "DCM":
            meaning, groups = DCM[value]
            assert text == meaning
            assert GROUPS[code.tag] & set(groups), (code.tag, value)
        else:
            own = {("2", "RFC-3881"): "Patient Number", ("12", "RFC-3881"): "URI",
                   ("sop_instance_uid", "99CXRNODE"): "SOP Instance UID"}  # fmt: skip
            assert text == own.get((value, scheme), kind.replace("_", " "))


# --- kinds: event, its type, action, outcome, role of the node, of the peer, who asked

NODE_ASKED, PEER_ASKED = "node", "peer"
SHAPES: dict[str, tuple[str, str, str, str, str, str, str]] = {
    "configuration_loaded": ("110100", "110120", "E", "0", "110150", "", NODE_ASKED),
    "stage_started": ("110100", "110120", "E", "0", "110150", "", NODE_ASKED),
    "stage_stopped": ("110100", "110121", "E", "0", "110150", "", NODE_ASKED),
    "run_started": ("110100", "110120", "E", "0", "110150", "", NODE_ASKED),
    "run_resumed": ("110100", "110120", "E", "0", "110150", "", NODE_ASKED),
    "run_complete": ("110100", "110121", "E", "0", "110150", "", NODE_ASKED),
    "run_interrupted": ("110100", "110121", "E", "0", "110150", "", NODE_ASKED),
    "run_incomplete": ("110100", "110121", "E", "8", "110150", "", NODE_ASKED),
    "run_failed": ("110100", "110121", "E", "8", "110150", "", NODE_ASKED),
    "engine_failed": ("engine_failed", "", "E", "8", "", "", NODE_ASKED),
    "engine_fallback": ("engine_fallback", "", "E", "4", "", "", NODE_ASKED),
    "clock_doubted": ("clock_doubted", "", "E", "4", "", "", NODE_ASKED),
    "clock_believed": ("clock_believed", "", "E", "0", "", "", NODE_ASKED),
    "writes_resumed": ("writes_resumed", "", "E", "4", "", "", NODE_ASKED),
    "anchored": ("110101", "", "R", "0", "", "", NODE_ASKED),
    "exported": ("110101", "", "R", "0", "", "", NODE_ASKED),
    "association_accepted": ("110113", "110126", "E", "0", "", "", PEER_ASKED),
    "association_rejected": ("110113", "110126", "E", "4", "", "", PEER_ASKED),
    "association_aborted": ("110113", "110126", "E", "4", "", "", PEER_ASKED),
    "received": ("110104", "", "C", "0", "110152", "110153", PEER_ASKED),
    "refused": ("110104", "", "C", "8", "110152", "110153", PEER_ASKED),
    "scanned": ("110107", "", "C", "0", "110152", "", NODE_ASKED),
    "claimed": ("110103", "", "R", "0", "", "", NODE_ASKED),
    "retried": ("110103", "", "R", "0", "", "", NODE_ASKED),
    "analysed": ("110103", "", "R", "0", "", "", NODE_ASKED),
    "duplicate": ("110103", "", "R", "0", "", "", NODE_ASKED),
    "not_analysed": ("110103", "", "R", "4", "", "", NODE_ASKED),
    "failed": ("110103", "", "R", "8", "", "", NODE_ASKED),
    "report_made": ("110103", "", "C", "0", "", "", NODE_ASKED),
    "report_failed": ("110103", "", "C", "8", "", "", NODE_ASKED),
    "delivery_queued": ("110102", "", "E", "0", "110153", "110152", NODE_ASKED),
    "delivered": ("110104", "", "R", "0", "110153", "110152", NODE_ASKED),
    "delivery_postponed": ("110104", "", "R", "4", "110153", "110152", NODE_ASKED),
    "delivery_failed": ("110104", "", "R", "8", "110153", "110152", NODE_ASKED),
    "commitment_requested": ("110103", "", "R", "0", "", "", NODE_ASKED),
    "commitment_postponed": ("commitment_postponed", "", "E", "4", "", "", NODE_ASKED),
    "committed": ("110103", "", "R", "0", "", "", NODE_ASKED),
    "commitment_failed": ("110103", "", "R", "8", "", "", NODE_ASKED),
    "commitment_report_refused": ("110113", "110126", "E", "4", "", "", PEER_ASKED),
    "commitment_asked": ("commitment_asked", "", "E", "0", "", "", PEER_ASKED),
    "commitment_answered": ("commitment_answered", "", "E", "0", "", "", PEER_ASKED),
    "commitment_given_up": ("commitment_given_up", "", "E", "8", "", "", PEER_ASKED),
    "spool_deleted": ("110105", "", "D", "0", "", "", NODE_ASKED),
    "result_deleted": ("110105", "", "D", "0", "", "", NODE_ASKED),
}
PLAIN = {"model_loaded", "engine_verified", "engine_shadowed", "forgotten", "several_patients", "delivery_reopened",
         "study_reported", "check_ended", "set_aside", "of_a_later_version"}  # fmt: skip


def shape_of(root: Element) -> tuple[str, ...]:
    identified = root[0]
    types = [t.attrib["csd-code"] for t in identified.iter("EventTypeCode") if t.attrib["codeSystemName"] == "DCM"]
    node, peer = (
        next(p for p in root.iter("ActiveParticipant") if p.attrib["UserID"] == u) for u in ("CXR NODE", "PACS")
    )
    roles = ["".join(r.attrib["csd-code"] for r in p.iter("RoleIDCode")) for p in (node, peer)]
    asked = {p.attrib["UserID"] for p in root.iter("ActiveParticipant") if p.attrib["UserIsRequestor"] == "true"}
    return (identified[0].attrib["csd-code"], "".join(types), identified.attrib["EventActionCode"],
            identified.attrib["EventOutcomeIndicator"], *roles, PEER_ASKED if asked == {"PACS"} else
            NODE_ASKED if asked == {"CXR NODE"} else str(asked))  # fmt: skip


@pytest.mark.parametrize("kind", sorted({*PHRASES, "of_a_later_version"}))
def test_a_kind_in_the_standard_s_words(kind: str) -> None:
    expected = (kind, "", "E", "0", "", "", NODE_ASKED) if kind in PLAIN else SHAPES[kind]
    root = read(event(kind, **STUDY, **PEER))
    assert shape_of(root) == expected
    own = [c.attrib["csd-code"] for c in root[0] if c.attrib.get("codeSystemName") == "99CXRNODE"]
    assert own == [kind]


@pytest.mark.parametrize(("outcome", "indicator"), [("failed", "8"), ("new", "0"), (None, "0")])
def test_a_record_whose_outcome_failed_is_a_serious_failure(outcome: str | None, indicator: str) -> None:
    assert read(event("several_patients", outcome=outcome))[0].attrib["EventOutcomeIndicator"] == indicator
    assert read(event("not_analysed", outcome=outcome))[0].attrib["EventOutcomeIndicator"] == "4"


@pytest.mark.parametrize(
    ("kind", "outcome", "action"),
    [("received", "new", "C"), ("received", "duplicate", "R"), ("refused", "duplicate", "C"), ("received", None, "C")],
)
def test_what_was_held_before_is_read_and_not_created(kind: str, outcome: str | None, action: str) -> None:
    assert read(event(kind, outcome=outcome))[0].attrib["EventActionCode"] == action


# --- whole messages


def lines(e: AuditEvent, k: Known | None = None) -> list[str]:
    """Depth, tag, attributes in order, text."""
    found: list[str] = []

    def walk(element: Element, depth: int) -> None:
        said = " ".join(f"{k}={v}" for k, v in element.attrib.items())
        found.append(f"{'.' * depth}{element.tag} {said} {element.text or ''}".strip())
        for child in element:
            walk(child, depth + 1)

    walk(read(e, k), 0)
    return found


HASH = base64.b64encode(b"f" * 64).decode()
RECORD = [
    ".ParticipantObjectIdentification ParticipantObjectID=cxrnode://node.example/CXR%20NODE/ledger#7 "
    "ParticipantObjectTypeCode=2 ParticipantObjectTypeCodeRole=13",
    "..ParticipantObjectIDTypeCode csd-code=12 codeSystemName=RFC-3881 originalText=URI",
    "..ParticipantObjectName  Security Audit Log",
    f"..ParticipantObjectDetail type=ledger hash value={HASH}",
]
NODE = [".AuditSourceIdentification AuditSourceID=CXR NODE", "..AuditSourceTypeCode csd-code=4"]


def test_the_message_of_a_received_image() -> None:
    e = event("received", **STUDY, **PEER, accession_number="A1", actor="intake", outcome="new",
              detail={"host": "10.0.0.9", "size_bytes": 1 << 20})  # fmt: skip
    assert lines(e, Known(sop_classes={"1.2.3.4": "1.2.840.1"}, patients={"1.2.3": ["other"]})) == [
        "AuditMessage",
        ".EventIdentification EventActionCode=C EventDateTime=2026-11-22T10:30:05.123+00:00 EventOutcomeIndicator=0",
        "..EventID csd-code=110104 codeSystemName=DCM originalText=DICOM Instances Transferred",
        "..EventTypeCode csd-code=received codeSystemName=99CXRNODE originalText=received",
        "..EventOutcomeDescription  PACS at 10.0.0.9 sent image 1.2.3.4, 1.0 MiB: new",
        ".ActiveParticipant UserID=CXR NODE UserIsRequestor=false UserName=cxrnode intake "
        "NetworkAccessPointID=node.example NetworkAccessPointTypeCode=1 AlternativeUserID=AETITLES=CXR NODE",
        "..RoleIDCode csd-code=110152 codeSystemName=DCM originalText=Destination Role ID",
        ".ActiveParticipant UserID=PACS UserIsRequestor=true NetworkAccessPointID=10.0.0.9 "
        "NetworkAccessPointTypeCode=2 AlternativeUserID=AETITLES=PACS",
        "..RoleIDCode csd-code=110153 codeSystemName=DCM originalText=Source Role ID",
        *NODE,
        ".ParticipantObjectIdentification ParticipantObjectID=1.2.3 ParticipantObjectTypeCode=2 "
        "ParticipantObjectTypeCodeRole=3",
        "..ParticipantObjectIDTypeCode csd-code=110180 codeSystemName=DCM originalText=Study Instance UID",
        "..ParticipantObjectName  1.2.3",
        "..ParticipantObjectDescription",
        "...Accession Number=A1",
        "...SOPClass NumberOfInstances=1 UID=1.2.840.1",
        "....Instance UID=1.2.3.4",
        ".ParticipantObjectIdentification ParticipantObjectID=P1 ParticipantObjectTypeCode=1 "
        "ParticipantObjectTypeCodeRole=1",
        "..ParticipantObjectIDTypeCode csd-code=2 codeSystemName=RFC-3881 originalText=Patient Number",
        "..ParticipantObjectName  P1",
        *RECORD,
    ]


def test_the_message_of_a_rejected_association() -> None:
    e = event(
        "association_rejected", actor="intake", detail={"host": "fe80::1", "calling_aet": "EVIL", "why": "unknown"}
    )
    why = base64.b64encode(in_words(e).encode()).decode()
    assert lines(e)[2:] == [
        "..EventID csd-code=110113 codeSystemName=DCM originalText=Security Alert",
        "..EventTypeCode csd-code=110126 codeSystemName=DCM originalText=Node Authentication",
        "..EventTypeCode csd-code=association_rejected codeSystemName=99CXRNODE originalText=association rejected",
        "..EventOutcomeDescription  association of EVIL at fe80::1 with rejected: unknown",
        ".ActiveParticipant UserID=CXR NODE UserIsRequestor=false UserName=cxrnode intake "
        "NetworkAccessPointID=node.example NetworkAccessPointTypeCode=1 AlternativeUserID=AETITLES=CXR NODE",
        ".ActiveParticipant UserID=EVIL UserIsRequestor=true NetworkAccessPointID=fe80::1 "
        "NetworkAccessPointTypeCode=2 AlternativeUserID=AETITLES=EVIL",
        *NODE,
        ".ParticipantObjectIdentification ParticipantObjectID=EVIL ParticipantObjectTypeCode=2 "
        "ParticipantObjectTypeCodeRole=13",
        "..ParticipantObjectIDTypeCode csd-code=110182 codeSystemName=DCM originalText=Node ID",
        "..ParticipantObjectName  EVIL",
        f"..ParticipantObjectDetail type=Alert Description value={why}",
        *RECORD,
    ]


def people(e: AuditEvent) -> list[tuple[str, str, str, str]]:
    """User, whether it asked, its role, its host."""
    return [
        (p.attrib["UserID"], p.attrib["UserIsRequestor"], "".join(r.attrib["csd-code"] for r in p.iter("RoleIDCode")),
         p.attrib.get("NetworkAccessPointID", ""))
        for p in read(e).iter("ActiveParticipant")
    ]  # fmt: skip


NODE_ALONE, NODE_ASKS = ("CXR NODE", "false", "", "node.example"), ("CXR NODE", "true", "", "node.example")


@pytest.mark.parametrize(
    ("e", "expected"),
    [
        (event("retried", actor="operator:ada"), [NODE_ALONE, ("ada@node.example", "true", "", "node.example")]),
        (event("retried", actor="operator:ada", detail={"host": "elsewhere"}),
         [NODE_ALONE, ("ada@node.example", "true", "", "node.example")]),
        (event("stage_started", detail={"user": "cxr", "host": "box"}),
         [("CXR NODE", "false", "110150", "node.example"), ("cxr@box", "true", "110151", "box")]),
        (event("stage_started"), [("CXR NODE", "true", "110150", "node.example")]),
        (event("delivered", detail={"destination": "archive"}),
         [("CXR NODE", "true", "110153", "node.example"), ("archive", "false", "110152", "")]),
        (event("delivered", **PEER, detail={"destination": "archive", "host": "h"}),
         [("CXR NODE", "true", "110153", "node.example"), ("PACS", "false", "110152", "h")]),
        (event("received"), [("CXR NODE", "false", "110152", "node.example"), ("unknown", "true", "110153", "")]),
        (event("received", detail={"host": "h"}),
         [("CXR NODE", "false", "110152", "node.example"), ("h", "true", "110153", "h")]),
        (event("scanned", detail={"path": "a.zip!/b"}),
         [("CXR NODE", "true", "110152", "node.example"), ("a.zip!/b", "false", "110155", "")]),
        (event("scanned"), [("CXR NODE", "true", "110152", "node.example"), ("archive", "false", "110155", "")]),
        (event("delivery_reopened", actor="operator:ada", **PEER),
         [NODE_ALONE, ("ada@node.example", "true", "", "node.example"), ("PACS", "false", "", "")]),
        (event("received", actor="operator:ada", **PEER),
         [("CXR NODE", "false", "110152", "node.example"), ("ada@node.example", "true", "", "node.example"),
          ("PACS", "false", "110153", "")]),
        (event("analysed"), [NODE_ASKS]),
        (event("commitment_asked"), [NODE_ALONE]),
    ],
)  # fmt: skip
def test_who_took_part(e: AuditEvent, expected: list[tuple[str, str, str, str]]) -> None:
    assert people(e) == expected


def test_an_unnamed_peer_has_no_ae_title() -> None:
    unknown = list(read(event("received", detail={"host": "h"})).iter("ActiveParticipant"))[1]
    assert "AlternativeUserID" not in unknown.attrib
    media = list(read(event("scanned", detail={"path": "a"})).iter("MediaType"))
    assert [m.attrib for m in media] == [{"csd-code": "110037", "codeSystemName": "DCM", "originalText": "URI"}]
    assert not list(read(event("received")).iter("MediaType"))


@pytest.mark.parametrize(
    "told", [{"ae_title": "AE"}, {"detail": {"calling_aet": "AE", "host": "h"}}, {"detail": {"host": "AE"}}]
)
def test_an_alert_names_the_node_that_asked(told: dict[str, Any]) -> None:
    assert "ParticipantObjectID=AE " in "\n".join(lines(event("association_accepted", **told)))
    assert "ParticipantObjectID=unknown " in "\n".join(lines(event("association_accepted")))


# --- what


def told_of(e: AuditEvent, k: Known | None = None) -> list[tuple[str, str, list[str], list[tuple[str, str, int]]]]:
    """Of each object but the record: ID, its type, accession numbers, SOP classes with how many are counted, listed."""
    return [
        (o.attrib["ParticipantObjectID"], o[0].attrib["csd-code"], [a.attrib["Number"] for a in o.iter("Accession")],
         [(s.attrib.get("UID", ""), s.attrib["NumberOfInstances"], len(s)) for s in o.iter("SOPClass")])
        for o in read(e, k).iter("ParticipantObjectIdentification")
    ][:-1]  # fmt: skip


def test_what_the_database_knows_fills_what_the_record_does_not_say() -> None:
    k = Known(patients={"1.2.3": ["P1", "P2"]}, accession_numbers={"1.2.3": ["A1", "A2"]})
    bare = event("study_reported", study_instance_uid="1.2.3")
    assert told_of(bare, k) == [("1.2.3", "110180", ["A1", "A2"], []), ("P1", "2", [], []), ("P2", "2", [], [])]
    assert told_of(bare) == [("1.2.3", "110180", [], [])]
    own = event("study_reported", study_instance_uid="1.2.3", patient_id="P9", accession_number="A9")
    assert told_of(own, k) == [("1.2.3", "110180", ["A9"], []), ("P9", "2", [], [])]


def test_an_instance_without_a_study_stands_for_itself() -> None:
    k = Known(sop_classes={"1.2.3.4": "1.9"})
    assert told_of(event("refused", sop_instance_uid="1.2.3.4"), k) == [
        ("1.2.3.4", "sop_instance_uid", [], [("1.9", "1", 1)])
    ]


def test_the_type_of_an_instance_s_id_is_said_in_words() -> None:
    (code, _) = read(event("refused", sop_instance_uid="1.2.3.4")).iter("ParticipantObjectIDTypeCode")
    assert code.attrib == {
        "csd-code": "sop_instance_uid", "codeSystemName": "99CXRNODE", "originalText": "SOP Instance UID",
    }  # fmt: skip


@pytest.mark.parametrize(("number", "listed"), [(50, 50), (51, 50), (5000, 50)])
def test_instances_are_counted_and_the_first_fifty_of_a_class_listed(number: int, listed: int) -> None:
    uids = [f"1.2.{n}" for n in range(number)]
    e = event("commitment_requested", study_instance_uid="1.2.3", detail={"sop_instance_uids": uids})
    assert told_of(e) == [("1.2.3", "110180", [], [("", str(number), listed)])]
    k = Known(sop_classes=dict.fromkeys(uids[::2], "1.9"))
    half = (number + 1) // 2
    assert told_of(e, k) == [
        ("1.2.3", "110180", [], [("1.9", str(half), min(half, 50)), ("", str(number - half), min(number - half, 50))])
    ]


def test_values_are_cut_where_a_receiver_may_cut_them() -> None:
    e = event("received", study_instance_uid="1.2.3", patient_id="P" * 2000, sop_instance_uid="1." + "2" * 100)
    (_, (patient, *_)) = told_of(e)
    assert patient == "P" * 1024
    assert [i.attrib["UID"] for i in read(e).iter("Instance")] == ["1." + "2" * 62]


def test_a_name_of_several_lines_is_one() -> None:
    (name,) = [n.text for n in read(event("received", patient_id="A\n B\tC")).iter("ParticipantObjectName")][:1]
    assert name == "A B C"


@pytest.mark.parametrize("bad", ["\x00", "\x08", "\x0b", "\x1f", "\ud800", chr(0xDFFF), "\ufffe", "\uffff"])
@pytest.mark.parametrize("good", ["\x20", "\x7f", "\ud7ff", "\ue000", "\ufffd", "\U00010000", "\U0010ffff"])
def test_the_characters_of_xml(bad: str, good: str) -> None:
    assert atna._clean(f"a{bad}{good}b\t") == f"a\ufffd{good}b\t"


# --- pages, and what the database knows


def test_known_asks_for_what_the_records_name(tmp_path: Any) -> None:
    database = Database(tmp_path / "x.sqlite")
    with database.begin() as c:
        for study, patient, number in (
            ("1.1", "P2", "A1"),
            ("1.1", "P1", None),
            ("1.1", "P2", None),
            ("1.2", "P3", "A3"),
        ):
            ledger.append(
                c, "received", actor="t", study_instance_uid=study, patient_id=patient, accession_number=number
            )
        events = [e for e in ledger.events(c) if e.study_instance_uid == "1.1"]
        found = known(c, events)
    assert (found.patients, found.accession_numbers) == ({"1.1": ["P1", "P2"]}, {"1.1": ["A1"]})
    assert found.sop_classes == {}
    database.close()


@pytest.mark.parametrize("number", [0, 199, 200, 201, 401])
def test_every_record_has_its_line_however_many_there_are(tmp_path: Any, number: int) -> None:
    database = Database(tmp_path / "x.sqlite")
    with database.begin() as c:
        for _ in range(number):
            ledger.append(c, "received", actor="t", patient_id="Ü")
        assert seqs(c) == list(range(1, number + 1))
        if number:
            assert seqs(c, after=1) == list(range(2, number + 1))
            assert seqs(c, after=number) == []
    database.close()


def seqs(c: Connection, after: int = 0) -> list[int]:
    made = list(messages(c, SOURCE, after=after))
    assert all(line.isascii() and line.endswith("</AuditMessage>\n") and line.count("\n") == 1 for line in made)
    return [int(list(fromstring(line).iter("ParticipantObjectIdentification"))[-1].attrib["ParticipantObjectID"]
                .rpartition("#")[2]) for line in made]  # fmt: skip


# --- syslog


def test_a_frame_of_syslog() -> None:
    """RFC 5424 with PRI 85 (facility 10, severity 5), RFC 5425's octet count, PS3.15 section A.6."""
    e = event("received", at=AT.astimezone(timezone(timedelta(hours=-3))), actor="operator:Jörg Ö")
    header = "<85>1 2026-11-22T07:30:05.123-03:00 node?example cxrnode operator:J?rg?? DICOM+RFC3881 - "
    whole = header.encode() + b"\xef\xbb\xbf" + "<ü/>".encode()
    assert syslog_message(e, "<ü/>".encode(), host="node example") == f"{len(whole)} ".encode() + whole


def test_the_parts_of_a_header_have_their_longest() -> None:
    frame = syslog_message(event("received", actor="a" * 200), b"", host="h" * 300).decode("ascii", "replace")
    assert frame.split(" ")[3:6] == ["h" * 255, "cxrnode", "a" * 128]
    assert syslog_message(event("received", actor=""), b"", host="").split(b" ")[3:6] == [b"-", b"cxrnode", b"-"]
