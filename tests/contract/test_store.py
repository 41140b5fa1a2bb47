"""The store's contract, the same on SQLite and on a real PostgreSQL: queue, studies, settings.

The outbox and what happens when several processes meet stand in files of their own beside this one.
"""

from __future__ import annotations

import pytest
from sqlalchemy import select

from cxrnode.store.database import Database
from cxrnode.store.queue import MAX_ATTEMPTS, Finding
from cxrnode.store.schema import instance, job
from cxrnode.store.studies import Studies
from cxrnode.types import Kind, NewItem, Reason, Receipt, Rejection
from tests.support.store import (
    NOW,
    QUEUE,
    analysed,
    claim,
    item,
    kinds,
    lease,
    look,
    made,
    received,
    reports,
    study_uid,
)

STUDIES = Studies("test")
LATERAL = Rejection(reason=Reason.LATERAL, detail="ViewPosition=LL")


# -- in


def test_an_archive_is_taken_in_once_and_claimed_in_its_order(database: Database) -> None:
    items = [item(s, i) for s in (2, 1) for i in (1, 2)]
    with database.begin() as c:
        QUEUE.add(c, items, now=NOW)
    with database.begin() as c:
        assert QUEUE.known_paths(c, ["s2/i1.dcm", "s9/i1.dcm"]) == {"s2/i1.dcm"}
        assert QUEUE.count_waiting(c) == 4
        jobs = claim(c)
    assert [j.path for j in jobs] == [i.path for i in items]
    assert jobs[0].location == items[0].location
    assert (jobs[0].header, jobs[0].received_at, jobs[0].stat) == (b"header 2 1", None, False)


def test_what_is_no_candidate_is_at_its_end_at_once(database: Database) -> None:
    rejected = NewItem(path="notes.txt", location={}, rejection=Rejection(reason=Reason.NOT_DICOM))
    with database.begin() as c:
        QUEUE.add(c, [rejected], now=NOW)
        assert claim(c) == []
        assert QUEUE.count_waiting(c) == 0
        assert QUEUE.known_paths(c, ["notes.txt"]) == {"notes.txt"}
        assert kinds(c) == ["not_analysed"]


def test_an_instance_is_received_once_and_a_conflict_is_kept_beside_it(database: Database) -> None:
    with database.begin() as c:
        assert QUEUE.receive(c, [received(1, 1), received(1, 2)]) == [Receipt.NEW, Receipt.NEW]
    with database.begin() as c:
        again = [received(1, 1), received(1, 1, sha256="b"), received(1, 1, sha256="b")]
        assert QUEUE.receive(c, again) == [Receipt.DUPLICATE, Receipt.CONFLICT, Receipt.DUPLICATE]
        assert kinds(c) == ["received"] * 5
        assert len(claim(c)) == 3
        row = c.execute(select(instance).where(instance.c.sha256 == "b" * 64)).one()
    assert (row.size_bytes, row.received_at, row.calling_aet) == (5_000_000_000, NOW, "PACS")


# -- claims


def test_stat_goes_first_but_never_starves_the_rest(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, n) for n in range(8)])
        QUEUE.receive(c, [received(2, n, stat=True) for n in range(8)])
        first = claim(c, limit=8)
        second = claim(c, limit=8)
    assert [j.stat for j in first] == [True] * 6 + [False] * 2
    assert [j.stat for j in second] == [True] * 2 + [False] * 6
    assert len({j.id for j in first + second}) == 16


def test_a_caller_that_has_its_hands_full_still_gets_stat_images(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1), received(2, 1, stat=True), received(1, 2)])
        taken = QUEUE.claim(c, lease("a"), limit=4, idle=False, stat_only=True)
        assert [j.study_instance_uid for j in taken] == [study_uid(2)]
        assert QUEUE.claim(c, lease("a"), limit=4, idle=False, stat_only=True) == []


