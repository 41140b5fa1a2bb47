"""The `cxrnode` command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cxrnode import __version__, logs
from cxrnode.cli import audit, config, doctor, engine, models, queue, run_batch, serve
from cxrnode.cli.output import Group, prepare, say, say_error
from cxrnode.errors import CxrnodeError, StorageFullError
from engines.base import EngineError

app = typer.Typer(
    name="cxrnode",
    cls=Group,
    help="Batch inference on chest radiographs for PACS/DICOM workflows. Research use only, not for diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run-batch")(run_batch.run_batch)
app.command("serve")(serve.serve)
app.command("doctor")(doctor.doctor)
app.add_typer(queue.app, name="queue")
app.add_typer(audit.app, name="audit")
app.add_typer(models.app, name="models")
app.add_typer(engine.app, name="engine")
app.add_typer(config.app, name="config")


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"cxrnode {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command; an error of ours is one line that says how to mend it, never a traceback."""
    prepare()
    logs.begin_command()
    try:
        typer.main.get_command(app)()  # `app()` would put a hook of its own in the place of ours
    except (CxrnodeError, EngineError) as e:
        resumable = ". Then run the same command again: it goes on where it stopped"
        say_error(e, resumable if isinstance(e, StorageFullError) else "")
        sys.exit(getattr(e, "exit_code", 2))
