"""`cxrnode run-batch`: analyse archives into a folder of results."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cxrnode.cli.progress import make_progress
from cxrnode.dicom.identity import RESEARCH_USE, is_ae_title
from cxrnode.pool import default_workers, start_server
from cxrnode.types import Destination
from engines.base import EngineKind

if TYPE_CHECKING:
    from cxrnode.batch import BatchRun

_MAX_TABLE_ROWS = 50
_INTERRUPTED = 130
_WIDE = 160  # columns of the table where no terminal says how wide it is


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def parse_destination(text: str) -> Destination:
    ae_title, at, address = text.partition("@")
    host, colon, port = address.rpartition(":")
    bad_title = not is_ae_title(ae_title)
    if not at or not colon or not host or bad_title or not port.isdecimal() or not 0 < int(port) < 65536:
        raise typer.BadParameter(f"'{text}' is not AET@HOST:PORT, as in ORTHANC@127.0.0.1:4242")
    return Destination(ae_title=ae_title, host=host.strip("[]"), port=int(port))


def run_batch(
    archives: Annotated[
        list[Path], typer.Argument(metavar="ARCHIVE...", help="File, folder, zip, tar(.gz) or DICOMDIR.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results: new, or of the run to go on with.")],
    bundle: Annotated[str, typer.Option(metavar="NAME|PATH", help="Model bundle.")] = "default",
    engine: Annotated[EngineKind, typer.Option(help="What runs the model.")] = EngineKind.AUTO,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Images a batch.")] = 16,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Decoding processes.", show_default="the cores and one more")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Delete this folder's results and begin anew.")] = False,
    send: Annotated[
        Destination | None,
        typer.Option(metavar="AET@HOST:PORT", parser=parse_destination, help="Send the results to this PACS."),
    ] = None,
    output_format: Annotated[Format, typer.Option("--format", help="What to print at the end.")] = Format.TABLE,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no table; errors only.")] = False,
) -> None:
    """Analyse archives of chest radiographs into DICOM results. Killed and started again, it goes on.

    Exit codes: 0 every chest radiograph has its result; 1 at least one item failed (all are listed); 2 usage or
    configuration; 130 interrupted, resumable.
    """
    start_server("cxrnode.workers")  # it imports on another core while this process does
    from cxrnode.batch import BatchOptions, open_batch  # noqa: PLC0415

    options = BatchOptions(
        archives=tuple(archives), out=out, bundle=bundle, engine=engine.value, batch_size=batch_size,
        workers=workers or default_workers(), restart=restart, send=send,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = make_progress(quiet=quiet)
    with open_batch(options, progress) as run:
        try:
            summary = run.run()
        except KeyboardInterrupt:
            progress.close()
            sys.stderr.write("interrupted: run the same command again to go on\n")
            raise typer.Exit(_INTERRUPTED) from None
        finally:
            progress.close()
        _print(run, summary, output_format, quiet=quiet)
        with run.database.begin() as c:
            failed = False
            for path, why in run.results.failures(c):
                failed = True
                sys.stderr.write(f"failed: {path}: {why}\n")
    raise typer.Exit(1 if failed else 0)


def _print(run: BatchRun, summary: dict[str, Any], output_format: Format, *, quiet: bool) -> None:
    with run.database.begin() as c:
        rows = run.results.rows(c)
        if output_format is Format.CSV:
            run.results.print_csv(rows, sys.stdout)
        elif output_format is Format.JSON:
            _print_json(rows, summary)
        elif not quiet:
            _print_table(rows, run, summary)


def _print_json(rows: Iterator[dict[str, Any]], summary: dict[str, Any]) -> None:
    """{"run": ..., "results": [...]}, written row by row: an archive's results need not fit into memory."""
    sys.stdout.write(f'{{"run": {json.dumps(summary)},\n"results": [')
    for n, row in enumerate(rows):
        sys.stdout.write(f"{',' if n else ''}\n{json.dumps(row)}")
    sys.stdout.write("\n]}\n")


def _print_table(rows: Iterator[dict[str, Any]], run: BatchRun, summary: dict[str, Any]) -> None:
    labels = [label.name for label in run.bundle.labels]
    table = Table(Column("file", overflow="fold"))
    for name in ("outcome", "class", *(f"p {label}" for label in labels)):
        table.add_column(name, no_wrap=True)
    table.add_column("reason", overflow="fold")
    for row in islice(rows, _MAX_TABLE_ROWS):
        p = [f"{float(row[f'p_{label}']):.3f}" if row.get(f"p_{label}") else "" for label in labels]
        why = f"{row['reason']}: {row['detail']}" if row["detail"] else row["reason"]
        table.add_row(*(escape(cell) for cell in (row["path"], row["outcome"], row["class"], *p, why)))
    console = Console() if sys.stdout.isatty() else Console(width=_WIDE)
    console.print(table)
    outcomes = summary["outcomes"]
    if (hidden := sum(outcomes.values()) - _MAX_TABLE_ROWS) > 0:
        console.print(f"... and {hidden} more files, all in {run.results.csv_path}", highlight=False)
    console.print(", ".join(f"{n} {outcome.replace('_', ' ')}" for outcome, n in outcomes.items()), highlight=False)
    console.print(f"Results: {run.options.out}. {RESEARCH_USE}", highlight=False)
