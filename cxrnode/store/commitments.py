"""What peers asked us to commit to, until they have their answer (PS3.4 annex J, we as SCP)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select, update

from cxrnode.store import ledger
from cxrnode.store.chunks import chunks
from cxrnode.store.schema import commitment_request as request
from cxrnode.store.schema import instance
from cxrnode.store.waits import is_due
from cxrnode.types import Outcome, Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """A request that waits for its answer."""

    transaction_uid: str
    calling_aet: str
    host: str
    listed: Any  # [[SOP class UID, SOP instance UID], ...]
    attempts: int

    @property
    def instances(self) -> tuple[Reference, ...]:
        return tuple((sop_class, uid) for sop_class, uid in self.listed)


class Commitments:
    """All methods take the connection of the caller's transaction. `now` is in seconds since 1970, UTC."""

    def __init__(self, actor: str) -> None:
        self._actor = actor

    def ask(
        self, c: Connection, transaction_uid: str, calling_aet: str, host: str, instances: Sequence[Reference]
    ) -> None:
        """Take a request in. One whose Transaction UID is known is the same request, and is answered once more."""
        again = {"answered_at": None, "attempts": 0, "not_before": 0.0, "wait_s": 0.0}
        mine = request.c.transaction_uid == transaction_uid
        if not c.execute(update(request).where(mine).values(**again)).rowcount:
            row = {"transaction_uid": transaction_uid, "calling_aet": calling_aet, "host": host}
            c.execute(insert(request).values(instances=[list(i) for i in instances], **row))
        ledger.append(
            c, "commitment_asked", actor=self._actor, ae_title=calling_aet, transaction_uid=transaction_uid, host=host,
            instances=len(instances),
        )  # fmt: skip

    def due(self, c: Connection, *, now: float) -> OpenRequest | None:
        """The one that waits longest of those that may be answered now."""
        query = (
            select(request)
            .where(request.c.answered_at.is_(None), is_due(request, now))
            .order_by(request.c.not_before)
            .limit(1)
        )
        row = c.execute(query).first()
        if row is None:
            return None
        return OpenRequest(
            transaction_uid=row.transaction_uid, calling_aet=row.calling_aet, host=row.host,
            listed=row.instances, attempts=row.attempts,
        )  # fmt: skip

    def held(self, c: Connection, instances: Sequence[Reference]) -> dict[Reference, list[Path]]:
        """Where each of these lies, as received: one that is not here was never received, or is deleted since."""
        columns = (instance.c.sop_class_uid, instance.c.sop_instance_uid, instance.c.path)
        found: dict[Reference, list[Path]] = {}
        for uids in chunks(dict.fromkeys(uid for _, uid in instances)):
            these = instance.c.sop_instance_uid.in_(uids) & instance.c.received_at.is_not(None)
            for row in c.execute(select(*columns).where(these)):
                found.setdefault((row.sop_class_uid, row.sop_instance_uid), []).append(Path(row.path))
        return {i: found[i] for i in instances if i in found}

    def answered(self, c: Connection, asked: OpenRequest, *, now: float, kept: int, missing: int) -> None:
        mine = request.c.transaction_uid == asked.transaction_uid
        c.execute(update(request).where(mine).values(answered_at=now, attempts=asked.attempts + 1))
        ledger.append(
            c, "commitment_answered", actor=self._actor, ae_title=asked.calling_aet,
            transaction_uid=asked.transaction_uid, kept=kept, missing=missing, host=asked.host,
        )  # fmt: skip

    def postponed(self, c: Connection, asked: OpenRequest, *, now: float, wait_s: float) -> None:
        mine = request.c.transaction_uid == asked.transaction_uid
        later = {"not_before": now + wait_s, "wait_s": wait_s}
        c.execute(update(request).where(mine).values(attempts=asked.attempts + 1, **later))

    def peer_postponed(self, c: Connection, asked: OpenRequest, *, now: float, wait_s: float) -> None:
        """What else its peer asked waits too: nobody answers there."""
        theirs = (request.c.calling_aet == asked.calling_aet) & (request.c.host == asked.host)
        sooner = is_due(request, now) | (request.c.not_before < now + wait_s)
        waits = theirs & request.c.answered_at.is_(None) & sooner
        c.execute(update(request).where(waits).values(not_before=now + wait_s, wait_s=wait_s))

    def given_up(self, c: Connection, asked: OpenRequest, *, now: float, why: str) -> None:
        """A dead letter: its peer gets no answer, and may ask again."""
        mine = request.c.transaction_uid == asked.transaction_uid
        c.execute(update(request).where(mine).values(answered_at=now, attempts=asked.attempts + 1))
        ledger.append(
            c, "commitment_given_up", actor=self._actor, ae_title=asked.calling_aet, outcome=Outcome.FAILED.value,
            transaction_uid=asked.transaction_uid, host=asked.host, why=why,
        )  # fmt: skip
