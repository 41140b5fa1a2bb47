"""Retention: files whose work is over go, their rows and the ledger stay.

A study's work is over when all of it is reported and every result is where it should be. Until then nothing of it is
deleted: a delivery that is open, refused or missing keeps the whole study. The days run from the pass that first saw it
so, by the time that the node worked (see `clock`) and not by the clock, which may jump; a new step begins them anew.
While the clock is not believed, nothing is deleted.

    record in the ledger  --commit-->  unlink

A crash between the two leaves a file that the next pass deletes, without a second record.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from sqlalchemy import Connection, select, update

from cxrnode import metrics
from cxrnode.clock import Clock
from cxrnode.loops import Loop, beat
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.outbox import COMMITTED, SENT
from cxrnode.store.queue import REPORTED
from cxrnode.store.schema import delivery, instance, job, result, study
from cxrnode.store.schema import ledger as ledger_table
from cxrnode.store.trouble import is_trouble
from cxrnode.types import Outcome
from cxrnode.words import counted

_ACTOR = "retention"
_INTERVAL_S = 3600.0
_PAGE = 200  # studies asked of the database at a time
_SPOOL, _RESULTS = "spool", "dicom"  # below the data folder, each with a folder a study
_DELETED = {_SPOOL: "spool_deleted", _RESULTS: "result_deleted"}  # kinds of ledger record
_DAY_S = 86_400.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A file of a study, relative to the data folder."""

    path: Path
    sop_instance_uid: str
    sha256: str

    @property
    def kind(self) -> str:
        return _DELETED[self.path.parts[0]]

    @property
    def identity(self) -> tuple[str, str]:
        return self.sop_instance_uid, self.sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class _Over:
    """That a study's work is over: since when, in the clock's `elapsed`, and which record was its newest."""

    at: float
    record: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Deletes received and result files below `data_dir`.

    days: of the node's work from the pass that first sees a study's work over to the one that deletes it; 0: that one.
    destinations: name in the store -> whether it does storage commitment; to one that does not, sent is the end.
    Without any, nothing is deleted. check: raises DataDirAwayError where `data_dir` is not there just now.
    """

    database: Database
    data_dir: Path
    days: int
    destinations: Mapping[str, bool]
    clock: Clock = field(default_factory=Clock)
    check: Callable[[], None] = lambda: None

    def loop(self, stopping: threading.Event) -> Loop:
        """A pass at once and then every hour."""

        def step() -> float:
            self.sweep(stopping)
            return _INTERVAL_S

        return Loop(name="retention", step=step)

    def sweep(self, stopping: threading.Event | None = None) -> int:
        """One pass; returns how many files were deleted."""
        if not self.destinations:
            return 0
        verdict = self.clock.look(self.database)
        if verdict.why:
            log.warning("retention waits, and deletes nothing: %s", verdict.why)
            return 0
        deleted = 0
        folders = iter(sorted(self._on_disk()))
        while page := list(islice(folders, _PAGE)):
            for uid, over in self._due(page, verdict.elapsed):
                if stopping and stopping.is_set():
                    return deleted
                beat()
                deleted += self._visit_safely(uid, over, verdict.elapsed)
        if deleted:
            log.info("deleted %s: results delivered for %s", counted(deleted, "file"), counted(self.days, "day"))
        return deleted

    def _on_disk(self) -> set[str]:
        """Names of the studies' folders: a pass costs what is there, and not what ever was."""
        tops = [self.data_dir / top for top in _DELETED]
        return {folder.name for top in tops if top.is_dir() for folder in top.iterdir() if folder.is_dir()}

    def _due(self, uids: list[str], elapsed: float) -> list[tuple[str, _Over | None]]:
        """Those of which no pass knows that they are over, or that they are over again, and those that may go."""
        columns = (study.c.study_instance_uid, study.c.over_at, study.c.over_step)
        newest = _NEWEST.where(ledger_table.c.study_instance_uid == study.c.study_instance_uid).scalar_subquery()
        with self.database.read() as c:
            rows = c.execute(select(*columns, newest).where(study.c.study_instance_uid.in_(uids))).all()
        due = []
        for uid, at, record, now in rows:
            over = None if at is None or at > elapsed else _Over(at=at, record=record)
            if over is None or over.record != now or self._is_old(over, elapsed):
                due.append((uid, over))
        return due

    def _is_old(self, over: _Over, elapsed: float) -> bool:
        return elapsed - over.at >= self.days * _DAY_S

    def _visit_safely(self, uid: str, over: _Over | None, elapsed: float) -> int:
        """A study at which something is wrong keeps its files, and the next ones go."""
        try:
            return self._visit(uid, over, elapsed)
        except Exception as e:
            if is_trouble(e):  # so would the next ones
                raise
            log.exception("retention leaves a study alone", extra={"study_instance_uid": uid})
            metrics.thread_survived("retention")
            return 0

    def _visit(self, uid: str, over: _Over | None, elapsed: float) -> int:
        with self.database.read() as c:
            record = self._over(c, uid)
        if record != (over and over.record):
            over = None if record is None else _Over(at=elapsed, record=record)
            values = {"over_at": over and over.at, "over_step": over and over.record}
            with self.database.begin(shared=True) as c:
                c.execute(update(study).where(study.c.study_instance_uid == uid).values(values))
        return self._delete(uid, over) if over and self._is_old(over, elapsed) else 0

    def _delete(self, uid: str, over: _Over) -> int:
        self.check()  # in another folder nothing is deleted
        with self.database.begin() as c:
            if self._over(c, uid) != over.record:  # something came meanwhile: the next pass looks again
                return 0
            there = [f for f in (*_received(c, uid), *_results(c, uid)) if (self.data_dir / f.path).is_file()]
            recorded = _recorded(c, uid)
            for file in there:
                if file.identity not in recorded:
                    ledger.append(
                        c, file.kind, actor=_ACTOR, study_instance_uid=uid, sop_instance_uid=file.sop_instance_uid,
                        sha256=file.sha256, path=file.path.as_posix(),
                    )  # fmt: skip
        return sum(map(self._unlink, there))

    def _unlink(self, file: _File) -> bool:
        path = self.data_dir / file.path
        try:
            path.unlink(missing_ok=True)
        except OSError as e:
            log.error("cannot delete %s: %s. May this user write there?", path, e.strerror)  # noqa: TRY400 (in words)
            return False
        with suppress(OSError):  # the folder still holds something
            path.parent.rmdir()
        return True

    def _over(self, c: Connection, uid: str) -> int | None:
        """The newest record of its work, which any further step changes; None: its work goes on."""
        jobs = c.execute(select(job.c.state, job.c.outcome).where(job.c.study_instance_uid == uid)).all()
        made = set(c.execute(select(result.c.sop_instance_uid).where(result.c.study_instance_uid == uid)).scalars())
        if any(j.state != REPORTED for j in jobs):
            return None
        if not made and any(j.outcome == Outcome.FAILED for j in jobs):
            return None  # nobody was told: the file is what an operator may look at and retry
        arrived = set()
        for d in c.execute(_DELIVERIES.where(result.c.study_instance_uid == uid)):
            if not self._has_arrived(d.destination, d.state):
                return None
            arrived.add((d.result_uid, d.destination))
        if not {(uid, destination) for uid in made for destination in self.destinations} <= arrived:
            return None
        return c.execute(_NEWEST.where(ledger_table.c.study_instance_uid == uid)).scalar() or 0

    def _has_arrived(self, destination: str, state: str) -> bool:
        """One that the configuration no longer names may do storage commitment: only committed counts there."""
        return state == COMMITTED or (state == SENT and not self.destinations.get(destination, True))


