"""When an anchor is due, what a file of anchors may hold, what an export says of itself."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime, timedelta, timezone
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from cxrnode.audit.anchors import Anchor, Anchors, read_anchors, record_anchor, take_anchor, write_anchor
from cxrnode.audit.export import lines, record_export, verify_export
from cxrnode.errors import StoreError
from cxrnode.store import ledger
from cxrnode.store.database import Database

NOW = 1_800_000_000.0
AT = datetime.fromtimestamp(NOW, UTC)


def written(tmp_path: Path, records: int) -> Database:
    database = Database(tmp_path / "x.sqlite")
    with database.begin() as c:
        for _ in range(records):
            ledger.append(c, "received", actor="intake")
    return database


def append(database: Database, records: int) -> None:
    with database.begin() as c:
        for _ in range(records):
            ledger.append(c, "received", actor="intake")


def anchored(database: Database, file: Path) -> Anchors:
    return Anchors(database=database, file=file, every_records=20, every_s=3600.0)


# --- when


@pytest.mark.parametrize(
    ("new", "after_s", "due"),
    [
        (19, 0.0, False), (20, 0.0, True), (21, 0.0, True),  # so many records
        (2, 3599.9, False), (2, 3600.0, True), (19, 3600.1, True),  # so long
        (1, 3600.0, False), (1, 1e9, False), (0, 1e9, False),  # nothing new but its own record
        (2, 0.0, False), (2, -0.1, True), (1, -0.1, False),  # a clock that was set back
    ],
)  # fmt: skip
def test_when_an_anchor_is_due(tmp_path: Path, new: int, after_s: float, due: bool) -> None:
    database, file = written(tmp_path, 5), tmp_path / "anchors"
    with database.begin() as c:
        write_anchor(file, Anchor(seq=1, hash="a" * 64, at=AT - timedelta(days=9)))
        write_anchor(file, Anchor(seq=take_anchor(c).seq, hash="b" * 64, at=AT))  # the last line counts
    append(database, new)
    made = anchored(database, file).step(now=NOW + after_s)
    assert (made is not None) == due
    with database.begin() as c:
        last = [*ledger.events(c)][-1]
    assert (last.kind == "anchored") == due
    database.close()


def test_the_first_anchor_is_due_at_once_and_is_recorded(tmp_path: Path) -> None:
    database, file = written(tmp_path, 3), tmp_path / "anchors"
    with database.begin() as c:
        third = [*ledger.events(c)][-1]
    made = anchored(database, file).step(now=NOW)
    assert made == Anchor(seq=3, hash=third.hash, at=AT)
    assert read_anchors(file) == [made]
    assert file.read_text() == f'{{"seq": 3, "hash": "{third.hash}", "at": "2027-01-15T08:00:00+00:00"}}\n'
    with database.begin() as c:
        (*_, record) = ledger.events(c)
        assert (record.seq, record.kind, record.actor) == (4, "anchored", "deliver")
        assert record.detail == {"anchored_seq": 3, "anchored_hash": third.hash, "file": str(file)}
    database.close()


def test_by_hand_it_is_the_newest_record_now(tmp_path: Path) -> None:
    database = written(tmp_path, 3)
    with database.begin() as c:
        anchor = take_anchor(c)
        assert (anchor.seq, anchor.hash) == ledger.newest(c)
        record_anchor(c, anchor, Path("/a"), actor="operator:ada")
        assert [*ledger.events(c)][-1].actor == "operator:ada"
    assert abs(datetime.now(UTC) - anchor.at) < timedelta(minutes=1)
    database.close()


def test_the_node_looks_once_a_minute(tmp_path: Path) -> None:
    database = written(tmp_path, 1)
    loop = anchored(database, tmp_path / "anchors").loop()
    assert (loop.name, loop.step()) == ("anchors", 60.0)
    (made,) = read_anchors(tmp_path / "anchors")
    assert abs(datetime.now(UTC) - made.at) < timedelta(minutes=1)
    database.close()


# --- what a file holds

GOOD: dict[str, Any] = {"seq": 1, "hash": "0123456789abcdef" * 4, "at": "2026-11-22T10:00:00+01:00"}


def test_anchors_are_read_in_their_order_with_blank_lines_between(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text(f"\n{json.dumps(GOOD)}\n  \n{json.dumps({**GOOD, 'seq': 3})}\n{json.dumps({**GOOD, 'seq': 2})}\n"
                    f"{json.dumps({**GOOD, 'at': '2026-11-23T10:00:00Z'})}\n")  # fmt: skip
    found = read_anchors(file)
    assert [a.seq for a in found] == [1, 3, 2, 1]  # the same record twice agrees
    assert found[0] == Anchor(
        seq=1, hash=GOOD["hash"], at=datetime(2026, 11, 22, 10, tzinfo=timezone(timedelta(hours=1)))
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"seq": 0}, {"seq": -1}, {"seq": True}, {"seq": "1"}, {"seq": 1.0}, {"seq": None}, {"hash": "a" * 63},
        {"hash": "a" * 65}, {"hash": "A" * 64}, {"hash": "g" * 64}, {"hash": 1}, {"at": "2026-11-22T10:00:00"},
        {"at": "yesterday"}, {"at": 1},
    ],
)  # fmt: skip
def test_a_line_that_is_no_anchor_is_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    file = tmp_path / "a"
    file.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps({**GOOD, **wrong})}\n")
    with pytest.raises(StoreError, match=f"^{file}, line 3: is no anchor"):
        read_anchors(file)


@pytest.mark.parametrize("missing", GOOD)
def test_an_anchor_has_all_its_parts(tmp_path: Path, missing: str) -> None:
    file = tmp_path / "a"
    file.write_text(json.dumps({k: v for k, v in GOOD.items() if k != missing}))
    with pytest.raises(StoreError, match="line 1: is no anchor"):
        read_anchors(file)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot read the anchors in .*: No such file or directory"):
        read_anchors(tmp_path / "none")


def test_an_anchor_is_on_the_disk_before_it_counts_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, anchor, synced = tmp_path / "a", Anchor(seq=1, hash="a" * 64, at=AT), list[str]()
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        synced.append(file.read_text())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    write_anchor(file, anchor)
    write_anchor(file, anchor)
    assert synced == [anchor.line() + "\n", 2 * (anchor.line() + "\n")]


def test_a_file_that_disagrees_takes_no_anchor(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text(f"{json.dumps(GOOD)}\n{json.dumps({**GOOD, 'hash': 'b' * 64})}\n")
    before = file.read_bytes()
    with pytest.raises(StoreError, match="two different records 1"):
        write_anchor(file, Anchor(seq=2, hash="c" * 64, at=AT))
    assert file.read_bytes() == before


# --- exports


def exported(database: Database, after: int = 0) -> str:
    with database.begin() as c:
        return "".join(lines(c, after=after))


def test_an_export_is_what_was_hashed_and_its_hash(tmp_path: Path) -> None:
    database = written(tmp_path, 2)
    text = exported(database)
    assert text.endswith("\n")
    with database.begin() as c:
        events = list(ledger.events(c))
    for line, e in zip(text.splitlines(), events, strict=True):
        said = json.loads(line)
        assert (said["seq"], said["hash"], said["prev_hash"]) == (e.seq, e.hash, e.prev_hash)
        assert list(said)[-1] == "hash"
    assert exported(database, after=1).splitlines() == text.splitlines()[1:]
    assert exported(database, after=2) == ""
    database.close()


@pytest.mark.parametrize(("records", "after", "first", "last"), [(0, 0, 1, 1), (3, 0, 1, 4), (3, 2, 3, 4)])
def test_an_export_says_which_records_it_holds(tmp_path: Path, records: int, after: int, first: int, last: int) -> None:
    database = written(tmp_path, records)
    with database.begin() as c:
        record_export(c, actor="operator:ada", after=after, form="atna")
        e = [*ledger.events(c)][-1]
    assert (e.kind, e.actor, e.detail) == ("exported", "operator:ada", {"format": "atna", "first": first, "last": last})
    assert e.seq == last
    assert len(exported(database, after=after).splitlines()) == last - first + 1
    database.close()


def test_an_export_that_begins_later_is_a_chain_from_there(tmp_path: Path) -> None:
    database = written(tmp_path, 4)
    with database.begin() as c:
        hashes = {e.seq: e.hash for e in ledger.events(c)}
    database.close()
    for after in (0, 1, 3):
        text = "".join(exported(database, after=after))
        known = {after: "0" * 64, after + 1: hashes[after + 1]} if after else {1: hashes[1]}
        began, verdict = verify_export(StringIO(text), "x", known)  # what lies before its beginning it cannot prove
        assert (began, verdict.broken, verdict.records) == (after, None, 4 - after)
        known[after + 1] = "0" * 64
        assert verify_export(StringIO(text), "x", known)[1].broken == after + 1


def test_the_first_record_must_follow_nothing(tmp_path: Path) -> None:
    database = written(tmp_path, 2)
    first, second = (json.loads(line) for line in exported(database).splitlines())
    database.close()
    first["prev_hash"] = "f" * 64
    del first["hash"]
    canonical = json.dumps(first, sort_keys=True, separators=(",", ":"))  # hashed again, as a forger would
    first["hash"] = hashlib.sha256(canonical.encode()).hexdigest()
    assert verify_export(StringIO(f"{json.dumps(first)}\n"), "x", {})[1].broken == 1
    second["prev_hash"] = "f" * 64  # its hash no longer fits
    assert verify_export(StringIO(f"{json.dumps(second)}\n"), "x", {})[1].broken == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "x holds no records"),
        ("[]\n", "x, line 1: is no record of the ledger"),
        ('{"seq": "1"}\n', "x, line 1: is no record of the ledger"),
        ('{"seq": true}\n', "x, line 1: is no record of the ledger"),
        ('{"seq": 1, "other": 2}\n', "x, line 1: is no record of the ledger"),
        ('{"seq"\n', "x, line 1: is not JSON"),
        ("[" * 100_000, "x, line 1: is not JSON"),
    ],
)
def test_what_is_no_export_is_said(text: str, said: str) -> None:
    with pytest.raises(StoreError, match=said):
        verify_export(StringIO(text), "x", {})


def test_what_is_no_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with (tmp_path / "x").open(encoding="utf-8") as f, pytest.raises(StoreError, match="x is not text"):
        verify_export(f, "x", {})


def test_a_record_that_cxrnode_did_not_write_ends_an_export(tmp_path: Path) -> None:
    """Those before it are out: who reads the export sees where it ends."""
    database = written(tmp_path, 2)
    with database.begin() as c:
        c.exec_driver_sql("DROP TRIGGER ledger_no_update")
        c.exec_driver_sql("UPDATE ledger SET actor = x'ff' WHERE seq = 2")
    with database.begin() as c:
        found = lines(c)
        assert json.loads(next(found))["seq"] == 1
        with pytest.raises(StoreError, match="a record that cxrnode did not write: see cxrnode audit verify"):
            next(found)
