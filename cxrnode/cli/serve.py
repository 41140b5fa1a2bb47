"""`cxrnode serve`: the node."""

from __future__ import annotations

import logging
import threading
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxrnode.errors import CxrnodeError
from cxrnode.logs import configure
from cxrnode.supervisor import Supervisor, end_with_supervisor, hangups_wait, stop_on_signals
from engines.base import EngineError

if TYPE_CHECKING:
    from cxrnode.config import Config

log = logging.getLogger(__name__)


class Stage(StrEnum):
    INTAKE = "intake"
    ANALYSE = "analyse"
    DELIVER = "deliver"


def serve(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="See cxrnode config example.")],
    only: Annotated[
        list[Stage] | None,
        typer.Option(
            help="Run this stage alone, in this process, with its own pages at [http]; the others run elsewhere."
        ),
    ] = None,
) -> None:
    """Receive studies, analyse them in batches, send the results back. SIGTERM drains; a second signal ends at once.

    SIGHUP reads certificates and the log level anew. Exit codes: 0 stopped by a signal; 1 the database is away or the
    disk full; 2 the configuration is wrong, a port is taken, or another node works on the data folder.
    """
    from cxrnode.config import load_config  # noqa: PLC0415

    loaded = load_config(config)
    alone = only[0].value if only and len(only) == 1 else None
    configure(form=loaded.log.format, level=loaded.log.level, stage=alone or "node")
    try:
        with hangups_wait():
            code = _run(loaded, config, [s.value for s in only or Stage], alone)
    except (CxrnodeError, EngineError) as e:
        if loaded.log.format == "text":
            raise  # to `main`, which says it
        log.critical("%s", e)
        raise typer.Exit(getattr(e, "exit_code", 2)) from None
    raise typer.Exit(code)


def _run(loaded: Config, config: Path, stages: list[str], alone: str | None) -> int:
    if alone in {None, Stage.ANALYSE}:
        from cxrnode.config_here import check_temporary  # noqa: PLC0415

        check_temporary()
    if alone:
        stopping = threading.Event()
        stop_on_signals(stopping)
        end_with_supervisor(stopping)
        from cxrnode.serve import run_stage  # noqa: PLC0415 (takes seconds, in which the supervisor may die)

        run_stage(loaded, alone, stopping, file=config)
        return 0
    from cxrnode.serve import run_node  # noqa: PLC0415

    return run_node(loaded, Supervisor(config=config, stages=stages))
