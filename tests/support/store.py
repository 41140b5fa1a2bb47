"""What goes into the store: instances as intake receives them, findings as analyse makes them, result objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from cxrnode.store import ledger
from cxrnode.store.queue import Finding, Job, Lease, Queue
from cxrnode.types import InstanceHeader, Kind, NewItem, Peer, Prediction, ReceivedInstance, Report, ResultObject, Study

CR, SC = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.7"
NOW = 1_800_000_000.0
PEER = Peer(calling_aet="PACS", called_aet="CXRNODE", host="127.0.0.1")


def study_uid(study: int) -> str:
    return f"1.2.826.0.{study:03}"


def header(study: int, image: int) -> InstanceHeader:
    study_instance_uid = study_uid(study)
    return InstanceHeader(
        study_instance_uid=study_instance_uid,
        series_instance_uid=f"{study_instance_uid}.1",
        sop_instance_uid=f"{study_instance_uid}.1.{image}",
        sop_class_uid=CR,
        kept=b"header %d %d" % (study, image),
    )


def item(study: int, image: int) -> NewItem:
    path = f"s{study}/i{image}.dcm"
    return NewItem(path=path, location={"container": f"/archive/{path}", "kind": "file"}, header=header(study, image))


def received(study: int, image: int, *, sha256: str = "a", at: float = NOW, stat: bool = False) -> ReceivedInstance:
    h = header(study, image)
    return ReceivedInstance(
        study_instance_uid=h.study_instance_uid,
        series_instance_uid=h.series_instance_uid,
        sop_instance_uid=h.sop_instance_uid,
        sop_class_uid=CR,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        kept=h.kept,
        peer=PEER,
        path=Path(f"spool/{h.sop_instance_uid}.{sha256}.dcm"),
        sha256=sha256 * 64,
        size_bytes=5_000_000_000,  # more than 32 bits hold
        received_at=at,
        stat=stat,
    )


def lease(owner: str = "a", now: float = NOW, seconds: float = 60.0) -> Lease:
    return Lease(owner=owner, now=now, seconds=seconds)


def prediction() -> Prediction:
    return Prediction(probabilities=(0.93, 0.05, 0.02), class_index=0, cam_max=1.5, engine="cpu")


def made(uid: str, study: int, kind: Kind = Kind.CAPTURE) -> ResultObject:
    return ResultObject(
        kind=kind,
        sop_class_uid=SC,
        sop_instance_uid=uid,
        study_instance_uid=study_uid(study),
        series_instance_uid=f"{study_uid(study)}.9",
        path=Path(f"dicom/{uid}.dcm"),
        sha256="c" * 64,
    )


def reports(study: Study, sr: ResultObject) -> list[Report]:
    """One patient's study: `sr` speaks of all of it, and takes the place of the one before."""
    before = study.earlier[-1].sop_instance_uid if study.earlier else None
    return [Report(images=tuple(range(len(study.images))), sr=sr, predecessor_uid=before)]


def analysed(job: Job, **more: Any) -> Finding:
    """The image of this job analysed, with its capture 2.25.ID."""
    study = int(job.study_instance_uid.rpartition(".")[2])
    digest = {"pixel_digest": f"{job.id:064x}"}
    return Finding(job=job, prediction=prediction(), capture=made(f"2.25.{job.id}", study), **{**digest, **more})


QUEUE = Queue("test")  # remembers for how long it has seen each lease unchanged


def claim(c: Connection, limit: int = 100, owner: str = "a", now: float = NOW) -> list[Job]:
    return QUEUE.claim(c, lease(owner, now), limit=limit, idle=True)


def look(c: Connection, now: float = NOW) -> None:
    """A lease lives from here on for as long as it is for, as `claim` sees it."""
    QUEUE.due(c, lease("who looks", now))


def kinds(c: Connection) -> list[str]:
    return [e.kind for e in ledger.events(c)]
