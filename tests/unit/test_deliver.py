"""The sender against a scripted PACS: what is accepted, refused, tried again, and in which order."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import Comprehensive3DSRStorage, ImplicitVRLittleEndian
from sqlalchemy import select, update
from sqlalchemy.exc import DataError

from cxrnode.deliver import Deliverer, deliver_all
from cxrnode.dicom.scu import Answer, StoreScu
from cxrnode.errors import StoreAwayError, StoreError
from cxrnode.patience import FOR_EVER, Breaker, Patience
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.outbox import COMMITTED, LONGEST_WAIT_S, PENDING, REFUSED, SENT, Delivery, Outbox
from cxrnode.store.schema import delivery
from cxrnode.types import Destination
from tests.support.faulty_pacs import AET, faulty_pacs, wait_for
from tests.support.orthanc import free_port
from tests.support.outbox import make_results, queue_up, states

QUICK = Patience(first_wait_s=0.05, longest_wait_s=0.1)
ONCE = Patience(first_wait_s=0.01, longest_wait_s=0.02, attempts=4)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "store.sqlite")
    yield opened
    opened.close()


@contextmanager
def delivering(database: Database, root: Path, *destinations: Destination, **how: Any) -> Iterator[Deliverer]:
    deliverer = Deliverer(
        destinations=destinations, root=root, database=database, outbox=Outbox("test", resend_wait_s=0.05),
        **{"patience": QUICK, **how},
    )  # fmt: skip
    deliverer.start()
    try:
        yield deliverer
    finally:
        assert deliverer.stop()


def all_in(database: Database, destination: Destination, state: str) -> bool:
    return {s for s, _ in states(database, destination.key).values()} == {state}


def kinds(database: Database) -> list[str]:
    with database.begin() as c:
        assert ledger.first_broken(c) is None
        return [e.kind for e in ledger.events(c)]


# --- the node -------------------------------------------------------------------------------------------------------


def test_what_is_accepted_is_sent_with_its_status(database: Database, tmp_path: Path) -> None:
    with faulty_pacs(["ok", "0xB000"]) as pacs:
        uids = queue_up(database, tmp_path, pacs.destination)
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: all_in(database, pacs.destination, SENT))
    assert [status for _, status in states(database, pacs.destination.key).values()] == ["0x0000", "0xB000"]
    assert list(pacs.stored) == uids
    assert pacs.associations == 1
    assert kinds(database).count("delivered") == 2


def test_the_file_arrives_as_it_is(database: Database, tmp_path: Path) -> None:
    with faulty_pacs() as pacs:
        queue_up(database, tmp_path, pacs.destination, filler=300_000)
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: all_in(database, pacs.destination, SENT))
    assert [len(ds.EncapsulatedDocument) for ds in pacs.data_sets] == [300_000] * 2


def test_a_peer_that_takes_implicit_vr_alone_gets_it(database: Database, tmp_path: Path) -> None:
    with faulty_pacs(syntaxes=[ImplicitVRLittleEndian]) as pacs:
        queue_up(database, tmp_path, pacs.destination)
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: all_in(database, pacs.destination, SENT))
    assert [ds.PatientID for ds in pacs.data_sets] == ["TEST"] * 2


@pytest.mark.parametrize("status", ["0xA900", "0xC000", "0x0124"])
def test_a_refusal_is_final_and_stops_nothing(database: Database, tmp_path: Path, status: str) -> None:
    with faulty_pacs([status, "ok"]) as pacs:
        sr, capture = queue_up(database, tmp_path, pacs.destination)
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: states(database, pacs.destination.key)[capture][0] == SENT)
    assert states(database, pacs.destination.key)[sr] == (REFUSED, status)
    assert pacs.asked == [sr, capture]


def test_a_sop_class_that_is_not_accepted_is_refused_with_its_reason(database: Database, tmp_path: Path) -> None:
    with faulty_pacs(sop_classes=[Comprehensive3DSRStorage]) as pacs:
        sr, capture = queue_up(database, tmp_path, pacs.destination)
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: PENDING not in {s for s, _ in states(database, pacs.destination.key).values()})
    said = states(database, pacs.destination.key)
    assert said[sr][0] == SENT
    assert said[capture][0] == REFUSED
    assert "not accepted" in said[capture][1]


@pytest.mark.parametrize("step", ["0xA700", "0x0110", "abort", "lost", "silent"])
def test_what_may_pass_is_tried_again_until_it_has(database: Database, tmp_path: Path, step: str) -> None:
    with faulty_pacs([step, step, "ok"]) as pacs:
        uids = queue_up(database, tmp_path, pacs.destination)
        with delivering(database, tmp_path, pacs.destination, timeout_s=0.5):
            wait_for(lambda: all_in(database, pacs.destination, SENT))
    assert set(pacs.stored) == set(uids)
    assert kinds(database).count("delivered") == 2
    assert kinds(database).count("delivery_postponed") == 2


PASSING = ("0x0110", "0x0213", "0xA700", "abort", "silent")


@pytest.mark.parametrize("step", PASSING)
def test_results_that_fail_each_time_wait_alone(database: Database, tmp_path: Path, step: str) -> None:
    """Even when nothing else is in the outbox for long: what comes then is sent at once."""
    patience = Patience(first_wait_s=0.1, longest_wait_s=60.0)
    with faulty_pacs() as pacs:
        bad = queue_up(database, tmp_path, pacs.destination)
        pacs.poison |= dict.fromkeys(bad, step)
        with delivering(database, tmp_path, pacs.destination, patience=patience, timeout_s=1.0) as deliverer:
            wait_for(lambda: max(Counter(pacs.asked).values(), default=0) >= 4)
            breaker = deliverer.senders[0].breaker
            assert (breaker.is_open, breaker.wait_s) == (False, 0.0)
            good = queue_up(database, tmp_path, pacs.destination, studies=range(2, 5))
            wait_for(lambda: set(pacs.stored) == set(good), 5.0)
            wait_for(lambda: states(database, pacs.destination.key)[good[-1]][0] == SENT)
            assert not breaker.is_open
    said = states(database, pacs.destination.key)
    assert {said.pop(uid)[0] for uid in bad} == {PENDING}
    assert {state for state, _ in said.values()} == {SENT}


def test_an_association_goes_on_after_an_object_s_own_failure(database: Database, tmp_path: Path) -> None:
    with faulty_pacs() as pacs:
        bad, *good = queue_up(database, tmp_path, pacs.destination, studies=range(1, 4))
        pacs.poison[bad] = "0x0110"
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: set(pacs.stored) == set(good))
    assert pacs.associations == 1


@pytest.mark.parametrize("step", PASSING)
def test_a_destination_that_fails_for_all_is_left_alone(database: Database, tmp_path: Path, step: str) -> None:
    slow = Patience(first_wait_s=1700.0, longest_wait_s=1700.0)
    with faulty_pacs([step]) as pacs:
        queue_up(database, tmp_path, pacs.destination, studies=range(1, 6))
        with delivering(database, tmp_path, pacs.destination, patience=slow, timeout_s=1.0) as deliverer:
            breaker = deliverer.senders[0].breaker
            wait_for(lambda: breaker.is_open and breaker.wait_s)
            time.sleep(0.5)
        assert len(pacs.asked) == len(set(pacs.asked)) == 3


@pytest.mark.parametrize("step", PASSING)
def test_a_new_stat_result_is_put_to_a_destination_that_failed_for_others(
    database: Database, tmp_path: Path, step: str
) -> None:
    slow = Patience(first_wait_s=1700.0, longest_wait_s=1700.0)
    with faulty_pacs() as pacs:
        routine = queue_up(database, tmp_path, pacs.destination, studies=range(1, 3), captures=2)
        pacs.poison |= dict.fromkeys(routine[:3], step)
        with delivering(database, tmp_path, pacs.destination, patience=slow, timeout_s=1.0) as deliverer:
            breaker = deliverer.senders[0].breaker
            wait_for(lambda: breaker.is_open and breaker.wait_s)
            stat = queue_up(database, tmp_path, pacs.destination, studies=range(3, 4), stat=True)
            wait_for(lambda: set(pacs.stored) == set(routine[3:] + stat))
    assert pacs.asked[3] == stat[0]
    assert pacs.echoes == 1


def test_what_others_passed_waits_longer_each_time(database: Database, tmp_path: Path) -> None:
    """Up to half an hour: the destination's own longest wait is for trouble that ends with it."""
    with faulty_pacs() as pacs:
        (bad,) = queue_up(database, tmp_path, pacs.destination, captures=0)
        pacs.poison[bad] = "0x0110"
        with database.begin() as c:
            c.execute(update(delivery).values(attempts=20, not_before=0.0))
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: pacs.asked.count(bad) >= 2)  # nothing passed yet: its wait is the destination's
            queue_up(database, tmp_path, pacs.destination, studies=range(2, 3))
            wait_for(lambda: len(pacs.stored) == 2)
            wait_for(lambda: _wait_s(database, bad) > QUICK.longest_wait_s)
        assert _wait_s(database, bad) <= LONGEST_WAIT_S


