"""What came of it all: what was acknowledged against what the node has, and what must never be."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from cxrnode.store.database import Database
from tests.support.audit import faults
from tests.support.node import Node
from tests.trouble.load import NO_ANSWER, Load

_SETTLE_S = 900.0
_LONGEST_ANSWER_S = 25.0  # 20 s, and what a busy machine adds to connect and to send
_LONGEST_PAGE_S = 6.0  # 5 s, and as much
HEAD = (
    "trouble", "sent", "acknowledged", "statuses", "longest answer", "longest /readyz", "/readyz named", "rows",
    "without a row", "results", "doubles", "not analysed", "deleted early", "ready after", "hung threads", "verdict",
)  # fmt: skip


@dataclass(kw_only=True)
class Account:
    """One line of the table. `wrong` says what must not be; empty where all is well."""

    name: str
    load: Load
    rows: int
    without_row: int
    results: int
    doubles: int
    not_analysed: Counter[str]
    deleted: int
    ready_s: float
    hung: str
    wrong: list[str] = field(default_factory=list)

    @property
    def cells(self) -> tuple[str, ...]:
        load = self.load
        told = ", ".join(f"{'none' if s == NO_ANSWER else f'0x{s:04X}'}: {n}" for s, n in sorted(load.statuses.items()))
        others = ", ".join(f"{what}: {n}" for what, n in sorted(self.not_analysed.items())) or "0"
        return (
            self.name, str(len(load.sent)), str(len(load.acknowledged)), told, f"{load.longest_s:.1f} s",
            f"{load.longest_page_s:.1f} s", ", ".join(sorted(load.unready)), str(self.rows), str(self.without_row),
            str(self.results), str(self.doubles), others, str(self.deleted), f"{self.ready_s:.1f} s", self.hung or "0",
            "; ".join(self.wrong) or "sound",
        )  # fmt: skip


@contextmanager
def _reading(node: Node) -> Iterator[Connection]:
    where: Path | str = node.database if node.database != "sqlite" else node.data_dir / "ledger.sqlite"
    database = Database(where, read_only=True)
    try:
        with database.begin() as c:
            yield c
    finally:
        database.close()


def rows(node: Node, query: str) -> list[tuple[Any, ...]]:
    """Of the node's database, without writing to it."""
    with _reading(node) as c:
        return [tuple(row) for row in c.exec_driver_sql(query)]


def seconds_to_ready(node: Node) -> float:
    began = time.monotonic()
    while not node.readiness().get("ready"):
        if time.monotonic() - began > _SETTLE_S:
            return float("inf")
        time.sleep(0.2)
    return time.monotonic() - began


def settle(node: Node) -> bool:
    """Wait until all that was taken is reported, and all results are delivered or refused."""
    open_jobs = "SELECT count(*) FROM job WHERE state NOT IN ('reported', 'dead')"
    open_deliveries = "SELECT count(*) FROM delivery WHERE state = 'pending'"
    until = time.monotonic() + _SETTLE_S
    while time.monotonic() < until:
        if not (rows(node, open_jobs)[0][0] or rows(node, open_deliveries)[0][0]):
            return True
        time.sleep(1.0)
    return False


def account(
    name: str, node: Node, load: Load, *, ready_s: float, settled: bool = True, longest_s: float = _LONGEST_ANSWER_S
) -> Account:
    """Read what the node has, and judge it. The load must have ended, and the node be settled."""
    taken = rows(node, "SELECT sop_instance_uid, path FROM instance WHERE received_at IS NOT NULL")
    results = rows(node, "SELECT kind, study_instance_uid, path FROM result")
    made = Counter((kind, study) for kind, study, _ in results)
    outcomes = rows(
        node, "SELECT outcome, reason, count(*) FROM job WHERE outcome IS NULL OR outcome <> 'analysed' "
        "GROUP BY outcome, reason"
    )  # fmt: skip
    files = [path for _, path in taken] + [path for *_, path in results]
    found = Account(
        name=name, load=load, rows=len(taken), without_row=len(load.acknowledged - {uid for uid, _ in taken}),
        results=len(results), doubles=sum(n - 1 for n in made.values()),
        not_analysed=Counter({f"{outcome or 'open'} {reason or ''}".strip(): n for outcome, reason, n in outcomes}),
        deleted=sum(not (node.data_dir / path).is_file() for path in files), ready_s=ready_s,
        hung=str(node.readiness().get("reasons", {}).get("threads", "")),
    )  # fmt: skip
    found.wrong = _wrong(found, node, settled=settled, longest_s=longest_s)
    return found


def _wrong(a: Account, node: Node, *, settled: bool, longest_s: float) -> list[str]:
    load = a.load
    sender_drops = [s for s in load.statuses if s not in (0, NO_ANSWER) and s & 0xFF00 != 0xA700]
    checks = {
        "sent and never acknowledged": load.sent - load.acknowledged,
        "acknowledged without a row": a.without_row,
        "a status at which a sender drops its study": sender_drops,
        f"a sender waited longer than {longest_s:.0f} s": load.longest_s > longest_s,
        "/readyz took longer than 5 s": load.longest_page_s > _LONGEST_PAGE_S,
        "not all results": settled and a.results != 2 * a.rows,
        "results that are there twice": a.doubles,
        "an outcome that is none of the film": a.not_analysed,
        "files deleted early": a.deleted,
        "a thread that hangs": a.hung,
        "never ready again": a.ready_s == float("inf"),
        "work that does not come to its end": not settled,
        "a traceback in the log": "Traceback" in node.log,
    }
    with _reading(node) as c:
        return [what for what, broken in checks.items() if broken] + faults(c)[:3]
