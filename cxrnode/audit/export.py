"""The ledger as a file that can be verified without this program, and without the database.

JSON Lines, a record a line: what was hashed, and its hash. Take the hash away, write the rest as JSON with its keys in
order, no spaces, in ASCII: the sha256 of that is the hash, and prev_hash is the hash of the line before.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import chain
from typing import TextIO

from sqlalchemy import Connection

from cxrnode.errors import StoreError
from cxrnode.store import ledger
from cxrnode.store.schema import ledger as table

EXPORTED = "exported"
_KEYS = tuple(table.c.keys())


def lines(c: Connection, *, after: int = 0) -> Generator[str, None, None]:
    """The records after this seq, each a line; never all in memory."""
    try:
        for record in ledger.records(c, after):
            yield f'{ledger.content(record)[:-1]},"hash":{json.dumps(record[7])}}}\n'
    except (TypeError, ValueError) as e:
        raise StoreError("the ledger holds a record that cxrnode did not write: see cxrnode audit verify") from e


def record_export(c: Connection, *, actor: str, after: int, form: str) -> None:
    """Say in the ledger what leaves it: everything after `after`, this record the last."""
    last = ledger.newest(c)
    ledger.append(c, EXPORTED, actor=actor, format=form, first=after + 1, last=(last[0] if last else 0) + 1)


def verify_export(f: TextIO, name: str, known: Mapping[int, str]) -> tuple[int, ledger.Verdict]:
    """(the seq that the file begins after, verdict). A file that begins later is a chain from there on."""
    rows = _records(f, name)
    first = next(rows, None)
    if first is None:
        raise StoreError(f"{name} holds no records: name a file that cxrnode audit export wrote")
    after, prev_hash = first[0] - 1, first[6] if first[0] > 1 else ledger.GENESIS
    return after, ledger.check_chain(chain([first], rows), known, after=after, prev_hash=prev_hash)


def _records(f: Iterable[str], name: str) -> Iterator[ledger.Record]:
    n = 0
    try:
        for n, line in enumerate(f, 1):
            said = json.loads(line)
            if not isinstance(said, dict) or type(said.get("seq")) is not int or set(said) - set(_KEYS):
                raise StoreError(f"{name}, line {n}: is no record of the ledger. Name a file that audit export wrote")
            yield tuple(said.get(key) for key in _KEYS)
    except UnicodeDecodeError as e:
        raise StoreError(f"{name} is not text: name a file that cxrnode audit export wrote") from e
    except (ValueError, RecursionError) as e:
        raise StoreError(f"{name}, line {n}: is not JSON. Was the file cut off or changed?") from e