def _wait_s(database: Database, uid: str) -> float:
    with database.begin(shared=True) as c:
        query = select(delivery.c.not_before).where(delivery.c.result_uid == uid)
        return float(c.execute(query).scalar_one()) - time.time()


@pytest.mark.parametrize("misbehaviour", [*PASSING, "lost", "slow:0.5", "0xC000", "reject"])
def test_a_second_destination_that_misbehaves_costs_the_first_nothing(
    database: Database, tmp_path: Path, misbehaviour: str
) -> None:
    steps, greetings = (["ok"], ["reject"]) if misbehaviour == "reject" else ([misbehaviour], ["ok"])
    with faulty_pacs(steps, associations=greetings) as bad, faulty_pacs() as good:
        worse, better = replace(bad.destination, name="bad"), replace(good.destination, name="good")
        uids = queue_up(database, tmp_path, worse, better, studies=range(1, 6))
        with delivering(database, tmp_path, worse, better, patience=FOR_EVER, timeout_s=2.0) as deliverer:
            wait_for(lambda: all_in(database, better, SENT))
            assert deliverer.senders[1].breaker.failures == 0
    assert good.stored == dict.fromkeys(uids, 1)
    assert good.associations == 1


def test_an_association_that_ends_between_two_results_costs_none_of_them_its_place(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StoreScu.send

    def send(scu: StoreScu, path: Path) -> Answer:
        if len(pacs.asked) == 1 and pacs.associations == 1:
            assert scu._assoc is not None
            scu._assoc.abort()
        return real(scu, path)

    monkeypatch.setattr(StoreScu, "send", send)
    with faulty_pacs() as pacs:
        queue_up(database, tmp_path, pacs.destination, studies=range(1, 3))
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: all_in(database, pacs.destination, SENT))
    assert pacs.associations == 2
    assert kinds(database).count("delivery_postponed") == 0


