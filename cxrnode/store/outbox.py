"""The outbox: what is to be sent to whom, and what became of it.

A delivery goes pending -> sent -> committed. It is made in the transaction that reports its study, so that nothing is
sent that was not reported, and nothing that was reported is forgotten. What was stored at the peer while its answer was
lost is sent again: the SOP Instance UID is the same, so the peer holds it once. A claim is a lease, as in the queue.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    exists,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    true,
    update,
)

from cxrnode.store import ledger
from cxrnode.store.chunks import chunks
from cxrnode.store.objects import result_object
from cxrnode.store.queue import STAT, Lease
from cxrnode.store.schema import delivery, job, result
from cxrnode.store.stillness import Stillness
from cxrnode.store.upsert import upsert
from cxrnode.store.waits import is_due
from cxrnode.types import Outcome, ResultObject

PENDING, SENT, COMMITTED, REFUSED = "pending", "sent", "committed", "refused"
MANY_TRIES = 5  # what was tried so often in vain waits for all else that is due
MAX_COMMITMENTS = 5  # what a peer takes and then does not keep is given up after so many times
ASK_AGAIN_S = 30.0  # the report may be lost, or come hours later: each further request waits twice as long
_LONGEST_ASK_S = 86_400.0
LONGEST_WAIT_S = 1800.0  # of a retry
_FREE = {"lease_owner": None, "lease_until": None}
_BY_HAND = "given up by hand"
_STAT_AT = 0.0  # STAT results are due since then, before all others
_STAT = (
    exists().where(job.c.study_instance_uid == result.c.study_instance_uid, job.c.priority == STAT).correlate(result)
)
_ASKED_BEFORE = ""  # a transaction that is over, and no answer can name


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One result on its way to one destination."""

    id: int
    destination: str
    state: str
    attempts: int  # tries so far; of what the peer took at least once, how often it took it
    wait_s: float  # what it waits for now, or waited for
    updated_at: float  # when its state changed last, seconds since 1970, UTC
    made: ResultObject


