"""Whether the data folder is there, before anything in it is opened: no lock, and no SQLite file, is to be made in an
empty mount point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cxrnode.checks import Asked
from cxrnode.config import Config
from cxrnode.config_here import check_data_dir, make_data_dir
from cxrnode.errors import DataDirAwayError, StoreAwayError, StoreError
from cxrnode.health import HealthServer
from cxrnode.store.data_dir import MARKER, recorded
from cxrnode.store.database import LEDGER_NAME, Database


def check_mounted(config: Config, *, make: bool) -> None:
    """Raises DataDirAwayError, or another StoreAwayError, where it is not there as far as can be seen by now.

    Raises ConfigError where this user may not use it.

    make: where nobody knows of one, it is made. Where SQLite is the database nothing outside the folder can tell a new
    node from one whose disk is not mounted.
    """
    folder, where = config.node.data_dir, config.node.database.get_secret_value()
    with suppress(OSError):
        if (folder / MARKER).is_file():
            check_data_dir(folder)
            return
    if where != "sqlite" and _is_known(config, where):
        return
    if make:
        make_data_dir(folder)
    elif not (folder / LEDGER_NAME).is_file() if where == "sqlite" else True:
        raise DataDirAwayError(
            f"node.data_dir = {folder} is not there: no intake has worked in it. Is it mounted? If this node is new, "
            "start `cxrnode serve` with its intake first"
        )


def _is_known(config: Config, where: str) -> bool:
    """Whether the database has a data folder, which then is there."""
    try:
        database = Database(where, read_only=True)
    except StoreAwayError:
        raise
    except StoreError:  # an empty one, or one of an older schema
        return False
    try:
        with database.read() as c:
            data_dir = recorded(c, config.node.data_dir)
    finally:
        database.close()
    if data_dir:
        data_dir.check()
    return data_dir is not None


@contextmanager
def waiting_page(config: Config, why: Callable[[], str]) -> Iterator[None]:
    """/healthz and /readyz of a node that waits."""
    asked = Asked({"reasons": {"disk": why}, "warnings": {}})
    with HealthServer(config.http.bind, config.http.port, asked=asked, metrics=tuple):
        yield
