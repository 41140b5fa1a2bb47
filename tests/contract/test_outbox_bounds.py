"""The outbox and the commitment requests at their limits: to the second, to the try; and what is on record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from cxrnode.store import ledger
from cxrnode.store.commitments import Commitments, OpenRequest
from cxrnode.store.database import Database
from cxrnode.store.objects import add_result
from cxrnode.store.outbox import Delivery, Outbox
from cxrnode.store.queue import Lease, Queue
from cxrnode.store.schema import commitment_request, delivery
from cxrnode.store.studies import Studies
from cxrnode.types import AuditEvent, Kind
from tests.support.postgres import Postgres
from tests.support.store import CR, NOW, analysed, header, lease, made, received, study_uid

DAY = 86_400.0
OUTBOX, COMMITMENTS = Outbox("test", ae_titles={"near": "ARCHIVE"}), Commitments("test")
FAR = "FAR@10.0.0.1:104"


@pytest.fixture
def c(database: Database) -> Iterator[Connection]:
    """A transaction in which three results of one study, an SR and two captures, are queued for one destination."""
    with database.begin() as c:
        for n, kind in enumerate((Kind.SR, Kind.CAPTURE, Kind.CAPTURE)):
            add_result(c, made(f"2.25.{n}", 1, kind), actor="test")
        assert OUTBOX.enqueue(c, ["2.25.0", "2.25.1", "2.25.2"], ["near"], now=NOW) == 3
        yield c


def take(c: Connection, *, now: float = NOW, owner: str = "a", limit: int = 9, to: str = "near") -> list[Delivery]:
    return OUTBOX.claim(c, to, Lease(owner=owner, now=now, seconds=60.0), now=now, limit=limit)


def sent(c: Connection, *, now: float = NOW) -> list[Delivery]:
    taken = take(c, now=now)
    assert all(OUTBOX.sent(c, d, owner="a", now=now, status="0x0000") for d in taken)
    return taken


def rows(c: Connection) -> list[dict[str, Any]]:
    return [dict(row) for row in c.execute(select(delivery).order_by(delivery.c.id)).mappings()]


def last(c: Connection, kind: str) -> AuditEvent:
    return [e for e in ledger.events(c) if e.kind == kind][-1]


# -- claims


@pytest.mark.parametrize(("asked_at", "free"), [(59.999, False), (60.0, True)], ids=str)
def test_a_delivery_s_lease_ends_with_its_last_second(c: Connection, asked_at: float, free: bool) -> None:
    assert len(take(c)) == 3
    assert not take(c, owner="b")
    assert bool(take(c, now=NOW + asked_at, owner="b")) is free
    assert OUTBOX.waiting(c, "near") == 3


@pytest.mark.parametrize(("asked_at", "due"), [(9.999, False), (10.0, True), (0.0, False), (-0.001, True)])
def test_a_retry_is_due_at_its_second_and_when_the_clock_was_set_back(
    c: Connection, asked_at: float, due: bool
) -> None:
    (d, *others) = take(c)
    for other in others:
        OUTBOX.refused(c, other, owner="a", now=NOW, status="0xC000")
    OUTBOX.retry(c, d, owner="a", now=NOW, not_before=NOW + 10, status="0xA700")
    assert OUTBOX.due(c, "near", lease(now=NOW + asked_at), now=NOW + asked_at) is due
    assert bool(take(c, now=NOW + asked_at)) is due


def test_each_end_counts_its_try_frees_the_lease_and_is_on_record(c: Connection) -> None:
    first, second, third = take(c)
    OUTBOX.retry(c, first, owner="a", now=NOW + 1, not_before=NOW + 30, status="0xA700")
    OUTBOX.refused(c, second, owner="a", now=NOW + 2, status="0xC000")
    OUTBOX.sent(c, third, owner="a", now=NOW + 3, status="0x0000")
    assert [(r["state"], r["attempts"], r["not_before"], r["status"], r["updated_at"]) for r in rows(c)] == [
        ("pending", 1, NOW + 30, "0xA700", NOW + 1),
        ("refused", 1, NOW, "0xC000", NOW + 2),
        ("sent", 1, NOW + 3, "0x0000", NOW + 3),
    ]
    assert {(r["lease_owner"], r["lease_until"]) for r in rows(c)} == {(None, None)}
    said = [last(c, kind) for kind in ("delivery_postponed", "delivery_failed", "delivered")]
    assert [e.outcome for e in said] == [None, "failed", None]
    assert [e.sop_instance_uid for e in said] == ["2.25.0", "2.25.1", "2.25.2"]
    assert {(e.study_instance_uid, e.ae_title, e.actor) for e in said} == {(study_uid(1), "ARCHIVE", "test")}
    assert [e.detail for e in said] == [
        {"destination": "near", "status": status} for status in ("0xA700", "0xC000", "0x0000")
    ]
    (again,) = take(c, now=NOW + 30)
    assert (again.attempts, again.state, again.updated_at) == (1, "pending", NOW + 1)
    OUTBOX.retry(c, again, owner="a", now=NOW + 31, not_before=NOW + 90, status="0xA700")
    assert rows(c)[0]["attempts"] == 2


def test_how_many_were_queued_for_whom_is_on_record(c: Connection) -> None:
    assert OUTBOX.enqueue(c, ["2.25.1"], [FAR], now=NOW + 1, study_instance_uid=study_uid(1)) == 1
    said = [e for e in ledger.events(c) if e.kind == "delivery_queued"]
    assert [(e.ae_title, e.study_instance_uid, e.detail) for e in said] == [
        ("ARCHIVE", None, {"destination": "near", "results": 3, "sop_instance_uids": ["2.25.0", "2.25.1", "2.25.2"]}),
        ("FAR", study_uid(1), {"destination": FAR, "results": 1, "sop_instance_uids": ["2.25.1"]}),
    ]
    (row,) = (r for r in rows(c) if r["destination"] == FAR)
    assert (row["state"], row["attempts"], row["not_before"], row["status"], row["updated_at"]) == (
        "pending", 0, NOW + 1, "", NOW + 1,
    )  # fmt: skip


def test_a_heartbeat_and_a_release_reach_what_is_held_and_pending_at_this_destination(c: Connection) -> None:
    OUTBOX.enqueue(c, ["2.25.0"], [FAR], now=NOW)
    (d, _) = take(c, limit=2)
    take(c, owner="b", limit=1)
    take(c, to=FAR)
    OUTBOX.sent(c, d, owner="a", now=NOW, status="0x0000")
    assert OUTBOX.heartbeat(c, "near", Lease(owner="a", now=NOW + 5, seconds=60.0)) == 1
    assert [r["lease_until"] for r in rows(c)] == [None, NOW + 65, NOW + 60, NOW + 60]
    OUTBOX.release(c, "near", owner="a")
    assert [r["lease_owner"] for r in rows(c)] == [None, None, "b", "a"]


def test_what_is_given_up_and_what_begins_anew(c: Connection) -> None:
    (d, *_) = take(c)
    OUTBOX.retry(c, d, owner="a", now=NOW, not_before=NOW + 60, status="0xA700")
    assert OUTBOX.give_up(c, "near", now=NOW + 5, status="no connection", limit=9) == 3
    assert {(r["state"], r["status"], r["updated_at"], r["lease_owner"], r["lease_until"]) for r in rows(c)} == {
        ("refused", "no connection", NOW + 5, None, None)
    }
    assert last(c, "delivery_failed").detail == {"destination": "near", "status": "no connection"}
    c.execute(update(delivery).values(transaction_uid="2.25.77", lease_owner="killed", lease_until=NOW + 60))
    OUTBOX.reopen(c, "near", now=NOW + 6)
    fresh = ("pending", 0, NOW + 6, NOW + 6, None, None, None)
    columns = ("state", "attempts", "not_before", "updated_at", "transaction_uid", "lease_owner", "lease_until")
    assert {tuple(r[k] for k in columns) for r in rows(c)} == {fresh}
    assert (last(c, "delivery_reopened").ae_title, last(c, "delivery_reopened").detail) == (
        "ARCHIVE", {"destination": "near", "results": 3},
    )  # fmt: skip


def test_a_study_s_refused_results_are_sent_once_more_by_hand_and_nothing_else(c: Connection) -> None:
    first, second, _under_way = take(c)
    OUTBOX.refused(c, first, owner="a", now=NOW, status="0xC000")
    OUTBOX.sent(c, second, owner="a", now=NOW, status="0x0000")
    OUTBOX.reopen_refused(c, ["1.2.3", study_uid(1), study_uid(1)], now=NOW + 9)
    assert [(r["state"], r["attempts"], r["not_before"], r["updated_at"]) for r in rows(c)] == [
        ("pending", 0, NOW + 9, NOW + 9), ("sent", 1, NOW, NOW), ("pending", 0, NOW, NOW),
    ]  # fmt: skip
    assert [e.sop_instance_uid for e in ledger.events(c) if e.kind == "delivery_reopened"] == ["2.25.0"]
    assert rows(c)[2]["lease_owner"] == "a"


def test_a_reopening_of_nothing_is_not_on_record(c: Connection) -> None:
    sent(c)
    OUTBOX.reopen(c, "near", now=NOW + 6)  # what was sent is no more to do
    assert [r["state"] for r in rows(c)] == ["sent"] * 3
    assert "delivery_reopened" not in {e.kind for e in ledger.events(c)}


# -- storage commitment, we ask


@pytest.mark.parametrize(
    ("times", "asked_again", "is_asked"),
    [(0, 29.999, False), (0, 30.0, True), (1, 59.999, False), (1, 60.0, True), (40, DAY - 0.001, False),
     (40, DAY, True), (40, -0.001, True)],
)  # fmt: skip
def test_a_request_waits_half_a_minute_then_twice_as_long_each_time_and_a_day_at_most(
    c: Connection, times: int, asked_again: float, is_asked: bool
) -> None:
    sent(c, now=NOW - 1e7)
    for n in range(times):
        assert len(OUTBOX.requested(c, "near", f"2.25.{n}", now=NOW - 1e6 * (40 - n), limit=9)) == 3
    assert len(OUTBOX.requested(c, "near", "2.25.77", now=NOW, limit=9)) == 3
    assert OUTBOX.uncommitted(c, "near", now=NOW + asked_again) is is_asked
    assert bool(OUTBOX.requested(c, "near", "2.25.78", now=NOW + asked_again, limit=9)) is is_asked


def test_what_is_asked_for_is_on_record_study_by_study(c: Connection) -> None:
    add_result(c, made("2.25.8", 2, Kind.SR), actor="test")
    OUTBOX.enqueue(c, ["2.25.8"], ["near"], now=NOW)
    sent(c)
    assert len(OUTBOX.requested(c, "near", "2.25.77", now=NOW, limit=9)) == 4
    said = [e for e in ledger.events(c) if e.kind == "commitment_requested"]
    asked: list[tuple[str, Sequence[str]]] = [
        (study_uid(1), ["2.25.0", "2.25.1", "2.25.2"]),
        (study_uid(2), ["2.25.8"]),
    ]
    assert [(e.study_instance_uid, e.detail["sop_instance_uids"]) for e in said] == asked
    assert {(e.ae_title, e.detail["transaction_uid"], e.detail["destination"]) for e in said} == {
        ("ARCHIVE", "2.25.77", "near")
    }


def test_a_request_that_was_not_taken_changes_its_own_deliveries(c: Connection) -> None:
    sent(c)
    OUTBOX.requested(c, "near", "2.25.77", now=NOW, limit=2)
    OUTBOX.requested(c, "near", "2.25.78", now=NOW, limit=1)
    OUTBOX.not_asked(c, "near", "2.25.77", now=NOW, wait_s=5, status="0x0110")
    assert [(r["not_before"], r["status"]) for r in rows(c)] == [
        (NOW + 5, "0x0110"), (NOW + 5, "0x0110"), (NOW + 30, "0x0000"),
    ]  # fmt: skip
    said = last(c, "commitment_postponed")
    assert (said.ae_title, said.detail) == (
        "ARCHIVE", {"destination": "near", "transaction_uid": "2.25.77", "status": "0x0110"},
    )  # fmt: skip


def test_an_answer_ends_what_it_names_and_failed_counts_more_than_kept(c: Connection) -> None:
    sent(c)
    OUTBOX.requested(c, "near", "2.25.77", now=NOW, limit=9)
    assert OUTBOX.answered(c, "2.25.77", ["2.25.0", "2.25.1"], [("2.25.1", 0x0112)], now=NOW + 7)
    assert [(r["state"], r["status"], r["updated_at"]) for r in rows(c)] == [
        ("committed", "0x0000", NOW + 7),
        ("pending", "not committed: 0x0112", NOW + 7),
        ("sent", "0x0000", NOW),  # not named: still waits for its answer
    ]
    kept, lost = last(c, "committed"), last(c, "commitment_failed")
    assert (kept.sop_instance_uid, kept.outcome, kept.detail) == (
        "2.25.0", None, {"destination": "near", "transaction_uid": "2.25.77"},
    )  # fmt: skip
    assert (lost.sop_instance_uid, lost.outcome, lost.detail) == (
        "2.25.1", "failed", {"destination": "near", "status": "not committed: 0x0112", "resend": True},
    )  # fmt: skip


@pytest.mark.parametrize("transaction", ["", "2.25.1"])
def test_an_answer_to_no_open_transaction_is_none(c: Connection, transaction: str) -> None:
    sent(c)
    OUTBOX.requested(c, "near", "2.25.77", now=NOW, limit=9)
    OUTBOX.answered(c, "2.25.77", [], [("2.25.1", 0x0112)], now=NOW)
    assert not OUTBOX.answered(c, transaction, ["2.25.0"], [], now=NOW)


def test_what_a_peer_does_not_keep_is_sent_five_times_each_wait_twice_the_one_before(c: Connection) -> None:
    waits, now = [], NOW
    for n in range(5):
        assert len(sent(c, now=now)) == (3 if n == 0 else 1)
        OUTBOX.requested(c, "near", f"2.25.7{n}", now=now, limit=9)
        OUTBOX.answered(c, f"2.25.7{n}", ["2.25.1", "2.25.2"], [("2.25.0", 0x0112)], now=now)
        row = rows(c)[0]
        assert (row["state"], row["attempts"]) == ("refused" if n == 4 else "pending", n + 1)
        waits.append(row["not_before"] - now)
        now += 2000
    assert waits == [60.0, 120.0, 240.0, 480.0, 960.0]
    assert last(c, "commitment_failed").detail["resend"] is False


def test_no_wait_is_longer_than_half_an_hour(c: Connection) -> None:
    patient = Outbox("test", resend_wait_s=1801.0)
    sent(c)
    patient.requested(c, "near", "2.25.77", now=NOW, limit=9)
    patient.answered(c, "2.25.77", [], [("2.25.0", 0x0112)], now=NOW)
    assert rows(c)[0]["not_before"] == NOW + 1800


# -- storage commitment, a peer asks


def ask(c: Connection, uid: str, *, calling: str = "PACS", host: str = "127.0.0.1", instances: int = 1) -> OpenRequest:
    COMMITMENTS.ask(c, uid, calling, host, [(CR, f"1.2.{n}") for n in range(instances)])
    row = c.execute(select(commitment_request).where(commitment_request.c.transaction_uid == uid)).one()
    return OpenRequest(transaction_uid=uid, calling_aet=calling, host=host, listed=row.instances, attempts=row.attempts)


def requests(c: Connection) -> dict[str, tuple[Any, ...]]:
    """Transaction UID -> answered at, attempts, not before."""
    asked = commitment_request.c
    query = select(asked.transaction_uid, asked.answered_at, asked.attempts, asked.not_before)
    return {row[0]: tuple(row[1:]) for row in c.execute(query)}


def test_the_request_that_waits_longest_is_answered_first(c: Connection) -> None:
    for uid, not_before in (("2.25.5", NOW - 1), ("2.25.6", NOW - 2), ("2.25.7", NOW - 1.5)):
        COMMITMENTS.postponed(c, ask(c, uid), now=not_before, wait_s=0)
    due = COMMITMENTS.due(c, now=NOW)
    assert due
    assert (due.transaction_uid, due.attempts, due.host, due.calling_aet) == ("2.25.6", 1, "127.0.0.1", "PACS")


@pytest.mark.parametrize(("asked_at", "due"), [(9.999, False), (10.0, True), (0.0, False), (-0.001, True)])
def test_an_answer_is_due_at_its_second_and_when_the_clock_was_set_back(
    c: Connection, asked_at: float, due: bool
) -> None:
    COMMITMENTS.postponed(c, ask(c, "2.25.5"), now=NOW, wait_s=10)
    assert (COMMITMENTS.due(c, now=NOW + asked_at) is not None) is due


def test_each_answer_counts_its_try_and_is_on_record(c: Connection) -> None:
    first, second, third = ask(c, "2.25.5"), ask(c, "2.25.6", instances=2), ask(c, "2.25.7", calling="OTHER")
    assert (last(c, "commitment_asked").ae_title, last(c, "commitment_asked").detail) == (
        "OTHER", {"transaction_uid": "2.25.7", "host": "127.0.0.1", "instances": 1},
    )  # fmt: skip
    COMMITMENTS.answered(c, first, now=NOW, kept=1, missing=2)
    COMMITMENTS.given_up(c, second, now=NOW + 1, why="unreadable")
    COMMITMENTS.postponed(c, third, now=NOW, wait_s=2)
    assert requests(c) == {"2.25.5": (NOW, 1, 0.0), "2.25.6": (NOW + 1, 1, 0.0), "2.25.7": (None, 1, NOW + 2)}
    done, dead = last(c, "commitment_answered"), last(c, "commitment_given_up")
    assert (done.ae_title, done.outcome, dead.ae_title, dead.outcome) == ("PACS", None, "PACS", "failed")
    assert done.detail == {"transaction_uid": "2.25.5", "kept": 1, "missing": 2, "host": "127.0.0.1"}
    assert dead.detail == {"transaction_uid": "2.25.6", "host": "127.0.0.1", "why": "unreadable"}
    ask(c, "2.25.5")  # once more
    COMMITMENTS.postponed(c, third, now=NOW, wait_s=3)
    ask(c, "2.25.7", calling="OTHER")
    assert requests(c)["2.25.5"] == requests(c)["2.25.7"] == (None, 0, 0.0)


def test_what_else_a_peer_asked_waits_with_it_and_nobody_else_s(c: Connection) -> None:
    first = ask(c, "2.25.1")
    for uid, calling, host in (
        ("2.25.2", "PACS", "127.0.0.1"), ("2.25.3", "PACS", "10.0.0.2"), ("2.25.4", "OTHER", "127.0.0.1"),
    ):  # fmt: skip
        ask(c, uid, calling=calling, host=host)
    COMMITMENTS.answered(c, ask(c, "2.25.5"), now=NOW, kept=1, missing=0)
    COMMITMENTS.postponed(c, ask(c, "2.25.6"), now=NOW, wait_s=99)
    COMMITMENTS.peer_postponed(c, first, now=NOW, wait_s=10)
    assert {uid: row[2] for uid, row in requests(c).items()} == {
        "2.25.1": NOW + 10, "2.25.2": NOW + 10, "2.25.3": 0.0, "2.25.4": 0.0, "2.25.5": 0.0, "2.25.6": NOW + 99,
    }  # fmt: skip


def test_held_is_what_was_received_as_asked_for_and_in_that_order(c: Connection) -> None:
    Queue("test").receive(c, [received(1, 1), received(1, 2), received(1, 1, sha256="b")])
    one, two = ((CR, header(1, n).sop_instance_uid) for n in (1, 2))
    other_class = ("1.2.840.10008.5.1.4.1.1.7", one[1])
    held = COMMITMENTS.held(c, [two, other_class, one])
    assert list(held) == [two, one]
    assert held[one] == [Path(f"spool/{one[1]}.{digest}.dcm") for digest in "ab"]


# -- two at once


def test_on_postgresql_a_claim_passes_over_what_another_one_is_taking(postgres: Postgres) -> None:
    """It neither waits for the other transaction nor takes the same."""
    database = Database(postgres.new_database())
    queue, studies = Queue("test"), Studies("test")
    with database.begin() as c:
        queue.receive(c, [received(n, 1) for n in range(1, 5)])
        for done in queue.claim(c, lease(), limit=2, idle=True):
            queue.finish(c, analysed(done), owner="a")
        OUTBOX.enqueue(c, ["2.25.1", "2.25.2"], ["near"], now=NOW)
    with database.begin(shared=True) as c, database.begin(shared=True) as other:
        assert [d.made.sop_instance_uid for d in take(c, limit=1)] == ["2.25.1"]
        assert [d.made.sop_instance_uid for d in take(other, owner="b")] == ["2.25.2"]
        assert [j.id for j in queue.claim(c, lease(), limit=1, idle=True)] == [3]
        assert [j.id for j in queue.claim(other, lease("b"), limit=9, idle=True)] == [4]
        assert [s.study_instance_uid for s in studies.claim(c, lease(), quiet_s=0, limit=1)] == [study_uid(1)]
        assert [s.study_instance_uid for s in studies.claim(other, lease("b"), quiet_s=0, limit=9)] == [study_uid(2)]
    database.close()