def test_a_claim_is_its_owner_s_until_the_lease_ends(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1)])
        (mine,) = claim(c, owner="a")
        look(c)
        assert claim(c, owner="b", now=NOW + 59) == []
        QUEUE.heartbeat(c, lease("a", NOW - 3600))
        assert claim(c, owner="b", now=NOW + 100) == []
        assert claim(c, owner="b", now=NOW + 159) == []
        (theirs,) = claim(c, owner="b", now=NOW + 160)
        assert (theirs.id, mine.attempts, theirs.attempts) == (mine.id, 1, 2)
        before = kinds(c)
        assert not QUEUE.finish(c, analysed(mine), owner="a")
        assert kinds(c) == before
        assert QUEUE.finish(c, analysed(theirs), owner="b")
        assert not QUEUE.finish(c, analysed(theirs), owner="b")
        assert kinds(c) == [*before, "report_made", "analysed"]


def test_an_image_that_kills_is_tried_alone_and_then_given_up(database: Database) -> None:
    now = NOW
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1)])
        for attempt in range(1, MAX_ATTEMPTS + 1):
            (claimed,) = claim(c, owner=f"killed {attempt}", now=now)
            assert claimed.attempts == attempt
            look(c, now)
            now += 100
        assert claimed.alone
        assert claim(c, now=now) == []
        QUEUE.give_up(c, lease(now=now))
        row = c.execute(select(job)).one()
        assert (row.state, row.reason) == ("analysed", "gave_up")
        assert kinds(c)[-1] == "failed"
        (study,) = STUDIES.claim(c, lease(now=now), quiet_s=0.0, limit=9)
    assert study.images[0].rejection == Rejection(reason=Reason.GAVE_UP, detail=f"{MAX_ATTEMPTS} attempts")


def test_a_stage_that_was_killed_seven_times_gives_nothing_up(database: Database) -> None:
    """Kills from outside are not the image's doing: only several deaths with it alone in hand speak against it."""
    now = NOW
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1)])
        for _ in range(7):
            assert len(claim(c, owner=f"killed {now}", now=now)) == 1
            look(c, now)
            now += 100
        QUEUE.give_up(c, lease(now=now))
        assert [j.id for j in claim(c, now=now)] == [1]


def test_a_lone_worker_frees_what_its_predecessor_claimed(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1)])
        claim(c, owner="killed")
        QUEUE.release_all(c)
        assert [j.attempts for j in claim(c, owner="next")] == [1]


def test_what_is_handed_back_counts_no_attempt(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1), received(2, 1), received(3, 1)])
        (done,) = claim(c, 1)
        QUEUE.finish(c, analysed(done), owner="a")
        assert len(STUDIES.claim(c, lease("a"), quiet_s=0.0, limit=9)) == 1
        assert len(claim(c, 1)) == len(claim(c, 1, owner="other")) == 1
        QUEUE.release(c, "a")
        STUDIES.release(c, "a")
        assert [(j.study_instance_uid[-3:], j.attempts) for j in claim(c, owner="next")] == [("002", 1)]
        assert len(STUDIES.claim(c, lease("next"), quiet_s=0.0, limit=9)) == 1


# -- out


def test_a_finding_reads_back_as_it_was(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1), received(1, 2)])
        first, second = claim(c)
        QUEUE.finish(c, analysed(first), owner="a")
        QUEUE.finish(c, Finding(job=second, rejection=LATERAL), owner="a")
    with database.begin() as c:
        (study,) = STUDIES.claim(c, lease(), quiet_s=0.0, limit=9)
        captures = STUDIES.reported(c, study, (), owner="a")
    assert [i.kept_header for i in study.images] == [b"header 1 1", b"header 1 2"]
    assert study.images[0].prediction == analysed(first).prediction
    assert study.images[0].pixel_digest == f"{first.id:064x}"
    assert (study.images[1].prediction, study.images[1].rejection) == (None, LATERAL)
    assert captures == [f"2.25.{first.id}"]


