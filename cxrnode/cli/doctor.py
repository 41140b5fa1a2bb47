"""`cxrnode doctor`: is this node fit to work, and are its destinations?"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from cxrnode.cli.output import say


def doctor(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="The node's configuration.")],
    store: Annotated[
        bool,
        typer.Option("--store/--no-store", help="Store, commit and read back a synthetic study at each destination."),
    ] = True,
) -> None:
    """Check the node, this machine and every destination, and say how to mend what is wrong.

    A small synthetic study of the patient CXRNODE^DOCTOR stays at each destination; a repeat stores the same objects.

    Exit codes: 0 nothing failed, warnings or not; 1 something failed; 2 the configuration is wrong.
    """
    from cxrnode.config import load_config  # noqa: PLC0415 (no other command should wait for it)
    from cxrnode.config_here import check_data_dir, check_temporary  # noqa: PLC0415

    loaded = load_config(config)
    check_data_dir(loaded.node.data_dir)
    check_temporary()
    from cxrnode.doctor import diagnose  # noqa: PLC0415
    from cxrnode.doctor_destination import Level  # noqa: PLC0415

    for name in ("pynetdicom", "pydicom", "cxrnode"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the checks say it, and how to mend it
    counts = dict.fromkeys(Level, 0)
    for check in diagnose(loaded, file=config, store=store):
        counts[check.level] += 1
        say(f"{check.level:<5}{check.name}: {check.found}")
        if check.mend:
            say(f"     -> {check.mend}")
    say(", ".join(f"{n} {level}" for level, n in counts.items()))
    if counts[Level.FAIL]:
        raise typer.Exit(1)
