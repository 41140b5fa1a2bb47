"""Results in a store, with their files: small data sets with the identity of an SR or a capture."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import UID, Comprehensive3DSRStorage, SecondaryCaptureImageStorage
from sqlalchemy import insert, select

from cxrnode.report.encode import encode
from cxrnode.store.database import Database
from cxrnode.store.objects import add_result
from cxrnode.store.outbox import Outbox
from cxrnode.store.schema import delivery, instance, job
from cxrnode.types import Destination, Kind, ResultObject

_CLASSES = {Kind.SR: Comprehensive3DSRStorage, Kind.CAPTURE: SecondaryCaptureImageStorage}


def make_results(
    database: Database, root: Path, *, study: int, captures: int = 1, stat: bool = False, filler: int = 0
) -> list[str]:
    """The SR and the captures of a study; returns their SOP Instance UIDs, the SR's first. `filler`: bytes more."""
    study_uid = f"1.2.826.0.1.{study}"
    made = [_write(root, study_uid, n, Kind.CAPTURE if n else Kind.SR, filler) for n in range(captures + 1)]
    with database.begin() as c:
        row = {"path": study_uid, "location": {}, "study_instance_uid": study_uid}
        added = c.execute(insert(instance).values(row)).inserted_primary_key
        assert added is not None
        values = {"study_instance_uid": study_uid, "state": "reported", "priority": 0 if stat else 1}
        c.execute(insert(job).values(id=added[0], **values))
        for m in made:
            add_result(c, m, actor="test")
    return [m.sop_instance_uid for m in made]


def _write(root: Path, study_uid: str, number: int, kind: Kind, filler: int) -> ResultObject:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = UID(_CLASSES[kind]), UID(f"{study_uid}.9.{number + 1}")
    ds.StudyInstanceUID, ds.SeriesInstanceUID = UID(study_uid), UID(f"{study_uid}.9")
    ds.PatientID = ds.PatientName = "TEST"
    ds.Modality = "SR" if kind is Kind.SR else "OT"
    if filler:
        ds.EncapsulatedDocument = bytes(filler)
    data = encode(ds)
    path = Path("dicom") / study_uid / f"{kind.value}-{number}.dcm"
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data)
    return ResultObject(
        kind=kind, sop_class_uid=str(ds.SOPClassUID), sop_instance_uid=str(ds.SOPInstanceUID),
        study_instance_uid=study_uid, series_instance_uid=str(ds.SeriesInstanceUID), path=path,
        sha256=sha256(data).hexdigest(),
    )  # fmt: skip


def queue_up(
    database: Database,
    root: Path,
    *destinations: Destination,
    studies: range = range(1, 2),
    now: float | None = None,
    **how: int,
) -> list[str]:
    """Results of these studies, in the outbox for these destinations."""
    uids: list[str] = []
    for study in studies:
        made = make_results(database, root, study=study, **how)  # type: ignore[arg-type]
        with database.begin() as c:
            Outbox("test").enqueue(c, made, [d.key for d in destinations], now=now)
        uids += made
    return uids


def states(database: Database, destination: str) -> dict[str, tuple[str, str]]:
    """SOP Instance UID -> (state, status) of every delivery to this destination."""
    query = select(delivery).where(delivery.c.destination == destination).order_by(delivery.c.id)
    with database.begin(shared=True) as c:
        return {row.result_uid: (row.state, row.status) for row in c.execute(query)}
