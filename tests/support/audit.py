"""A ledger that the store itself wrote: a study from its receipt to its delivery, and another that just came."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sqlalchemy import Connection

from cxrnode.audit.record import record_model
from cxrnode.audit.state import verify_store
from cxrnode.store.database import Database
from cxrnode.store.outbox import Outbox
from cxrnode.store.queue import Finding, Queue
from cxrnode.store.studies import Studies
from cxrnode.types import Kind, Reason, Rejection
from tests.support.bundles import make_bundle
from tests.support.store import NOW, analysed, claim, lease, made, received, reports

PATIENT, OTHER = "P-1", "P 2"
SR = "2.25.900"


def lived(where: Path | str) -> Database:
    """Study 101 of PATIENT: two images, one of them lateral, an SR, delivered. Study 102 of OTHER: received alone."""
    database, queue, studies = Database(where), Queue("analyse"), Studies("analyse")
    outbox = Outbox("deliver", ae_titles={"pacs": "ARCHIVE"})
    bundle = make_bundle()
    with database.begin() as c:
        record_model(c, bundle, actor="analyse")
        Queue("intake").receive(
            c, [replace(received(101, n), patient_id=PATIENT, accession_number="A1") for n in (1, 2)]
        )
        Queue("intake").receive(c, [replace(received(102, 1), patient_id=OTHER), received(101, 1)])
    with database.begin() as c:
        first, second = claim(c, limit=2)
        queue.record_claims(c, [first, second])
        lateral = Rejection(reason=Reason.LATERAL, detail="ViewPosition=LL")
        queue.finish(c, analysed(first), owner="a")
        queue.finish(c, Finding(job=second, pixel_digest="d" * 64, rejection=lateral), owner="a")
    with database.begin() as c:
        (study,) = studies.claim(c, lease(), quiet_s=0.0, limit=9)
        sr = replace(made(SR, 101, Kind.SR), model=bundle.digest, software="0.1.0")
        uids = studies.reported(c, study, reports(study, sr), owner="a") or []
        outbox.enqueue(c, uids, ["pacs"], now=NOW, study_instance_uid=study.study_instance_uid)
    with database.begin() as c:
        for d in outbox.claim(c, "pacs", lease(), now=NOW, limit=9):
            outbox.sent(c, d, owner="a", now=NOW, status="0x0000")
    return database


def faults(c: Connection, *, but: tuple[str, ...] = ()) -> list[str]:
    """What `audit verify` would say of this store: of its chain, its triggers, and its rows beside their records.

    but: tables that the test itself fills.
    """
    found = verify_store(c, {}, most=10_000)
    if found.compared is None:
        return [f"broken at record {found.verdict.broken}: {found.verdict.why}"]
    differences = [str(d) for d in found.compared.first if d.where.split()[0] not in but]
    return [*found.missing_triggers, *differences]
