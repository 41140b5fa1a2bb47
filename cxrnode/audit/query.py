"""Queries over the ledger: filters that combine with AND, each an index."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from cxrnode.audit.kinds import PHRASES
from cxrnode.audit.times import local, stored
from cxrnode.dicom.uids import is_valid_uid
from cxrnode.errors import CxrnodeError
from cxrnode.store import ledger
from cxrnode.store.schema import ledger as table
from cxrnode.store.schema import settings
from cxrnode.types import AuditEvent

_OF_STUDIES = {"patient_id", "accession_number"}
# where a record of before schema 0003 says it; it says nothing of the patient, and an outcome by its kind alone
_OLDER = {"sop_instance_uid": "sop_instance_uid", "ae_title": "calling_aet", "outcome": "receipt"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What to find; a field that is None asks for nothing. Times are timezone-aware: since <= at < until.

    A patient, or an accession number, stands for all records of the studies that name it.
    """

    patient_id: str | None = None
    accession_number: str | None = None
    study_instance_uid: str | None = None
    sop_instance_uid: str | None = None
    ae_title: str | None = None
    kind: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def check(self) -> None:
        """Raises CxrnodeError where nothing can be meant by it."""
        for name in ("study_instance_uid", "sop_instance_uid"):
            check_uid(getattr(self, name))
        if self.since and self.until and self.since >= self.until:
            raise CxrnodeError(f"since {local(self.since)} is not before until {local(self.until)}: exchange them")
        for name in ("patient_id", "accession_number", "ae_title", "kind", "outcome"):
            if getattr(self, name) is not None and ledger.identifier(getattr(self, name)) is None:
                raise CxrnodeError(f"the filter {name.replace('_', ' ')} is empty: leave it out, or say what to find")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a query found, to be read once while its transaction is open; `cut`: older records were left out."""

    events: Generator[AuditEvent, None, None]
    cut: bool


def find(c: Connection, filters: Filters, *, limit: int | None = None) -> Found:
    """The records that pass all filters, in the order of the chain: the newest `limit` of them.

    Raises CxrnodeError where a filter means nothing; a kind that neither the ledger nor this cxrnode knows.
    """
    filters.check()
    check_kind(c, filters.kind)
    passes = conditions(filters, unindexed=_unindexed(c))
    cut = None
    if limit is not None:
        newest_left_out = select(table.c.seq).where(*passes).order_by(table.c.seq.desc()).offset(limit).limit(1)
        cut = c.execute(newest_left_out).scalar_one_or_none()
    if cut is not None:
        passes.append(table.c.seq > cut)
    return Found(events=ledger.events(c, statement(passes)), cut=cut is not None)


def statement(passes: list[ColumnElement[bool]]) -> Select[Any]:
    return select(*table.c).where(*passes).order_by(table.c.seq)


def conditions(filters: Filters, *, unindexed: int = 0) -> list[ColumnElement[bool]]:
    """`unindexed`: up to this record, who and what stand in the detail alone."""

    found: list[ColumnElement[bool]] = []
    for field in fields(filters):
        wanted, column = getattr(filters, field.name), table.c.get(field.name)
        if wanted is None or column is None:
            continue
        wanted = ledger.identifier(wanted)
        if field.name in _OF_STUDIES:
            other = table.alias()
            studies = select(other.c.study_instance_uid).where(other.c[field.name] == wanted)
            found.append(table.c.study_instance_uid.in_(studies))
        elif unindexed and field.name in _OLDER:
            said = table.c.detail.contains(f'"{_OLDER[field.name]}":{json.dumps(wanted)}', autoescape=True)
            found.append(or_(column == wanted, and_(table.c.seq <= unindexed, said)))
        else:
            found.append(column == wanted)
    if filters.since or filters.until:
        found += _in_time(filters)
    return found


def _in_time(filters: Filters) -> list[ColumnElement[bool]]:
    """Of that time, and from its first record to its last: clocks are set back, the chain is not.

    The bounds are what makes it quick: within them every other index goes in the order of the chain.
    """
    other = table.alias()
    seq = other.c.seq + 0  # the least seq itself would be looked for along the chain, and not along the times
    since = stored(filters.since) if filters.since else None
    until = stored(filters.until) if filters.until else None
    within = _between(other.c.at, since, until)
    bounds: list[ColumnElement[bool]] = []
    if since:
        bounds.append(table.c.seq >= select(func.min(seq)).where(*within).scalar_subquery())
    if until:
        bounds.append(table.c.seq <= select(func.max(seq)).where(*within).scalar_subquery())
    return bounds + _between(table.c.at, since, until)


def _between(at: ColumnElement[Any], since: str | None, until: str | None) -> list[ColumnElement[bool]]:
    return [*([at >= since] if since else []), *([at < until] if until else [])]


def check_uid(uid: str | None) -> None:
    """Raises CxrnodeError. None passes."""
    if uid is not None and not is_valid_uid(uid):
        raise CxrnodeError(f"'{uid}' is no UID: digits and dots, at most 64, no component empty (PS3.5 section 9.1)")


def check_kind(c: Connection, kind: str | None) -> None:
    """Raises CxrnodeError for a kind that this cxrnode does not write and the ledger does not hold."""
    if kind is None or kind in PHRASES:
        return
    if c.execute(select(table.c.seq).where(table.c.kind == kind).limit(1)).first() is None:
        raise CxrnodeError(f"there is no kind of record '{kind}'; there are: {', '.join(sorted(PHRASES))}")


def _unindexed(c: Connection) -> int:
    found = c.execute(select(settings.c.value).where(settings.c.key == ledger.UNINDEXED)).scalar_one_or_none()
    return int(found or 0)
