"""`cxrnode queue list | show | retry | bury | take-in`: what waits, what came of it, and what to do about it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxrnode.cli.output import exact, flow, indented, say, shown, width
from cxrnode.printable import json_text
from cxrnode.types import JobState
from cxrnode.words import counted

if TYPE_CHECKING:
    from sqlalchemy import Connection

app = typer.Typer(help="The node's queue: what waits, what came of it.", no_args_is_help=True)

ConfigPath = Annotated[Path, typer.Option("--config", metavar="FILE", help="The node's configuration.")]
Ids = Annotated[list[int], typer.Argument(metavar="ID...", help="As `queue list` shows them.")]
_INDENT = 9
_CUT_OFF = "the analysis was cut off before its end; the log of that time says why"


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class DeliveryState(StrEnum):
    PENDING = "pending"
    SENT = "sent"
    COMMITTED = "committed"
    REFUSED = "refused"


@app.command("list")
def list_jobs(
    config: ConfigPath,
    state: Annotated[list[JobState] | None, typer.Option(help="Only these; may be given more than once.")] = None,
    study: Annotated[str | None, typer.Option(metavar="UID", help="Study Instance UID.")] = None,
    patient: Annotated[str | None, typer.Option(metavar="ID", help="Patient ID.")] = None,
    destination: Annotated[
        str | None, typer.Option(metavar="NAME", help="With results for this [[destination]].")
    ] = None,
    delivery: Annotated[
        list[DeliveryState] | None, typer.Option(help="With results in this state, there or anywhere.")
    ] = None,
    output_format: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.TABLE,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
) -> None:
    """List the newest images, newest first, and how many are in each state.

    Exit codes: 0, whether there were any or not; 2 this cannot be asked.
    """
    from cxrnode.config import load_config  # noqa: PLC0415
    from cxrnode.errors import CxrnodeError  # noqa: PLC0415
    from cxrnode.opening import open_database  # noqa: PLC0415
    from cxrnode.store import overview  # noqa: PLC0415

    loaded = load_config(config)
    wanted = overview.Wanted(
        states=[s.value for s in state or ()], study=study, patient=patient, destination=destination,
        deliveries=[d.value for d in delivery or ()],
    )  # fmt: skip
    names = [d.name for d in loaded.destination]
    with open_database(loaded, read_only=True) as database, database.read() as c:
        rows = overview.jobs(c, wanted, limit=limit)
        totals = overview.totals(c) if output_format is Format.TABLE else {}
    if destination is not None and destination not in names and not rows:
        raise CxrnodeError(f"there is no destination {destination}: the configuration has {', '.join(names) or 'none'}")
    {Format.TABLE: _print_table, Format.JSON: _print_json, Format.CSV: _print_csv}[output_format](rows)
    for key, n in sorted(totals.items()):
        say(f"{n:>8} {' '.join(key)}")
    if len(rows) == limit:
        say(f"these are the newest {limit} that fit; --limit N shows more", err=True)


@app.command()
def show(config: ConfigPath, job_id: Annotated[int, typer.Argument(metavar="ID")]) -> None:
    """Show one image: what came of it, when it is tried next, and where its results are."""
    from cxrnode.opening import open_database  # noqa: PLC0415
    from cxrnode.store import overview  # noqa: PLC0415

    with open_database(config, read_only=True) as database, database.read() as c:
        row = overview.job_row(c, job_id)
        deliveries = overview.deliveries_of(c, row) if row else []
    if row is None:
        raise typer.BadParameter(f"there is no image {job_id} in the queue: see cxrnode queue list")
    for key, value in _words_of(row).items():
        if value not in (None, ""):
            say(f"{key}: {value}")
    for d in deliveries:
        say(f"{d['kind']} {d['sop_instance_uid']}: {_delivered(d)}")


@app.command()
def retry(config: ConfigPath, job_ids: Ids) -> None:
    """Analyse these again, whatever came of them, and send the results that a destination refused once more."""
    _act(config, job_ids, "retry")


@app.command()
def bury(config: ConfigPath, job_ids: Ids) -> None:
    """Give these up: no more attempts. Their studies' reports say that they were not analysed.

    Of those that were analysed: no more attempts to send results of their studies that were tried in vain.
    """
    _act(config, job_ids, "bury")


@app.command("take-in")
def take_in(config: ConfigPath) -> None:
    """Take in what an intake's start has set aside: files of the spool without a row, as after a restore.

    With the checks of C-STORE; what was sent again meanwhile is a duplicate. What is refused stays where it is.

    Exit codes: 0 nothing is left; 1 something was refused; 2 this cannot be done.
    """
    from cxrnode.audit.record import operator  # noqa: PLC0415
    from cxrnode.config import load_config  # noqa: PLC0415
    from cxrnode.errors import Rejected  # noqa: PLC0415
    from cxrnode.opening import open_database  # noqa: PLC0415
    from cxrnode.serve import is_stat, stat_tags  # noqa: PLC0415
    from cxrnode.set_aside import TakeIn, files  # noqa: PLC0415
    from cxrnode.store.data_dir import recorded  # noqa: PLC0415
    from cxrnode.store.queue import Queue  # noqa: PLC0415

    loaded, refused, taken = load_config(config), 0, 0
    root = loaded.node.data_dir
    with open_database(loaded) as database:
        with database.read() as c:
            known = recorded(c, root)
        if known:
            known.check()
        into = TakeIn(
            data_dir=root, database=database, queue=Queue(operator()), called_aet=loaded.node.ae_title,
            is_stat=is_stat(loaded.analyse.stat), stat_tags=stat_tags(loaded.analyse.stat),
            watermark_bytes=loaded.receive.disk_watermark_mb * 2**20,
        )  # fmt: skip
        for path in sorted(files(root)):
            name = path.relative_to(root)
            try:
                say(f"{name}: {into.take(path)}")
                taken += 1
            except Rejected as e:
                refused += 1
                say(f"{name}: refused: {e.rejection.text}", err=True)
    say(f"taken in: {counted(taken, 'file')}, refused: {refused}")
    if refused:
        raise typer.Exit(1)


def _act(config: Path, job_ids: list[int], what: str) -> None:
    from cxrnode.audit.record import operator  # noqa: PLC0415
    from cxrnode.config import load_config  # noqa: PLC0415
    from cxrnode.opening import open_database  # noqa: PLC0415
    from cxrnode.store import overview  # noqa: PLC0415
    from cxrnode.store.outbox import Outbox  # noqa: PLC0415
    from cxrnode.store.queue import Queue  # noqa: PLC0415

    loaded = load_config(config)
    actor = operator()
    queue, wanted, gone, buried = Queue(actor), len(job_ids), [], 0
    with open_database(loaded, read_only=True):
        pass  # one of another schema is refused: bringing it to today's is for serve, when no older node works on it
    with open_database(loaded) as database, database.begin() as c:
        if what == "retry":
            gone = _deleted(c, loaded.node.data_dir, job_ids)
            job_ids = [i for i in job_ids if i not in gone]
            studies = queue.retry(c, job_ids)
            Outbox(actor).reopen_refused(c, studies, now=time.time())
            changed = len(studies)
        else:
            rows = [row for job_id in job_ids if (row := overview.job_row(c, job_id))]
            changed = queue.bury(c, job_ids)
            studies = [row["study_instance_uid"] for row in rows if row["state"] == JobState.REPORTED.value]
            buried = Outbox(actor).bury_failing(c, studies, now=time.time())
    say(f"{what}: {changed} of {counted(wanted, 'image')}")
    for job_id in gone:
        say(f"{job_id}: its file was deleted (retention); have it sent again", err=True)
    if buried:
        say(f"{counted(buried, 'result')} not sent any more")
    elif changed < wanted:
        fits = "that were analysed" if what == "retry" else "that still wait, or whose results were tried in vain"
        say(f"only images {fits} are changed: see cxrnode queue show ID", err=True)
        raise typer.Exit(1)


def _deleted(c: Connection, root: Path, job_ids: list[int]) -> list[int]:
    """Those whose file is gone: analysed again they would only lose the answer that they have.

    Raises DataDirAwayError where the folder is not there: nothing is gone then.
    """
    from cxrnode.store import overview  # noqa: PLC0415
    from cxrnode.store.data_dir import recorded  # noqa: PLC0415

    if data_dir := recorded(c, root):
        data_dir.check()
    rows = [row for job_id in job_ids if (row := overview.job_row(c, job_id))]
    return [row["id"] for row in rows if row["received_at"] and not (root / row["path"]).is_file()]


def _words_of(row: dict[str, Any]) -> dict[str, Any]:
    """One image, as a person or a script reads it: times in this machine's zone, the priority as a word."""
    waits = row["state"] == "received"
    return {
        "id": row["id"],
        "state": row["state"],
        "priority": "STAT" if row["priority"] == 0 else "routine",
        "attempts": row["attempts"],
        "next_try": _next_try(row["not_before"]) if waits else None,
        "last_error": row["last_error"] or (_CUT_OFF if waits and row["attempts"] else None),
        "outcome": row["outcome"],
        "reason": row["reason"],
        "detail": row["detail"],
        "received_at": _time(row["received_at"]),
        "calling_aet": row["calling_aet"],
        "host": row["host"],
        "study_instance_uid": row["study_instance_uid"],
        "sop_instance_uid": row["sop_instance_uid"],
        "path": row["path"],
    }


