"""results.csv and run.json: what the store holds, as files a person or a script reads."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from sqlalchemy import ColumnElement, Connection, and_, func, select

from cxrnode.printable import json_text
from cxrnode.spreadsheet import write_csv
from cxrnode.store.chunks import chunks
from cxrnode.store.database import Database
from cxrnode.store.outbox import REFUSED
from cxrnode.store.queue import REPORTED
from cxrnode.store.schema import delivery, instance, job, result
from cxrnode.store.spool import open_atomic, storage_errors, write_atomic
from cxrnode.types import Kind, Outcome, Reason, Rejection
from cxrnode.words import counted

CSV_NAME, JSON_NAME = "results.csv", "run.json"
_IDENTITY = ("study_instance_uid", "series_instance_uid", "sop_instance_uid")


class Results:
    """One row a file seen, in archive order; a row is there once its study has been reported."""

    def __init__(self, root: Path, *, labels: Sequence[str], bundle: str, destination: str | None) -> None:
        self._root = root
        self._labels = list(labels)
        self._bundle = bundle
        self._destination = destination

    @property
    def csv_path(self) -> Path:
        return self._root / CSV_NAME

    @property
    def columns(self) -> list[str]:
        sent = ["sr_status", "capture_status"] if self._destination else []
        p = [f"p_{label}" for label in self._labels]
        made = ["bundle", "engine", "sr", "capture"]
        return ["path", *_IDENTITY, "outcome", "reason", "class", *p, *made, *sent, "detail"]

    def rows(
        self, c: Connection, study_instance_uids: Sequence[str] | None = None
    ) -> Generator[dict[str, Any], None, None]:
        sr, capture = result.alias(), result.alias()
        sr_sent, capture_sent = delivery.alias(), delivery.alias()
        query = (
            select(
                instance, job,
                sr.c.path.label("sr_path"), capture.c.path.label("capture_path"),
                sr_sent.c.status.label("sr_status"), capture_sent.c.status.label("capture_status"),
            )
            .join(job, job.c.id == instance.c.id)
            .outerjoin(sr, sr.c.sop_instance_uid == job.c.report_uid)
            .outerjoin(capture, capture.c.instance_id == instance.c.id)
            .outerjoin(sr_sent, self._of(sr_sent, sr))
            .outerjoin(capture_sent, self._of(capture_sent, capture))
            .where(job.c.state == REPORTED)
            .order_by(instance.c.id)
        )  # fmt: skip
        queries = [query]
        if study_instance_uids is not None:
            queries = [query.where(job.c.study_instance_uid.in_(uids)) for uids in chunks(study_instance_uids)]
        for each in queries:
            for row in c.execute(each.execution_options(yield_per=500)).mappings():
                yield self._row(dict(row))

    def _of(self, sent: Any, made: Any) -> Any:
        return and_(sent.c.result_uid == made.c.sop_instance_uid, sent.c.destination == (self._destination or ""))

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        analysed = row["outcome"] == Outcome.ANALYSED
        reported = analysed or Reason(row["reason"]).in_report
        probabilities = row["probabilities"] if analysed else []
        return {
            "path": row["path"],
            **{k: row[k] or "" for k in _IDENTITY},
            "outcome": row["outcome"],
            "reason": row["reason"] or "",
            "class": self._labels[row["class_index"]] if analysed else "",
            **{f"p_{label}": f"{p:.6f}" for label, p in zip(self._labels, probabilities, strict=False)},
            "bundle": self._bundle if analysed else "",
            "engine": row["engine"] or "" if analysed else "",
            "sr": (row["sr_path"] or "") if reported else "",
            "capture": row["capture_path"] or "",
            "sr_status": (row["sr_status"] or "") if reported else "",
            "capture_status": row["capture_status"] or "",
            "detail": row["detail"] or "",
        }

    def failures(self, c: Connection) -> Iterator[tuple[str, str]]:
        """(path, why) of every failed item."""
        failed = select(instance.c.path, job.c.reason, job.c.detail).join(job, job.c.id == instance.c.id)
        failed = failed.where(job.c.outcome == Outcome.FAILED.value).order_by(instance.c.id)
        for path, reason, detail in c.execute(failed):
            yield path, Rejection(reason=Reason(reason), detail=detail or "").text

    def undelivered(self, c: Connection) -> list[tuple[str, int]]:
        """(why, how many) of the results that the destination did not take, most first."""
        refused = (delivery.c.state == REFUSED) & (delivery.c.destination == (self._destination or ""))
        n = func.count()
        query = select(delivery.c.status, n).where(refused).group_by(delivery.c.status).order_by(n.desc())
        return [(status, count) for status, count in c.execute(query)]

    def missing(self, c: Connection, *, scanned: int) -> Iterator[str]:
        """What a run that came to its end owes: a row for each of the `scanned` items, the objects of each analysis."""
        made = {kind: select(result.c.id).where(result.c.kind == kind.value) for kind in Kind}
        capture = made[Kind.CAPTURE].where(result.c.instance_id == job.c.id).exists()
        sr = made[Kind.SR].where(result.c.sop_instance_uid == job.c.report_uid).exists()
        analysed = job.c.outcome == Outcome.ANALYSED.value
        rows = select(func.count()).select_from(instance.join(job, job.c.id == instance.c.id))
        owed = {
            "scanned and not in the database": scanned - int(c.execute(rows).scalar_one()),
            "without an outcome": _count(c, job.c.state != REPORTED),
            "analysed and without a capture": _count(c, analysed & ~capture),
            "analysed and without a report": _count(c, analysed & ~sr),
        }
        for what, n in owed.items():
            if n:
                yield f"{counted(n, 'image')} {what}"
        paths = c.execute(select(result.c.path).execution_options(yield_per=500)).scalars()
        if gone := sum(not (self._root / path).is_file() for path in paths):
            yield f"{counted(gone, 'result file')} gone from {self._root}"

    def write_csv(self, database: Database) -> None:
        """All rows, in archive order, in the place of what stood there."""
        with open_atomic(self.csv_path) as f, database.read() as c:
            text = io.TextIOWrapper(f, encoding="utf-8", newline="", write_through=True)
            self.print_csv(self.rows(c), text)
            text.detach()

    def append_studies(self, database: Database, study_instance_uids: Sequence[str]) -> None:
        """The rows of studies that were just reported: results.csv can be followed while the run goes on."""
        path = self.csv_path
        with storage_errors(path), database.read() as c, path.open("a", newline="", encoding="utf-8") as f:
            write_csv(f, self.columns, self.rows(c, study_instance_uids), header=False)

    def print_csv(self, rows: Iterator[dict[str, Any]], f: TextIO) -> None:
        write_csv(f, self.columns, rows)


def _count(c: Connection, condition: ColumnElement[bool]) -> int:
    return int(c.execute(select(func.count()).select_from(job).where(condition)).scalar_one())


def counts(c: Connection) -> dict[str, dict[str, int]]:
    """How many items had each outcome, and each reason."""
    outcomes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    query = select(job.c.outcome, job.c.reason, func.count()).where(job.c.state == REPORTED)
    for outcome, reason, n in c.execute(query.group_by(job.c.outcome, job.c.reason)):
        outcomes[outcome] += n
        reasons[reason or ""] += n
    del reasons[""]
    return {
        "outcomes": {o.value: outcomes[o.value] for o in Outcome},
        "reasons": dict(sorted(reasons.items())),
    }


def write_run(root: Path, run: dict[str, Any]) -> None:
    write_atomic(root / JSON_NAME, (json_text(run, indent=2) + "\n").encode())
