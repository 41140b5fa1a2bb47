"""Studies at their limits: when one is ready, whose it is, and what its report leaves in the rows and on record."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.queue import Finding, Queue
from cxrnode.store.schema import job, result, study
from cxrnode.store.studies import Studies
from cxrnode.types import Kind, Reason, Rejection, Report, Study
from tests.support.store import NOW, analysed, claim, header, kinds, lease, made, received, study_uid

QUEUE, STUDIES = Queue("test"), Studies("test")
INVALID = Rejection(reason=Reason.RESULT_INVALID, detail="SR")


def taken_in(c: Connection, *images: tuple[int, int], at: float = NOW, reject: dict[int, Reason] | None = None) -> None:
    """These (study, image) are received and analysed; `reject`: by place, why one was not."""
    QUEUE.receive(c, [received(s, i, at=at) for s, i in images])
    for place, waiting in enumerate(claim(c)):
        reason = (reject or {}).get(place)
        finding = Finding(job=waiting, rejection=Rejection(reason=reason)) if reason else analysed(waiting)
        QUEUE.finish(c, finding, owner="a")


def ready(c: Connection, now: float = NOW, *, owner: str = "r", quiet_s: float = 0.0, limit: int = 9) -> list[Study]:
    return STUDIES.claim(c, lease(owner, now), quiet_s=quiet_s, limit=limit)


def rows(c: Connection) -> list[dict[str, Any]]:
    return [dict(row) for row in c.execute(select(job).order_by(job.c.id)).mappings()]


# -- when, and whose


@pytest.mark.parametrize(("asked_at", "is_ready"), [(4.999, False), (5.0, True)], ids=str)
def test_a_study_is_quiet_from_its_last_second_on(database: Database, asked_at: float, is_ready: bool) -> None:
    with database.begin() as c:
        taken_in(c, (1, 1))
        assert not ready(c, NOW, quiet_s=5.0)
        assert bool(ready(c, NOW + asked_at, quiet_s=5.0)) is is_ready


@pytest.mark.parametrize(("asked_at", "free"), [(59.999, False), (60.0, True)], ids=str)
def test_a_study_s_lease_ends_after_its_last_second(database: Database, asked_at: float, free: bool) -> None:
    with database.begin() as c:
        taken_in(c, (1, 1), at=NOW - 1000)
        assert len(ready(c)) == 1
        assert not ready(c, owner="other")
        assert bool(ready(c, NOW + asked_at, owner="other")) is free


def test_a_heartbeat_a_release_and_a_hand_back_touch_nobody_else_s(database: Database) -> None:
    with database.begin() as c:
        taken_in(c, (1, 1), (2, 1))
        assert [s.study_instance_uid for s in ready(c, owner="a", limit=1)] == [study_uid(1)]
        assert [s.study_instance_uid for s in ready(c, owner="b", limit=1)] == [study_uid(2)]
        assert (STUDIES.claimed_by(c, "a"), STUDIES.claimed_by(c, "b")) == ({study_uid(1)}, {study_uid(2)})
        STUDIES.release(c, "nobody")
        assert STUDIES.claimed_by(c, "a") | STUDIES.claimed_by(c, "b") == {study_uid(1), study_uid(2)}
        STUDIES.heartbeat(c, lease("a", NOW + 100))
        query = select(study.c.lease_until).order_by(study.c.study_instance_uid)
        assert list(c.execute(query).scalars()) == [NOW + 160, NOW + 60]
        STUDIES.hand_back(c, "a", [study_uid(1), study_uid(2)])  # one of them is not a's to give
        assert (STUDIES.claimed_by(c, "a"), STUDIES.claimed_by(c, "b")) == (set(), {study_uid(2)})
        forgotten = [e for e in ledger.events(c) if e.kind == "forgotten"]
        assert [(e.study_instance_uid, e.actor) for e in forgotten] == [(study_uid(1), "test")]
        STUDIES.release(c, "b")
        query = select(study.c.lease_owner, study.c.lease_until)
        assert [tuple(r) for r in c.execute(query)] == [(None, None), (None, None)]


def test_the_most_urgent_image_makes_its_study_urgent_and_others_go_by_uid(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(3, 1), received(1, 1), received(2, 1), received(2, 2, stat=True)])
        for waiting in claim(c):
            QUEUE.finish(c, analysed(waiting), owner="a")
        assert [(s.study_instance_uid, s.stat) for s in ready(c)] == [
            (study_uid(2), True), (study_uid(1), False), (study_uid(3), False),
        ]  # fmt: skip


@pytest.mark.parametrize("state", ["received", "claimed"])
def test_one_open_image_keeps_the_study_from_its_report(database: Database, state: str) -> None:
    with database.begin() as c:
        taken_in(c, (1, 1), (1, 2))
        c.execute(update(job).where(job.c.id == 2).values(state=state))
        assert ready(c) == []


# -- what it holds


def test_a_study_comes_with_what_is_to_be_told_in_the_order_of_arrival(database: Database) -> None:
    reject = {1: Reason.OWN_RESULT, 2: Reason.LATERAL}
    with database.begin() as c:
        taken_in(c, (1, 3), (1, 2), (1, 1), reject=reject)
        (whole,) = ready(c)
    assert (whole.job_ids, whole.image_ids) == ((1, 2, 3), (1, 3))  # of an own result nothing is told
    assert [i.rejection for i in whole.images] == [None, Rejection(reason=Reason.LATERAL)]
    assert whole.last_received_at == whole.first_received_at == NOW
    assert whole.sources == (
        (header(1, 3).sop_instance_uid, f"{1:064x}"), (header(1, 1).sop_instance_uid, None),
    )  # fmt: skip
    assert whole.images[1].pixel_digest == sha256(header(1, 1).kept).hexdigest()  # nothing was decoded


def test_only_what_is_new_waits_for_the_next_report(database: Database) -> None:
    with database.begin() as c:
        taken_in(c, (1, 1))
        for n in (1, 2):
            (whole,) = ready(c)
            assert whole.job_ids == (n,)
            assert [e.sop_instance_uid for e in whole.earlier] == [f"2.25.90{i}" for i in range(1, n)]
            sr = made(f"2.25.90{n}", 1, Kind.SR)
            STUDIES.reported(c, whole, [Report(images=tuple(range(n)), sr=sr)], owner="r")
            assert {row["state"] for row in rows(c)} == {"reported"}
            assert {row["report_uid"] for row in rows(c)} == {sr.sop_instance_uid}
            taken_in(c, (1, n + 1))


# -- what came of it


def test_a_report_names_its_predecessor_and_its_images(database: Database) -> None:
    with database.begin() as c:
        taken_in(c, (1, 1), (1, 2))
        (whole,) = ready(c)
        sr = made("2.25.901", 1, Kind.SR)
        report = Report(images=(1,), sr=sr, predecessor_uid="2.25.900")
        STUDIES.reported(c, whole, [report], owner="r")
        assert [row["report_uid"] for row in rows(c)] == [None, "2.25.901"]
        kept = c.execute(select(result.c.predecessor_uid).where(result.c.kind == "sr")).scalar_one()
        assert kept == "2.25.900"
        (said,) = [e for e in ledger.events(c) if e.detail.get("object") == "sr"]
    assert said.detail["predecessor"] == "2.25.900"
    assert said.detail["sources"] == [[header(1, 2).sop_instance_uid, f"{2:064x}"]]


def test_of_two_patients_one_report_may_be_held_back_and_its_captures_with_it(database: Database) -> None:
    with database.begin() as c:
        taken_in(c, (1, 1), (1, 2), (1, 3), reject={2: Reason.LATERAL})
        (whole,) = ready(c)
        told, held = made("2.25.901", 1, Kind.SR), Report(images=(1, 2), held_back=INVALID)
        assert STUDIES.reported(c, whole, [Report(images=(0,), sr=told), held], owner="r") == ["2.25.901", "2.25.1"]
        first, second, third = rows(c)
        failed = [e for e in ledger.events(c) if e.kind == "report_failed"]
        flagged = [e for e in ledger.events(c) if e.kind == "several_patients"]
        closed = [e for e in ledger.events(c) if e.kind == "study_reported"]
    several = ("analysed", "several_patients", "2 patients, a report each")
    assert (first["outcome"], first["reason"], first["detail"]) == several
    assert (second["outcome"], second["reason"], second["detail"]) == ("failed", "result_invalid", "SR")
    assert (third["outcome"], third["reason"], third["detail"]) == ("failed", "result_invalid", "SR")
    assert {row["state"] for row in (first, second, third)} == {"reported"}
    (why,) = failed
    assert (why.study_instance_uid, why.outcome, why.actor) == (study_uid(1), "failed", "test")
    assert why.detail == {"why": INVALID.text, "jobs": [2, 3], "reason": "result_invalid", "detail": "SR"}
    detail = {"patients": 2, "jobs": [1], "detail": "2 patients, a report each"}
    assert [(e.study_instance_uid, e.detail) for e in flagged] == [(study_uid(1), detail)]
    assert [e.detail for e in closed] == [{"jobs": [1, 2, 3]}]


def test_one_patient_s_study_is_not_flagged_and_a_flag_hides_no_other_note(database: Database) -> None:
    with database.begin() as c:
        taken_in(c, (1, 1), (1, 2))
        c.execute(update(job).where(job.c.id == 2).values(reason="uid_conflict", detail="1 other"))
        (whole,) = ready(c)
        STUDIES.reported(c, whole, [Report(images=(0, 1), sr=made("2.25.901", 1, Kind.SR))], owner="r")
        assert [row["reason"] for row in rows(c)] == [None, "uid_conflict"]
        assert "several_patients" not in kinds(c)
        QUEUE.retry(c, [1, 2])
        for waiting in claim(c):
            QUEUE.finish(c, analysed(waiting), owner="a")
        c.execute(update(job).where(job.c.id == 2).values(reason="uid_conflict", detail="1 other"))
        (whole,) = ready(c)
        each = [Report(images=(n,), sr=made(f"2.25.91{n}", 1, Kind.SR)) for n in (0, 1)]
        STUDIES.reported(c, whole, each, owner="r")
        assert [(row["reason"], row["detail"]) for row in rows(c)] == [
            ("several_patients", "2 patients, a report each"), ("uid_conflict", "1 other"),
        ]  # fmt: skip


def test_a_report_that_fails_later_leaves_what_failed_before_as_it_was(database: Database) -> None:
    with database.begin() as c:
        taken_in(c, (1, 1), (1, 2), reject={0: Reason.UNDECODABLE})
        (whole,) = ready(c)
        assert STUDIES.failed(c, whole, INVALID, owner="r")
        assert [row["reason"] for row in rows(c)] == ["undecodable", "result_invalid"]
        assert STUDIES.claimed_by(c, "r") == set()
        assert not STUDIES.failed(c, whole, INVALID, owner="r")
