"""The state tables as the ledger tells them: its records played again, in their order, into tables of the same columns.

Each kind of record does here what its step did there. Which records are fresh, and say all that the tables hold, shows
in the fields that they have.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, select

from cxrnode.audit.tables import DONE, OF_RECEIPT, PREDICTED, TOLD, UNTOLD, WAITING, Tables
from cxrnode.errors import StoreError
from cxrnode.store import ledger
from cxrnode.store.outbox import COMMITTED, PENDING, REFUSED, SENT
from cxrnode.store.queue import ANALYSED, ENGINE, REPORTED, ROUTINE
from cxrnode.store.schema import instance
from cxrnode.types import Kind, Outcome, Reason, Receipt


@dataclass(frozen=True, slots=True)
class _Said:
    """A record, with what it is found by taken from its detail where an older one has it there."""

    seq: int
    kind: str
    actor: str
    study: str | None
    sop: str | None
    ae: str | None
    outcome: str | None
    detail: dict[str, Any]

    @property
    def fresh(self) -> bool:
        return "job" in self.detail

    def get(self, key: str, absent: Any = UNTOLD) -> Any:
        return self.detail.get(key, absent)


class Replay:
    """`heard` on the way of the ledger's records; at their end, `tables` hold what they say."""

    def __init__(self, real: Connection) -> None:
        """real: the store whose ledger it is, asked for the numbers of images that older records name by path alone."""
        self._real = real
        self.older = False  # there are records that say less
        self.unnamed: Counter[str] = Counter()  # destination -> results that were queued without being named
        self.passed: set[str] = set()  # results of a check by doctor, of whose rows no record tells
        self.settings: dict[str, dict[str, Any]] = {}  # key -> what is told of its value
        self._missing = 0
        self.tables = Tables()
        self.tables.db.execute("CREATE TABLE missing (name PRIMARY KEY, id)")

    def close(self) -> None:
        self.tables.close()

    def heard(self, records: Iterable[ledger.Record]) -> Iterator[ledger.Record]:
        """The records, each played when the next is asked for: when whoever takes them has found it sound."""
        for record in records:
            yield record
            self.tell(record)

    def tell(self, record: ledger.Record) -> None:
        """Raises StoreError for a record that cxrnode did not write, sqlite3.OperationalError of a full disk."""
        tell = self._tell.get(record[2])
        if tell is None:
            return
        try:
            seq, _, kind, actor, study, detail, _, _, sop, ae, _, _, outcome = record
            said = dict(json.loads(detail))
            sop = sop or said.get("sop_instance_uid")
            tell(_Said(seq, kind, actor, study, sop, ae or said.get("calling_aet"), outcome, said))
        except sqlite3.OperationalError:  # of the disk, and not of the record
            raise
        except (TypeError, ValueError, KeyError, AttributeError, sqlite3.Error) as e:
            raise StoreError(f"record {record[0]} is none that this cxrnode knows ({record[2]}): was it written by a "
                             "newer one?") from e  # fmt: skip

    # -- images

    def _came(self, r: _Said) -> None:
        if Receipt.DUPLICATE in (r.outcome, r.get("receipt")):
            return
        received, path = r.kind == "received", r.get("path")
        self.older |= not r.fresh
        location = {"container": path, "kind": "file", "offset": 0} if received else r.get("location")
        self._put_image(
            r, self._job_id(r), state=WAITING, priority=r.get("priority", UNTOLD if received else ROUTINE),
            path=path, location=UNTOLD if path == UNTOLD else location, sop_instance_uid=r.sop,
            series_instance_uid=r.get("series_instance_uid"), sop_class_uid=r.get("sop_class_uid"),
            header=r.get("header_sha256"), calling_aet=ledger.identifier(r.ae) if received else None,
            **{k: r.get(k) if received else None for k in OF_RECEIPT},
        )  # fmt: skip

    def _ended(self, r: _Said) -> None:
        """What came of an image, or of a file that is none: that one has no study, and is at its end at once."""
        job_id, gave_up = self._job_id(r), r.get("reason") == Reason.GAVE_UP
        self.older |= not r.fresh
        if r.study is None:
            self._put_image(
                r, job_id, state=REPORTED, priority=ROUTINE, path=r.get("path"), location=r.get("location"),
                **dict.fromkeys(TOLD["instance"][2:], None if r.fresh else UNTOLD),
            )  # fmt: skip
        elif self._set("instance", r, {"id": job_id}) == 0:  # an older cxrnode took it in without a record
            self.older = True
            untold = dict.fromkeys(TOLD["instance"], UNTOLD) | {"path": r.get("path"), "sop_instance_uid": r.sop}
            self._put_image(r, job_id, state=DONE, priority=UNTOLD, **untold)
        kept = UNTOLD if gave_up and not r.fresh else None  # an older one left what an analysis before had said
        state = REPORTED if r.study is None else ANALYSED if r.fresh else DONE
        absent = UNTOLD if r.kind == Outcome.ANALYSED and not r.fresh else kept
        predicted = {k: r.get(k, absent) for k in PREDICTED}
        self._set("instance", r, {"id": job_id}, pixel_digest=r.get("pixel_digest", kept))
        self._set(
            "job", r, {"id": job_id}, state=state, outcome=r.kind, reason=r.get("reason", None),
            detail=r.get("why", None), **predicted,
        )  # fmt: skip

    def _put_image(self, r: _Said, job_id: int, *, state: str, priority: Any, **columns: Any) -> None:
        of_job = {"state": state, "priority": priority, "study_instance_uid": r.study}
        of_job["report_uid"] = None if r.fresh else UNTOLD  # schema 0004 gave older ones the study's newest
        found = {"id": job_id, "pixel_digest": None, "study_instance_uid": r.study} | columns
        self._put("instance", r, found)
        self._put("job", r, {"id": job_id} | dict.fromkeys(TOLD["job"]) | of_job)
        if r.study is not None:
            self._put("study", r, {"study_instance_uid": r.study}, instead=False)

    def _retried(self, r: _Said) -> None:
        self._set("job", r, {"id": r.detail["job"]}, state=WAITING)

    def _job_id(self, r: _Said) -> int:
        if r.fresh:
            return int(r.detail["job"])
        path = r.get("path")
        here = instance.c.path == path
        if path == UNTOLD:
            here = (instance.c.sop_instance_uid == r.sop) & (instance.c.sha256 == r.get("sha256", None))
        found = self._real.execute(select(instance.c.id).where(here)).scalars().first()
        return found if found is not None else self._missing_id(f"{r.sop} {r.get('sha256', None)} {path}")

    def _missing_id(self, name: str) -> int:
        """A number that no row has, for what an older record names and the store does not hold."""
        found = self.tables.db.execute("SELECT id FROM missing WHERE name = ?", (name,)).fetchone()
        if found:
            return int(found[0])
        self._missing -= 1
        self.tables.db.execute("INSERT INTO missing VALUES (?, ?)", (name, self._missing))
        return self._missing

    # -- studies and results

    def _made(self, r: _Said) -> None:
        is_sr = r.get("object") == Kind.SR
        row = {
            "sop_instance_uid": r.sop, "kind": r.detail["object"], "study_instance_uid": r.study,
            "instance_id": None if is_sr else r.get("job"), "sop_class_uid": r.get("sop_class_uid"),
            "series_instance_uid": r.get("series_instance_uid"), "path": r.get("path"),
            "sha256": r.detail["sha256"], "predecessor_uid": r.get("predecessor"),
        }  # fmt: skip
        self._put("result", r, row)
        if is_sr:
            self._set_jobs(r, report_uid=r.sop if "jobs" in r.detail else UNTOLD)

    def _reported(self, r: _Said) -> None:
        self._set_jobs(r, state=REPORTED)

    def _held_back(self, r: _Said) -> None:
        self._set_jobs(
            r, outcome=Outcome.FAILED.value if "jobs" in r.detail else UNTOLD, reason=r.get("reason"),
            detail=r.get("detail"),
        )  # fmt: skip

    def _flagged(self, r: _Said) -> None:
        self._set_jobs(r, reason=r.kind if "jobs" in r.detail else UNTOLD, detail=r.get("detail"))

    def _set_jobs(self, r: _Said, **columns: Any) -> None:
        """Of the jobs that the record names; an older one means some of the study's."""
        if "jobs" not in r.detail:
            self.older = True
            self._set("job", r, {"study_instance_uid": r.study}, **columns)
            return
        for job_id in r.detail["jobs"]:
            self._set("job", r, {"id": job_id}, **columns)

    # -- deliveries

    def _queued(self, r: _Said) -> None:
        if "sop_instance_uids" not in r.detail:
            self.older = True
            self.unnamed[r.detail["destination"]] += r.detail["results"]
        for uid in r.get("sop_instance_uids", []):
            self._put("delivery", r, _to(r, uid) | _delivery(PENDING), instead=False)

    def _tried(self, r: _Said) -> None:
        state = {"delivered": SENT, "delivery_postponed": PENDING, "delivery_failed": REFUSED}[r.kind]
        self._set_delivery(r, r.sop, state=state, status=r.detail["status"])

    def _reopened(self, r: _Said) -> None:
        again = {"state": PENDING, "transaction_uid": None}
        if r.sop:
            self._set_delivery(r, r.sop, **again)
            return
        for state in (PENDING, REFUSED):
            self._set("delivery", r, {"destination": r.detail["destination"], "state": state}, **again)

    def _asked(self, r: _Said) -> None:
        uids, transaction = r.detail["sop_instance_uids"], r.detail["transaction_uid"]
        if "objects" in r.detail:  # a check by doctor, which has rows of its own until it ends
            for made in r.detail["objects"]:
                self._put("result", r, dict.fromkeys(TOLD["result"]) | made, instead=False)
            for uid in uids:
                self._put("delivery", r, _to(r, uid) | _delivery(SENT, transaction))
        elif r.actor == "doctor":
            self.older = True
            self.passed.update(uids)
        else:
            for uid in uids:
                self._set_delivery(r, uid, transaction_uid=transaction)

    def _check_ended(self, r: _Said) -> None:
        for uid in r.detail["sop_instance_uids"]:
            self.tables.db.execute(
                "DELETE FROM delivery WHERE result_uid = ? AND destination = ?", tuple(_to(r, uid).values())
            )
            self.tables.db.execute(
                "DELETE FROM result WHERE sop_instance_uid = ? "
                "AND NOT EXISTS (SELECT 1 FROM delivery WHERE result_uid = sop_instance_uid)", (uid,),
            )  # fmt: skip

    def _not_asked(self, r: _Said) -> None:
        mine = {"transaction_uid": r.detail["transaction_uid"], "destination": r.detail["destination"], "state": SENT}
        self._set("delivery", r, mine, status=r.detail["status"])

    def _committed(self, r: _Said) -> None:
        self._set_delivery(r, r.sop, state=COMMITTED)

    def _not_kept(self, r: _Said) -> None:
        state = UNTOLD if "resend" not in r.detail else PENDING if r.detail["resend"] else REFUSED
        self._set_delivery(r, r.sop, state=state, status=r.detail["status"], transaction_uid="")

    def _set_delivery(self, r: _Said, uid: str | None, **columns: Any) -> None:
        """One that no record queued by its name was queued by an older one."""
        if uid in self.passed:
            return
        if self._set("delivery", r, _to(r, uid), **columns) == 0:
            self.older = True
            self._put("delivery", r, _to(r, uid) | dict.fromkeys(TOLD["delivery"], UNTOLD) | columns)

    # -- settings

    def _run(self, r: _Said) -> None:
        told = {"bundle": r.get("bundle_digest"), "archives": r.get("archives"), "started_at": r.get("started_at")}
        self.settings["run"] = {k: v for k, v in told.items() if v != UNTOLD}
        self.older |= len(self.settings["run"]) < len(told)

    def _engine(self, r: _Said) -> None:
        """run-batch keeps none, unless the GPU failed it."""
        if r.kind == "engine_fallback" or r.actor == "analyse":
            told = {"engine": r.get("engine"), "digest": r.get("bundle")}
            self.settings[ENGINE] = {k: v for k, v in told.items() if v != UNTOLD}

    # -- tables

    def _put(self, table: str, r: _Said, row: dict[str, Any], *, instead: bool = True) -> None:
        self.tables.put(table, {"seq": r.seq, **row}, instead=instead)

    def _set(self, table: str, r: _Said, where: dict[str, Any], **columns: Any) -> int:
        return self.tables.set(table, where, {"seq": r.seq, **columns})

    @cached_property
    def _tell(self) -> dict[str, Callable[[_Said], None]]:
        """What each kind of record says of the tables; all others say nothing of them."""
        return {
            "scanned": self._came, "received": self._came,
            **{outcome.value: self._ended for outcome in Outcome},
            "retried": self._retried, "report_made": self._made, "report_failed": self._held_back,
            Reason.SEVERAL_PATIENTS.value: self._flagged, "study_reported": self._reported,
            "delivery_queued": self._queued, "delivery_reopened": self._reopened,
            "delivered": self._tried, "delivery_postponed": self._tried, "delivery_failed": self._tried,
            "commitment_requested": self._asked, "commitment_postponed": self._not_asked,
            "committed": self._committed, "commitment_failed": self._not_kept, "check_ended": self._check_ended,
            "run_started": self._run, "run_resumed": self._run,
            "engine_verified": self._engine, "engine_fallback": self._engine,
        }  # fmt: skip


def _delivery(state: str, transaction_uid: str | None = None) -> dict[str, Any]:
    return {"state": state, "status": "", "transaction_uid": transaction_uid}


def _to(r: _Said, uid: str | None) -> dict[str, Any]:
    return {"result_uid": uid, "destination": r.detail["destination"]}
