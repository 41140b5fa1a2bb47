"""What came of images and studies, into the store, many at a time: what it cannot hold costs its own image or study.

Trouble of the database or the disk itself is no image's: it is raised, and ends the stage's round.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from cxrnode.errors import unexpected
from cxrnode.in_hand import Reported
from cxrnode.store.database import Database
from cxrnode.store.outbox import Outbox
from cxrnode.store.queue import Finding, Queue
from cxrnode.store.studies import Studies
from cxrnode.store.trouble import is_trouble
from cxrnode.types import Rejection, Report, Study

log = logging.getLogger(__name__)


def of_unexpected(error: Exception) -> Rejection:
    """What nobody expects, as the outcome of the one image or study that raised it; the log says so too."""
    rejection = unexpected(error)
    log.error("an image or a study failed: %s", rejection.text)
    return rejection


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Commits for `owner`, whose leases are checked. Raises StoreError, StorageFullError."""

    database: Database
    queue: Queue
    studies: Studies
    outbox: Outbox
    owner: str
    destinations: tuple[str, ...]

    def finish(self, findings: Sequence[Finding]) -> int:
        """How many were committed: one whose lease was lost is not."""
        try:
            with self.database.begin() as c:
                return sum([self.queue.finish(c, finding, owner=self.owner) for finding in findings])
        except Exception as e:
            if is_trouble(e):
                raise
            if len(findings) > 1:
                return sum([self.finish([finding]) for finding in findings])
            bare = Finding(job=findings[0].job, rejection=of_unexpected(e))
            with self.database.begin() as c:
                return int(self.queue.finish(c, bare, owner=self.owner))

    def close(self, steps: Sequence[Reported]) -> list[str]:
        """The studies whose lease was held, by their UIDs; their results are in the outbox."""
        try:
            with self.database.begin() as c:
                return [step.study.study_instance_uid for step in steps if self._close(c, step)]
        except Exception as e:
            if is_trouble(e):
                raise
            if len(steps) > 1:
                return [uid for step in steps for uid in self.close([step])]
            study = steps[0].study
            with self.database.begin() as c:
                closed = self._close(c, Reported(study=study, made=of_unexpected(e)))
            return [study.study_instance_uid] if closed else []

    def _close(self, c: Connection, step: Reported) -> bool:
        study, made = step.study, step.made
        if isinstance(made, Rejection):
            return self.studies.failed(c, study, made, owner=self.owner)
        uids = self.studies.reported(c, study, made, owner=self.owner)
        if uids is None:
            return False
        _log_reports(study, made)
        self.outbox.enqueue(c, uids, self.destinations, study_instance_uid=study.study_instance_uid)
        return True


def _log_reports(study: Study, reports: Sequence[Report]) -> None:
    uid = study.study_instance_uid
    if len(reports) > 1:
        log.warning("study %s holds images of %d patients: a report each", uid, len(reports))
    for report in reports:
        if report.held_back:
            log.error("a report of study %s is held back: %s", uid, report.held_back.text)