def test_a_file_that_cannot_be_read_just_now_waits_and_holds_up_no_other(database: Database, tmp_path: Path) -> None:
    """A disk that errs, too many open files: no fault of the result, which would else be refused for good."""
    with faulty_pacs() as pacs:
        odd, well = queue_up(database, tmp_path, pacs.destination, studies=range(1, 3), captures=0)
        path = sorted((tmp_path / "dicom").rglob("*.dcm"))[0]
        whole = path.read_bytes()
        path.unlink()
        path.symlink_to(path.name)  # ELOOP
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: pacs.stored[well] and "just now" in states(database, pacs.destination.key)[odd][1], 30)
            assert states(database, pacs.destination.key)[odd][0] == PENDING
            path.unlink()
            path.write_bytes(whole)
            wait_for(lambda: pacs.stored[odd], 60)


def test_a_file_that_was_changed_or_lost_is_not_sent(database: Database, tmp_path: Path) -> None:
    with faulty_pacs() as pacs:
        changed, lost, sound = queue_up(database, tmp_path, pacs.destination, captures=2)
        files = sorted((tmp_path / "dicom").rglob("*.dcm"))  # capture-1, capture-2, sr-0
        files[2].write_bytes(files[2].read_bytes() + b"\0")
        files[0].unlink()
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: states(database, pacs.destination.key)[sound][0] == SENT)
    said = states(database, pacs.destination.key)
    assert said[changed] == (REFUSED, "its file was changed since it was made")
    assert said[lost] == (REFUSED, "its file cannot be read: No such file or directory")
    assert list(pacs.stored) == [sound]


