"""Records as DICOM audit messages: PS3.15 section A.5."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, fromstring

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cxrnode.audit.atna import Known, Source, known, messages, xml
from cxrnode.audit.kinds import PHRASES
from cxrnode.audit.syslog import syslog_message
from cxrnode.cli.main import app
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.types import AuditEvent
from tests.support.atna import check_message, event_id, objects, roles, seq_of
from tests.support.audit import OTHER, PATIENT, SR, lived
from tests.support.store import CR, SC, study_uid

SOURCE = Source(ae_title="CXRNODE", host="node.example")
AT = datetime(2026, 11, 22, 10, 30, tzinfo=UTC)


def event(kind: str, **more: Any) -> AuditEvent:
    told: dict[str, Any] = {"actor": "analyse", "study_instance_uid": None, "detail": {}}
    return AuditEvent(seq=7, at=AT, kind=kind, prev_hash="0" * 64, hash="f" * 64, **{**told, **more})


def read(e: AuditEvent, k: Known | None = None) -> Element:
    root = fromstring(xml(e, SOURCE, k or Known()))
    check_message(root)
    return root


@pytest.fixture
def database(where: Path | str) -> Iterator[Database]:
    opened = lived(where)
    yield opened
    opened.close()


# --- what the node writes


def test_each_record_of_a_life_is_a_message_of_the_schema(database: Database) -> None:
    with database.begin() as c:
        events, roots = list(ledger.events(c)), [fromstring(line) for line in messages(c, SOURCE)]
        assert [seq_of(r) for r in map(fromstring, messages(c, SOURCE, after=3))] == [e.seq for e in events[3:]]
    for e, root in zip(events, roots, strict=True):
        check_message(root)
        kind = root.findall("EventIdentification/*[@codeSystemName='99CXRNODE']")
        assert [code.attrib["csd-code"] for code in kind] == [e.kind]
        log = objects(root)["12"][0]
        assert seq_of(root) == e.seq
        assert base64.b64decode(log.findall("ParticipantObjectDetail")[0].attrib["value"]).decode() == e.hash


def test_a_studys_messages_name_its_patient_and_what_its_objects_are(database: Database) -> None:
    with database.begin() as c:
        events = [e for e in ledger.events(c) if e.study_instance_uid]
        context = known(c, events)
    for e in events:
        found = objects(read(e, context))
        (study,), (patient,) = found["110180"], found["2"]
        assert study.attrib["ParticipantObjectID"] == e.study_instance_uid
        assert patient.attrib["ParticipantObjectID"] == (PATIENT if e.study_instance_uid == study_uid(101) else OTHER)
        uids = {i.attrib["UID"]: s.attrib["UID"] for s in study.iter("SOPClass") for i in s}
        named = [e.sop_instance_uid] if e.sop_instance_uid else e.detail.get("sop_instance_uids", [])
        assert sorted(uids) == sorted(named)  # type: ignore[call-overload]
        assert set(uids.values()) <= {CR, SC}
        if e.study_instance_uid == study_uid(101):
            assert [a.attrib["Number"] for a in study.iter("Accession")] == ["A1"]


def test_what_came_has_a_source_and_this_node_for_destination(database: Database) -> None:
    with database.begin() as c:
        new, again = (
            next(e for e in ledger.events(c) if (e.kind, e.outcome) == ("received", o)) for o in ("new", "duplicate")
        )
    for e, action in ((new, "C"), (again, "R")):
        root = read(e)
        assert event_id(root) == ("110104", "DCM")
        assert root[0].attrib["EventActionCode"] == action
        source, destination = roles(root)["110153"], roles(root)["110152"]
        assert (source.attrib["UserID"], source.attrib["UserIsRequestor"]) == ("PACS", "true")
        assert source.attrib["NetworkAccessPointID"] == "127.0.0.1"
        assert source.attrib["NetworkAccessPointTypeCode"] == "2"
        assert (destination.attrib["UserID"], destination.attrib["UserIsRequestor"]) == ("CXRNODE", "false")
        assert destination.attrib["AlternativeUserID"] == "AETITLES=CXRNODE"


def test_what_was_delivered_went_the_other_way(database: Database) -> None:
    with database.begin() as c:
        root = read(next(e for e in ledger.events(c) if (e.kind, e.sop_instance_uid) == ("delivered", SR)))
    assert event_id(root) == ("110104", "DCM")
    assert (roles(root)["110153"].attrib["UserID"], roles(root)["110152"].attrib["UserID"]) == ("CXRNODE", "ARCHIVE")


def test_the_command_prints_a_message_a_line(tmp_path: Path) -> None:
    lived(tmp_path / "ledger.sqlite").close()
    done = CliRunner().invoke(app, ["audit", "export", "--out", str(tmp_path), "--format", "atna"])
    assert done.exit_code == 0, done.output
    roots = [fromstring(line) for line in done.stdout.splitlines()]
    assert [seq_of(r) for r in roots] == list(range(1, len(roots) + 1))
    assert event_id(roots[-1]) == ("110101", "DCM")  # that it was exported


# --- kinds


@pytest.mark.parametrize(
    ("kind", "code", "type_code", "action", "outcome"),
    [
        ("stage_started", "110100", "110120", "E", "0"),
        ("stage_stopped", "110100", "110121", "E", "0"),
        ("run_failed", "110100", "110121", "E", "8"),
        ("exported", "110101", None, "R", "0"),
        ("delivery_queued", "110102", None, "E", "0"),
        ("analysed", "110103", None, "R", "0"),
        ("not_analysed", "110103", None, "R", "4"),
        ("report_made", "110103", None, "C", "0"),
        ("delivery_postponed", "110104", None, "R", "4"),
        ("delivery_failed", "110104", None, "R", "8"),
        ("refused", "110104", None, "C", "8"),
        ("spool_deleted", "110105", None, "D", "0"),
        ("scanned", "110107", None, "C", "0"),
        ("association_accepted", "110113", "110126", "E", "0"),
        ("association_rejected", "110113", "110126", "E", "4"),
    ],
)
def test_kinds_in_the_standards_words(kind: str, code: str, type_code: str | None, action: str, outcome: str) -> None:
    root = read(event(kind, study_instance_uid="1.2.3", ae_title="PACS", detail={"path": "a.zip!/b"}))
    assert event_id(root) == (code, "DCM")
    types = [t.attrib["csd-code"] for t in root.iter("EventTypeCode")]
    assert types == ([type_code, kind] if type_code else [kind])
    assert (root[0].attrib["EventActionCode"], root[0].attrib["EventOutcomeIndicator"]) == (action, outcome)


@pytest.mark.parametrize("kind", [*sorted(PHRASES), "of_a_later_version"])
def test_every_kind_has_its_message(kind: str) -> None:
    root = read(event(kind))
    code, scheme = event_id(root)
    assert scheme == "DCM" or code == kind


def test_a_rejected_association_names_the_node_that_asked() -> None:
    found = objects(read(event("association_rejected", ae_title="EVIL", detail={"host": "10.0.0.9", "why": "unknown"})))
    assert found["110182"][0].attrib["ParticipantObjectID"] == "EVIL"
    assert b"unknown" in base64.b64decode(found["110182"][0][2].attrib["value"])


def test_an_operator_is_the_one_who_asked() -> None:
    root = read(event("retried", actor="operator:ada", study_instance_uid="1.2.3", sop_instance_uid="1.2.3.4"))
    asked = {p.attrib["UserID"]: p.attrib["UserIsRequestor"] for p in root.iter("ActiveParticipant")}
    assert asked == {"CXRNODE": "false", "ada@node.example": "true"}


def test_who_started_it_is_its_launcher() -> None:
    root = read(event("stage_started", detail={"user": "cxr", "host": "box"}))
    assert roles(root)["110151"].attrib["UserID"] == "cxr@box"
    assert roles(root)["110150"].attrib["UserName"] == "cxrnode analyse"


def test_an_older_record_has_all_that_in_its_detail() -> None:
    told = {"sop_instance_uid": "1.2.3.4", "calling_aet": "OLD", "receipt": "duplicate"}
    root = read(event("received", study_instance_uid="1.2.3", detail=told))
    assert root[0].attrib["EventActionCode"] == "R"
    assert roles(root)["110153"].attrib["UserID"] == "OLD"
    assert [i.attrib["UID"] for i in root.iter("Instance")] == ["1.2.3.4"]


# --- whatever a sender puts in


@pytest.mark.parametrize("patient", ["<&>\"'", "Müller Ödön 東京 😀", "]]><!--", "A\tB\nC", "&#0;"])
def test_a_patients_id_survives(patient: str) -> None:
    e = event("received", study_instance_uid="1.2.3", patient_id=patient, ae_title="A&B")
    for encoding in ("utf-8", "us-ascii"):
        raw = xml(e, SOURCE, Known(), encoding=encoding)
        root = fromstring(raw)
        check_message(root)
        assert objects(root)["2"][0].attrib["ParticipantObjectID"] == patient
        assert b"\n" not in raw


def test_what_xml_cannot_hold_is_replaced() -> None:
    root = read(event("received", study_instance_uid="1.2.3", patient_id="A\x01\ud800\ufffeB"))
    assert objects(root)["2"][0].attrib["ParticipantObjectID"] == "A\ufffd\ufffd\ufffdB"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=2),
    max_leaves=3,
)
KEYS = st.sampled_from(["host", "user", "path", "sop_instance_uids", "sop_instance_uid", "calling_aet", "destination",
                        "why", "reason", "count", "receipt"])  # fmt: skip
NAMES = st.none() | st.text(min_size=1, max_size=64).map(ledger.identifier)
EVENTS = st.builds(
    AuditEvent,
    seq=st.integers(1, 2**63),
    at=st.datetimes(
        datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.sampled_from([UTC, timezone(timedelta(hours=5.5))])
    ),
    kind=st.sampled_from([*sorted(PHRASES), "of_a_later_version"]),
    actor=st.sampled_from(["intake", "operator:ada", "operator:Ü <x>", "run-batch"]),
    study_instance_uid=NAMES,
    detail=st.dictionaries(KEYS | st.text(max_size=5), JSON, max_size=4),
    prev_hash=st.just("0" * 64),
    hash=st.just("a" * 64),
    sop_instance_uid=NAMES,
    ae_title=NAMES,
    patient_id=NAMES,
    accession_number=NAMES,
    outcome=st.sampled_from([None, "failed", "new", "duplicate"]),
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(e=EVENTS)
def test_any_record_is_one_well_formed_message_on_one_line(e: AuditEvent) -> None:
    raw = xml(e, SOURCE, Known())
    root = fromstring(raw)
    check_message(root)
    assert seq_of(root) == e.seq
    assert len(list(root.iter("ActiveParticipant"))) >= 1
    frame = syslog_message(e, raw, host=SOURCE.host)
    length, _, whole = frame.partition(b" ")
    assert int(length) == len(whole) < 32768  # what receivers take at least: A.6
    assert b"\n" not in frame
    header, _, content = whole.partition(b"\xef\xbb\xbf")
    assert content == raw
    pri, at, host, app_name, procid, msgid, structured, rest = header.decode("ascii").split(" ")
    assert (pri, host, app_name, msgid, structured, rest) == (
        "<85>1", "node.example", "cxrnode", "DICOM+RFC3881", "-", "",
    )  # fmt: skip
    assert procid
    assert abs(datetime.fromisoformat(at) - e.at) < timedelta(milliseconds=1)
    assert "." in at


def test_a_long_list_and_long_names_stay_within_what_receivers_take() -> None:
    many = [f"1.2.826.0.1.3680043.8.498.{n:038d}" for n in range(5000)]
    e = event(
        "commitment_requested", study_instance_uid="1.2.3", detail={"sop_instance_uids": many, "path": "ü&" * 9999}
    )
    root = read(e)
    assert root.findall(".//SOPClass")[0].attrib["NumberOfInstances"] == "5000"
    assert len(xml(replace(e, patient_id='"' * 64), SOURCE, Known())) < 32768
