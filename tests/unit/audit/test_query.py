"""Queries: each filter finds what it should, through its index, on both databases."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, text
from sqlalchemy.dialects import postgresql, sqlite

import cxrnode
from cxrnode.audit.kinds import PHRASES, in_words
from cxrnode.audit.query import Filters, conditions, find, statement
from cxrnode.audit.times import stored
from cxrnode.errors import CxrnodeError
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.queue import Queue
from cxrnode.store.schema import ledger as table
from cxrnode.store.schema import settings
from cxrnode.types import AuditEvent
from tests.support.audit import OTHER, PATIENT, SR, lived
from tests.support.store import header, received, study_uid

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def c(where: Path | str) -> Iterator[Connection]:
    database = lived(where)
    with database.begin() as c:
        yield c
    database.close()


def seqs(c: Connection, **filters: Any) -> list[int]:
    return [e.seq for e in find(c, Filters(**filters)).events]


def test_each_filter_finds_what_it_should(c: Connection) -> None:
    every = {e.seq: e for e in ledger.events(c)}

    def where_(passes: Any) -> list[int]:
        return [seq for seq, e in every.items() if passes(e)]

    def of_study(n: int) -> list[int]:
        return where_(lambda e: e.study_instance_uid == study_uid(n))

    image = header(101, 1).sop_instance_uid
    assert seqs(c) == list(every)
    assert seqs(c, patient_id=PATIENT) == seqs(c, accession_number="A1") == of_study(101)
    assert seqs(c, patient_id=f" {OTHER} ") == seqs(c, study_instance_uid=study_uid(102)) == of_study(102) != []
    assert seqs(c, patient_id="nobody") == []
    assert seqs(c, sop_instance_uid=image) == where_(lambda e: e.sop_instance_uid == image)
    assert [every[n].kind for n in seqs(c, sop_instance_uid=image)] == ["received", "received", "claimed", "analysed"]
    assert [every[n].kind for n in seqs(c, sop_instance_uid=SR)] == ["report_made", "delivered"]
    assert len(seqs(c, ae_title="PACS")) == 4
    assert {every[n].kind for n in seqs(c, ae_title="ARCHIVE")} == {"delivery_queued", "delivered"}
    assert [every[n].kind for n in seqs(c, outcome="duplicate")] == ["received"]
    assert seqs(c, kind="report_made") == where_(lambda e: e.kind == "report_made")
    assert seqs(c, kind="received", patient_id=PATIENT, outcome="new") == [2, 3]
    assert seqs(c, kind="anchored") == []


@pytest.mark.parametrize("keyword", ["patient_id", "accession_number"])
def test_identifiers_longer_than_their_vr_find_their_own_records(c: Connection, keyword: str) -> None:
    one, other = "HOSPITAL-A|" + "0" * 60 + "1", "HOSPITAL-A|" + "0" * 60 + "2"

    def studies(text: str) -> set[str | None]:
        return {e.study_instance_uid for e in find(c, Filters(**dict[str, Any]({keyword: text}))).events}

    named = [replace(received(n, 1), **dict[str, Any]({keyword: text})) for n, text in ((201, one), (202, other))]
    Queue("intake").receive(c, named)
    assert (studies(one), studies(other), studies(one[:64])) == ({study_uid(201)}, {study_uid(202)}, set())


def test_times_are_half_open(c: Connection) -> None:
    events = list(ledger.events(c))
    first, last = events[0].at, events[-1].at
    inside = [e.seq for e in events if e.at < last]
    assert seqs(c, since=first, until=last) == inside
    assert seqs(c, since=last + timedelta(milliseconds=1)) == []
    assert seqs(c, until=first) == []
    assert seqs(c, since=first.astimezone()) == [e.seq for e in events]


def at(c: Connection, *moments: datetime) -> None:
    """Records of these times, in this order: a clock may have been set back."""
    first = len(seqs(c)) + 1
    for seq, moment in enumerate(moments, first):
        row = {"seq": seq, "at": stored(moment), "kind": "received", "actor": "x", "detail": "{}", "prev_hash": "",
               "hash": str(seq), "ae_title": "TIMES"}  # fmt: skip
        c.execute(insert(table).values(row))


def test_since_is_within_and_until_is_not_to_the_millisecond(where: Path | str) -> None:
    database, ms = Database(where), timedelta(milliseconds=1)
    with database.begin() as c:
        at(c, NOW - ms, NOW, NOW + ms)
        assert seqs(c, since=NOW) == [2, 3]
        assert seqs(c, since=NOW + ms) == [3]
        assert seqs(c, until=NOW) == [1]
        assert seqs(c, until=NOW + ms) == [1, 2]
        assert seqs(c, since=NOW, until=NOW + ms) == [2]
        assert seqs(c, since=NOW + ms, until=NOW + 2 * ms) == [3]
        assert seqs(c, since=NOW + 2 * ms) == seqs(c, until=NOW - ms) == []
        assert seqs(c, since=NOW.astimezone(timezone(timedelta(hours=-5))), until=NOW + ms) == [2]
    database.close()


def test_a_clock_that_was_set_back_hides_no_record(where: Path | str) -> None:
    database, hour = Database(where), timedelta(hours=1)
    with database.begin() as c:
        at(c, NOW, NOW + 2 * hour, NOW - hour, NOW + hour, NOW - 2 * hour, NOW + 3 * hour)
        assert seqs(c, since=NOW) == [1, 2, 4, 6]
        assert seqs(c, until=NOW) == [3, 5]
        assert seqs(c, since=NOW, until=NOW + 2 * hour) == [1, 4]
        assert seqs(c, since=NOW - hour, until=NOW + hour) == [1, 3]
        found = find(c, Filters(since=NOW), limit=2)
        assert ([e.seq for e in found.events], found.cut) == ([4, 6], True)
        found = find(c, Filters(since=NOW, until=NOW + 2 * hour), limit=2)
        assert ([e.seq for e in found.events], found.cut) == ([1, 4], False)
    database.close()


def test_the_newest_of_those_that_pass_stay(c: Connection) -> None:
    mine = seqs(c, patient_id=PATIENT)
    found = find(c, Filters(patient_id=PATIENT), limit=2)
    assert ([e.seq for e in found.events], found.cut) == (mine[-2:], True)
    found = find(c, Filters(patient_id="nobody"), limit=1)
    assert ([*found.events], found.cut) == ([], False)


def test_a_patient_stands_for_all_records_of_the_studies_that_name_it(c: Connection) -> None:
    """Of two patients in one study too; a record of no study is of nobody."""
    for patient, study in (("X", "1.2.1"), ("Y", "1.2.1"), ("X", "1.2.2"), ("Y", None)):
        ledger.append(c, "received", actor="x", patient_id=patient, study_instance_uid=study)
    last = seqs(c)[-1]
    told = ledger.append(c, "report_failed", actor="x", study_instance_uid="1.2.1")
    assert seqs(c, patient_id="X") == [last - 3, last - 2, last - 1, told]
    assert seqs(c, patient_id="Y") == [last - 3, last - 2, told]
    assert seqs(c, patient_id="X", study_instance_uid="1.2.2") == [last - 1]
    assert seqs(c, patient_id="X", accession_number="A1") == []


def test_the_newest_stay_and_it_is_said_that_some_were_cut(c: Connection) -> None:
    everything = seqs(c)
    for limit in (1, 3, len(everything) - 1):
        found = find(c, Filters(), limit=limit)
        assert [e.seq for e in found.events] == everything[-limit:]
        assert found.cut
    assert not find(c, Filters(), limit=len(everything)).cut
    assert not find(c, Filters(sop_instance_uid=SR), limit=2).cut


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"study_instance_uid": "1..3"}, "no UID"),
        ({"sop_instance_uid": "../../etc"}, "no UID"),
        ({"kind": "recieved"}, "no kind of record 'recieved'; there are: .*received"),
        ({"patient_id": " "}, "patient id is empty"),
        ({"since": NOW, "until": NOW}, "is not before until"),
        ({"since": NOW + timedelta(seconds=1), "until": NOW}, "is not before until"),
        ({"accession_number": ""}, "the filter accession number is empty: leave it out"),
        ({"ae_title": "  "}, "the filter ae title is empty"),
        ({"kind": ""}, "the filter kind is empty"),
        ({"outcome": " "}, "the filter outcome is empty"),
        ({"study_instance_uid": ""}, "'' is no UID"),
    ],
)
def test_what_means_nothing_is_said(c: Connection, filters: dict[str, Any], said: str) -> None:
    with pytest.raises(CxrnodeError, match=said):
        find(c, Filters(**filters))


def test_a_kind_of_a_newer_cxrnode_is_found(c: Connection) -> None:
    ledger.append(c, "brand_new", actor="test", sop_instance_uid="1.2.3")
    (e,) = find(c, Filters(kind="brand_new")).events
    assert in_words(e) == "brand new 1.2.3"


def test_records_of_before_the_columns_are_found_by_their_detail(c: Connection) -> None:
    old = len(seqs(c)) + 1
    said = '{"calling_aet":"OLD","receipt":"old","sop_instance_uid":"1.2.9.1"}'
    row = {
        "seq": old,
        "at": stored(NOW),
        "kind": "received",
        "actor": "x",
        "detail": said,
        "prev_hash": "",
        "hash": "f",
    }
    c.execute(insert(table).values(row))
    c.execute(insert(settings).values(key=ledger.UNINDEXED, value=old))
    ledger.append(c, "received", actor="x", sop_instance_uid="1.2.9.1", ae_title="OLD", outcome="old")
    for name, wanted in {"sop_instance_uid": "1.2.9.1", "ae_title": "OLD", "outcome": "old"}.items():
        assert seqs(c, **{name: wanted}) == [old, old + 1]
    assert seqs(c, ae_title="O_D") == seqs(c, ae_title="%") == []
    detail = {"calling_aet": "LATE", "receipt": "late"}  # what came after says it in its columns
    ledger.append(c, "received", actor="x", **detail)
    assert seqs(c, ae_title="LATE") == seqs(c, outcome="late") == []


INDEXED = {
    "patient_id": "P", "accession_number": "A", "study_instance_uid": "1.2", "sop_instance_uid": "1.2",
    "ae_title": "PACS", "kind": "received", "outcome": "new", "since": NOW, "until": NOW,
}  # fmt: skip


@pytest.mark.parametrize("name", [f.name for f in fields(Filters)])
def test_every_filter_is_answered_by_an_index(where: Path | str, name: str) -> None:
    database = Database(where)
    query = statement(conditions(Filters(**{name: INDEXED[name]})))  # type: ignore[arg-type]
    dialect: Any = (sqlite if isinstance(where, Path) else postgresql).dialect()
    sql = str(query.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
    key = "at" if name in {"since", "until"} else name
    with database.begin() as c:
        if isinstance(where, Path):
            plan = [row[3] for row in c.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}")]
            assert not [step for step in plan if step.startswith("SCAN")], plan
        else:
            c.execute(text("SET LOCAL enable_seqscan = off"))
            plan = [row[0] for row in c.exec_driver_sql(f"EXPLAIN {sql}")]
            assert "Seq Scan" not in "\n".join(plan), plan
        used = "\n".join(plan)
        assert f"ix_ledger_{key}" in used, used
        assert ("ix_ledger_study_instance_uid" in used) == (
            name in {"patient_id", "accession_number", "study_instance_uid"}
        )
    database.close()


def test_every_kind_that_is_written_has_its_words() -> None:
    """And is known to `--kind`."""
    written = set()
    for path in Path(cxrnode.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"ledger.append", "append"}:
                written |= {a.value for a in node.args[1:2] if isinstance(a, ast.Constant)}
    assert "received" in written
    assert written - set(PHRASES) == set()


def test_words_show_no_control_characters() -> None:
    e = AuditEvent(
        seq=1, at=NOW, kind="association_rejected", actor="x", study_instance_uid=None, prev_hash="", hash="",
        ae_title="A\x1b[2J\nB", detail={"host": "h", "count": 3, "why": "no", "self": 1, "args": 2},
    )  # fmt: skip
    assert in_words(e) == r"association of A\x1b[2J\x0aB at h with rejected (3 times): no"
