"""`cxrnode queue list | show | retry | bury`: what waits, what came of it, and what to do about it."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cxrnode.types import JobState

if TYPE_CHECKING:
    from sqlalchemy import Connection

app = typer.Typer(help="The node's queue: what waits, what came of it.", no_args_is_help=True)

ConfigPath = Annotated[Path, typer.Option("--config", metavar="FILE", help="The node's configuration.")]
Ids = Annotated[list[int], typer.Argument(metavar="ID...", help="As `queue list` shows them.")]
_WIDE = 180


@app.command("list")
def list_jobs(
    config: ConfigPath,
    state: Annotated[list[JobState] | None, typer.Option(help="Only these; may be given more than once.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
) -> None:
    """List the newest images, newest first, and how many are in each state."""
    from cxrnode.serve import open_database  # noqa: PLC0415
    from cxrnode.store import overview  # noqa: PLC0415

    with open_database(config) as database, database.begin(shared=True) as c:
        rows = overview.jobs(c, states=[s.value for s in state or ()], limit=limit)
        totals = overview.totals(c)
    table = Table("id", "state", "lane", "attempts", "outcome", "why", "received", "from", "SOP Instance UID")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in _cells(row)))
    console = Console() if Console().is_terminal else Console(width=_WIDE)
    console.print(table)
    for key, n in sorted(totals.items()):
        console.print(f"{n:>8} {' '.join(key)}", highlight=False)


@app.command()
def show(config: ConfigPath, job_id: Annotated[int, typer.Argument(metavar="ID")]) -> None:
    """Show one image: what came of it, and where its results are."""
    from cxrnode.serve import open_database  # noqa: PLC0415
    from cxrnode.store import overview  # noqa: PLC0415

    with open_database(config) as database, database.begin(shared=True) as c:
        row = overview.job_row(c, job_id)
        deliveries = overview.deliveries_of(c, row) if row else []
    if row is None:
        raise typer.BadParameter(f"there is no image {job_id} in the queue: see cxrnode queue list")
    for key, value in row.items():
        typer.echo(f"{key}: {'' if value is None else value}")
    for d in deliveries:
        where = f"{d['destination']}: {d['state']} {d['status']}" if d["destination"] else "not sent yet"
        typer.echo(f"{d['kind']} {d['sop_instance_uid']}: {where}")


@app.command()
def retry(config: ConfigPath, job_ids: Ids) -> None:
    """Analyse these again, whatever came of them, and send the results that a destination refused once more."""
    _act(config, job_ids, "retry")


@app.command()
def bury(config: ConfigPath, job_ids: Ids) -> None:
    """Give these up: no more attempts. Their studies' reports say that they were not analysed."""
    _act(config, job_ids, "bury")


def _act(config: Path, job_ids: list[int], what: str) -> None:
    from cxrnode.audit.record import operator  # noqa: PLC0415
    from cxrnode.config import load_config  # noqa: PLC0415
    from cxrnode.serve import open_database  # noqa: PLC0415
    from cxrnode.store.outbox import Outbox  # noqa: PLC0415
    from cxrnode.store.queue import Queue  # noqa: PLC0415

    loaded = load_config(config)
    actor = operator()
    queue, wanted, gone = Queue(actor), len(job_ids), []
    with open_database(loaded) as database, database.begin() as c:
        if what == "retry":
            gone = _deleted(c, loaded.node.data_dir, job_ids)
            job_ids = [i for i in job_ids if i not in gone]
            studies = queue.retry(c, job_ids)
            Outbox(actor).reopen_refused(c, studies, now=time.time())
            changed = len(studies)
        else:
            changed = queue.bury(c, job_ids)
    typer.echo(f"{what}: {changed} of {wanted} images")
    for job_id in gone:
        typer.echo(f"{job_id}: its file was deleted (retention); have it sent again", err=True)
    if changed < wanted:
        fits = "that were analysed" if what == "retry" else "that still wait"
        typer.echo(f"only images {fits} are changed: see cxrnode queue show ID", err=True)
        raise typer.Exit(1)


def _deleted(c: Connection, root: Path, job_ids: list[int]) -> list[int]:
    """Those whose file is gone: analysed again they would only lose the answer that they have."""
    from cxrnode.store import overview  # noqa: PLC0415

    rows = [row for job_id in job_ids if (row := overview.job_row(c, job_id))]
    return [row["id"] for row in rows if row["received_at"] and not (root / row["path"]).is_file()]


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    why = f"{row['reason']}: {row['detail']}" if row["detail"] else row["reason"] or ""
    at = row["received_at"]
    received = datetime.fromtimestamp(at).astimezone().isoformat(" ", "seconds") if at else ""
    lane = "STAT" if row["priority"] == 0 else "routine"
    return (
        row["id"], row["state"], lane, row["attempts"], row["outcome"] or "", why, received,
        row["calling_aet"] or "", row["sop_instance_uid"] or row["path"],
    )  # fmt: skip