def test_seen_are_the_finished_films_with_a_uid(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1), received(1, 1, sha256="b"), received(1, 1, sha256="c")])
        first, second, third = claim(c)
        QUEUE.finish(c, analysed(first), owner="a")
        duplicate = Finding(job=second, pixel_digest="9" * 64, rejection=Rejection(reason=Reason.DUPLICATE))
        QUEUE.finish(c, duplicate, owner="a")
        QUEUE.finish(c, Finding(job=third, pixel_digest="8" * 64, rejection=LATERAL), owner="a")
        seen = QUEUE.seen(c, first.sop_instance_uid)
        assert [(i.job_id, i.path, i.pixel_digest, i.rejected) for i in seen] == [
            (first.id, first.path, f"{first.id:064x}", None), (third.id, third.path, "8" * 64, Reason.LATERAL)
        ]  # fmt: skip
        assert (seen[0].study_instance_uid, seen[0].header) == (first.study_instance_uid, first.header)
        assert QUEUE.seen(c, "1.2.3") == []


def test_a_repeat_makes_the_same_object_again(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1)])
        (first,) = claim(c)
        QUEUE.finish(c, analysed(first), owner="a")
        assert QUEUE.retry(c, [first.id, 77]) == [first.study_instance_uid]
        (again,) = claim(c)
        QUEUE.finish(c, analysed(again), owner="a")
        (study,) = STUDIES.claim(c, lease(), quiet_s=0.0, limit=9)
        assert STUDIES.reported(c, study, (), owner="a") == [f"2.25.{first.id}"]


def test_a_job_is_buried_by_hand(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1), received(1, 2)])
        (one, other) = claim(c)
        assert QUEUE.bury(c, [one.id, 77]) == 1
        assert QUEUE.bury(c, [one.id]) == 0
        assert not QUEUE.finish(c, analysed(one), owner="a")
        assert QUEUE.finish(c, analysed(other), owner="a")


# -- studies


def test_a_study_is_reported_when_it_is_quiet_and_whole(database: Database) -> None:
    """Whatever the clock says that stamped its receipt: what counts is that nothing was added for so long."""
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1), received(2, 1), received(3, 1)])
        first, second, third = claim(c)
        assert not STUDIES.due(c, lease("r", NOW), quiet_s=5.0)
        QUEUE.finish(c, analysed(first), owner="a")
        QUEUE.finish(c, analysed(third), owner="a")
        QUEUE.receive(c, [received(3, 2, at=NOW - 3600)])
        QUEUE.finish(c, analysed(claim(c)[0]), owner="a")
        assert not STUDIES.due(c, lease("r", NOW + 4.9), quiet_s=5.0)
        at = lease("r", NOW + 5)
        assert STUDIES.due(c, at, quiet_s=5.0)
        assert [s.study_instance_uid for s in STUDIES.claim(c, at, quiet_s=5.0, limit=9)] == [study_uid(1)]
        assert STUDIES.claim(c, at, quiet_s=5.0, limit=9) == []  # it is claimed
        QUEUE.finish(c, analysed(second), owner="a")
        later = lease("s", NOW + 9.9)
        assert [s.study_instance_uid for s in STUDIES.claim(c, later, quiet_s=5.0, limit=1)] == [study_uid(2)]
        assert [s.study_instance_uid for s in STUDIES.claim(c, later, quiet_s=5.0, limit=9)] == [study_uid(3)]


def test_stat_studies_are_reported_first(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1), received(2, 1, stat=True), received(2, 2)])
        for claimed in claim(c):
            QUEUE.finish(c, analysed(claimed), owner="a")
        studies = STUDIES.claim(c, lease(), quiet_s=0.0, limit=9)
    assert [(s.study_instance_uid, s.stat) for s in studies] == [(study_uid(2), True), (study_uid(1), False)]


def test_a_late_image_makes_a_new_report_that_names_the_one_before(database: Database) -> None:
    first_sr, second_sr = made("2.25.901", 1, Kind.SR), made("2.25.902", 1, Kind.SR)
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1)])
        QUEUE.finish(c, analysed(claim(c)[0]), owner="a")
        (study,) = STUDIES.claim(c, lease(), quiet_s=0.0, limit=9)
        assert study.earlier == ()
        assert STUDIES.reported(c, study, reports(study, first_sr), owner="a") == ["2.25.901", "2.25.1"]
        assert STUDIES.claim(c, lease(), quiet_s=0.0, limit=9) == []
        QUEUE.receive(c, [received(1, 2)])
        QUEUE.finish(c, analysed(claim(c)[0]), owner="a")
        (study,) = STUDIES.claim(c, lease(), quiet_s=0.0, limit=9)
        assert len(study.images) == 2
        assert study.earlier == (first_sr,)
        assert STUDIES.reported(c, study, reports(study, second_sr), owner="a") == ["2.25.902", "2.25.1", "2.25.2"]