def _print_json(rows: list[dict[str, Any]]) -> None:
    exact().write(json_text([_words_of(row) for row in rows], indent=1) + "\n")


def _print_csv(rows: list[dict[str, Any]]) -> None:
    from cxrnode.spreadsheet import write_csv  # noqa: PLC0415

    columns = (
        "id", "state", "priority", "attempts", "next_try", "last_error", "outcome", "reason", "detail", "received_at",
        "calling_aet", "host", "study_instance_uid", "sop_instance_uid", "path",
    )  # fmt: skip
    write_csv(exact(), columns, map(_words_of, rows))


def _print_table(rows: list[dict[str, Any]]) -> None:
    if rows:
        say(f"{'id':>7}  {'state':<8}  {'priority':<8}  {'received':<16}  outcome")
    for row in rows:
        for line in _lines_of(row, width()):
            say(line)


def _lines_of(row: dict[str, Any], columns: int) -> Iterator[str]:
    said = _words_of(row)
    received = (said["received_at"] or "")[:16].replace("T", " ")
    first = f"{said['id']:>7}  {said['state']:<8}  {said['priority']:<8}  {received:<16}"
    sender = f"from {row['calling_aet']}" if row["calling_aet"] else ""
    fields = (first, row["outcome"] or "", sender, row["sop_instance_uid"] or row["path"])
    yield from flow(map(shown, fields), columns=columns, indent=_INDENT)
    why = f"{row['reason']}: {row['detail']}" if row["detail"] else row["reason"]
    if row["state"] == "received" and row["attempts"]:
        why = f"{counted(row['attempts'], 'attempt')}, next {said['next_try']}: {said['last_error']}"
    if why:
        yield from indented(shown(why), columns=columns, indent=_INDENT)


def _delivered(d: dict[str, Any]) -> str:
    if not d["destination"]:
        return "not sent yet"
    said = f"{d['destination']}: {d['state']} {d['status']}".rstrip()
    if d["state"] != "pending":
        return said
    return f"{said}, {counted(d['attempts'], 'attempt')}, next {_next_try(d['not_before'])}"


def _next_try(not_before: float) -> str | None:
    return "now" if not_before <= time.time() else _time(not_before)


def _time(seconds: float | None) -> str | None:
    """ISO 8601, in this machine's time zone."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds") if seconds else None
