"""The result objects that the node made, as rows: written with the step that made them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row

from cxrnode.store import ledger
from cxrnode.store.schema import result
from cxrnode.store.upsert import upsert
from cxrnode.types import Kind, ResultObject, Source

_INSERT = upsert(result)
_COLUMNS = (
    "kind",
    "study_instance_uid",
    "series_instance_uid",
    "instance_id",
    "sop_class_uid",
    "path",
    "sha256",
    "predecessor_uid",
)
_ADD = _INSERT.on_conflict_do_update(
    index_elements=["sop_instance_uid"], set_={k: _INSERT.excluded[k] for k in _COLUMNS}
)


def add_result(
    c: Connection,
    made: ResultObject,
    *,
    actor: str,
    instance_id: int | None = None,
    predecessor_uid: str | None = None,
    sources: Sequence[Source] = (),
    jobs: Sequence[int] = (),
) -> None:
    """A repeat makes the same object (design rule 3), so it takes the place of its row. `sources`: what it is about.

    instance_id: the image of a capture; jobs: those of an SR's images.
    """
    row = {
        "sop_instance_uid": made.sop_instance_uid,
        "kind": made.kind.value,
        "study_instance_uid": made.study_instance_uid,
        "series_instance_uid": made.series_instance_uid,
        "instance_id": instance_id,
        "sop_class_uid": made.sop_class_uid,
        "path": made.path.as_posix(),
        "sha256": made.sha256,
        "predecessor_uid": predecessor_uid,
    }
    c.execute(_ADD, row)
    about = {"job": instance_id} if made.kind is Kind.CAPTURE else {"jobs": list(jobs)}
    ledger.append(
        c, "report_made", actor=actor, study_instance_uid=made.study_instance_uid,
        sop_instance_uid=made.sop_instance_uid, object=made.kind.value, sha256=made.sha256, model=made.model,
        software=made.software, predecessor=predecessor_uid, sources=sources, path=row["path"],
        sop_class_uid=made.sop_class_uid, series_instance_uid=made.series_instance_uid, **about,
    )  # fmt: skip


def result_object(row: Row[Any]) -> ResultObject:
    return ResultObject(
        kind=Kind(row.kind),
        sop_class_uid=row.sop_class_uid,
        sop_instance_uid=row.sop_instance_uid,
        study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid,
        path=Path(row.path),
        sha256=row.sha256,
    )
