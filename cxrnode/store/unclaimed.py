"""What a stage had in hand that ended while the database was away: a note on the disk, for its next start.

Without it the claims would read as those of a process that was killed, and count as attempts of their images.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from cxrnode.store.database import Database
from cxrnode.store.queue import Queue
from cxrnode.store.spool import write_atomic
from cxrnode.store.studies import Studies

_FOLDER = ".unclaimed"

log = logging.getLogger(__name__)


def leave(data_dir: Path, owner: str, job_ids: Iterable[int]) -> None:
    """Note that `owner` ended by itself with these in hand. Raises StorageFullError."""
    note = {"owner": owner, "jobs": sorted(job_ids)}
    write_atomic(data_dir / _FOLDER / f"{owner}.json", json.dumps(note).encode())


def take_back(data_dir: Path, database: Database, queue: Queue, studies: Studies) -> None:
    """Hand back what the notes name, before anything is claimed. Raises StoreError, StorageFullError."""
    for path in sorted((data_dir / _FOLDER).glob("*.json")):
        try:
            note = json.loads(path.read_bytes())
            owner, jobs = str(note["owner"]), [int(n) for n in note["jobs"]]
        except (OSError, ValueError, KeyError, TypeError) as e:
            log.warning("%s is no note of this node's, and is left alone: %s", path, type(e).__name__)
            continue
        with database.begin() as c:
            queue.release(c, owner, also=jobs)
            studies.release(c, owner)
        path.unlink(missing_ok=True)
