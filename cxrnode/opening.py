"""Opening the store that a configuration names, now or as soon as it is there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cxrnode.config import Config, load_config
from cxrnode.config_here import make_data_dir
from cxrnode.errors import StoreAwayError
from cxrnode.store.database import LEDGER_NAME, Database
from cxrnode.store.spool import keep_private

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 5.0  # between looks for a database that is away

log = logging.getLogger(__name__)


@contextmanager
def open_database(config: Path | Config, *, read_only: bool = False) -> Iterator[Database]:
    """The store that the configuration names. Raises ConfigError, StoreError."""
    loaded = load_config(config) if isinstance(config, Path) else config
    where: Path | str = loaded.node.database.get_secret_value()
    if where == "sqlite":
        if not read_only:
            make_data_dir(loaded.node.data_dir)
            keep_private(loaded.node.data_dir)
        where = loaded.node.data_dir / LEDGER_NAME
    database = Database(where, read_only=read_only)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def await_database(config: Config, stopping: threading.Event) -> Iterator[Database | None]:
    """The store as soon as it can be had: a node is often started before its database. None: to stop came first.

    Raises ConfigError, StoreError where waiting does not help.
    """
    with ExitStack() as stack:
        told, wait_s, opened = "", _FIRST_WAIT_S, None
        while opened is None:
            try:
                opened = stack.enter_context(open_database(config))
            except StoreAwayError as e:
                if str(e) != told:
                    log.error("waits for the database, and then goes on by itself: %s", told := str(e))  # noqa: TRY400
                if stopping.wait(wait_s):
                    break
                wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)
        if opened and told:
            log.info("the database is there")
        yield opened
