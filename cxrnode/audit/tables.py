"""The tables that a replay of the ledger fills: as the state tables, as far as records tell of them.

They lie in a temporary SQLite file, so that memory does not grow with the ledger. What no record says is UNTOLD: an
older cxrnode recorded less.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import Any

UNTOLD = b"?"
WAITING = "waiting"  # received or claimed: a claim is a lease, and no record says when it ends
DONE = "done"  # analysed or reported: older records do not say when a study was reported

KEYS = {
    "instance": ("id",),
    "job": ("id",),
    "study": ("study_instance_uid",),
    "result": ("sop_instance_uid",),
    "delivery": ("result_uid", "destination"),
}
OF_RECEIPT = ("transfer_syntax_uid", "sha256", "size_bytes", "called_aet", "host", "received_at")
PREDICTED = ("class_index", "probabilities", "cam_max", "engine")
# what the records tell of a row beside its key
TOLD = {
    "instance": (
        "path", "location", "study_instance_uid", "series_instance_uid", "sop_instance_uid", "pixel_digest", "header",
        "sop_class_uid", "calling_aet", *OF_RECEIPT,
    ),
    "job": ("study_instance_uid", "state", "priority", "outcome", "reason", "detail", *PREDICTED, "report_uid"),
    "study": (),
    "result": (
        "kind", "study_instance_uid", "instance_id", "sop_class_uid", "series_instance_uid", "path", "sha256",
        "predecessor_uid",
    ),
    "delivery": ("state", "status", "transaction_uid"),
}  # fmt: skip
_PRAGMAS = ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE", "cache_size = -65536")  # KiB


class Tables:
    """A row holds its key, the seq of the last record that told of it, and what they told."""

    def __init__(self) -> None:
        self.db = sqlite3.connect("", isolation_level=None)  # a temporary file, which SQLite deletes
        for pragma in _PRAGMAS:
            self.db.execute(f"PRAGMA {pragma}")
        self.db.execute("BEGIN")
        for table, key in KEYS.items():
            columns = ", ".join(["seq", *TOLD[table]])
            typed = "id INTEGER" if key == ("id",) else ", ".join(key)
            self.db.execute(f"CREATE TABLE {table} ({typed}, {columns}, PRIMARY KEY ({', '.join(key)}))")
        self.db.execute("CREATE INDEX job_study ON job (study_instance_uid)")
        self.db.execute("CREATE INDEX delivery_transaction ON delivery (transaction_uid)")

    def close(self) -> None:
        self.db.close()

    def put(self, table: str, row: dict[str, Any], *, instead: bool = True) -> None:
        """instead: of the row with this key, which stays otherwise."""
        verb, marks = "REPLACE" if instead else "INSERT OR IGNORE", ", ".join("?" * len(row))
        statement = f"{verb} INTO {table} ({', '.join(row)}) VALUES ({marks})"
        self.db.execute(statement, tuple(map(_held, row.values())))

    def set(self, table: str, where: dict[str, Any], row: dict[str, Any]) -> int:
        """How many rows it was true of."""
        values, mine = ", ".join(f"{k} = ?" for k in row), " AND ".join(f"{k} = ?" for k in where)
        statement = f"UPDATE {table} SET {values} WHERE {mine}"  # noqa: S608 (our own names)
        return self.db.execute(statement, tuple(map(_held, (*row.values(), *where.values())))).rowcount

    def row(self, table: str, key: tuple[Any, ...]) -> dict[str, Any] | None:
        """seq of the last record that told of it, and the told columns; None: no record tells of such a row."""
        columns = ("seq", *TOLD[table])
        where = " AND ".join(f"{k} = ?" for k in KEYS[table])
        try:
            found = self.db.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE {where}", key).fetchone()  # noqa: S608
        except (sqlite3.Error, UnicodeError, OverflowError):  # a key that no record can have named
            return None
        return dict(zip(columns, found, strict=True)) if found else None

    def count(self, table: str) -> int:
        return int(self.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608

    def keys(self, table: str) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """(seq of the last record, key) of every row."""
        for seq, *key in self.db.execute(f"SELECT seq, {', '.join(KEYS[table])} FROM {table}"):  # noqa: S608
            yield seq, tuple(key)


def _held(value: Any) -> Any:
    """JSON values as text."""
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value