# Not of what is deleted: a file that is left by a crash goes with the next pass
_NEWEST = (
    select(ledger_table.c.seq)
    .where(ledger_table.c.kind.not_in(_DELETED.values()))
    .order_by(ledger_table.c.seq.desc())
    .limit(1)
)
_DELIVERIES = select(
    delivery.c.result_uid, delivery.c.destination, delivery.c.state
).join(result, result.c.sop_instance_uid == delivery.c.result_uid)  # fmt: skip


def _received(c: Connection, uid: str) -> Iterator[_File]:
    """What intake put into the spool; an archive's files are not ours."""
    columns = (instance.c.path, instance.c.sop_instance_uid, instance.c.sha256)
    mine = (job.c.study_instance_uid == uid) & instance.c.received_at.is_not(None)
    return _files(_SPOOL, c.execute(select(*columns).join(job, job.c.id == instance.c.id).where(mine)).all())


def _results(c: Connection, uid: str) -> Iterator[_File]:
    columns = (result.c.path, result.c.sop_instance_uid, result.c.sha256)
    return _files(_RESULTS, c.execute(select(*columns).where(result.c.study_instance_uid == uid)).all())


def _files(top: str, rows: Iterable[tuple[str, str, str]]) -> Iterator[_File]:
    for path, sop_instance_uid, sha256 in rows:
        file = _File(path=Path(path), sop_instance_uid=sop_instance_uid, sha256=sha256)
        if file.path.parts[0] == top and ".." not in file.path.parts:
            yield file


def _recorded(c: Connection, uid: str) -> set[tuple[str, str]]:
    """What the ledger says is deleted, and did not come again since."""
    table = ledger_table
    kinds = (*_DELETED.values(), "received", "report_made")
    query = (
        select(table.c.kind, table.c.sop_instance_uid, table.c.detail)
        .where(table.c.study_instance_uid == uid, table.c.kind.in_(kinds))
        .order_by(table.c.seq)
    )
    recorded: set[tuple[str, str]] = set()
    for kind, sop_instance_uid, text in c.execute(query):
        detail = json.loads(text)
        identity = sop_instance_uid or detail["sop_instance_uid"], detail["sha256"]  # older records: in the detail
        (recorded.add if kind in _DELETED.values() else recorded.discard)(identity)
    return recorded
