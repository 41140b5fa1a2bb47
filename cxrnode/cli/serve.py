"""`cxrnode serve`: the node."""

from __future__ import annotations

import logging
import sys
import threading
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cxrnode.supervisor import Supervisor, stop_on_signals


class Stage(StrEnum):
    INTAKE = "intake"
    ANALYSE = "analyse"
    DELIVER = "deliver"


def serve(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="See cxrnode config example.")],
    only: Annotated[
        list[Stage] | None, typer.Option(help="Run this stage alone, in this process; the others run elsewhere.")
    ] = None,
) -> None:
    """Receive studies, analyse them in batches, send the results back. SIGTERM drains; a second signal ends at once.

    Exit codes: 0 stopped by a signal; 2 the configuration is wrong.
    """
    from cxrnode.config import load_config  # noqa: PLC0415

    loaded = load_config(config)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # it logs what it was sent
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    if only and len(only) == 1:
        from cxrnode.serve import run_stage  # noqa: PLC0415

        stopping = threading.Event()
        stop_on_signals(stopping)
        run_stage(loaded, only[0].value, stopping)
        return
    from cxrnode.serve import run_node  # noqa: PLC0415

    run_node(loaded, Supervisor(config=config, stages=[s.value for s in only] if only else [s.value for s in Stage]))
