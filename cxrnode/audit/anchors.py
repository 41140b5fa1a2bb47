"""Anchors: the ledger's newest record, written to a file that is kept elsewhere.

Whoever can write to the database can make the whole chain anew, or cut off its end. What then no longer agrees is an
anchor that was out of reach. A file holds one JSON object a line: seq, hash, and when it was taken. It is only ever
added to, for it may lie where nothing can be taken back: a line that a full disk or a power cut ended early stays,
counts as no anchor, and is told.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, select

from cxrnode.errors import StoreError
from cxrnode.loops import Loop
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.schema import ledger as ledger_table

ANCHORED = "anchored"
_POLL_S = 60.0
_BEGIN = '{"seq": '
_HASH = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    seq: int
    hash: str
    at: datetime  # when it was taken

    def line(self) -> str:
        return json.dumps({"seq": self.seq, "hash": self.hash, "at": self.at.isoformat(timespec="seconds")})


def read_anchors(path: Path) -> list[Anchor]:
    """The anchors of a file, in its order. Raises StoreError that names the line at fault."""
    lines = [(n, line) for n, line in _lines(path) if line.strip() and not _is_cut_off(line)]
    found = [_parse(line, f"{path}, line {n}") for n, line in lines]
    by_seq: dict[int, str] = {}
    for anchor in found:
        if by_seq.setdefault(anchor.seq, anchor.hash) != anchor.hash:
            raise StoreError(f"{path} names two different records {anchor.seq}: it holds anchors of two ledgers, or "
                             "was changed. Give each ledger a file of its own")  # fmt: skip
    return found


def cut_off_lines(path: Path) -> list[int]:
    """The numbers of the lines that were not written to their end. Raises StoreError."""
    return [n for n, line in _lines(path) if _is_cut_off(line)]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        return enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    except OSError as e:
        raise StoreError(
            f"cannot read the anchors in {path}: {e.strerror}. cxrnode audit anchor writes such a file"
        ) from e
    except UnicodeDecodeError as e:
        raise StoreError(f"{path} is no file of anchors (it is not text): name the one that audit anchor wrote") from e


def _is_cut_off(line: str) -> bool:
    """An anchor's beginning. What was not yet on the disk when the power failed may be there as zeros."""
    begun = line.partition("\0")[0]
    return bool(line.strip()) and (_BEGIN.startswith(begun) or (begun.startswith(_BEGIN) and "}" not in begun))


def _parse(line: str, where: str) -> Anchor:
    try:
        said = json.loads(line.rstrip("\0"))
        seq, digest, at = said["seq"], said["hash"], datetime.fromisoformat(said["at"])
        if type(seq) is not int or seq < 1 or not _HASH.fullmatch(digest) or at.tzinfo is None:
            raise ValueError(line)
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise StoreError(f'{where}: is no anchor, as in {{"seq": 1200, "hash": "5f1c... (64 digits)", "at": '
                         '"2026-11-22T10:00:00+00:00"}. Was the file changed?') from e  # fmt: skip
    return Anchor(seq=seq, hash=digest, at=at)


def take_anchor(c: Connection) -> Anchor:
    """The newest record. Raises StoreError where there is none."""
    last = ledger.newest(c)
    if last is None:
        raise StoreError("the ledger is empty: there is nothing to anchor yet")
    return Anchor(seq=last[0], hash=last[1], at=datetime.now(UTC))


def write_anchor(path: Path, anchor: Anchor) -> None:
    """Add a line to the file, durably. Raises StoreError; a file that holds something else is left as it is."""
    try:
        if path.exists():
            read_anchors(path)
        with path.open("ab+") as f:
            at_end = f.seek(0, os.SEEK_END)
            f.seek(max(0, at_end - 1))
            begin = b"" if f.read(1) in (b"", b"\n") else b"\n"  # after a line that was cut off
            f.write(begin + f"{anchor.line()}\n".encode())
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        raise StoreError(f"cannot write the anchor to {path}: {e.strerror}. May this user write there?") from e


def record_anchor(c: Connection, anchor: Anchor, path: Path, *, actor: str) -> None:
    ledger.append(c, ANCHORED, actor=actor, anchored_seq=anchor.seq, anchored_hash=anchor.hash, file=str(path))


def unanchored_since(c: Connection) -> datetime | None:
    """When the newest anchor was taken; None where nothing came after it, or no anchor ever was taken."""
    table = ledger_table
    query = select(table.c.seq, table.c.at).where(table.c.kind == ANCHORED).order_by(table.c.seq.desc()).limit(1)
    found, last = c.execute(query).first(), ledger.newest(c)
    if found is None or last is None or last[0] <= found.seq:
        return None
    return datetime.fromisoformat(found.at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """The node's own anchors: one after so many records, or after so long if there is anything new."""

    database: Database
    file: Path
    every_records: int
    every_s: float

    def loop(self) -> Loop:
        def step() -> float:
            self.step(now=time.time())
            return _POLL_S

        return Loop(name="anchors", step=step)

    def step(self, *, now: float) -> Anchor | None:
        """Take an anchor if one is due. `now`: seconds since 1970, UTC."""
        before = read_anchors(self.file)[-1:] if self.file.exists() else []
        with self.database.read() as c:
            last = ledger.newest(c)
        if last is None or not self._due(last[0], before, now):
            return None
        anchor = Anchor(seq=last[0], hash=last[1], at=datetime.fromtimestamp(now, UTC))
        write_anchor(self.file, anchor)
        with self.database.begin() as c:
            record_anchor(c, anchor, self.file, actor="deliver")
        log.info("anchored the ledger at record %d, hash %s", anchor.seq, anchor.hash)
        return anchor

    def _due(self, seq: int, before: list[Anchor], now: float) -> bool:
        if not before:
            return True
        new = seq - before[0].seq
        waited = now - before[0].at.timestamp()
        return new >= self.every_records or (new > 1 and not 0 <= waited < self.every_s)  # 1: its own record
