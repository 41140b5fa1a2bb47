"""The audit ledger with a million records, and the tables they made: queries, verification, appending. SQLite.

python -m tests.bench.audit [RECORDS]

The records are made in bulk, with the ledger's own hash; queries are the median of several studies, patients and days.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

from cxrnode.audit.query import Filters, find
from cxrnode.audit.state import verify_store
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.schema import ledger as table

RECORDS = 1_000_000
DAYS = 30
PER_STUDY = 10  # records, of one image, its two results and their deliveries
SC, SYNTAX = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.1.2.1"
HEADER = b"x" * 600
HEADER_SHA256 = sha256(HEADER).hexdigest()
PROBABILITIES = [0.93, 0.05, 0.02]
START = datetime(2026, 10, 1, tzinfo=UTC)
ROUNDS, APPENDS = 9, 2000


def records_of(study: int) -> Iterator[tuple[str, str, dict[str, object]]]:
    """(kind, SOP Instance UID, detail) of a study of one image, as the node records it."""
    uid, sha = f"1.2.826.0.1.3680043.8.{study}", f"{study:064x}"
    image, capture, sr, job = f"{uid}.1", f"2.25.{study}1", f"2.25.{study}2", study + 1
    yield "received", image, {
        "job": job, "path": path_of(study), "sha256": sha, "size_bytes": 10_000_000, "called_aet": "CXRNODE",
        "host": "10.0.0.5", "priority": 1, "received_at": 1.5, "transfer_syntax_uid": SYNTAX,
        "series_instance_uid": f"{uid}.0", "sop_class_uid": SC, "header_sha256": HEADER_SHA256,
    }  # fmt: skip
    of = {"sha256": sha, "sop_class_uid": SC, "series_instance_uid": f"{uid}.9", "predecessor": None}
    yield "report_made", capture, of | {"object": "capture", "path": f"dicom/{capture}", "job": job}
    yield "analysed", image, {
        "job": job, "path": path_of(study), "pixel_digest": sha, "class_index": 0, "probabilities": PROBABILITIES,
        "cam_max": 1.5, "engine": "cpu",
    }  # fmt: skip
    yield "report_made", sr, of | {"object": "sr", "path": f"dicom/{sr}", "jobs": [job]}
    yield "study_reported", "", {"jobs": [job]}
    yield "delivery_queued", "", {"destination": "pacs", "results": 2, "sop_instance_uids": [sr, capture]}
    for kind, more in (("delivered", {"status": "0x0000"}), ("committed", {"transaction_uid": "2.25.7"})):
        for result in (sr, capture):
            yield kind, result, {"destination": "pacs", **more}


def rows(records: int) -> Iterator[ledger.Record]:
    """Ten records a study."""
    prev, step = ledger.GENESIS, timedelta(days=DAYS) / records
    said = ((study, *record) for study in range(records // PER_STUDY) for record in records_of(study))
    for n, (study, kind, sop, detail) in enumerate(said):
        came = kind == "received"
        row = [
            n + 1, (START + n * step).isoformat(timespec="milliseconds"), kind, "intake",
            f"1.2.826.0.1.3680043.8.{study}", json.dumps(detail, sort_keys=True, separators=(",", ":")), prev, "",
            sop or None, "PACS", f"P{study // 2}" if came else None, f"A{study}" if came else None,
            "new" if came else None,
        ]  # fmt: skip
        prev = row[7] = ledger.hash_of(row)
        yield tuple(row)


def table_rows(study: int) -> Iterator[tuple[str, dict[str, object]]]:
    """(table, row): what these records made."""
    (_, image, came), (_, capture, _), (_, _, said), (_, sr, _), *_ = records_of(study)
    uid, job = f"1.2.826.0.1.3680043.8.{study}", study + 1
    same = ("path", "sha256", "size_bytes", "called_aet", "host", "received_at", "transfer_syntax_uid",
            "series_instance_uid", "sop_class_uid")  # fmt: skip
    location = json.dumps({"container": path_of(study), "kind": "file", "offset": 0})
    yield "instance", {k: came[k] for k in same} | {
        "id": job, "study_instance_uid": uid, "sop_instance_uid": image, "calling_aet": "PACS", "location": location,
        "header": HEADER, "pixel_digest": said["pixel_digest"],
    }  # fmt: skip
    yield "job", {
        "id": job, "study_instance_uid": uid, "state": "reported", "priority": 1, "attempts": 1, "not_before": 0.0,
        "outcome": "analysed", "class_index": 0, "probabilities": json.dumps(PROBABILITIES), "cam_max": 1.5,
        "engine": "cpu", "report_uid": sr,
    }  # fmt: skip
    yield "study", {"study_instance_uid": uid, "last_received_at": 1.5, "attempts": 0, "not_before": 0.0}
    for kind, result in (("capture", capture), ("sr", sr)):
        yield "result", {
            "sop_instance_uid": result, "kind": kind, "study_instance_uid": uid, "sha256": f"{study:064x}",
            "instance_id": job if kind == "capture" else None, "sop_class_uid": SC, "path": f"dicom/{result}",
            "series_instance_uid": f"{uid}.9",
        }  # fmt: skip
        yield "delivery", {
            "result_uid": result, "destination": "pacs", "state": "committed", "attempts": 1, "not_before": 0.0,
            "status": "0x0000", "updated_at": 1.5,
        }  # fmt: skip


def path_of(study: int) -> str:
    return f"spool/1.2.826.0.1.3680043.8.{study}/1.2.826.0.1.3680043.8.{study}.1-{study:016x}.dcm"


def fill(path: Path, records: int) -> None:
    database = Database(path)
    marks = ", ".join("?" * len(table.c))
    with database.begin() as c:
        c.exec_driver_sql("PRAGMA cache_size = -1000000")  # kB: each record lies at its hash's own place in an index
        driver = c.connection.driver_connection
        assert driver is not None
        driver.executemany(f"INSERT INTO ledger VALUES ({marks})", rows(records))
        for study in range(records // PER_STUDY):
            for name, row in table_rows(study):
                names, values = ", ".join(row), ", ".join(f":{k}" for k in row)
                driver.execute(f"INSERT INTO {name} ({names}) VALUES ({values})", row)
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
        chosen = [records // PER_STUDY * k // ROUNDS for k in range(ROUNDS)]
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
        print(f"| the chain alone | {records / took:.0f} records/s | 50000 |")
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:
            wall, cpu, peak = alone.submit(verify_all, path, records).result()
        print(f"| verify: the chain, and the tables beside it | {wall:.0f} s, of the processor {cpu:.0f} s | |")
        print(f"| memory of the process that does it, at its peak | {peak:.0f} MB | |")
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


def verify_all(path: Path, records: int) -> tuple[float, float, float]:
    """(seconds, seconds of the processor, MB at the peak) of a process of its own."""
    database, found = Database(path, read_only=True), []

    def run() -> None:
        with database.begin() as c:
            found.append(verify_store(c, {}, most=3))

    wall = timed(run)
    database.close()
    assert found[0].verdict.records == records
    compared = found[0].compared
    assert compared
    assert (compared.different, compared.untold) == (0, 0), compared.first
    assert compared.rows["delivery"] == records // PER_STUDY * 2
    return wall, time.process_time(), peak_mb()


def peak_mb() -> float:
    """Of this process itself: what getrusage says counts the one that it was forked from."""
    (line,) = (k for k in Path("/proc/self/status").read_text().splitlines() if k.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else RECORDS)
