"""The audit ledger: append-only (triggers), hash-chained, in the transaction of the step that it records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any

from sqlalchemy import Connection, Select, func, select

from cxrnode.errors import StoreError
from cxrnode.store.schema import ledger
from cxrnode.types import AuditEvent

GENESIS = "0" * 64
UNINDEXED = "ledger_unindexed"  # setting: the last record of an older schema, of which only the detail says who
# Appending is on the way of every image, and composing a statement would cost more than running it
_LAST = "SELECT seq, hash FROM ledger ORDER BY seq DESC LIMIT 1"
_INSERT = {
    style: f"INSERT INTO ledger ({', '.join(ledger.c.keys())}) VALUES ({', '.join([mark] * len(ledger.c))})"  # noqa: S608
    for style, mark in {"sqlite": "?", "postgresql": "%s"}.items()
}
_LOCK = select(func.pg_advisory_xact_lock(int.from_bytes(b"cxrnode", "big")))
_ALL = select(*ledger.c).order_by(ledger.c.seq)
_PAGE = 1000
_IDENTIFIER_LENGTH = 64  # characters: VR LO (PS3.5 table 6.2-1); what is longer breaks its VR, and may be a book
_DIGEST_LENGTH = 16  # hexadecimal digits of sha256, in the place of the rest of a longer one

# seq, at, kind, actor, study, detail, prev_hash, hash, SOP instance, AE title, patient, accession number, outcome:
# a row of the table, in the order of its columns
Record = tuple[Any, ...]


def lock(c: Connection) -> None:
    """Keep others from appending until this transaction ends. SQLite has but one writer as it is."""
    if c.dialect.name == "postgresql":
        c.execute(_LOCK)


def append(
    c: Connection,
    kind: str,
    *,
    actor: str,
    study_instance_uid: str | None = None,
    sop_instance_uid: str | None = None,
    ae_title: str | None = None,
    patient_id: str | None = None,
    accession_number: str | None = None,
    outcome: str | None = None,
    **detail: object,
) -> int:
    """Add one record and return its seq; the chain goes on from the last record in the table.

    What is found by is a column: ae_title is the peer's; patient_id and accession_number stand with the instance that
    brings them. `detail` holds the rest, as JSON values.
    """
    lock(c)
    seq, prev_hash = newest(c) or (0, GENESIS)
    values = [
        seq + 1,
        datetime.now(UTC).isoformat(timespec="milliseconds"),
        kind,
        actor,
        study_instance_uid,
        _canonical(detail),
        prev_hash,
        "",  # its hash: of all the rest
        sop_instance_uid or None,
        identifier(ae_title),
        identifier(patient_id),
        identifier(accession_number),
        outcome or None,
    ]
    values[7] = hash_of(values)
    c.exec_driver_sql(_INSERT[c.dialect.name], tuple(values))
    return seq + 1


def identifier(text: str | None) -> str | None:
    """A name from outside as the ledger holds it, and as it is asked for: what no database refuses; None if empty.

    Of one that is too long, its beginning and a digest of all of it: two that share their beginning stay two.
    """
    cleaned = (text or "").replace("\0", "").encode("utf-8", "replace").decode().strip()
    if len(cleaned) > _IDENTIFIER_LENGTH:
        digest = hashlib.sha256(cleaned.encode()).hexdigest()[:_DIGEST_LENGTH]
        return f"{cleaned[: _IDENTIFIER_LENGTH - 1 - _DIGEST_LENGTH]}~{digest}"
    return cleaned or None


def newest(c: Connection) -> tuple[int, str] | None:
    """The last record's seq and hash; None where there is no record yet."""
    last = c.exec_driver_sql(_LAST).one_or_none()
    return (last[0], last[1]) if last else None


def events(c: Connection, query: Select[Any] = _ALL) -> Generator[AuditEvent, None, None]:
    """What `query`, a select of the ledger's columns, finds; never all in memory."""
    with c.execute(query.execution_options(yield_per=_PAGE)) as rows:  # closed where the reader stops early
        for row in rows:
            yield _event(row)


def _event(record: Any) -> AuditEvent:
    seq, at, kind, actor, study, detail, prev_hash, digest, sop, ae, patient, accession, outcome = record
    try:
        return AuditEvent(
            seq=seq, at=datetime.fromisoformat(at), kind=kind, actor=actor, study_instance_uid=study,
            detail=dict(json.loads(detail)), prev_hash=prev_hash, hash=digest, sop_instance_uid=sop, ae_title=ae,
            patient_id=patient, accession_number=accession, outcome=outcome,
        )  # fmt: skip
    except (TypeError, ValueError) as e:
        raise StoreError(f"record {seq} is none that cxrnode wrote: see cxrnode audit verify") from e


