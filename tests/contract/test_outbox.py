"""The outbox's and the commitment requests' contract, the same on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, select

from cxrnode.store.commitments import Commitments
from cxrnode.store.database import Database
from cxrnode.store.objects import add_result
from cxrnode.store.outbox import MANY_TRIES, Outbox
from cxrnode.store.overview import failing_deliveries, oldest_undelivered
from cxrnode.store.queue import Queue
from cxrnode.store.schema import delivery
from cxrnode.types import Kind
from tests.support.store import CR, NOW, header, kinds, lease, made, received, study_uid

OUTBOX, COMMITMENTS = Outbox("test"), Commitments("test")
RESULTS = ["2.25.9", "2.25.10", "2.25.11"]  # an SR and two captures: sent in this order, not by UID


@pytest.fixture
def c(database: Database) -> Iterator[Connection]:
    """A transaction in which the results of one study are queued for two destinations."""
    with database.begin() as c:
        for uid in reversed(RESULTS):
            add_result(c, made(uid, 1, Kind.SR if uid == RESULTS[0] else Kind.CAPTURE), actor="test")
        assert OUTBOX.enqueue(c, RESULTS, ["near", "far"], now=NOW) == 6
        yield c


def states(c: Connection, destination: str = "near") -> list[str]:
    rows = c.execute(select(delivery).where(delivery.c.destination == destination).order_by(delivery.c.id))
    return [f"{row.result_uid} {row.state}" for row in rows]


def test_results_are_queued_once_for_each_destination_in_their_order(c: Connection) -> None:
    assert OUTBOX.enqueue(c, RESULTS, ["near"], now=NOW) == 0
    assert OUTBOX.enqueue(c, [], ["near"], now=NOW) == 0
    assert [d.made.sop_instance_uid for d in OUTBOX.claim(c, "near", lease(), now=NOW, limit=9)] == RESULTS
    assert OUTBOX.enqueue_all(c, "near", now=NOW) == 0
    assert OUTBOX.enqueue_all(c, "third", now=NOW) == 3


def test_a_delivery_is_its_owner_s_until_the_lease_ends(c: Connection) -> None:
    (mine,) = OUTBOX.claim(c, "near", lease("a"), now=NOW, limit=1)
    assert len(OUTBOX.claim(c, "near", lease("b"), now=NOW, limit=9)) == 2
    assert not OUTBOX.due(c, "near", lease("c"), now=NOW)
    assert OUTBOX.due(c, "far", lease("c"), now=NOW)
    assert len(OUTBOX.claim(c, "near", lease("c", NOW + 61), now=NOW + 61, limit=1)) == 1
    assert not OUTBOX.sent(c, mine, owner="a", now=NOW + 62, status="0x0000")
    assert OUTBOX.sent(c, mine, owner="c", now=NOW + 62, status="0x0000")
    assert states(c) == ["2.25.9 sent", "2.25.10 pending", "2.25.11 pending"]
    assert set(states(c, "far")) == {"2.25.9 pending", "2.25.10 pending", "2.25.11 pending"}


def test_what_did_not_arrive_waits_and_what_is_refused_ends(c: Connection) -> None:
    first, second, _ = OUTBOX.claim(c, "near", lease(), now=NOW, limit=9)
    assert OUTBOX.retry(c, first, owner="a", now=NOW, not_before=NOW + 30, status="0xA700")
    assert OUTBOX.refused(c, second, owner="a", now=NOW, status="0xC000")
    assert OUTBOX.claim(c, "near", lease("b", NOW + 29), now=NOW + 29, limit=9) == []
    assert [d.made for d in OUTBOX.claim(c, "near", lease("b", NOW + 30), now=NOW + 30, limit=9)] == [first.made]
    assert kinds(c)[-2:] == ["delivery_postponed", "delivery_failed"]
    OUTBOX.reopen(c, "near", now=NOW + 31)
    assert len(OUTBOX.claim(c, "near", lease("c", NOW + 31), now=NOW + 31, limit=9)) == 3


def test_a_stat_result_that_was_never_tried_is_asked_for_by_itself(c: Connection) -> None:
    assert not OUTBOX.due(c, "near", lease(), now=NOW, new_stat=True)
    Queue("test").receive(c, [received(2, 1, stat=True)])
    add_result(c, made("2.25.12", 2, Kind.SR), actor="test")
    OUTBOX.enqueue(c, ["2.25.12"], ["near"], now=NOW)
    assert OUTBOX.due(c, "near", lease(), now=NOW, new_stat=True)
    (stat,) = OUTBOX.claim(c, "near", lease(), now=NOW, limit=9, new_stat=True)
    assert stat.made.sop_instance_uid == "2.25.12"
    OUTBOX.retry(c, stat, owner="a", now=NOW, not_before=NOW, status="0xA700")
    assert not OUTBOX.due(c, "near", lease(), now=NOW, new_stat=True)
    assert OUTBOX.claim(c, "near", lease(), now=NOW, limit=1)[0].made.sop_instance_uid == "2.25.12"  # and first again


def test_what_was_tried_many_times_waits_for_all_else_and_can_be_given_up(c: Connection) -> None:
    for _ in range(MANY_TRIES):
        (often,) = OUTBOX.claim(c, "near", lease(), now=NOW, limit=1)
        assert often.made.sop_instance_uid == RESULTS[0]
        OUTBOX.retry(c, often, owner="a", now=NOW, not_before=0.0, status="0x0110")
    assert failing_deliveries(c, ["near", "far"]) == {"near": 1, "far": 0}
    assert [d.made.sop_instance_uid for d in OUTBOX.claim(c, "near", lease(), now=NOW, limit=9)] == [
        *RESULTS[1:],
        RESULTS[0],
    ]
    assert oldest_undelivered(c, ["near", "far", "third"]) == {"near": NOW, "far": NOW}
    assert OUTBOX.bury_failing(c, [study_uid(2)], now=NOW) == 0
    assert OUTBOX.bury_failing(c, [study_uid(1)], now=NOW) == 1
    assert states(c) == ["2.25.9 refused", "2.25.10 pending", "2.25.11 pending"]
    assert kinds(c)[-1] == "delivery_failed"
    assert failing_deliveries(c, ["near"]) == {"near": 0}
    OUTBOX.reopen_refused(c, [study_uid(1)], now=NOW)
    assert OUTBOX.claim(c, "near", lease(), now=NOW, limit=1)[0].attempts == 0


def test_it_ends_when_it_is_committed_and_is_sent_again_when_it_is_not_kept(c: Connection) -> None:
    for d in OUTBOX.claim(c, "near", lease(), now=NOW, limit=9):
        OUTBOX.sent(c, d, owner="a", now=NOW, status="0x0000")
    asked = OUTBOX.requested(c, "near", "2.25.77", now=NOW, limit=9)
    assert [d.made.sop_instance_uid for d in asked] == RESULTS
    assert OUTBOX.requested(c, "near", "2.25.78", now=NOW + 1, limit=9) == []  # it waits for the answer
    assert not OUTBOX.answered(c, "2.25.78", RESULTS, [], now=NOW + 2)
    assert OUTBOX.answered(c, "2.25.77", RESULTS[:2], [(RESULTS[2], 0x0112)], now=NOW + 2)
    assert states(c) == ["2.25.9 committed", "2.25.10 committed", "2.25.11 pending"]
    assert [
        d.made.sop_instance_uid for d in OUTBOX.claim(c, "near", lease(now=NOW + 100), now=NOW + 100, limit=9)
    ] == RESULTS[2:]


def test_what_peers_ask_us_to_commit_to_is_held_until_it_is_answered(c: Connection) -> None:
    Queue("test").receive(c, [received(1, 1)])
    here, gone = (CR, header(1, 1).sop_instance_uid), (CR, "1.2.3")
    COMMITMENTS.ask(c, "2.25.5", "PACS", "127.0.0.1", [here, gone])
    asked = COMMITMENTS.due(c, now=NOW)
    assert asked
    assert (asked.instances, asked.calling_aet) == ((here, gone), "PACS")
    assert COMMITMENTS.held(c, asked.instances) == {here: [Path(f"spool/{here[1]}.a.dcm")]}
    COMMITMENTS.postponed(c, asked, now=NOW, wait_s=10)
    assert COMMITMENTS.due(c, now=NOW) is None
    COMMITMENTS.answered(c, asked, now=NOW + 10, kept=1, missing=1)
    assert COMMITMENTS.due(c, now=NOW + 20) is None
    COMMITMENTS.ask(c, "2.25.5", "PACS", "127.0.0.1", [here, gone])
    assert COMMITMENTS.due(c, now=NOW)
