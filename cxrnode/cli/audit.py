"""`cxrnode audit query | show | explain | verify | anchor | export`: what the ledger says, and whether it holds."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from cxrnode.cli.output import exact, say
from cxrnode.errors import CxrnodeError, StoreError
from cxrnode.printable import json_text, printable
from cxrnode.words import counted

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from cxrnode.audit.query import Filters
    from cxrnode.audit.state import Compared
    from cxrnode.store.database import Database
    from cxrnode.types import AuditEvent

app = typer.Typer(help="The audit ledger: what happened, and proof that nothing was changed.", no_args_is_help=True)

ConfigPath = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Of the node: its configuration.")]
OutPath = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Of run-batch: its folder.")]
_LIMIT = 1000
_MOST = 20  # differing rows that are named


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class ExportFormat(StrEnum):
    JSONL = "jsonl"
    ATNA = "atna"


@app.command()
def query(
    config: ConfigPath = None,
    out: OutPath = None,
    patient: Annotated[str | None, typer.Option(metavar="ID", help="All of this patient's studies.")] = None,
    study: Annotated[str | None, typer.Option(metavar="UID", help="Study Instance UID.")] = None,
    accession: Annotated[str | None, typer.Option(metavar="N", help="All studies with this number.")] = None,
    sop: Annotated[str | None, typer.Option(metavar="UID", help="SOP Instance UID, of an image or a result.")] = None,
    ae: Annotated[str | None, typer.Option(metavar="AET", help="The peer's AE title.")] = None,
    kind: Annotated[str | None, typer.Option(metavar="K", help="What happened: received, delivered, ...")] = None,
    since: Annotated[str | None, typer.Option(metavar="T", help="2026-11-22, 2026-11-22T10:30, 36h, 7d.")] = None,
    until: Annotated[str | None, typer.Option(metavar="T", help="Before this; a date alone: to its end.")] = None,
    outcome: Annotated[str | None, typer.Option(metavar="O", help="new, analysed, failed, refused, ...")] = None,
    output_format: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.TABLE,
    limit: Annotated[int, typer.Option(min=0, help="The newest so many; 0: all.")] = _LIMIT,
) -> None:
    """Print the records that pass all filters, oldest first.

    Exit codes: 0, whether there were any or not; 2 a filter, or the database, cannot be used.
    """
    from cxrnode.audit.query import Filters, find  # noqa: PLC0415
    from cxrnode.audit.times import parse_time  # noqa: PLC0415

    now = datetime.now().astimezone()
    filters = Filters(
        patient_id=patient, study_instance_uid=study, accession_number=accession, sop_instance_uid=sop, ae_title=ae,
        kind=kind, outcome=outcome, since=parse_time(since, now=now) if since is not None else None,
        until=parse_time(until, now=now, end=True) if until is not None else None,
    )  # fmt: skip
    filters.check()
    show_as = {Format.TABLE: _print_table, Format.JSON: _print_json, Format.CSV: _print_csv}[output_format]
    with _ledger(config, out) as c:
        found = find(c, filters, limit=limit or None)
        with closing(found.events) as events:
            count = show_as(events)
    say(f"{counted(count, 'record')}{_period(filters)}", err=True)
    if found.cut:
        say(f"these are the newest {limit}; there are older ones: --limit 0 prints all", err=True)


@app.command()
def show(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Study Instance UID.")],
    config: ConfigPath = None,
    out: OutPath = None,
) -> None:
    """Print the whole life of a study: who sent what, what came of each image, reports, deliveries, deletion.

    Exit codes: 0 printed; 1 the ledger does not know the study; 2 this cannot be asked.
    """
    from cxrnode.audit.story import story_of  # noqa: PLC0415

    with _ledger(config, out) as c:
        story = story_of(c, study)
    if not story.events:
        _nothing(f"the ledger has no record of study {study}")
    for line in story.lines():
        say(line)


@app.command()
def explain(
    sop: Annotated[str, typer.Argument(metavar="SOP_UID", help="SOP Instance UID of a report or a capture.")],
    config: ConfigPath = None,
    out: OutPath = None,
) -> None:
    """Print which model, weights, thresholds, software and input made a result.

    Exit codes: 0 printed; 1 the ledger does not know the result; 2 this cannot be asked.
    """
    from cxrnode.audit.explain import explain as explain_result  # noqa: PLC0415

    with _ledger(config, out) as c:
        found = explain_result(c, sop)
    if found is None:
        _nothing(f"the ledger has no record of a result {sop} that was made here")
    for line in found.lines():
        say(line)


@app.command()
def verify(
    config: ConfigPath = None,
    out: OutPath = None,
    file: Annotated[Path | None, typer.Option(metavar="EXPORT", help="What audit export wrote, instead.")] = None,
    anchor: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Anchors that were kept elsewhere: all are checked.")
    ] = None,
) -> None:
    """Prove that no record was changed, removed or slipped in; only anchors prove that none was cut off at the end.

    Then compare images, studies, results and deliveries with the records that made them, row by row.

    Exit codes: 0 it holds; 1 it does not, and the first broken record, or each differing row, is named; 2 it cannot be
    read.
    """
    from cxrnode.audit.anchors import cut_off_lines, read_anchors  # noqa: PLC0415
    from cxrnode.audit.export import verify_export  # noqa: PLC0415
    from cxrnode.audit.state import verify_store  # noqa: PLC0415

    known = {a.seq: a.hash for a in read_anchors(anchor)} if anchor else {}
    for n in cut_off_lines(anchor) if anchor else ():
        say(f"{anchor}, line {n}: cut off while it was written, so it is no anchor", err=True)
    after, missing, state = 0, list[str](), None
    if file:
        if config or out:
            raise CxrnodeError("give one of --file, --config and --out")
        with _text(file) as f:
            after, verdict = verify_export(f, str(file), known)
    else:
        with _ledger(config, out) as c:
            found = verify_store(c, known, most=_MOST)
            verdict, missing, state = found.verdict, found.missing_triggers, found.compared
    if after:
        say(f"records 1 to {after} are not in this file; anchors of them were not checked", err=True)
    if missing:
        say(f"not sound: without its append-only triggers records can be changed: {', '.join(missing)}", err=True)
    if verdict.broken is not None:
        say(
            f"broken at record {verdict.broken}: {verdict.why}. What was recorded from there on proves nothing",
            err=True,
        )
    if state and state.different:
        _print_differences(state)
    if missing or verdict.broken is not None or (state and state.different):
        raise typer.Exit(1)
    checked = sum(seq > after for seq in known)
    hold, agree = ("holds" if verdict.records == 1 else "hold"), ("agrees" if checked == 1 else "agree")
    say(
        f"{counted(verdict.records, 'record')} {hold}, {counted(checked, 'anchor')} {agree}; the last hash is "
        f"{verdict.last_hash}"
    )
    if state:
        say(state.in_words())


@app.command()
def anchor(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Kept elsewhere: a line is added.")],
    config: ConfigPath = None,
    out: OutPath = None,
) -> None:
    """Write the newest record's hash to a file, for audit verify --anchor. The ledger says so, where it can be written.

    Exit codes: 0 written; 2 not.
    """
    from cxrnode.audit.anchors import record_anchor, take_anchor, write_anchor  # noqa: PLC0415
    from cxrnode.audit.record import operator  # noqa: PLC0415

    with _ledger(config, out) as c:
        taken = take_anchor(c)
    write_anchor(file, taken)
    try:
        with _writable(config, out) as database, database.begin() as c:
            record_anchor(c, taken, file, actor=operator())
    except CxrnodeError as e:
        say(f"the ledger does not say that it was anchored: {e}", err=True)
    say(f"record {taken.seq}, hash {taken.hash}: written to {file}")


@app.command()
def export(
    config: ConfigPath = None,
    out: OutPath = None,
    output_format: Annotated[
        ExportFormat, typer.Option("--format", help="jsonl: verifiable; atna: DICOM audit messages. One a line.")
    ] = (ExportFormat.JSONL),
    after: Annotated[int, typer.Option(min=0, metavar="SEQ", help="Only what follows this record.")] = 0,
    unrecorded: Annotated[
        bool, typer.Option("--unrecorded", help="Where the ledger cannot be written: export it all the same.")
    ] = False,
) -> None:
    """Print the ledger to standard output. That somebody did so is a record of it, the last that is printed.

    Exit codes: 0 printed; 2 not: the database cannot be used, or the export cannot be recorded.
    """
    from cxrnode.audit.atna import Source, messages  # noqa: PLC0415
    from cxrnode.audit.export import lines, record_export  # noqa: PLC0415
    from cxrnode.audit.record import operator  # noqa: PLC0415
    from cxrnode.config import Node, load_config  # noqa: PLC0415

    node = load_config(config).node if config else Node()
    source = Source(ae_title=node.ae_title, host=socket.gethostname())

    with _ledger(config, out):  # is it there, and of today's schema? Opened to be written it would be made so
        pass
    if not unrecorded:
        try:
            with _writable(config, out) as database, database.begin() as c:
                record_export(c, actor=operator(), after=after, form=output_format.value)
        except CxrnodeError as e:
            raise StoreError(
                f"not exported, for the ledger cannot record it: {e}. --unrecorded exports it all the same"
            ) from e
    with _ledger(config, out) as c:
        atna = output_format is ExportFormat.ATNA
        with closing(messages(c, source, after=after) if atna else lines(c, after=after)) as exported:
            exact().writelines(exported)


# --- what they share ------------------------------------------------------------------------------------------------


@contextmanager
def _ledger(config: Path | None, out: Path | None) -> Iterator[Connection]:
    """One reading transaction. Raises CxrnodeError."""
    from cxrnode.store.database import Database  # noqa: PLC0415

    database = Database(_place(config, out), read_only=True)
    try:
        with database.begin() as c:
            yield c
    finally:
        database.close()


@contextmanager
def _writable(config: Path | None, out: Path | None) -> Iterator[Database]:
    from cxrnode.store.database import Database  # noqa: PLC0415

    database = Database(_place(config, out))
    try:
        yield database
    finally:
        database.close()


def _place(config: Path | None, out: Path | None) -> Path | str:
    from cxrnode.config import load_config  # noqa: PLC0415
    from cxrnode.store.database import LEDGER_NAME  # noqa: PLC0415

    if (config is None) == (out is None):
        raise CxrnodeError("whose ledger? Give --config FILE (of the node) or --out DIR (of run-batch)")
    if out:
        return out / LEDGER_NAME
    assert config  # noqa: S101
    node = load_config(config).node
    where = node.database.get_secret_value()
    return node.data_dir / LEDGER_NAME if where == "sqlite" else where


@contextmanager
def _text(path: Path) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8") as f:
            yield f
    except OSError as e:
        raise StoreError(f"cannot read {path}: {e.strerror}. Check the path") from e


def _print_differences(state: Compared) -> None:
    for difference in state.first:
        say(str(difference), err=True)
    if state.different > len(state.first):
        say(f"... and {state.different - len(state.first)} more", err=True)
    say(f"not sound: {counted(state.different, 'difference')} between the tables and the records that made them. "
        "Somebody wrote to the database past cxrnode: what the records say is what was", err=True)  # fmt: skip


def _row(e: AuditEvent) -> dict[str, Any]:
    return asdict(e) | {"at": e.at.isoformat(timespec="milliseconds")}


def _print_table(events: Iterator[AuditEvent]) -> int:
    from cxrnode.audit.kinds import in_words  # noqa: PLC0415
    from cxrnode.audit.times import local  # noqa: PLC0415

    count = 0
    for e in events:
        count += 1
        study = e.study_instance_uid or "-"
        say(f"{e.seq:>8}  {local(e.at)}  {e.kind:<20}  {printable(e.actor):<10}  {study}  {in_words(e)}")
    return count


def _print_json(events: Iterator[AuditEvent]) -> int:
    count = 0
    f = exact()
    f.write("[")
    for count, e in enumerate(events, 1):
        f.write(f"{',' if count > 1 else ''}\n{json_text(_row(e))}")
    f.write("\n]\n")
    return count


def _print_csv(events: Iterator[AuditEvent]) -> int:
    from cxrnode.spreadsheet import write_csv  # noqa: PLC0415
    from cxrnode.types import AuditEvent  # noqa: PLC0415

    rows = (_row(e) | {"detail": json_text(e.detail)} for e in events)
    return write_csv(exact(), AuditEvent.__dataclass_fields__, rows)


def _period(filters: Filters) -> str:
    from cxrnode.audit.times import local  # noqa: PLC0415

    since = f" since {local(filters.since)}" if filters.since else ""
    return since + (f" until {local(filters.until)}" if filters.until else "")


def _nothing(text: str) -> NoReturn:
    say(text, err=True)
    raise typer.Exit(1)