# --- the chain ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of a verification: how far the chain holds, and why no further."""

    records: int  # that hold, from the first on
    last_hash: str
    broken: int | None = None  # seq of the first record that was changed, removed or slipped in
    why: str = ""


def verify(c: Connection, known: Mapping[int, str] | None = None) -> Verdict:
    """Whether every record is as it was written. `known`: hashes by seq, kept elsewhere (anchors).

    The beginning of a chain is a chain, and so is one that was made anew as a whole: only a record that is known from
    elsewhere shows that the end was cut off before it, or that it was forged.
    """
    return check_chain(records(c), known or {})


def first_broken(c: Connection, known: tuple[int, str] | None = None) -> int | None:
    """The sequence number of the first record that is not as it was written; None where the chain holds."""
    return verify(c, dict([known]) if known else {}).broken


def check_chain(
    rows: Iterable[Record], known: Mapping[int, str], *, after: int = 0, prev_hash: str = GENESIS
) -> Verdict:
    """`verify` over records from wherever they come; they begin after record `after`, whose hash is `prev_hash`."""
    seq, prev, why = after, prev_hash, ""
    try:
        for row in rows:
            if why := _wrong(row, seq + 1, prev, known):
                break
            seq, prev = seq + 1, row[7]
    except (TypeError, ValueError):  # SQLite holds anything in any column
        why = "it cannot be read"
    if not why and known and max(known) > seq:
        why = f"the end is cut off: an anchor names record {max(known)}"
    return Verdict(records=seq - after, last_hash=prev, broken=seq + 1 if why else None, why=why)


def _wrong(row: Record, seq: int, prev_hash: str, known: Mapping[int, str]) -> str:
    if row[0] != seq:
        return f"it is missing: record {row[0]} follows"
    if row[6] != prev_hash:
        return "it does not follow from the record before it"
    if hash_of(row) != row[7]:
        return "its content is not what its hash was made of"
    if seq in known and known[seq] != row[7]:
        return "it is another one than its anchor says"
    return ""


def records(c: Connection, after: int = 0) -> Iterator[Record]:
    """All records after the one with this seq, as the driver gives them: quicker than rows, and never all in memory."""
    columns = ", ".join(ledger.c.keys())
    return stream(c, f"SELECT {columns} FROM ledger WHERE seq > {after:d} ORDER BY seq")  # noqa: S608 (a number)


def stream(c: Connection, query: str) -> Iterator[Any]:
    """The rows of a query without parameters, as the driver gives them. Raises StoreError; UnicodeError for no text."""
    driver: Any = c.connection.driver_connection
    dbapi: Any = c.dialect.loaded_dbapi
    try:
        if c.dialect.name == "postgresql":
            with driver.cursor(name="cxrnode_rows") as cursor:
                cursor.itersize = _PAGE
                yield from cursor.execute(query)
        else:
            yield from driver.execute(query)
    except dbapi.Error as e:
        if "decode" in str(e):  # text that is no UTF-8: somebody wrote past us
            raise UnicodeError from e
        raise StoreError(f"cannot read the database ({e}): is the disk, or the connection, sound?") from e


def content(record: Any) -> str:
    """What is hashed of a record: its canonical JSON (keys in order, no spaces, ASCII), without the hash itself.

    The columns that came with schema 0003 count where they hold a value, so that older records hash as they did.
    """
    seq, at, kind, actor, study, detail, prev_hash, _, sop, ae, patient, accession, outcome = record
    return (
        f"{{{_pair('accession_number', accession)}"
        f'"actor":{_quoted(actor)},'
        f"{_pair('ae_title', ae)}"
        f'"at":{_quoted(at)},"detail":{_quoted(detail)},"kind":{_quoted(kind)},'
        f"{_pair('outcome', outcome)}{_pair('patient_id', patient)}"
        f'"prev_hash":{_quoted(prev_hash)},"seq":{seq:d},'
        f"{_pair('sop_instance_uid', sop)}"
        f'"study_instance_uid":{"null" if study is None else _quoted(study)}}}'
    )


def _pair(key: str, value: str | None) -> str:
    return "" if value is None else f'"{key}":{_quoted(value)},'


def hash_of(record: Any) -> str:
    """What a record's hash is to be."""
    return hashlib.sha256(content(record).encode("ascii")).hexdigest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
