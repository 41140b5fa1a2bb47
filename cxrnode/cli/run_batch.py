"""`cxrnode run-batch`: analyse archives into a folder of results."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import closing
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len

from cxrnode.cli.output import exact, indented, padded, say, shown, width
from cxrnode.cli.progress import make_progress
from cxrnode.dicom.identity import RESEARCH_USE, is_ae_title
from cxrnode.pool import default_workers, start_server
from cxrnode.printable import json_text
from cxrnode.types import Destination
from cxrnode.words import counted
from engines.base import EngineKind

if TYPE_CHECKING:
    from cxrnode.batch import BatchRun

_MAX_TABLE_ROWS = 50
_MAX_REASONS = 5  # why results were not delivered
_INTERRUPTED = 130
_OUTCOME, _P = len("not_analysed"), len("0.000")  # columns
_PATH = 32  # columns for the file's name; with less there are fewer others


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
    logging.getLogger("cxrnode.deliver").setLevel(logging.ERROR)  # what was not delivered is told once, at the end
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = make_progress(quiet=quiet)
    with open_batch(options, progress) as run:
        try:
            summary = run.run()
        except KeyboardInterrupt:
            progress.close()
            say("interrupted: run the same command again to go on", err=True)
            raise typer.Exit(_INTERRUPTED) from None
        finally:
            progress.close()
        _print(run, summary, output_format, quiet=quiet)
        failed = _tell_failures(run)
    raise typer.Exit(1 if failed else 0)


def _tell_failures(run: BatchRun) -> bool:
    """Whether there are any. What was not delivered is told by its reason: a PACS that is down has one for all."""
    for what in run.missing:
        say(f"INCOMPLETE: {what}: this is a fault of cxrnode, please report it. Run it again", err=True)
    for warning in run.warnings:
        say(f"warning: {warning}", err=True)
    failed = bool(run.missing)
    with run.database.read() as c:
        for path, why in run.results.failures(c):
            failed = True
            say(f"failed: {path}: {why}", err=True)
        undelivered = run.results.undelivered(c)
    if undelivered:
        n = counted(sum(n for _, n in undelivered), "result")
        why = "; ".join(f"{n} times {why}" if len(undelivered) > 1 else why for why, n in undelivered[:_MAX_REASONS])
        more = ", ..." if len(undelivered) > _MAX_REASONS else ""
        say(
            f"failed: {n} not delivered to {run.options.send}: {why}{more}. Once that is mended, run the same command "
            f"again: it sends what is missing; until then all is in {run.options.out / 'dicom'}",
            err=True,
        )
    return failed or bool(undelivered)


def _print(run: BatchRun, summary: dict[str, Any], output_format: Format, *, quiet: bool) -> None:
    with run.database.read() as c, closing(run.results.rows(c)) as rows:
        if output_format is Format.CSV:
            run.results.print_csv(rows, exact())
        elif output_format is Format.JSON:
            _print_json(rows, summary)
        elif not quiet:
            _print_table(rows, run, summary)


def _print_json(rows: Iterator[dict[str, Any]], summary: dict[str, Any]) -> None:
    """{"run": ..., "results": [...]}, written row by row: an archive's results need not fit into memory."""
    f = exact()
    f.write(f'{{"run": {json_text(summary)},\n"results": [')
    for n, row in enumerate(rows):
        f.write(f"{',' if n else ''}\n{json_text(row)}")
    f.write("\n]}\n")


def _print_table(rows: Iterator[dict[str, Any]], run: BatchRun, summary: dict[str, Any]) -> None:
    for line in _table(list(islice(rows, _MAX_TABLE_ROWS)), [label.name for label in run.bundle.labels], width()):
        say(line)
    outcomes = summary["outcomes"]
    if (hidden := sum(outcomes.values()) - _MAX_TABLE_ROWS) > 0:
        say(f"... and {counted(hidden, 'more file')}, all in {run.results.csv_path}")
    say(", ".join(f"{n} {outcome.replace('_', ' ')}" for outcome, n in outcomes.items()))
    say(f"Results: {run.options.out}. {RESEARCH_USE}")


def _table(rows: list[dict[str, Any]], labels: list[str], columns: int) -> Iterator[str]:
    """A line a file, and one more for the reason. Where all probabilities leave no room for the file's name, that of
    the class stands there alone."""
    named = [("outcome", _OUTCOME), ("class", max(map(len, ("class", *labels))))]
    every = [*named, *((f"p {label}", max(len(label) + 2, _P)) for label in labels)]
    alone = [*named, ("p", _P)]
    shape = every if columns - _room(every) >= _PATH else alone
    longest = max((cell_len(shown(row["path"])) for row in rows), default=0)
    path = max(min(columns - _room(shape), longest), _PATH // 2)
    yield "  ".join([padded("file", path), *(padded(*cell) for cell in shape)]).rstrip()
    for row in rows:
        p = [row.get(f"p_{label}") for label in labels] if shape is every else [row.get(f"p_{row['class']}")]
        values = [row["outcome"], row["class"], *(f"{float(value):.3f}" if value else "" for value in p)]
        cells = (padded(value, wide) for value, (_, wide) in zip(values, shape, strict=True))
        yield "  ".join([padded(shown(row["path"]), path), *cells]).rstrip()
        if row["reason"]:
            why = f"{row['reason']}: {row['detail']}" if row["detail"] else row["reason"]
            yield from indented(shown(why), columns=columns, indent=4)


def _room(shape: list[tuple[str, int]]) -> int:
    """What the columns beside the file's name take."""
    return sum(2 + wide for _, wide in shape)