def test_what_comes_while_the_report_is_made_is_in_the_next_one(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1)])
        QUEUE.finish(c, analysed(claim(c)[0]), owner="a")
        (study,) = STUDIES.claim(c, lease(), quiet_s=0.0, limit=9)
        QUEUE.receive(c, [received(1, 2)])
        QUEUE.finish(c, analysed(claim(c)[0]), owner="a")
        assert STUDIES.reported(c, study, reports(study, made("2.25.901", 1, Kind.SR)), owner="a")
        (again,) = STUDIES.claim(c, lease(), quiet_s=0.0, limit=9)
        assert len(again.images) == 2


def test_what_comes_while_a_report_fails_is_not_failed_with_it(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1)])
        QUEUE.finish(c, analysed(claim(c)[0]), owner="a")
        (study,) = STUDIES.claim(c, lease(), quiet_s=0.0, limit=9)
        QUEUE.receive(c, [received(1, 2)])
        QUEUE.finish(c, analysed(claim(c)[0]), owner="a")
        assert STUDIES.failed(c, study, LATERAL, owner="a")
        (again,) = STUDIES.claim(c, lease(), quiet_s=0.0, limit=9)
        assert [bool(i.prediction) for i in again.images] == [False, True]


def test_a_lost_study_lease_changes_nothing(database: Database) -> None:
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1)])
        QUEUE.finish(c, analysed(claim(c)[0]), owner="a")
        (mine,) = STUDIES.claim(c, lease("a"), quiet_s=0.0, limit=9)
        assert STUDIES.claim(c, lease("b", NOW + 50), quiet_s=0.0, limit=9) == []
        STUDIES.heartbeat(c, lease("a", NOW - 3600))
        assert STUDIES.claim(c, lease("b", NOW + 110), quiet_s=0.0, limit=9) == []
        assert STUDIES.claim(c, lease("b", NOW + 169), quiet_s=0.0, limit=9) == []
        (theirs,) = STUDIES.claim(c, lease("b", NOW + 170), quiet_s=0.0, limit=9)
        before = kinds(c)
        assert STUDIES.reported(c, mine, reports(mine, made("2.25.900", 1, Kind.SR)), owner="a") is None
        assert not STUDIES.failed(c, mine, LATERAL, owner="a")
        assert kinds(c) == before
        STUDIES.release_all(c)
        assert [s.images for s in STUDIES.claim(c, lease("c"), quiet_s=0.0, limit=9)] == [theirs.images]


def test_a_report_that_cannot_be_made_fails_its_images(database: Database) -> None:
    why = Rejection(reason=Reason.RESULT_INVALID, detail="SR")
    with database.begin() as c:
        QUEUE.receive(c, [received(1, 1)])
        QUEUE.finish(c, analysed(claim(c)[0]), owner="a")
        (study,) = STUDIES.claim(c, lease(), quiet_s=0.0, limit=9)
        assert STUDIES.failed(c, study, why, owner="a")
        row = c.execute(select(job)).one()
        assert kinds(c)[-2:] == ["report_failed", "study_reported"]
    assert (row.state, row.outcome, row.reason) == ("reported", "failed", "result_invalid")


# -- settings


@pytest.mark.parametrize("value", [None, 0, "ä", [1.5, None], {"a": {"b": [True]}}])
def test_a_setting_keeps_any_json(database: Database, value: object) -> None:
    with database.begin() as c:
        assert QUEUE.get_setting(c, "key") is None
        QUEUE.set_setting(c, "key", "before")
        QUEUE.set_setting(c, "key", value)
        QUEUE.set_setting(c, "other", 1)
    with database.begin() as c:
        assert QUEUE.get_setting(c, "key") == value