class Outbox:
    """All methods take the connection of the caller's transaction. `now` is in seconds since 1970, UTC."""

    def __init__(self, actor: str, *, resend_wait_s: float = 60.0, ae_titles: Mapping[str, str] | None = None) -> None:
        self._actor = actor
        self._ae_titles = ae_titles or {}  # of destinations that have a name in the configuration, for the ledger
        self._leases: dict[str, Stillness[int, tuple[str, float]]] = {}  # by destination: each has a thread of its own
        self._resend_wait_s = resend_wait_s  # doubled each time: an archive may index what it took only later

    # -- in

    def enqueue(
        self, c: Connection, result_uids: Sequence[str], destinations: Iterable[str], *, now: float | None = None,
        study_instance_uid: str | None = None,
    ) -> int:  # fmt: skip
        """Have these results sent, in this order; what is in the outbox already stays as it is. Returns how many.

        `study_instance_uid`: of all of them, for the ledger.
        """
        if not result_uids:
            return 0
        return sum(
            self._enqueue(c, result.c.sop_instance_uid.in_(uids), _place(uids), destination, now, study_instance_uid)
            for destination in destinations
            for uids in chunks(result_uids)
        )

    def enqueue_all(self, c: Connection, destination: str, *, now: float) -> int:
        """Have every result sent, study by study; what is in the outbox already stays as it is. Returns how many."""
        first_of_study = func.min(result.c.id).over(partition_by=result.c.study_instance_uid)
        return self._enqueue(c, true(), first_of_study, destination, now)

    def _enqueue(
        self, c: Connection, wanted: ColumnElement[bool], order: Any, destination: str, now: float | None,
        study_instance_uid: str | None = None,
    ) -> int:  # fmt: skip
        now = time.time() if now is None else now
        there = delivery.alias()
        in_outbox = select(there.c.id).where(
            there.c.result_uid == result.c.sop_instance_uid, there.c.destination == destination
        )
        row: dict[str, Any] = {
            "result_uid": result.c.sop_instance_uid,
            "destination": literal(destination),
            "state": literal(PENDING),
            "attempts": literal(0),
            "not_before": case((_STAT, _STAT_AT), else_=now),  # claims go by it: STAT first, then by age
            "status": literal(""),
            "updated_at": literal(now),
        }
        rows = select(*row.values()).where(wanted, ~in_outbox.exists()).order_by(order, result.c.id)
        statement = upsert(delivery).from_select(list(row), rows).on_conflict_do_nothing()
        added = c.execute(statement.returning(delivery.c.result_uid)).scalars().all()
        for uids in chunks(added):
            ledger.append(
                c, "delivery_queued", actor=self._actor, study_instance_uid=study_instance_uid,
                ae_title=self._ae_title(destination), destination=destination, results=len(uids),
                sop_instance_uids=uids,
            )  # fmt: skip
        return len(added)

    # -- out

    def due(self, c: Connection, destination: str, lease: Lease, *, now: float, new_stat: bool = False) -> bool:
        """Whether a claim would give anything. new_stat: of STAT results that were never tried."""
        return _any(c, _claimable(destination, now, self._taken(c, destination, lease), new_stat=new_stat))

    def waiting(self, c: Connection, destination: str) -> int:
        """How many deliveries have not arrived and may still."""
        query = select(func.count()).select_from(delivery).where(_in_state(destination, PENDING))
        return int(c.execute(query).scalar_one())

    def claim(
        self, c: Connection, destination: str, lease: Lease, *, now: float, limit: int, new_stat: bool = False
    ) -> list[Delivery]:
        """The next deliveries that are due, the caller's until the lease ends; STAT first, a study's in one piece.

        new_stat: STAT results that were never tried, and no others.
        """
        due = _claimable(destination, now, self._taken(c, destination, lease), new_stat=new_stat)
        tries = delivery.c.attempts
        claimed: list[Delivery] = []
        for which in ((tries > 0) & (tries < MANY_TRIES) & _STAT, tries < MANY_TRIES, tries >= MANY_TRIES):
            if len(claimed) < limit:
                more = _pick(c, due & which, limit - len(claimed))
                _update(c, more, lease_owner=lease.owner, lease_until=lease.until)
                claimed += more
        return claimed

    def _taken(self, c: Connection, destination: str, lease: Lease) -> ColumnElement[bool]:
        """What somebody holds whose lease has not ended: of what has, only as it is now."""
        query = select(delivery.c.id, delivery.c.lease_owner, delivery.c.lease_until).where(
            _in_state(destination, PENDING), delivery.c.lease_owner.is_not(None)
        )
        held = {row.id: (row.lease_owner, row.lease_until) for row in c.execute(query)}
        leases = self._leases.setdefault(destination, Stillness())
        ended = leases.still(held, now=lease.now, seconds=lease.seconds)
        as_seen = (and_(delivery.c.id == k, delivery.c.lease_until == held[k][1]) for k in sorted(ended))
        return and_(delivery.c.lease_owner.is_not(None), not_(or_(false(), *as_seen)))

    def heartbeat(self, c: Connection, destination: str, lease: Lease) -> int:
        """Keep the leases that the owner still has; returns how many."""
        held = and_(_in_state(destination, PENDING), delivery.c.lease_owner == lease.owner)
        return c.execute(update(delivery).where(held).values(lease_until=lease.until)).rowcount

    def release(self, c: Connection, destination: str, *, owner: str) -> None:
        """Hand back what the owner claimed and did not try."""
        held = and_(_in_state(destination, PENDING), delivery.c.lease_owner == owner)
        c.execute(update(delivery).where(held).values(**_FREE))

    def sent(self, c: Connection, d: Delivery, *, owner: str, now: float, status: str) -> bool:
        """The peer took it. False: the lease was lost, nothing changed."""
        tries = case((delivery.c.transaction_uid.is_(None), 1), else_=delivery.c.attempts + 1)
        values = {"state": SENT, "attempts": tries, **_at_once(now)}
        return self._end(c, d, owner, "delivered", status=status, updated_at=now, **values)

    def retry(self, c: Connection, d: Delivery, *, owner: str, now: float, not_before: float, status: str) -> bool:
        """It did not arrive, or the peer has no room now: once more, later. False: the lease was lost."""
        values = {"attempts": delivery.c.attempts + 1, "not_before": not_before, "wait_s": not_before - now}
        return self._end(c, d, owner, "delivery_postponed", status=status, updated_at=now, **values)

    def refused(self, c: Connection, d: Delivery, *, owner: str, now: float, status: str) -> bool:
        """The peer will not have it. False: the lease was lost."""
        values = {"state": REFUSED, "attempts": delivery.c.attempts + 1}
        return self._end(c, d, owner, "delivery_failed", status=status, updated_at=now, **values)

    def _end(self, c: Connection, d: Delivery, owner: str, kind: str, *, status: str, **values: Any) -> bool:
        ours = update(delivery).where(
            delivery.c.id == d.id, delivery.c.state == PENDING, delivery.c.lease_owner == owner
        )
        if c.execute(ours.values(status=status, **values, **_FREE)).rowcount != 1:
            return False
        self._audit(c, kind, d, status=status)
        return True

    # -- for the outbox's only sender: run-batch

    def give_up(self, c: Connection, destination: str, *, now: float, status: str, limit: int) -> int:
        """End what still waits as refused, so many at a time; returns how many."""
        waiting = _pick(c, _in_state(destination, PENDING), limit)
        _update(c, waiting, state=REFUSED, updated_at=now, status=status, **_FREE)
        for d in waiting:
            self._audit(c, "delivery_failed", d, status=status)
        return len(waiting)

    def reopen(self, c: Connection, destination: str, *, now: float) -> None:
        """Have what was refused, and what a killed sender left behind, sent as if it were new."""
        unsent = and_(delivery.c.destination == destination, delivery.c.state.in_((PENDING, REFUSED)))
        values = {"state": PENDING, "attempts": 0, **_at_once(now), "updated_at": now, "transaction_uid": None}
        reopened = c.execute(update(delivery).where(unsent).values(**values, **_FREE)).rowcount
        if reopened:
            ledger.append(
                c, "delivery_reopened", actor=self._actor, ae_title=self._ae_title(destination),
                destination=destination, results=reopened,
            )  # fmt: skip

    # -- by hand

    def reopen_refused(self, c: Connection, study_instance_uids: Sequence[str], *, now: float) -> None:
        """Have the results of these studies that a destination refused sent once more."""
        for uids in chunks(dict.fromkeys(study_instance_uids)):
            chosen = and_(delivery.c.state == REFUSED, result.c.study_instance_uid.in_(uids))
            for d in _pick(c, chosen, None):
                again = {"state": PENDING, "attempts": 0, **_at_once(now), "updated_at": now}
                _update(c, [d], **again, transaction_uid=None, **_FREE)
                self._audit(c, "delivery_reopened", d)

    def bury_failing(self, c: Connection, study_instance_uids: Sequence[str], *, now: float) -> int:
        """Have the results of these studies that wait, and were tried in vain, tried no more; returns how many."""
        buried = []
        for uids in chunks(dict.fromkeys(study_instance_uids)):
            tried = and_(delivery.c.state == PENDING, delivery.c.attempts > 0)
            buried += _pick(c, and_(tried, result.c.study_instance_uid.in_(uids)), None)
        _update(c, buried, state=REFUSED, updated_at=now, status=_BY_HAND, **_FREE)
        for d in buried:
            self._audit(c, "delivery_failed", d, status=_BY_HAND)
        return len(buried)

    # -- storage commitment (PS3.4 annex J)

    def uncommitted(self, c: Connection, destination: str, *, now: float) -> bool:
        """Whether a request would ask for anything."""
        return _any(c, _askable(destination, now))

    def requested(
        self, c: Connection, destination: str, transaction_uid: str, *, now: float, limit: int,
        ask_again_s: float = ASK_AGAIN_S,
    ) -> list[Delivery]:  # fmt: skip
        """What this transaction asks for: sent, and never asked for or without an answer for long.

        To be committed before it is asked: the answer may come at once, to another process. From then on an answer
        to an earlier transaction counts no more.
        """
        asked = _pick(c, _askable(destination, now), limit)
        for d in asked:
            wait_s = min(max(ask_again_s, 2 * d.wait_s), _LONGEST_ASK_S)
            _update(c, [d], transaction_uid=transaction_uid, not_before=now + wait_s, wait_s=wait_s)
        for study, of_study in groupby(asked, lambda d: d.made.study_instance_uid):
            ledger.append(
                c, "commitment_requested", actor=self._actor, study_instance_uid=study,
                ae_title=self._ae_title(destination), destination=destination, transaction_uid=transaction_uid,
                sop_instance_uids=[d.made.sop_instance_uid for d in of_study],
            )  # fmt: skip
        return asked

    def not_asked(
        self, c: Connection, destination: str, transaction_uid: str, *, now: float, wait_s: float, status: str
    ) -> None:
        """The peer did not take this request: another, later."""
        mine = and_(_in_state(destination, SENT), delivery.c.transaction_uid == transaction_uid)
        c.execute(update(delivery).where(mine).values(not_before=now + wait_s, wait_s=wait_s, status=status))
        ledger.append(
            c, "commitment_postponed", actor=self._actor, ae_title=self._ae_title(destination),
            destination=destination, transaction_uid=transaction_uid, status=status,
        )  # fmt: skip

    def asked_by(self, c: Connection, transaction_uid: str) -> str | None:
        """The destination that this transaction asked; None where it is not open (any more)."""
        if not transaction_uid:
            return None
        query = select(delivery.c.destination).where(delivery.c.transaction_uid == transaction_uid).limit(1)
        return c.execute(query).scalar_one_or_none()

    def answered(
        self,
        c: Connection,
        transaction_uid: str,
        committed: Sequence[str],
        failed: Sequence[tuple[str, int]],
        *,
        now: float | None = None,
    ) -> bool:
        """Record what a peer reports of a transaction: SOP Instance UIDs, and FailureReasons (0008,1197).

        What it does not keep is sent again, MAX_COMMITMENTS times. False: no delivery's newest transaction has this
        UID (unknown, or one that was asked again under another); nothing changed. A report that comes twice changes
        nothing the second time.
        """
        now = time.time() if now is None else now
        asked = _pick(c, delivery.c.transaction_uid == transaction_uid, None) if transaction_uid else []
        reasons, kept = dict(failed), set(committed)
        for d in asked:
            uid = d.made.sop_instance_uid
            if d.state != SENT:
                continue
            if uid in reasons:
                self._not_kept(c, d, reasons[uid], now)
            elif uid in kept:
                _update(c, [d], state=COMMITTED, updated_at=now)
                self._audit(c, "committed", d, transaction_uid=transaction_uid)
        return bool(asked)

    def _not_kept(self, c: Connection, d: Delivery, reason: int, now: float) -> None:
        status = f"not committed: 0x{reason:04X}"
        state = PENDING if d.attempts < MAX_COMMITMENTS else REFUSED
        wait_s = min(self._resend_wait_s * 2 ** (d.attempts - 1), LONGEST_WAIT_S)
        over = {"transaction_uid": _ASKED_BEFORE, "not_before": now + wait_s, "wait_s": wait_s, "updated_at": now}
        _update(c, [d], state=state, status=status, **over)
        self._audit(c, "commitment_failed", d, status=status, resend=state == PENDING)

    def _audit(self, c: Connection, kind: str, d: Delivery, **detail: Any) -> None:
        ledger.append(
            c, kind, actor=self._actor, study_instance_uid=d.made.study_instance_uid,
            sop_instance_uid=d.made.sop_instance_uid, ae_title=self._ae_title(d.destination),
            outcome=Outcome.FAILED.value if kind.endswith("_failed") else None, destination=d.destination, **detail,
        )  # fmt: skip

    def _ae_title(self, destination: str) -> str:
        """Of what has no name in the configuration, its name begins with it: AET@host:port."""
        return self._ae_titles.get(destination) or "@".join(destination.split("@")[:-1])


