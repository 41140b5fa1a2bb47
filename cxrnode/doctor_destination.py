"""What `cxrnode doctor` finds out of one destination: does it answer, what does it accept, does it keep and find?"""

from __future__ import annotations

import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sqlalchemy import delete, insert, select

from cxrnode.audit.record import os_user
from cxrnode.committer import record_report
from cxrnode.dicom.commitment import CommitmentReport
from cxrnode.dicom.negotiation import COMMITMENT
from cxrnode.dicom.probe import FIND, RESULTS, Probe, probe
from cxrnode.dicom.requestor import SendError
from cxrnode.dicom.scu import StoreScu
from cxrnode.dicom.status import SUCCESS
from cxrnode.doctor_study import PATIENT_ID, STUDY_UID, write_study
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.outbox import COMMITTED, SENT, Outbox
from cxrnode.store.schema import delivery, result
from cxrnode.store.upsert import upsert
from cxrnode.types import Destination, ResultObject
from engines.bundle import Bundle

_ACTOR = "doctor"
_COMMIT_WAIT_S = 15.0  # a peer may take hours (PS3.4 J.3.3); one that is well takes seconds
_NOT_ASKED_S = 3600.0  # for so long the node's own committer leaves what we ask for alone
_FIND_WAIT_S = 5.0  # an archive may index what it took only later
_POLL_S = 0.25


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was looked at, what was found, and how to mend it where it is not as it should be."""

    level: Level
    name: str
    found: str
    mend: str = ""


def fine(name: str, found: str) -> Check:
    return Check(level=Level.OK, name=name, found=found)


def warned(name: str, found: str, mend: str) -> Check:
    return Check(level=Level.WARN, name=name, found=found, mend=mend)


def failed(name: str, found: str, mend: str) -> Check:
    return Check(level=Level.FAIL, name=name, found=found, mend=mend)


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationDoctor:
    """Checks one destination. `port`: where our own node takes its storage commitment reports."""

    peer: Destination
    calling_ae_title: str
    port: int
    database: Database | None
    bundle: Bundle | None

    def diagnose(self, *, store: bool) -> Iterator[Check]:
        try:
            with probe(self.peer, calling_ae_title=self.calling_ae_title) as open_:
                yield self._echo(open_)
                contexts = self._contexts(open_)
                yield contexts
        except SendError as e:
            yield failed(self._name("C-ECHO"), f"{self.peer}: {e}", self._how_to_connect(str(e)))
            return
        if not store or contexts.level is Level.FAIL:
            return
        if self.bundle is None or self.database is None:
            yield failed(self._name("store"), "not tried: it needs the bundle and the database", "mend these first")
            return
        yield from self._store(self.database, self.bundle)

    @property
    def _unknown(self) -> str:
        return (
            "the peer's log says why it broke it off; many PACS do this to an AE title that they do not know: is "
            f"{self.calling_ae_title} known there, with this machine's address?"
        )

    def _name(self, what: str) -> str:
        return f"{self.peer.key} {what}"

    def _how_to_connect(self, why: str) -> str:
        if "Called AE" in why:
            return f"the peer is not called {self.peer.ae_title}: correct the destination's ae_title"
        if "rejected" in why:
            return f"the peer must know {self.calling_ae_title} (our AE title, this machine's address) as a sender"
        if "no answer" in why:
            return self._unknown
        return "is the peer up, are the destination's host, port and tls right, does a firewall stand between?"

    def _echo(self, open_: Probe) -> Check:
        status = open_.echo()
        if status != SUCCESS:
            return failed(self._name("C-ECHO"), f"answered with 0x{status:04X}", "ask who runs the peer")
        return fine(self._name("C-ECHO"), f"{self.peer} answers{' over TLS' if self.peer.tls else ''}")

    def _contexts(self, open_: Probe) -> Check:
        accepted = open_.accepted
        names = {**RESULTS, COMMITMENT: "storage commitment", FIND: "Study Root FIND"}
        said = "; ".join(f"{name}: {', '.join(accepted.get(uid, ['not accepted']))}" for uid, name in names.items())
        missing = [name for uid, name in RESULTS.items() if uid not in accepted]
        if missing:
            return failed(self._name("contexts"), said, f"have the peer accept storage of {' and '.join(missing)}")
        if self.peer.storage_commitment and COMMITMENT not in accepted:
            return failed(
                self._name("contexts"), said,
                "switch storage commitment on at the peer, or set the destination's storage_commitment = false: then "
                "a result that was sent counts as delivered",
            )  # fmt: skip
        return fine(self._name("contexts"), said)

    # -- the synthetic study

    def _store(self, database: Database, bundle: Bundle) -> Iterator[Check]:
        answered = threading.Event()

        def on_report(report: CommitmentReport) -> int:
            answered.set()
            return record_report(database, Outbox(_ACTOR), report, of={self.peer.key})

        with tempfile.TemporaryDirectory() as folder:
            objects = write_study(Path(folder), bundle)
            scu = StoreScu(self.peer, calling_ae_title=self.calling_ae_title, on_report=on_report)
            try:
                with scu:
                    stored = self._send(scu, Path(folder), objects)
                    yield stored
                    if stored.level is Level.FAIL:
                        return
                    yield self._commit(scu, database, objects, answered)
            except SendError as e:
                yield failed(self._name("association"), str(e), self._unknown)
                return
        yield self._read_back()

    def _send(self, scu: StoreScu, folder: Path, objects: Sequence[ResultObject]) -> Check:
        for made in objects:
            answer = scu.send(folder / made.path)
            if not answer.accepted:
                return failed(
                    self._name("store"), f"{RESULTS[made.sop_class_uid]}: {answer.text}",
                    "the status (PS3.4 table B.2-1) and the peer's log say why: full (0xA7xx), not allowed, not valid",
                )  # fmt: skip
        return fine(self._name("store"), f"took a synthetic study of {PATIENT_ID}: {' and '.join(RESULTS.values())}")

    def _commit(
        self, scu: StoreScu, database: Database, objects: Sequence[ResultObject], answered: threading.Event
    ) -> Check:
        name = self._name("commitment")
        if not self.peer.storage_commitment:
            return warned(
                name, "not asked for: storage_commitment = false, a result that was sent counts as delivered",
                "set it to true where the peer can do it",
            )  # fmt: skip
        transaction_uid = f"2.25.{uuid.uuid4().int}"  # PS3.5 section B.2
        with _asked(database, self.peer.key, transaction_uid, objects):
            answer = scu.request_commitment(transaction_uid, [(o.sop_class_uid, o.sop_instance_uid) for o in objects])
            if not answer.accepted:
                return failed(name, answer.text, "set storage_commitment = false, or switch it on at the peer")
            states = _await_states(database, self.peer.key, objects)
        where = "on the same association" if answered.is_set() else f"to our node at port {self.port}"
        if states and all(state == COMMITTED for state, _ in states):
            return fine(name, f"both objects are committed; the report came {where}")
        if lost := [status for state, status in states if state not in {COMMITTED, SENT}]:
            return failed(name, f"the peer does not keep what it took: {lost[0]}", "ask who runs the peer")
        return warned(
            name, f"asked for, but no report came within {_COMMIT_WAIT_S:.0f} s",
            f"`cxrnode serve` must run to take the report, and the peer must know {self.calling_ae_title} with this "
            f"machine's address and port {self.port}; some peers report hours later",
        )  # fmt: skip

    def _read_back(self) -> Check:
        name, deadline = self._name("read back"), time.monotonic() + _FIND_WAIT_S
        try:
            with probe(self.peer, calling_ae_title=self.calling_ae_title) as open_:
                if FIND not in open_.accepted:
                    return warned(name, "the peer does no Study Root C-FIND for us", "look there for " + PATIENT_ID)
                while not (found := open_.find_study(STUDY_UID)) and time.monotonic() < deadline:
                    time.sleep(_POLL_S)
        except SendError as e:
            return warned(
                name, str(e), f"the peer must allow {self.calling_ae_title} to query; or look for {PATIENT_ID}"
            )
        if not found:
            return failed(name, "the peer took the study and does not find it", "ask who runs the peer where it is")
        if found[0].get("PatientID") != PATIENT_ID:
            return warned(name, "found, under another Patient ID: the peer changes what it takes", "is that intended?")
        return fine(name, f"found by its Study Instance UID, of {PATIENT_ID}")


@contextmanager
def _asked(
    database: Database, destination: str, transaction_uid: str, objects: Sequence[ResultObject]
) -> Iterator[None]:
    """Rows in the outbox as of results that were sent and asked for, so that the report finds them wherever it comes.

    The running node's listener records the report as it does every other. Afterwards they are gone, the ledger stays.
    """
    uids = [o.sop_instance_uid for o in objects]
    mine = delivery.c.result_uid.in_(uids) & (delivery.c.destination == destination)
    now = time.time()
    sent = {"destination": destination, "state": SENT, "attempts": 1, "not_before": now + _NOT_ASKED_S}
    with database.begin() as c:
        c.execute(delete(delivery).where(mine))
        for o in objects:
            c.execute(upsert(result).values(_row(o)).on_conflict_do_nothing())
            c.execute(
                insert(delivery).values(
                    result_uid=o.sop_instance_uid, transaction_uid=transaction_uid, updated_at=now, **sent
                )
            )
        ledger.append(
            c, "commitment_requested", actor=_ACTOR, study_instance_uid=STUDY_UID, user=os_user(),
            destination=destination, transaction_uid=transaction_uid, sop_instance_uids=uids,
            objects=[_row(o) for o in objects],
        )  # fmt: skip
    try:
        yield
    finally:
        with database.begin() as c:
            ledger.append(
                c, "check_ended", actor=_ACTOR, study_instance_uid=STUDY_UID, destination=destination,
                sop_instance_uids=uids,
            )  # fmt: skip
            c.execute(delete(delivery).where(mine))
            others = select(delivery.c.id).where(delivery.c.result_uid == result.c.sop_instance_uid)
            c.execute(delete(result).where(result.c.sop_instance_uid.in_(uids), ~others.exists()))


def _row(o: ResultObject) -> dict[str, str]:
    return {
        "sop_instance_uid": o.sop_instance_uid, "kind": o.kind.value, "study_instance_uid": o.study_instance_uid,
        "sop_class_uid": o.sop_class_uid, "series_instance_uid": o.series_instance_uid, "path": o.path.as_posix(),
        "sha256": o.sha256,
    }  # fmt: skip


def _await_states(database: Database, destination: str, objects: Sequence[ResultObject]) -> list[tuple[str, str]]:
    """(state, status) of each object as soon as all are answered; else what is known after the wait."""
    uids = [o.sop_instance_uid for o in objects]
    query = select(delivery.c.state, delivery.c.status).where(
        delivery.c.result_uid.in_(uids), delivery.c.destination == destination
    )
    deadline = time.monotonic() + _COMMIT_WAIT_S
    while True:
        with database.read() as c:
            states = [(row.state, row.status) for row in c.execute(query)]
        if all(state != SENT for state, _ in states) or time.monotonic() > deadline:
            return states
        time.sleep(_POLL_S)
