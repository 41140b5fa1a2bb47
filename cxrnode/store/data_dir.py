"""The data folder of a database: told from an empty mount point, and from another database's folder, by a marker file.

    setting `data_dir` of the database  {"id": ID, "made": true}   =   DATA_DIR/.cxrnode-id  ID

A file that is missing below the right folder is lost; below any other folder it may well be where it belongs. So what
would be an outcome (an image that cannot be read, a result that is gone) asks `DataDir.check` first, and waits.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, insert, select, update

from cxrnode.errors import DataDirAwayError, StoreAwayError
from cxrnode.store.database import Database
from cxrnode.store.schema import instance, settings
from cxrnode.store.spool import storage_errors, write_atomic

MARKER = ".cxrnode-id"
_SETTING = "data_dir"
_SPOOL = "spool"  # an intake makes it at its first start, and nothing deletes it
_POLL_S = 1.0

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataDir:
    """It pickles: a worker process asks for itself."""

    path: Path
    id: str

    def check(self) -> None:
        """Raises DataDirAwayError where it is not there just now. A hard mount that hangs makes the caller hang."""
        found = _marker(self.path)
        if found != self.id:
            why = f"it is another database's ({MARKER} has {found})" if found else f"it has no {MARKER}"
            raise _away(
                self.path, f"{why}. Is it mounted? If it is the right folder: echo {self.id} > {self.path / MARKER}"
            )

    def wait(self, stopping: threading.Event) -> None:
        """Until it is there, or `stopping` is set."""
        wait_until(self.check, stopping)


def wait_until(
    attempt: Callable[[], T], stopping: threading.Event,
    *, page: Callable[[Callable[[], str]], AbstractContextManager[object]] | None = None,
) -> T | None:  # fmt: skip
    """What `attempt` gives once it raises StoreAwayError no more; None: to stop came first.

    page: is given what says why it waits, and says so to others meanwhile.
    """
    told: list[str] = []
    with ExitStack() as stack:
        while True:
            try:
                found = attempt()
            except StoreAwayError as e:
                if told[-1:] != [str(e)]:
                    told.append(str(e))
                    what = "data folder" if isinstance(e, DataDirAwayError) else "database"
                    log.error("waits for the %s, and then goes on by itself: %s", what, e)  # noqa: TRY400 (in words)
                if page:
                    stack.enter_context(page(lambda: told[-1]))
                    page = None
            else:
                if told:
                    log.info("the data folder is there")
                return found
            if stopping.wait(_POLL_S):
                return None


def establish(database: Database, folder: Path, *, make: bool) -> DataDir:
    """The data folder of `database`, which must be there.

    make: for a database that has none yet, `folder` becomes it: new ones, and those of a version that knew no marker.
    Raises DataDirAwayError where it is not there or not plausible, StorageFullError where it cannot be written.
    """
    with database.read() as c:
        known = _recorded(c)
    if not (known and known["made"]):
        if not make:
            raise _away(folder, "the database has none yet: start `cxrnode serve` with its intake first")
        known = _make(database, folder)
    found = DataDir(path=folder, id=known["id"])
    found.check()
    return found


def recorded(c: Connection, folder: Path) -> DataDir | None:
    """What `folder` must be for this database; None where no intake has made it yet."""
    known = _recorded(c)
    return DataDir(path=folder, id=known["id"]) if known and known["made"] else None


def _make(database: Database, folder: Path) -> dict[str, Any]:
    """Noted first and marked then, so that what a crash leaves between the two is gone on with."""
    with database.begin() as c:
        known = _recorded(c)
        if known is None or not known["made"]:
            _check_plausible(c, folder, known)
        if known is None:
            known = {"id": uuid.uuid4().hex, "made": False}
            c.execute(insert(settings).values(key=_SETTING, value=known))
    if not known["made"]:
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / MARKER, f"{known['id']}\n".encode())
        known["made"] = True
        with database.begin() as c:
            c.execute(update(settings).where(settings.c.key == _SETTING).values(value=known))
    return known


def _check_plausible(c: Connection, folder: Path, known: dict[str, Any] | None) -> None:
    """Raises DataDirAwayError where `folder` can hardly be the one that this database has had so far."""
    marker = _marker(folder, missing="") if folder.exists() else ""
    if marker and not (known and marker == known["id"]):
        raise _away(
            folder, f"it is another database's ({MARKER} has {marker}). Name that database, or give this one a "
            f"node.data_dir of its own. If the folder is this database's (an older copy of it was restored, or it is a "
            f"new one in the place of one that is lost): rm {folder / MARKER}",
        )  # fmt: skip
    received = c.execute(select(instance.c.id).where(instance.c.received_at.is_not(None)).limit(1)).first()
    if received and not (folder / _SPOOL).is_dir():
        raise _away(
            folder, f"the database has received images, and it has no {_SPOOL} folder. Is it mounted? If it is the "
            f"right folder: mkdir -p {folder / _SPOOL}",
        )  # fmt: skip


def _recorded(c: Connection) -> dict[str, Any] | None:
    found: dict[str, Any] | None = c.execute(
        select(settings.c.value).where(settings.c.key == _SETTING)
    ).scalar_one_or_none()
    return dict(found) if found else None


def _marker(folder: Path, missing: str | None = None) -> str:
    """What the marker file holds; "" where the folder has none. Raises DataDirAwayError where there is no looking."""
    try:
        with (folder / MARKER).open("rb") as f:
            return f.read(64).decode("ascii", "replace").strip()
    except FileNotFoundError:
        if missing is not None or folder.is_dir():
            return ""
        raise _away(folder, "there is no such folder. Is it mounted?") from None
    except OSError as e:
        raise _away(folder, f"{e.strerror}. Is it mounted?") from e


def _away(folder: Path, why: str) -> DataDirAwayError:
    return DataDirAwayError(f"node.data_dir = {folder} is not there: {why}")
