"""A store that lives at random: everything that the node's stages, a run, an operator and a check do to its tables."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, select

from cxrnode.doctor_destination import _asked
from cxrnode.store.database import Database
from cxrnode.store.outbox import Outbox
from cxrnode.store.queue import Finding, Queue
from cxrnode.store.schema import job
from cxrnode.store.studies import Studies
from cxrnode.types import Kind, NewItem, Reason, Rejection, Report, Study
from tests.support.store import NOW, analysed, item, lease, made, received

DESTINATIONS = ("pacs", "ARCHIVE@10.0.0.9:104")
QUEUE, STUDIES, OUTBOX = Queue("analyse"), Studies("analyse"), Outbox("deliver")


class Lives:
    """`step` does one thing, chosen by chance, in one transaction; `NAMES` are all things there are."""

    def __init__(self, database: Database, seed: int = 1) -> None:
        self.database = database
        self.chance = random.Random(seed)
        self.now = NOW
        self.images = 0
        self.transactions: list[str] = []

    def live(self, steps: int) -> None:
        """Every thing at least twice, where there are steps enough; then what goes forward more often than the rest."""
        names = list(NAMES)
        for n in range(steps):
            self.step(names[n % len(names)] if n < 2 * len(names) else self.chance.choice(names + 4 * _FORWARD))

    def step(self, name: str) -> None:
        self.now += 1
        if name == "doctor":
            self._doctor()
            return
        with self.database.begin() as c:
            NAMES[name](self, c)

    # -- what comes in

    def receive(self, c: Connection) -> None:
        for _ in range(3):
            self.images += 1
            study, image = self.chance.randint(1, 7), self.images
            came = received(study, image, at=self.now + self.chance.random(), stat=self.chance.random() < 0.3)
            again = [came] if self.chance.random() < 0.3 else []
            conflict = [received(study, image, sha256="b")] if self.chance.random() < 0.3 else []
            QUEUE.receive(c, [came, *again, *conflict])

    def scan(self, c: Connection) -> None:
        self.images += 1
        sound = item(self.chance.randint(1, 7), self.images)
        text = NewItem(
            path=f"notes {self.images}.txt", location={"container": "/a", "kind": "zip", "offset": 7},
            rejection=Rejection(reason=Reason.NOT_DICOM, detail="a\0b"),
        )  # fmt: skip
        QUEUE.add(c, [sound, text], now=self.now)

    # -- analysis

    def analyse(self, c: Connection) -> None:
        claimed = QUEUE.claim(c, lease("a", self.now), limit=self.chance.randint(1, 5), idle=True)
        QUEUE.record_claims(c, claimed)
        for mine in claimed:
            what = self.chance.random()
            if what < 0.1:
                QUEUE.hand_back(c, "a", [mine.id])
            elif what < 0.2:
                QUEUE.release(c, "a")
            elif what < 0.3:
                continue
            elif what < 0.5:
                reason = self.chance.choice([Reason.LATERAL, Reason.DUPLICATE, Reason.UNDECODABLE])
                digest = self.chance.choice([None, "d" * 64])
                rejected = Finding(job=mine, pixel_digest=digest, rejection=Rejection(reason=reason, detail="of x"))
                QUEUE.finish(c, rejected, owner="a")
            else:
                note = Rejection(reason=Reason.UID_CONFLICT, detail="with x") if what > 0.9 else None
                QUEUE.finish(c, analysed(mine, note=note), owner="a")

    def lose_leases(self, c: Connection) -> None:
        QUEUE.due(c, lease("a", self.now))  # seen
        self.now += 100
        QUEUE.give_up(c, lease("a", self.now))
        if self.chance.random() < 0.5:
            QUEUE.release_all(c)

    def bury(self, c: Connection) -> None:
        QUEUE.bury(c, self._some_jobs(c))

    def retry(self, c: Connection) -> None:
        OUTBOX.reopen_refused(c, QUEUE.retry(c, self._some_jobs(c)), now=self.now)

    def _some_jobs(self, c: Connection) -> list[int]:
        return [i for i in c.execute(select(job.c.id).order_by(job.c.id)).scalars() if self.chance.random() < 0.05]

    # -- reports

    def settle(self, c: Connection) -> None:
        """All that waits is analysed, and its studies are reported."""
        self.analyse_all(c)
        self.report(c)

    def analyse_all(self, c: Connection) -> None:
        QUEUE.due(c, lease("a", self.now))  # seen
        self.now += 100
        while claimed := QUEUE.claim(c, lease("a", self.now), limit=9, idle=True):
            for mine in claimed:
                QUEUE.finish(c, analysed(mine), owner="a")

    def report(self, c: Connection) -> None:
        for study in STUDIES.claim(c, lease("a", self.now), quiet_s=0.0, limit=3):
            if self.chance.random() < 0.2:
                STUDIES.failed(c, study, Rejection(reason=Reason.RESULT_INVALID, detail="SR"), owner="a")
                continue
            uids = STUDIES.reported(c, study, self._reports(study), owner="a") or []
            OUTBOX.enqueue(c, uids, DESTINATIONS, now=self.now, study_instance_uid=study.study_instance_uid)

    def _reports(self, study: Study) -> list[Report]:
        """None, one, or one for each of two patients, one of them held back at times."""
        places = tuple(range(len(study.images)))
        if not places:
            return []
        parts = [places[::2], places[1::2]] if len(places) > 1 and self.chance.random() < 0.5 else [places]
        found = []
        for n, part in enumerate(parts):
            uid = f"2.25.9{int(self.now)}{n}{study.study_instance_uid[-3:]}"
            before = study.earlier[-1].sop_instance_uid if study.earlier else None
            sr = made(uid, int(study.study_instance_uid[-3:]), Kind.SR)
            held_back = Rejection(reason=Reason.RESULT_INVALID, detail="x")
            lost = n and self.chance.random() < 0.5
            found.append(
                Report(images=part, held_back=held_back) if lost else Report(images=part, sr=sr, predecessor_uid=before)
            )
        return found

    # -- deliveries

    def deliver(self, c: Connection) -> None:
        where = self.chance.choice(DESTINATIONS)
        for d in OUTBOX.claim(c, where, lease("d", self.now, 30.0), now=self.now, limit=4):
            what, status = self.chance.random(), f"0x{self.chance.randint(0, 3):04X}"
            if what < 0.6:
                OUTBOX.sent(c, d, owner="d", now=self.now, status=status)
            elif what < 0.8:
                OUTBOX.retry(c, d, owner="d", now=self.now, not_before=self.now, status=status)
            elif what < 0.9:
                OUTBOX.refused(c, d, owner="d", now=self.now, status=status)
        OUTBOX.release(c, where, owner="d")

    def ask(self, c: Connection) -> None:
        uid, where = f"2.25.7{int(self.now)}", self.chance.choice(DESTINATIONS)
        asked = OUTBOX.requested(c, where, uid, now=self.now, limit=4, ask_again_s=2.0)
        if asked and self.chance.random() < 0.5:
            OUTBOX.not_asked(c, where, uid, now=self.now, wait_s=0.0, status="0x0110")
        if asked:
            self.transactions.append(uid)

    def answer(self, c: Connection) -> None:
        from cxrnode.store.schema import delivery

        if not self.transactions:
            return
        uid = self.chance.choice(self.transactions)
        of = (
            c.execute(select(delivery.c.result_uid).where(delivery.c.transaction_uid == uid).order_by(delivery.c.id))
            .scalars()
            .all()
        )
        kept = [u for u in of if self.chance.random() < 0.5]
        OUTBOX.answered(c, uid, kept, [(u, 0x0112) for u in of if u not in kept], now=self.now)

    def send_all(self, c: Connection) -> None:
        """As run-batch does, again and again."""
        OUTBOX.reopen(c, DESTINATIONS[0], now=self.now)
        OUTBOX.enqueue_all(c, DESTINATIONS[0], now=self.now)
        if self.chance.random() < 0.3:
            OUTBOX.give_up(c, DESTINATIONS[0], now=self.now, status="is it up?", limit=2)

    def _doctor(self) -> None:
        objects = [made(f"2.25.8{int(self.now)}{n}", 99) for n in range(2)]
        with _asked(self.database, "pacs", f"2.25.6{int(self.now)}", objects):
            self.transactions.append(f"2.25.6{int(self.now)}")
            with self.database.begin() as c:
                self.answer(c)


NAMES: dict[str, Callable[[Lives, Connection], None]] = {
    "receive": Lives.receive, "scan": Lives.scan, "analyse": Lives.analyse, "report": Lives.report,
    "settle": Lives.settle,
    "lose_leases": Lives.lose_leases, "bury": Lives.bury, "retry": Lives.retry, "deliver": Lives.deliver,
    "ask": Lives.ask, "answer": Lives.answer, "send_all": Lives.send_all, "doctor": Lives.answer,
}  # fmt: skip
_FORWARD = ["receive", "analyse", "report", "deliver"]


def lived_at_random(where: Path | str, steps: int = 250, seed: int = 1) -> Database:
    database = Database(where)
    lives = Lives(database, seed)
    lives.live(steps)
    with database.begin() as c:  # some are not reported yet, some not analysed
        lives.receive(c)
        lives.analyse_all(c)
        lives.receive(c)
    return database
