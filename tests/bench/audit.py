"""The audit ledger with a million records: queries, verification, and what appending to it costs. SQLite.

python -m tests.bench.audit [RECORDS]

The records are made in bulk, with the ledger's own hash; queries are the median of several studies, patients and days.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cxrnode.audit.query import Filters, find
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.schema import ledger as table

RECORDS = 1_000_000
DAYS = 30
KINDS = ("received", "claimed", "report_made", "analysed", "report_made", "delivery_queued", "delivered", "delivered",
         "committed", "committed")  # fmt: skip
START = datetime(2026, 10, 1, tzinfo=UTC)
ROUNDS, APPENDS = 9, 2000


def rows(records: int) -> Iterator[ledger.Record]:
    """A study of one image each: ten records."""
    prev, step = ledger.GENESIS, timedelta(days=DAYS) / records
    for n in range(records):
        study, kind = n // len(KINDS), KINDS[n % len(KINDS)]
        uid = f"1.2.826.0.1.3680043.8.{study}"
        came = kind == "received"
        at = (START + n * step).isoformat(timespec="milliseconds")
        detail = f'{{"host":"10.0.0.5","path":"spool/{uid}","sha256":"{n:064x}","size_bytes":10000000}}'
        row = [
            n + 1, at, kind, "intake", uid, detail, prev, "", f"{uid}.1", "PACS",
            f"P{study // 2}" if came else None, f"A{study}" if came else None, "new" if came else None,
        ]  # fmt: skip
        prev = row[7] = ledger.hash_of(row)
        yield tuple(row)


def fill(path: Path, records: int) -> None:
    database = Database(path)
    marks = ", ".join("?" * len(table.c))
    with database.begin() as c:
        c.exec_driver_sql("PRAGMA cache_size = -1000000")  # kB: each record lies at its hash's own place in an index
        driver = c.connection.driver_connection
        assert driver is not None
        driver.executemany(f"INSERT INTO ledger VALUES ({marks})", rows(records))
    database.close()


def timed(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def query_s(database: Database, *filters: Filters) -> tuple[float, int]:
    """(median seconds, records found by the last)"""
    found = [0]

    def run(f: Filters) -> None:
        with database.begin() as c:
            found[0] = sum(1 for _ in find(c, f).events)

    return statistics.median(timed(lambda f=f: run(f)) for f in filters), found[0]  # type: ignore[misc]


def append_us(path: Path) -> float:
    database = Database(path)

    def run() -> None:
        with database.begin() as c:
            for n in range(APPENDS):
                uid = f"1.2.826.0.1.9.{n}"
                ledger.append(
                    c, "received", actor="intake", study_instance_uid=uid, sop_instance_uid=f"{uid}.1",
                    ae_title="PACS", patient_id=f"P{n}", accession_number=f"A{n}", outcome="new", sha256="a" * 64,
                    size_bytes=10_000_000, host="10.0.0.5",
                )  # fmt: skip

    took = timed(run)
    database.close()
    return took / APPENDS * 1e6


def main(records: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        made = timed(lambda: fill(path, records))
        print(f"{records} records made in {made:.0f} s, {path.stat().st_size / 1e6:.0f} MB\n")
        print("| what | measured | wanted |\n|---|---|---|")
        database = Database(path, read_only=True)
        chosen = [records // len(KINDS) * k // ROUNDS for k in range(ROUNDS)]
        days = [START + timedelta(days=DAYS * k // ROUNDS) for k in range(ROUNDS)]
        queries = {
            "a study": ([Filters(study_instance_uid=f"1.2.826.0.1.3680043.8.{k}") for k in chosen], "50 ms"),
            "a patient": ([Filters(patient_id=f"P{k // 2}") for k in chosen], ""),
            "an instance": ([Filters(sop_instance_uid=f"1.2.826.0.1.3680043.8.{k}.1") for k in chosen], ""),
            "a day's new images": (
                [Filters(since=day, until=day + timedelta(days=1), kind="received") for day in days], ""
            ),
        }  # fmt: skip
        for name, (filters, wanted) in queries.items():
            took, found = query_s(database, *filters)
            print(f"| query by {name} ({found} records) | {took * 1000:.1f} ms | {wanted} |")
        first, found = query_s(database, *(Filters(since=day, until=day + timedelta(days=1)) for day in days))
        page = statistics.median(timed(lambda day=day: first_page(database, day)) for day in days)  # type: ignore[misc]
        print(f"| query by day, the newest 1000 | {page * 1000:.1f} ms | 200 ms |")
        print(f"| query by day, all {found} of it | {first * 1000:.1f} ms | |")
        took = timed(lambda: verify(database, records))
        print(f"| verify | {records / took:.0f} records/s | 50000 |")
        database.close()
        empty = statistics.median(append_us(Path(folder) / f"empty{n}.sqlite") for n in range(3))
        full = statistics.median(append_us(path) for _ in range(3))
        print(f"| append, to an empty ledger | {empty:.0f} us | |")
        print(f"| append, to the {records} | {full:.0f} us ({full / empty:.2f} x) | |")


def first_page(database: Database, day: datetime) -> None:
    with database.begin() as c:
        assert sum(1 for _ in find(c, Filters(since=day, until=day + timedelta(days=1)), limit=1000).events) <= 1000


def verify(database: Database, records: int) -> None:
    with database.begin() as c:
        assert ledger.verify(c).records == records


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else RECORDS)