def test_a_dead_destination_delays_no_other(database: Database, tmp_path: Path) -> None:
    dead = Destination(ae_title="DEAD", host="127.0.0.1", port=free_port(), name="dead")
    with faulty_pacs(["silent"]) as mute, faulty_pacs() as live:
        hung = replace(mute.destination, name="hung")
        uids = queue_up(database, tmp_path, hung, dead, live.destination, studies=range(1, 6))
        with delivering(database, tmp_path, dead, hung, live.destination, timeout_s=30.0):
            wait_for(lambda: all_in(database, live.destination, SENT), 10.0)
            assert len(mute.asked) <= 1  # it holds its sender all the while
            mute.over.set()
        assert live.stored == dict.fromkeys(uids, 1)
    assert all_in(database, dead, PENDING)


def test_stat_goes_before_what_waits(database: Database, tmp_path: Path) -> None:
    with faulty_pacs() as pacs:
        routine = queue_up(database, tmp_path, pacs.destination, studies=range(1, 3))
        stat = queue_up(database, tmp_path, pacs.destination, studies=range(3, 4), stat=True)
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: all_in(database, pacs.destination, SENT))
    assert pacs.asked == stat + routine


def test_an_open_breaker_asks_by_c_echo_first(database: Database, tmp_path: Path) -> None:
    port = free_port()
    destination = Destination(ae_title=AET, host="127.0.0.1", port=port)
    queue_up(database, tmp_path, destination)
    with delivering(database, tmp_path, destination) as deliverer:
        wait_for(lambda: deliverer.senders[0].breaker.is_open)
        with faulty_pacs(port=port) as pacs:
            wait_for(lambda: all_in(database, destination, SENT))
    assert pacs.echoes == 1
    assert kinds(database).count("delivery_postponed") == 0  # what was never tried has lost no place


def test_rejected_associations_are_tried_again(database: Database, tmp_path: Path) -> None:
    with faulty_pacs(associations=["reject", "reject", "ok"]) as pacs:
        queue_up(database, tmp_path, pacs.destination)
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: all_in(database, pacs.destination, SENT))
    assert pacs.associations == 3


def test_an_idle_association_is_released_and_a_new_one_made(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cxrnode.deliver._IDLE_S", 0.0)
    with faulty_pacs() as pacs:
        queue_up(database, tmp_path, pacs.destination)
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: all_in(database, pacs.destination, SENT))
            wait_for(lambda: not pacs.server.active_associations)
            queue_up(database, tmp_path, pacs.destination, studies=range(2, 3))
            wait_for(lambda: all_in(database, pacs.destination, SENT))
    assert pacs.associations == 2


def test_stopping_ends_what_is_in_hand_and_hands_back_the_rest(database: Database, tmp_path: Path) -> None:
    with faulty_pacs(["slow:0.5"]) as pacs:
        first, *rest = queue_up(database, tmp_path, pacs.destination, captures=5)
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: pacs.asked)
        said = states(database, pacs.destination.key)
        assert said[first][0] == SENT
        assert {said[uid][0] for uid in rest} == {PENDING}
        with delivering(database, tmp_path, pacs.destination):  # at once, before any lease could have ended
            wait_for(lambda: pacs.asked[1:])
    assert pacs.asked[:2] == [first, rest[0]]


def test_a_lease_is_kept_while_the_peer_takes_its_time(database: Database, tmp_path: Path) -> None:
    with faulty_pacs(["slow:2.5", "ok"]) as pacs:
        uids = queue_up(database, tmp_path, pacs.destination)
        with (
            delivering(database, tmp_path, pacs.destination, lease_s=0.9),
            delivering(database, tmp_path, pacs.destination, lease_s=0.9),
        ):
            wait_for(lambda: all_in(database, pacs.destination, SENT))
    assert sorted(pacs.asked) == sorted(uids)