def _place(result_uids: Sequence[str]) -> ColumnElement[int]:
    return case({uid: n for n, uid in enumerate(result_uids)}, value=result.c.sop_instance_uid)


def _in_state(destination: str, state: str) -> ColumnElement[bool]:
    return and_(delivery.c.destination == destination, delivery.c.state == state)


def _claimable(
    destination: str, now: float, taken: ColumnElement[bool], *, new_stat: bool = False
) -> ColumnElement[bool]:
    new = and_(delivery.c.attempts == 0, delivery.c.not_before == _STAT_AT)
    return and_(_in_state(destination, PENDING), new if new_stat else is_due(delivery, now), not_(taken))


def _askable(destination: str, now: float) -> ColumnElement[bool]:
    return and_(_in_state(destination, SENT), is_due(delivery, now))


def _at_once(now: float) -> dict[str, float]:
    return {"not_before": now, "wait_s": 0.0}


def _any(c: Connection, which: ColumnElement[bool]) -> bool:
    return c.execute(select(delivery.c.id).where(which).limit(1)).first() is not None


def _pick(c: Connection, which: ColumnElement[bool], limit: int | None) -> list[Delivery]:
    """Rows for the caller to change in this transaction; what another one changes just now is passed over."""
    ours = (delivery.c.id.label("delivery_id"), delivery.c.destination, delivery.c.state, delivery.c.attempts)
    query = (
        select(*ours, delivery.c.wait_s, delivery.c.updated_at, result)
        .join(result, result.c.sop_instance_uid == delivery.c.result_uid)
        .where(which)
        .order_by(delivery.c.not_before, delivery.c.id)
        .limit(limit)
        .with_for_update(skip_locked=limit is not None, of=delivery)
    )
    return [
        Delivery(
            id=row.delivery_id,
            destination=row.destination,
            state=row.state,
            attempts=row.attempts,
            wait_s=row.wait_s or 0.0,
            updated_at=row.updated_at,
            made=result_object(row),
        )
        for row in c.execute(query)
    ]


def _update(c: Connection, picked: Sequence[Delivery], **values: Any) -> None:
    for ids in chunks(d.id for d in picked):
        c.execute(update(delivery).where(delivery.c.id.in_(ids)).values(**values))
