"""The outbox: nothing is lost, nothing ends twice, and a lease that was lost writes nothing. On both databases."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.outbox import (
    ASK_AGAIN_S,
    COMMITTED,
    MAX_COMMITMENTS,
    PENDING,
    REFUSED,
    SENT,
    Delivery,
    Outbox,
)
from cxrnode.store.queue import Lease
from tests.support.outbox import make_results, states

PACS, OTHER = "pacs", "other"
NOW = 1_800_000_000.0
NO_SUCH_OBJECT = 0x0112


@pytest.fixture
def database(where: Path | str) -> Iterator[Database]:
    opened = Database(where)
    yield opened
    opened.close()


@pytest.fixture
def outbox() -> Outbox:
    return Outbox("test")


def queued(database: Database, root: Path, outbox: Outbox, *studies: int, captures: int = 1) -> list[str]:
    uids = []
    for n in studies:
        made = make_results(database, root, study=n, captures=captures)
        with database.begin() as c:
            outbox.enqueue(c, made, [PACS], now=NOW + n)
        uids += made
    return uids


def claim(database: Database, outbox: Outbox, owner: str, *, now: float, limit: int = 100) -> list[Delivery]:
    with database.begin(shared=True) as c:
        return outbox.claim(c, PACS, Lease(owner=owner, now=now, seconds=30), now=now, limit=limit)


def send(database: Database, outbox: Outbox, *, now: float) -> list[str]:
    claimed = claim(database, outbox, "a", now=now)
    with database.begin() as c:
        assert all(outbox.sent(c, d, owner="a", now=now, status="0x0000") for d in claimed)
    return [d.made.sop_instance_uid for d in claimed]


def ask(database: Database, outbox: Outbox, transaction: str, *, now: float) -> list[str]:
    with database.begin() as c:
        return [d.made.sop_instance_uid for d in outbox.requested(c, PACS, transaction, now=now, limit=100)]


def answer(
    database: Database, outbox: Outbox, transaction: str, kept: list[str], lost: list[str], *, now: float
) -> bool:
    with database.begin() as c:
        return outbox.answered(c, transaction, kept, [(uid, NO_SUCH_OBJECT) for uid in lost], now=now)


def kinds(database: Database) -> list[str]:
    with database.begin() as c:
        assert ledger.first_broken(c) is None
        return [e.kind for e in ledger.events(c)]


# --- in -------------------------------------------------------------------------------------------------------------


def test_to_enqueue_again_changes_nothing(database: Database, tmp_path: Path, outbox: Outbox) -> None:
    uids = queued(database, tmp_path, outbox, 1)
    send(database, outbox, now=NOW + 10)
    with database.begin() as c:
        assert outbox.enqueue(c, uids, [PACS], now=NOW) == 0
        assert outbox.enqueue(c, uids, [PACS, OTHER], now=NOW) == 2
        assert outbox.enqueue(c, [], [PACS], now=NOW) == 0
    assert set(states(database, PACS).values()) == {(SENT, "0x0000")}
    assert set(states(database, OTHER).values()) == {(PENDING, "")}
    assert kinds(database).count("delivery_queued") == 2


def test_what_was_not_committed_is_not_there(database: Database, tmp_path: Path, outbox: Outbox) -> None:
    uids = make_results(database, tmp_path, study=1)

    def report_and_crash() -> None:
        with database.begin() as c:
            outbox.enqueue(c, uids, [PACS], now=NOW)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report_and_crash()
    assert not states(database, PACS)
    assert "delivery_queued" not in kinds(database)


def test_a_run_enqueues_study_by_study(database: Database, tmp_path: Path, outbox: Outbox) -> None:
    uids = [uid for n in (2, 1, 3) for uid in make_results(database, tmp_path, study=n)]
    with database.begin() as c:
        assert outbox.enqueue_all(c, PACS, now=NOW) == 6
        assert outbox.enqueue_all(c, PACS, now=NOW) == 0
    assert [d.made.sop_instance_uid for d in claim(database, outbox, "a", now=NOW)] == uids


# --- out ------------------------------------------------------------------------------------------------------------


def test_claims_go_by_age_in_one_piece_a_study(database: Database, tmp_path: Path, outbox: Outbox) -> None:
    uids = queued(database, tmp_path, outbox, 1, 2, 3, captures=2)
    first = claim(database, outbox, "a", now=NOW + 10, limit=4)
    second = claim(database, outbox, "b", now=NOW + 10, limit=100)
    assert [d.made.sop_instance_uid for d in (*first, *second)] == uids
    assert not claim(database, outbox, "c", now=NOW + 10)


def test_stat_goes_first(database: Database, tmp_path: Path, outbox: Outbox) -> None:
    routine = queued(database, tmp_path, outbox, 1)
    stat = make_results(database, tmp_path, study=2, stat=True)
    with database.begin() as c:
        outbox.enqueue(c, stat, [PACS], now=NOW + 5)
    assert [d.made.sop_instance_uid for d in claim(database, outbox, "a", now=NOW + 10)] == stat + routine


def test_a_lost_lease_writes_nothing(database: Database, tmp_path: Path, outbox: Outbox) -> None:
    queued(database, tmp_path, outbox, 1, captures=0)
    (d,) = claim(database, outbox, "a", now=NOW + 10)
    assert not claim(database, outbox, "b", now=NOW + 10)
    assert not claim(database, outbox, "b", now=NOW + 39)
    (same,) = claim(database, outbox, "b", now=NOW + 40)
    assert same.id == d.id
    with database.begin() as c:
        assert not outbox.sent(c, d, owner="a", now=NOW + 42, status="0x0000")
        assert not outbox.retry(c, d, owner="a", now=NOW + 42, not_before=NOW + 50, status="late")
        assert not outbox.refused(c, d, owner="a", now=NOW + 42, status="0xC000")
        outbox.release(c, PACS, owner="a")
        assert outbox.heartbeat(c, PACS, Lease(owner="a", now=NOW + 42, seconds=30)) == 0
        assert outbox.sent(c, same, owner="b", now=NOW + 42, status="0x0000")
        assert not outbox.sent(c, same, owner="b", now=NOW + 43, status="0x0000")
    assert kinds(database).count("delivered") == 1


def test_a_heartbeat_keeps_a_lease_and_a_release_ends_it(database: Database, tmp_path: Path, outbox: Outbox) -> None:
    queued(database, tmp_path, outbox, 1)
    claim(database, outbox, "a", now=NOW + 10)
    with database.begin(shared=True) as c:
        assert outbox.heartbeat(c, PACS, Lease(owner="a", now=NOW + 35, seconds=30)) == 2
    assert not claim(database, outbox, "b", now=NOW + 35)
    assert not claim(database, outbox, "b", now=NOW + 60)
    with database.begin(shared=True) as c:
        outbox.release(c, PACS, owner="a")
    assert len(claim(database, outbox, "b", now=NOW + 60)) == 2


def test_a_retry_waits_and_keeps_its_reason(database: Database, tmp_path: Path, outbox: Outbox) -> None:
    queued(database, tmp_path, outbox, 1, captures=0)
    (d,) = claim(database, outbox, "a", now=NOW + 10)
    with database.begin() as c:
        assert outbox.retry(c, d, owner="a", now=NOW + 11, not_before=NOW + 20, status="0xA700 full")
        assert not outbox.due(c, PACS, Lease(owner="a", now=NOW + 19, seconds=30), now=NOW + 19)
        assert outbox.waiting(c, PACS) == 1
    assert set(states(database, PACS).values()) == {(PENDING, "0xA700 full")}
    assert not claim(database, outbox, "a", now=NOW + 19)
    (again,) = claim(database, outbox, "a", now=NOW + 20)
    assert again.attempts == 1


def test_two_senders_at_once_claim_nothing_twice(database: Database, tmp_path: Path, outbox: Outbox) -> None:
    uids = queued(database, tmp_path, outbox, *range(1, 16))
    ended: list[str] = []
    start = threading.Barrier(4)

    def sender(owner: str) -> None:
        start.wait()
        while page := claim(database, outbox, owner, now=NOW + 100, limit=3):
            for d in page:
                with database.begin() as c:
                    if outbox.sent(c, d, owner=owner, now=NOW + 100, status="0x0000"):
                        ended.append(d.made.sop_instance_uid)

    threads = [threading.Thread(target=sender, args=(f"s{n}",)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(ended) == sorted(uids)


def test_what_was_given_up_is_sent_by_the_next_run(database: Database, tmp_path: Path, outbox: Outbox) -> None:
    queued(database, tmp_path, outbox, 1, 2)
    claim(database, outbox, "killed", now=NOW + 10, limit=1)
    with database.begin() as c:
        assert outbox.give_up(c, PACS, now=NOW + 11, status="no connection", limit=3) == 3
        assert outbox.give_up(c, PACS, now=NOW + 11, status="no connection", limit=3) == 1
        assert outbox.waiting(c, PACS) == 0
    assert set(states(database, PACS).values()) == {(REFUSED, "no connection")}
    with database.begin() as c:
        outbox.reopen(c, PACS, now=NOW + 12)
    assert len(claim(database, outbox, "a", now=NOW + 12)) == 4


# --- storage commitment ---------------------------------------------------------------------------------------------


def test_committed_is_the_end(database: Database, tmp_path: Path, outbox: Outbox) -> None:
    uids = queued(database, tmp_path, outbox, 1)
    send(database, outbox, now=NOW + 10)
    assert ask(database, outbox, "2.25.1", now=NOW + 11) == uids
    assert answer(database, outbox, "2.25.1", uids, [], now=NOW + 12)
    assert answer(database, outbox, "2.25.1", uids, [], now=NOW + 13)  # it did not hear that we heard it
    assert answer(database, outbox, "2.25.1", [], uids, now=NOW + 14)
    assert {s for s, _ in states(database, PACS).values()} == {COMMITTED}
    assert not claim(database, outbox, "a", now=NOW + 1e6)
    assert not ask(database, outbox, "2.25.2", now=NOW + 1e6)
    assert kinds(database).count("committed") == 2


@pytest.mark.parametrize("transaction", ["2.25.99", ""])
def test_a_report_of_an_unknown_transaction_is_told_and_changes_nothing(
    database: Database, tmp_path: Path, outbox: Outbox, transaction: str
) -> None:
    uids = queued(database, tmp_path, outbox, 1)
    send(database, outbox, now=NOW + 10)
    ask(database, outbox, "2.25.1", now=NOW + 11)
    answer(database, outbox, "2.25.1", [], uids[:1], now=NOW + 12)
    before = states(database, PACS)
    assert not answer(database, outbox, transaction, uids, [], now=NOW + 13)
    assert states(database, PACS) == before


def test_an_unanswered_request_is_asked_again_and_the_old_one_counts_no_more(
    database: Database, tmp_path: Path, outbox: Outbox
) -> None:
    uids = queued(database, tmp_path, outbox, 1)
    send(database, outbox, now=NOW + 10)
    ask(database, outbox, "2.25.1", now=NOW + 10)
    assert not ask(database, outbox, "2.25.2", now=NOW + 9 + ASK_AGAIN_S)
    assert ask(database, outbox, "2.25.2", now=NOW + 11 + ASK_AGAIN_S) == uids
    assert not answer(database, outbox, "2.25.1", uids, [], now=NOW + 4000)
    assert {s for s, _ in states(database, PACS).values()} == {SENT}
    assert not ask(database, outbox, "2.25.3", now=NOW + 9 + 3 * ASK_AGAIN_S)  # twice as long as before
    assert ask(database, outbox, "2.25.3", now=NOW + 13 + 3 * ASK_AGAIN_S) == uids
    assert answer(database, outbox, "2.25.3", uids, [], now=NOW + 8000)


def test_a_request_that_was_not_taken_is_made_again(database: Database, tmp_path: Path, outbox: Outbox) -> None:
    uids = queued(database, tmp_path, outbox, 1)
    send(database, outbox, now=NOW + 10)
    ask(database, outbox, "2.25.1", now=NOW + 10)
    with database.begin() as c:
        outbox.not_asked(c, PACS, "2.25.1", now=NOW + 10, wait_s=10, status="0x0110")
        assert not outbox.uncommitted(c, PACS, now=NOW + 19)
    assert ask(database, outbox, "2.25.2", now=NOW + 20) == uids


def test_what_is_not_kept_is_sent_again_and_given_up_in_the_end(
    database: Database, tmp_path: Path, outbox: Outbox
) -> None:
    kept, lost = queued(database, tmp_path, outbox, 1)
    for n in range(MAX_COMMITMENTS):
        now = NOW + 10 + 10_000 * n
        assert send(database, outbox, now=now) == ([kept, lost] if n == 0 else [lost])
        ask(database, outbox, f"2.25.{n + 1}", now=now)
        assert answer(database, outbox, f"2.25.{n + 1}", [kept, lost], [lost], now=now + 1)  # the worse word counts
        assert not claim(database, outbox, "a", now=now + 2)  # an archive may need its time
    assert states(database, PACS) == {kept: (COMMITTED, "0x0000"), lost: (REFUSED, "not committed: 0x0112")}
    assert kinds(database).count("commitment_failed") == MAX_COMMITMENTS


def test_a_long_outage_before_uses_up_no_commitment(database: Database, tmp_path: Path, outbox: Outbox) -> None:
    (uid,) = queued(database, tmp_path, outbox, 1, captures=0)
    for n in range(3 * MAX_COMMITMENTS):
        (d,) = claim(database, outbox, "a", now=NOW + 10 + n)
        with database.begin() as c:
            outbox.retry(c, d, owner="a", now=NOW + 10 + n, not_before=NOW + 11 + n, status="0xA700")
    send(database, outbox, now=NOW + 100)
    ask(database, outbox, "2.25.1", now=NOW + 100)
    answer(database, outbox, "2.25.1", [], [uid], now=NOW + 101)
    assert states(database, PACS)[uid][0] == PENDING


# --- any interleaving -----------------------------------------------------------------------------------------------


class Walk:
    """Two senders with leases, a PACS that stores, answers, or dies in between, crashes anywhere, time that passes.

    Beside the outbox stands what should be in it: who holds which delivery, which transaction may still be answered.
    """

    def __init__(self, database: Database, root: Path, random: Random) -> None:
        self.database, self.root, self.random = database, root, random
        self.outbox = Outbox("test")
        self.now = NOW
        self.studies = self.transactions = 0
        self.queued: set[str] = set()
        self.hands: dict[str, list[Delivery]] = {"a": [], "b": []}
        self.holder: dict[str, str] = {}  # SOP Instance UID -> who claimed it last and has not written since
        self.held_by_pacs: set[str] = set()
        self.taken: Counter[str] = Counter()  # how often "sent" was recorded
        self.refused: set[str] = set()
        self.asked: dict[str, list[str]] = {}  # transaction -> SOP Instance UIDs
        self.newest: dict[str, str] = {}  # SOP Instance UID -> its transaction, while that may be answered

    def step(self) -> None:
        actions = [self.report_a_study, self.pass_time, self.claim, self.send, self.crash, self.ask, self.report]
        self.random.choices(actions, [2, 3, 4, 8, 1, 4, 5])[0]()
        self.check()

    def report_a_study(self) -> None:
        self.studies += 1
        uids = make_results(self.database, self.root, study=self.studies)
        with self.database.begin() as c:
            self.outbox.enqueue(c, uids, [PACS], now=self.now)
        self.queued |= set(uids)

    def pass_time(self) -> None:
        self.now += self.random.choice([1.0, 40.0, 40.0, 7200.0])

    def claim(self) -> None:
        for owner in [o for o, hand in self.hands.items() if not hand][:1]:
            self.hands[owner] = claim(self.database, self.outbox, owner, now=self.now, limit=3)
            self.holder |= {d.made.sop_instance_uid: owner for d in self.hands[owner]}

    def crash(self) -> None:
        self.hands[self.random.choice("ab")] = []  # the leases stay until they end

    def send(self) -> None:
        busy = [o for o, hand in self.hands.items() if hand]
        if not busy:
            return
        owner = self.random.choice(busy)
        d = self.hands[owner].pop(0)
        uid = d.made.sop_instance_uid
        outcome = self.random.choices(["ok", "lost answer", "no room", "refused"], [6, 1, 1, 1])[0]
        if outcome in {"ok", "lost answer"}:
            self.held_by_pacs.add(uid)
        if outcome != "lost answer":
            wrote = self.write(d, owner, outcome)
            assert wrote == (self.holder.get(uid) == owner)
            if wrote:
                del self.holder[uid]

    def write(self, d: Delivery, owner: str, outcome: str) -> bool:
        uid, how = d.made.sop_instance_uid, {"owner": owner, "now": self.now}
        with self.database.begin() as c:
            if outcome == "no room":
                return self.outbox.retry(c, d, **how, not_before=self.now + 30, status="0xA700")  # type: ignore[arg-type]
            if outcome == "refused":
                wrote = self.outbox.refused(c, d, **how, status="0xC000")  # type: ignore[arg-type]
                self.refused |= {uid} if wrote else set()
                return wrote
            wrote = self.outbox.sent(c, d, **how, status="0x0000")  # type: ignore[arg-type]
            self.taken[uid] += wrote
            return wrote

    def ask(self) -> None:
        self.transactions += 1
        transaction = f"2.25.{self.transactions}"
        if asked := ask(self.database, self.outbox, transaction, now=self.now):
            self.asked[transaction] = asked
            self.newest |= dict.fromkeys(asked, transaction)

    def report(self) -> None:
        """Of any transaction: old ones, and the same twice, as well."""
        if not self.asked:
            return
        transaction = self.random.choice(list(self.asked))
        lost = [uid for uid in self.asked[transaction] if self.random.random() < 0.3]
        kept = [uid for uid in self.asked[transaction] if uid not in lost]
        before = states(self.database, PACS)
        answer(self.database, self.outbox, transaction, kept, lost, now=self.now)
        for uid, (state, _) in states(self.database, PACS).items():
            if self.newest.get(uid) != transaction:
                assert state == before[uid][0]
            else:
                assert state in ({PENDING, REFUSED} if uid in lost else {COMMITTED})
                self.refused |= {uid} if state == REFUSED else set()
                del self.newest[uid]

    def check(self) -> None:
        said = states(self.database, PACS)
        assert set(said) == self.queued
        for uid, (state, _) in said.items():
            assert state in {PENDING, SENT, COMMITTED, REFUSED}
            assert state not in {SENT, COMMITTED} or uid in self.held_by_pacs
            assert (state == REFUSED) == (uid in self.refused)

    def finish(self) -> None:
        """From wherever it is, a sender that works and a peer that keeps bring everything to its end, once."""
        with self.database.begin() as c:  # a first look: from here on, leases of nobody end
            self.outbox.due(c, PACS, Lease(owner="a", now=self.now, seconds=30), now=self.now)
        self.now += 2 * 86_400
        for uid in send(self.database, self.outbox, now=self.now):
            self.taken[uid] += 1
        kept = ask(self.database, self.outbox, "2.25.999", now=self.now)
        answer(self.database, self.outbox, "2.25.999", kept, [], now=self.now)
        ended = {uid: state for uid, (state, _) in states(self.database, PACS).items()}
        assert ended == {uid: REFUSED if uid in self.refused else COMMITTED for uid in self.queued}
        with self.database.begin() as c:
            assert ledger.first_broken(c) is None
            recorded = Counter((e.kind, e.sop_instance_uid) for e in ledger.events(c))
        for uid in self.queued:
            assert recorded["delivered", uid] == self.taken[uid]
            assert recorded["committed", uid] == (ended[uid] == COMMITTED)
            assert recorded["commitment_failed", uid] <= MAX_COMMITMENTS


@pytest.mark.parametrize("seed", range(12))
def test_no_interleaving_loses_a_delivery_or_ends_it_twice(tmp_path: Path, seed: int) -> None:
    database = Database(tmp_path / "store.sqlite")
    walk = Walk(database, tmp_path, Random(seed))
    for _ in range(120):
        walk.step()
    walk.finish()
    database.close()