def test_two_senders_share_an_outbox_and_record_each_delivery_once(database: Database, tmp_path: Path) -> None:
    with faulty_pacs() as pacs:
        uids = queue_up(database, tmp_path, pacs.destination, studies=range(1, 21))
        with (
            delivering(database, tmp_path, pacs.destination),
            delivering(database, tmp_path, pacs.destination),
        ):
            wait_for(lambda: all_in(database, pacs.destination, SENT))
    assert pacs.stored == dict.fromkeys(uids, 1)
    assert kinds(database).count("delivered") == len(uids)


def test_a_result_that_raises_each_time_is_set_aside_and_the_others_go(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StoreScu.send

    def send(scu: StoreScu, path: Path) -> Answer:
        if path == poison:
            raise RuntimeError("Phantom^Chest")
        return real(scu, path)

    monkeypatch.setattr(StoreScu, "send", send)
    with faulty_pacs() as pacs:
        bad, *good = queue_up(database, tmp_path, pacs.destination, studies=range(1, 4))
        with database.begin() as c:
            where = c.exec_driver_sql(f"SELECT path FROM result WHERE sop_instance_uid = '{bad}'").scalar_one()
        poison = tmp_path / where
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: PENDING not in {s for s, _ in states(database, pacs.destination.key).values()})
    said = states(database, pacs.destination.key)
    assert said.pop(bad) == (REFUSED, "RuntimeError")  # a dead letter, in the ledger as one; not the error's own words
    assert {state for state, _ in said.values()} == {SENT}
    assert pacs.stored == dict.fromkeys(good, 1)
    assert kinds(database).count("delivery_failed") == 1


def test_a_fault_of_the_store_stops_no_thread(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = threading.Event()
    real = Outbox.sent

    def sent(*args: Any, **how: Any) -> bool:
        if not broken.is_set():
            broken.set()
            raise StoreAwayError("locked")
        return real(*args, **how)

    monkeypatch.setattr(Outbox, "sent", sent)
    with faulty_pacs() as pacs:
        sr, capture = queue_up(database, tmp_path, pacs.destination)
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: all_in(database, pacs.destination, SENT))
    assert pacs.stored == {sr: 2, capture: 2}  # the same UIDs again: the peer holds each once


def test_what_a_page_brought_is_recorded_in_one_transaction(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transactions: list[Any] = []
    real = Outbox.sent

    def sent(outbox: Outbox, c: Any, *args: Any, **how: Any) -> bool:
        transactions.append(c)
        return real(outbox, c, *args, **how)

    monkeypatch.setattr(Outbox, "sent", sent)
    monkeypatch.setattr("cxrnode.deliver._PAGE_S", 60.0)
    with faulty_pacs() as pacs:
        queue_up(database, tmp_path, pacs.destination, studies=range(1, 5))
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: all_in(database, pacs.destination, SENT))
    assert len(transactions) == 8
    assert len({id(c) for c in transactions}) == 1


def test_a_result_that_cannot_be_recorded_keeps_no_other_from_it(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Outbox.sent

    def sent(outbox: Outbox, c: Any, d: Delivery, **how: Any) -> bool:
        if d.made.sop_instance_uid == bad:
            raise StoreError("invalid byte sequence") from DataError("", None, Exception())
        return real(outbox, c, d, **how)

    monkeypatch.setattr(Outbox, "sent", sent)
    with faulty_pacs() as pacs:
        bad, *good = queue_up(database, tmp_path, pacs.destination, studies=range(1, 4))
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: PENDING not in {s for s, _ in states(database, pacs.destination.key).values()})
    said = states(database, pacs.destination.key)
    assert said.pop(bad)[0] == REFUSED
    assert {state for state, _ in said.values()} == {SENT}
    assert pacs.stored[good[-1]] == 1


