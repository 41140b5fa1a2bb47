"""The queue at its limits: to the second, to the attempt, to the image; and what is on record. On both databases."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.queue import MAX_ATTEMPTS, Finding, storable
from cxrnode.store.schema import instance, job, study
from cxrnode.types import AuditEvent, InstanceHeader, NewItem, Reason, Receipt, Rejection
from tests.support.store import (
    CR,
    NOW,
    QUEUE,
    SC,
    analysed,
    claim,
    header,
    item,
    lease,
    look,
    made,
    received,
    study_uid,
)

CONFLICT = Rejection(reason=Reason.UID_CONFLICT, detail="1 other")
PREDICTED = {"class_index": 0, "probabilities": [0.93, 0.05, 0.02], "cam_max": 1.5, "engine": "cpu"}


def last(c: Connection, kind: str) -> AuditEvent:
    return [e for e in ledger.events(c) if e.kind == kind][-1]


def named(of: InstanceHeader) -> dict[str, str]:
    """What a record says of an instance beside study, UID and patient."""
    digest = sha256(of.kept).hexdigest()
    return {"series_instance_uid": of.series_instance_uid, "sop_class_uid": CR, "header_sha256": digest}


def row_of(c: Connection, job_id: int) -> dict[str, Any]:
    return dict(c.execute(select(job).where(job.c.id == job_id)).mappings().one())


def attempted(c: Connection, attempts: int, *images: int) -> None:
    """Images of study 1 that a killed process claimed so many times; its lease ended long ago."""
    QUEUE.receive(c, [received(1, n) for n in images])
    lost = {"state": "claimed", "lease_owner": "killed", "lease_until": NOW - 1, "attempts": attempts}
    uids = [header(1, n).sop_instance_uid for n in images]
    ids = select(instance.c.id).where(instance.c.sop_instance_uid.in_(uids))
    c.execute(update(job).where(job.c.id.in_(ids)).values(**lost))
    look(c, NOW - 61)


# -- leases


@pytest.mark.parametrize(("asked_at", "free"), [(59.999, False), (60.0, True)], ids=str)
def test_a_lease_ends_when_it_was_seen_unchanged_for_as_long_as_it_is_for(
    database: Database, asked_at: float, free: bool
) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1)])
        claim(c, owner="a")  # for 60 s
        look(c)
        assert (len(claim(c, owner="b", now=NOW + asked_at)) == 1) is free


def test_a_heartbeat_and_a_release_touch_nobody_else_s(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, n) for n in (1, 2, 3)])
        (mine,) = claim(c, 1, owner="a")
        (theirs,) = claim(c, 1, owner="b")
        assert (QUEUE.claimed_by(c, "a"), QUEUE.claimed_by(c, "b")) == ({mine.id}, {theirs.id})
        QUEUE.heartbeat(c, lease("a", NOW + 100))
        assert [row_of(c, j.id)["lease_until"] for j in (mine, theirs)] == [NOW + 160, NOW + 60]
        QUEUE.release(c, "a")
        assert row_of(c, mine.id)["lease_owner"] is None
        assert row_of(c, mine.id)["lease_until"] is None
        assert (QUEUE.claimed_by(c, "a"), QUEUE.claimed_by(c, "b")) == (set(), {theirs.id})


def test_what_its_owner_forgot_is_anybody_s_again_counts_its_attempt_and_is_on_record(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1), received(1, 2)])
        first, second = claim(c, owner="a")
        QUEUE.hand_back(c, "a", [first.id])
        row = row_of(c, first.id)
        assert (row["state"], row["attempts"], row["lease_owner"], row["lease_until"]) == ("received", 1, None, None)
        assert QUEUE.claimed_by(c, "a") == {second.id}
        said = last(c, "forgotten")
        assert (said.study_instance_uid, said.sop_instance_uid, said.actor) == (
            study_uid(1), first.sop_instance_uid, "test",
        )  # fmt: skip
        assert said.detail == {"path": first.path}
        QUEUE.hand_back(c, "b", [second.id])  # not b's to give
        assert QUEUE.claimed_by(c, "a") == {second.id}


def test_a_release_of_all_forgets_the_attempts_and_leaves_what_is_done(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1), received(1, 2)])
        done, open_ = claim(c, owner="a")
        QUEUE.finish(c, analysed(done), owner="a")
        QUEUE.release_all(c)
        assert (row_of(c, open_.id)["state"], row_of(c, open_.id)["attempts"]) == ("received", 0)
        assert row_of(c, open_.id)["lease_owner"] is None
        assert row_of(c, open_.id)["lease_until"] is None
        assert (row_of(c, done.id)["state"], row_of(c, done.id)["attempts"]) == ("analysed", 1)


# -- attempts


@pytest.mark.parametrize(("attempts", "alone"), [(2, False), (3, True), (7, True)])
def test_after_three_silent_ends_an_image_goes_alone(database: Database, attempts: int, alone: bool) -> None:
    with database.begin() as c:
        attempted(c, attempts, 1)
        QUEUE.receive(c, [received(1, 2)])
        taken = claim(c)
        assert [(j.attempts, j.alone) for j in taken] == [(attempts + 1, alone)] + [(1, False)] * (not alone)


def test_one_suspect_at_a_time_and_none_for_a_caller_with_others_in_hand(database: Database) -> None:
    with database.begin() as c:
        attempted(c, 3, 1, 2)
        assert QUEUE.claim(c, lease("a"), limit=9, idle=False) == []
        assert len(QUEUE.claim(c, lease("a"), limit=9, idle=True)) == 1


def test_an_image_is_given_up_after_eight_attempts_and_not_while_the_eighth_is_running(database: Database) -> None:
    assert MAX_ATTEMPTS == 8  # five of them with it alone in hand
    with database.begin() as c:
        attempted(c, 7, 1)
        QUEUE.give_up(c, lease())
        (eighth,) = claim(c)
        QUEUE.give_up(c, lease(now=NOW + 60))
        assert row_of(c, eighth.id)["state"] == "claimed"
        assert claim(c, now=NOW + 120) == []
        QUEUE.give_up(c, lease(now=NOW + 120))
        row = row_of(c, eighth.id)
        said = last(c, "failed")
    assert (row["state"], row["outcome"], row["reason"], row["detail"]) == (
        "analysed",
        "failed",
        "gave_up",
        "8 attempts",
    )
    assert (row["lease_owner"], row["lease_until"]) == (None, None)
    assert (said.study_instance_uid, said.sop_instance_uid, said.outcome) == (
        study_uid(1), eighth.sop_instance_uid, "failed",
    )  # fmt: skip
    assert said.detail == {"job": 1, "path": eighth.path, "reason": "gave_up", "why": "8 attempts"}


# -- order and share


@pytest.mark.parametrize(("limit", "stat", "routine"), [(1, 1, 0), (3, 3, 0), (4, 3, 1), (7, 6, 1), (8, 6, 2)])
def test_a_quarter_of_a_claim_is_routine(database: Database, limit: int, stat: int, routine: int) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, n) for n in range(9)] + [received(2, n, stat=True) for n in range(9)])
        taken = claim(c, limit)
    assert [j.stat for j in taken] == [True] * stat + [False] * routine
    assert [j.sop_instance_uid for j in taken] == [
        *(header(2, n).sop_instance_uid for n in range(stat)), *(header(1, n).sop_instance_uid for n in range(routine)),
    ]  # fmt: skip


def test_what_a_lost_lease_left_goes_before_what_is_new_and_counts_to_the_limit(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(2, n) for n in range(4)])
        attempted(c, 1, 1, 2)
        taken = claim(c, 3)
        assert sorted(j.study_instance_uid for j in taken) == [study_uid(1), study_uid(1), study_uid(2)]


def test_a_caller_for_stat_alone_takes_a_lost_stat_image_and_no_routine_one(database: Database) -> None:
    with database.begin() as c:
        attempted(c, 1, 1)
        assert QUEUE.claim(c, lease("b"), limit=9, idle=False, stat_only=True) == []
        c.execute(update(job).values(priority=0))
        assert len(QUEUE.claim(c, lease("b"), limit=9, idle=False, stat_only=True)) == 1


def test_a_claim_is_put_on_record_with_its_attempt(database: Database) -> None:
    with database.begin() as c:
        attempted(c, 1, 1)
        (taken,) = claim(c)
        QUEUE.record_claims(c, [taken])
        said = last(c, "claimed")
    assert (said.study_instance_uid, said.sop_instance_uid) == (taken.study_instance_uid, taken.sop_instance_uid)
    assert said.detail == {"path": taken.path, "attempt": 2}


# -- in


def test_a_claim_says_when_the_first_image_of_its_study_came(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1, at=NOW)])
        QUEUE.receive(c, [received(1, 2, at=NOW + 50), received(2, 1, at=NOW + 60)])
        claimed = claim(c, limit=9)
        columns = (study.c.first_received_at, study.c.last_received_at)
        times = [tuple(row) for row in c.execute(select(*columns).order_by(study.c.study_instance_uid))]
    assert [(job.received_at, job.study_since) for job in claimed] == [
        (NOW, NOW), (NOW + 50, NOW), (NOW + 60, NOW + 60),
    ]  # fmt: skip
    assert times == [(NOW, NOW + 50), (NOW + 60, NOW + 60)]


def test_what_was_received_is_in_its_row_and_on_record(database: Database) -> None:
    one = replace(received(1, 1, stat=True), patient_id="P1", accession_number="A1")
    with database.begin() as c:
        assert QUEUE.receive(c, [one]) == [Receipt.NEW]
        row = dict(c.execute(select(instance)).mappings().one())
        said = last(c, "received")
        waits = row_of(c, row["id"])
        at = c.execute(select(study.c.last_received_at)).scalar_one()
    path = one.path.as_posix()
    assert {k: v for k, v in row.items() if v is not None} == {
        "id": 1, "path": path, "location": {"container": path, "kind": "file", "offset": 0}, "header": one.kept,
        "study_instance_uid": study_uid(1), "series_instance_uid": one.series_instance_uid, "sop_class_uid": CR,
        "sop_instance_uid": one.sop_instance_uid, "transfer_syntax_uid": "1.2.840.10008.1.2.1", "sha256": "a" * 64,
        "size_bytes": 5_000_000_000, "calling_aet": "PACS", "called_aet": "CXRNODE", "host": "127.0.0.1",
        "received_at": NOW,
    }  # fmt: skip
    assert (waits["state"], waits["priority"], waits["attempts"], at) == ("received", 0, 0, NOW)
    assert (said.study_instance_uid, said.sop_instance_uid, said.ae_title, said.outcome) == (
        study_uid(1), one.sop_instance_uid, "PACS", "new",
    )  # fmt: skip
    assert (said.patient_id, said.accession_number, said.actor) == ("P1", "A1", "test")
    assert said.detail == {
        "sha256": "a" * 64, "size_bytes": 5_000_000_000, "called_aet": "CXRNODE", "host": "127.0.0.1", "path": path,
        "job": 1, "priority": 0, "received_at": NOW, "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        **named(header(1, 1)),
    }  # fmt: skip


def test_a_duplicate_adds_a_record_and_nothing_else(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1)])
        assert QUEUE.receive(c, [received(1, 1, at=NOW + 9)]) == [Receipt.DUPLICATE]
        assert QUEUE.count_all(c) == 1
        assert c.execute(select(study.c.last_received_at)).scalar_one() == NOW  # its report waits no longer
        assert last(c, "received").outcome == "duplicate"


def test_a_scanned_file_is_in_its_row_and_on_record(database: Database) -> None:
    plain = item(1, 1)
    assert plain.header
    candidate = replace(plain, header=replace(plain.header, patient_id="P1", accession_number="A1"))
    lateral = replace(item(1, 2), rejection=Rejection(reason=Reason.LATERAL, detail="LL"))
    with database.begin() as c:
        QUEUE.add(c, [candidate], now=NOW)
        QUEUE.add(c, [lateral, NewItem(path="x", location={})], now=NOW + 5)
        said = last(c, "scanned")
        assert c.execute(select(study.c.last_received_at)).scalar_one() == NOW + 5
        first, second, third = (row_of(c, n) for n in (1, 2, 3))
        assert [e.kind for e in ledger.events(c)] == ["scanned", "not_analysed"]
        assert last(c, "not_analysed").detail == {
            "job": 2, "path": lateral.path, "location": lateral.location, "reason": "lateral", "why": "LL",
        }  # fmt: skip
        assert (QUEUE.count_all(c), QUEUE.count_waiting(c)) == (3, 2)
    assert (said.study_instance_uid, said.sop_instance_uid) == (study_uid(1), header(1, 1).sop_instance_uid)
    assert (said.patient_id, said.accession_number) == ("P1", "A1")
    assert said.detail == {"job": 1, "path": candidate.path, "location": candidate.location, **named(header(1, 1))}
    assert (first["state"], first["outcome"], first["priority"]) == ("received", None, 1)
    assert (second["state"], second["outcome"], second["reason"], second["detail"]) == (
        "reported", "not_analysed", "lateral", "LL",
    )  # fmt: skip
    assert third["study_instance_uid"] is None


@pytest.mark.parametrize(
    ("text", "stored"), [("plain ä", "plain ä"), ("a\0b", "a\\x00b"), ("caf\udce9", "caf\\udce9")], ids=ascii
)
def test_text_from_outside_is_stored_as_every_database_holds_it(text: str, stored: str) -> None:
    assert storable(text) == stored


# -- out


def test_a_finding_is_in_its_row_and_on_record(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1), received(1, 2)])
        first, second = claim(c)
        QUEUE.finish(c, analysed(first, note=CONFLICT), owner="a")
        row, said = row_of(c, first.id), last(c, "analysed")
        made_of = last(c, "report_made")
        c.execute(update(job).where(job.c.id == second.id).values(reason="lateral", detail="of before"))
        QUEUE.finish(c, analysed(second), owner="a")
        clean = row_of(c, second.id)
    assert {k: row[k] for k in PREDICTED} == PREDICTED
    assert (row["state"], row["outcome"], row["reason"], row["detail"]) == (
        "analysed", "analysed", "uid_conflict", "1 other",
    )  # fmt: skip
    assert (row["lease_owner"], row["lease_until"]) == (None, None)
    assert (clean["reason"], clean["detail"]) == (None, None)
    assert (said.study_instance_uid, said.sop_instance_uid, said.outcome) == (
        study_uid(1), first.sop_instance_uid, "analysed",
    )  # fmt: skip
    assert said.detail == {
        "job": 1, "class_index": 0, "cam_max": 1.5, "path": first.path,
        "reason": "uid_conflict", "why": "1 other", "pixel_digest": f"{first.id:064x}",
        "probabilities": [0.93, 0.05, 0.02], "engine": "cpu",
    }  # fmt: skip
    assert made_of.detail["sources"] == [[first.sop_instance_uid, f"{first.id:064x}"]]


def test_a_finding_of_a_rejected_image_has_no_numbers(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1)])
        (taken,) = claim(c)
        QUEUE.finish(c, Finding(job=taken, rejection=Rejection(reason=Reason.UNDECODABLE, detail="bad")), owner="a")
        row, said = row_of(c, taken.id), last(c, "failed")
    assert {k: row[k] for k in PREDICTED} == dict.fromkeys(PREDICTED)
    assert (row["outcome"], row["reason"], row["detail"]) == ("failed", "undecodable", "bad")
    assert said.detail == {"job": 1, "path": taken.path, "reason": "undecodable", "why": "bad"}


def test_a_result_is_in_its_row_with_the_image_it_shows(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1)])
        (taken,) = claim(c)
        capture = replace(made("2.25.7", 1), model="m" * 64, software="0.1.0")
        QUEUE.finish(c, replace(analysed(taken), capture=capture), owner="a")
        said = last(c, "report_made")
    assert said.detail == {
        "job": 1, "path": "dicom/2.25.7.dcm", "series_instance_uid": f"{study_uid(1)}.9", "sop_class_uid": SC,
        "object": "capture", "sha256": "c" * 64, "model": "m" * 64, "software": "0.1.0", "predecessor": None,
        "sources": [[taken.sop_instance_uid, f"{taken.id:064x}"]],
    }  # fmt: skip
    assert (said.study_instance_uid, said.sop_instance_uid) == (study_uid(1), "2.25.7")


# -- by hand


def test_a_retry_begins_anew_only_what_is_done(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, n) for n in (1, 2, 3)])
        (done, held) = claim(c, 2)
        QUEUE.finish(c, analysed(done), owner="a")
        stranger = NewItem(path="x", location={}, rejection=Rejection(reason=Reason.NOT_DICOM))
        QUEUE.add(c, [stranger], now=NOW)
        assert QUEUE.retry(c, [1, 1, 2, 3, 4]) == [study_uid(1)]  # not one that waits, is claimed, or has no study
        row, said = row_of(c, done.id), last(c, "retried")
        assert [e.kind for e in ledger.events(c)].count("retried") == 1
        assert row_of(c, held.id)["state"] == "claimed"
        c.execute(update(job).where(job.c.id == done.id).values(state="reported", attempts=5, not_before=NOW + 9))
        assert QUEUE.retry(c, [done.id]) == [study_uid(1)]
        again = row_of(c, done.id)
    assert (row["state"], row["attempts"], row["lease_owner"], row["lease_until"]) == ("received", 0, None, None)
    assert (again["state"], again["attempts"], again["not_before"]) == ("received", 0, 0.0)
    assert (said.study_instance_uid, said.sop_instance_uid, said.detail) == (
        study_uid(1), done.sop_instance_uid, {"job": done.id},
    )  # fmt: skip


def test_what_is_buried_by_hand_says_so_and_what_is_done_stays(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, n) for n in (1, 2, 3)])
        (done, held) = claim(c, 2)
        QUEUE.finish(c, analysed(done), owner="a")
        assert QUEUE.bury(c, [1, 2, 2, 3]) == 2
        assert row_of(c, done.id)["outcome"] == "analysed"
        row = row_of(c, held.id)
        said = [e.detail for e in ledger.events(c) if e.kind == "failed"]
    assert (row["state"], row["outcome"], row["reason"], row["detail"]) == ("analysed", "failed", "gave_up", "by hand")
    assert (row["lease_owner"], row["lease_until"]) == (None, None)
    assert {"job": held.id, "path": held.path, "reason": "gave_up", "why": "by hand"} in said
