"""What the machines that watch ask: by index alone, so that it costs no more with a million jobs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, Select, text

from cxrnode.store import overview
from cxrnode.store.database import Database
from cxrnode.store.ledger import append
from cxrnode.store.outbox import Outbox
from cxrnode.store.overview import Tally, Wanted, job_row, jobs, oldest_waiting, open_deliveries, open_jobs
from cxrnode.store.queue import ROUTINE, STAT, Finding, Queue
from cxrnode.store.schema import job
from cxrnode.types import Reason, Rejection
from tests.support.store import NOW, analysed, claim, received, study_uid


def test_what_is_open_and_for_how_long(database: Database) -> None:
    with database.begin() as c:
        assert oldest_waiting(c) == {}
        later = [received(1, n, sha256=str(n), at=NOW + n) for n in (1, 2, 3)]
        Queue("test").receive(c, [*later, received(2, 1, at=NOW + 9, stat=True)])
        assert oldest_waiting(c) == {STAT: NOW + 9, ROUTINE: NOW + 1}
        (first, *_) = claim(c, limit=1)
        Queue("test").finish(c, analysed(first), owner="a")
        claim(c, limit=1)
        assert open_jobs(c) == {"received": 2, "claimed": 1, "analysed": 1}
        assert open_deliveries(c, ["pacs"]) == {("pacs", "pending"): 0, ("pacs", "refused"): 0}
        Outbox("test").enqueue_all(c, "pacs", now=NOW)
        assert open_deliveries(c, ["pacs"])["pacs", "pending"] == 1


def test_a_job_is_shown_with_all_that_is_asked_of_it(database: Database) -> None:
    with database.begin() as c:
        Queue("test").receive(c, [received(1, 1)])
        (row,) = jobs(c, Wanted(), limit=9)
        assert job_row(c, row["id"]) == row
        assert job_row(c, row["id"] + 1) is None
    assert set(row) == {
        "id", "state", "priority", "attempts", "outcome", "reason", "detail", "study_instance_uid", "sop_instance_uid",
        "calling_aet", "host", "received_at", "path", "not_before", "last_error",
    }  # fmt: skip


def test_patients_whose_long_ids_share_their_beginning_are_told_apart(database: Database) -> None:
    ids = ["HOSPITAL-A|" + "0" * 60 + end for end in ("1", "2", "2")]
    with database.begin() as c:
        Queue("test").receive(c, [replace(received(n, 1), patient_id=i) for n, i in enumerate(ids, 1)])
        found = {i: [row["study_instance_uid"] for row in jobs(c, Wanted(patient=i), limit=9)] for i in ids}
    assert found == {ids[0]: [study_uid(1)], ids[1]: [study_uid(3), study_uid(2)]}


def test_counting_ends_at_many(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with database.begin() as c:
        Queue("test").receive(c, [received(1, n, sha256=str(n)) for n in range(5)])
        monkeypatch.setattr(overview, "MOST", 3)
        query = overview._up_to_most(job.c.state == "received")
        assert c.execute(query).scalar_one() == 3


def test_a_tally_counts_every_record_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "_SINCE", overview._SINCE.limit(2))
    monkeypatch.setattr(overview, "_PAGE", 2)
    queue = Queue("test")
    with database.begin() as c:
        queue.receive(c, [received(1, n, sha256=str(n)) for n in (1, 2)])
        tally = Tally.begin(c)
        first, second = claim(c)
        queue.finish(c, analysed(first), owner="a")
        queue.finish(c, Finding(job=second, rejection=Rejection(reason=Reason.LATERAL)), owner="a")
        append(c, "delivery_failed", actor="deliver", destination="pacs", status="0xA700")
        append(c, "committed", actor="deliver", destination="pacs")
        for _ in range(2):
            while tally.go_on(c):
                pass
    assert tally.outcomes == {("analysed", ""): 1, ("not_analysed", "lateral"): 1}
    assert tally.deliveries == {("pacs", "refused"): 1, ("pacs", "committed"): 1}
    assert tally.events["received"] == 0


@pytest.mark.parametrize(
    ("query", "values", "index"),
    [
        (overview._OPEN_JOBS, {"state": "received"}, "ix_job_state"),
        (overview._OPEN_DELIVERIES, {"where": "pacs", "state": "pending"}, "ix_delivery_state"),
        (overview._OLDEST, {"state": "received", "priority": 1}, "ix_job_state"),
        (overview._NEWEST, {}, "SEARCH ledger"),  # by its key, seq
        (overview._SINCE, {"seq": 7}, "SEARCH ledger USING INTEGER PRIMARY KEY"),
    ],
)
def test_every_question_goes_by_an_index(
    query: Select[Any], values: dict[str, object], index: str, database: Database
) -> None:
    with database.begin() as c:
        plan = explained(c, query, values)
    if database.name.endswith("sqlite"):
        assert index in plan
        assert not any(f"SCAN {table}" in plan for table in ("job", "instance", "delivery", "ledger"))
    else:
        assert "Seq Scan" not in plan


def explained(c: Connection, query: Select[Any], values: dict[str, object]) -> str:
    sql = query.params(values).compile(c.engine, compile_kwargs={"literal_binds": True})
    if c.dialect.name == "sqlite":
        return "\n".join(row[3] for row in c.execute(text(f"EXPLAIN QUERY PLAN {sql}")))
    c.execute(text("SET LOCAL enable_seqscan = off"))
    return "\n".join(row[0] for row in c.execute(text(f"EXPLAIN {sql}")))