def test_stat_waits_for_no_page_of_a_slow_destination(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cxrnode.deliver._PAGE_S", 0.0)  # one result, then whatever comes first
    with faulty_pacs(["slow:0.5"]) as pacs:
        routine = queue_up(database, tmp_path, pacs.destination, studies=range(1, 4))
        with delivering(database, tmp_path, pacs.destination):
            wait_for(lambda: pacs.asked)
            stat = queue_up(database, tmp_path, pacs.destination, studies=range(4, 5), captures=0, stat=True)
            wait_for(lambda: stat[0] in pacs.stored)
    assert set(pacs.asked[: pacs.asked.index(stat[0])]) < set(routine)


# --- storage commitment ---------------------------------------------------------------------------------------------


def test_commitment_reported_on_the_same_association(database: Database, tmp_path: Path) -> None:
    with faulty_pacs(commitment="same") as pacs:
        destination = replace(pacs.destination, storage_commitment=True)
        queue_up(database, tmp_path, destination, studies=range(1, 3))
        with delivering(database, tmp_path, destination):
            wait_for(lambda: all_in(database, destination, COMMITTED))
            wait_for(lambda: pacs.reports)
    assert set(pacs.reports) == {0x0000}
    assert kinds(database).count("committed") == 4


def test_an_unanswered_request_is_asked_again_under_a_fresh_uid(database: Database, tmp_path: Path) -> None:
    with faulty_pacs(commitment="never") as pacs:
        destination = replace(pacs.destination, storage_commitment=True)
        queue_up(database, tmp_path, destination)
        with delivering(database, tmp_path, destination, ask_again_s=0.1):
            wait_for(lambda: len(pacs.transactions) >= 2)
            pacs.commitment = "same"
            wait_for(lambda: all_in(database, destination, COMMITTED))
    assert len(set(pacs.transactions)) == len(pacs.transactions)


def test_what_is_not_kept_is_sent_again(database: Database, tmp_path: Path) -> None:
    with faulty_pacs(commitment="same") as pacs:
        destination = replace(pacs.destination, storage_commitment=True)
        sr, capture = queue_up(database, tmp_path, destination)
        pacs.lose.add(capture)
        with delivering(database, tmp_path, destination):
            wait_for(lambda: pacs.stored[capture] == 2)
            pacs.lose.clear()
            wait_for(lambda: all_in(database, destination, COMMITTED))
    assert pacs.stored[sr] == 1


def test_a_peer_that_refuses_commitment_is_asked_later(database: Database, tmp_path: Path) -> None:
    with faulty_pacs(commitment="0x0110") as pacs:
        destination = replace(pacs.destination, storage_commitment=True)
        queue_up(database, tmp_path, destination)
        with delivering(database, tmp_path, destination, ask_again_s=0.1):
            wait_for(lambda: len(pacs.transactions) >= 2)
    assert {state for state, _ in states(database, destination.key).values()} == {SENT}
    assert "commitment_postponed" in kinds(database)


# --- run-batch ------------------------------------------------------------------------------------------------------


def batch(database: Database, root: Path, destination: Destination) -> int:
    done: list[int] = []
    deliver_all(
        destination, root=root, database=database, outbox=Outbox("test"), on_done=done.append, patience=ONCE
    )  # fmt: skip
    return sum(done)


def test_a_run_sends_everything_study_by_study(database: Database, tmp_path: Path) -> None:
    uids = [make_results(database, tmp_path, study=n, captures=2) for n in (1, 2)]
    with faulty_pacs() as pacs:
        assert batch(database, tmp_path, pacs.destination) == 6
        assert pacs.asked == uids[0] + uids[1]
        assert batch(database, tmp_path, pacs.destination) == 0
    assert not pacs.transactions


def test_a_run_gives_up_a_dead_destination_and_the_next_tries_again(database: Database, tmp_path: Path) -> None:
    make_results(database, tmp_path, study=1)
    destination = Destination(ae_title=AET, host="127.0.0.1", port=free_port())
    assert batch(database, tmp_path, destination) == 0
    why = f"no connection: refused by 127.0.0.1:{destination.port}"
    assert set(states(database, destination.key).values()) == {(REFUSED, why)}
    with faulty_pacs(port=destination.port) as pacs:
        assert batch(database, tmp_path, destination) == 2
        assert len(pacs.stored) == 2
    assert all_in(database, destination, SENT)


def test_a_host_without_an_address_is_a_dead_destination(database: Database, tmp_path: Path) -> None:
    make_results(database, tmp_path, study=1)
    destination = Destination(ae_title=AET, host="no-such-host.invalid", port=104)
    assert batch(database, tmp_path, destination) == 0
    ((state, status),) = set(states(database, destination.key).values())
    assert (state, status.partition(":")[0]) == (REFUSED, "no connection")


def test_a_run_takes_a_refusal_as_final_and_a_shortage_as_passing(database: Database, tmp_path: Path) -> None:
    sr, first, second = make_results(database, tmp_path, study=1, captures=2)
    with faulty_pacs(["0xC000", "0xA700", "ok"]) as pacs:
        batch(database, tmp_path, pacs.destination)
    said = states(database, pacs.destination.key)
    assert said == {sr: (REFUSED, "0xC000"), first: (SENT, "0x0000"), second: (SENT, "0x0000")}


def test_a_run_goes_on_without_what_breaks_every_association(database: Database, tmp_path: Path) -> None:
    sr, *others = make_results(database, tmp_path, study=1, captures=3)
    with faulty_pacs() as pacs:
        pacs.poison[sr] = "abort"
        batch(database, tmp_path, pacs.destination)
    said = states(database, pacs.destination.key)
    assert said == {sr: (REFUSED, "no answer to C-STORE"), **dict.fromkeys(others, (SENT, "0x0000"))}
    assert pacs.asked.count(sr) == 4


def test_backoff_is_jittered_and_capped() -> None:
    patience = Patience(first_wait_s=1.0, longest_wait_s=10.0)
    waits = [[patience.wait_s(n) for _ in range(200)] for n in (1, 3, 1000)]
    assert all(0 <= w <= most for row, most in zip(waits, (1, 4, 10), strict=True) for w in row)
    assert all(len(set(row)) > 100 for row in waits)
    assert [max(row) > most / 2 for row, most in zip(waits, (1, 4, 10), strict=True)] == [True] * 3


def test_the_breaker_opens_after_three_and_closes_at_once() -> None:
    breaker = Breaker(patience=QUICK)
    opened = []
    for _ in range(3):
        breaker.failed("no connection")
        opened.append(breaker.is_open)
    assert opened == [False, False, True]
    breaker.succeeded()
    assert (breaker.is_open, breaker.wait_s) == (False, 0.0)


def test_the_breaker_counts_objects_and_not_their_tries() -> None:
    breaker = Breaker(patience=QUICK)
    for of in (1, 1, 1, 2, 2):
        breaker.failed("0x0110", of=of)
    assert (breaker.failures, breaker.is_open, breaker.wait_s) == (2, False, 0.0)
    breaker.failed("0x0110", of=3)
    assert (breaker.failures, breaker.is_open) == (3, True)
    breaker.failed("0x0110", of=3)  # while it is open each try counts: the next waits longer
    assert breaker.failures == 4
    assert not breaker.blames(3)


def test_the_breaker_does_not_count_what_others_passed() -> None:
    breaker = Breaker(patience=QUICK)
    breaker.failed("0x0110", of=1)
    breaker.failed("0x0110", of=2)
    breaker.succeeded(of=2)
    assert (breaker.blames(1), breaker.blames(2)) == (True, False)
    breaker.failed("0x0110", of=1)
    assert breaker.failures == 0
    breaker.succeeded(of=1)
    assert not breaker.blames(1)


def test_only_a_destination_that_can_be_reached_is_asked_before_its_time() -> None:
    breaker = Breaker(patience=QUICK)
    for of in (1, 2, 3):
        breaker.failed("0x0110", of=of)
    assert breaker.reached
    breaker.failed("no connection")
    assert not breaker.reached
