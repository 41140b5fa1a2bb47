"""Anchors and exports: what was done to the ledger shows against what was kept elsewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrnode.audit.anchors import Anchor, Anchors, cut_off_lines, read_anchors, take_anchor, write_anchor
from cxrnode.audit.export import lines, record_export, verify_export
from cxrnode.errors import CxrnodeError, StoreError
from cxrnode.store import ledger
from cxrnode.store.database import Database
from tests.support.audit import lived

NOW = 1_800_000_000.0
README = Path(__file__).parents[3] / "README.md"


@pytest.fixture
def database(where: Path | str) -> Iterator[Database]:
    opened = lived(where)
    yield opened
    opened.close()


def exported(database: Database, after: int = 0) -> str:
    with database.begin() as c:
        return "".join(lines(c, after=after))


# --- anchors


def test_the_node_anchors_after_so_many_records_or_so_long(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "anchors.jsonl"
    anchors = Anchors(database=database, file=file, every_records=20, every_s=3600)
    first = anchors.step(now=NOW)
    assert first
    assert anchors.step(now=NOW + 4000) is None  # nothing new but its own record
    with database.begin() as c:
        for _ in range(10):
            ledger.append(c, "received", actor="test")
    assert anchors.step(now=NOW + 10) is None
    assert anchors.step(now=NOW + 3700)
    with database.begin() as c:
        for _ in range(19):
            ledger.append(c, "received", actor="test")
    third = anchors.step(now=NOW + 3701)
    assert third
    assert [a.seq for a in read_anchors(file)] == [first.seq, first.seq + 11, third.seq]
    with database.begin() as c:
        anchored = [e for e in ledger.events(c) if e.kind == "anchored"]
        assert [e.detail["anchored_seq"] for e in anchored] == [a.seq for a in read_anchors(file)]
        assert ledger.verify(c, {a.seq: a.hash for a in read_anchors(file)}).broken is None


def test_a_clock_set_back_holds_no_anchor_up(database: Database, tmp_path: Path) -> None:
    anchors = Anchors(database=database, file=tmp_path / "a", every_records=20, every_s=3600)
    anchors.step(now=NOW)
    with database.begin() as c:
        ledger.append(c, "received", actor="test")
    assert anchors.step(now=NOW - 1e6)


def test_an_empty_ledger_has_no_anchor(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.sqlite")
    assert Anchors(database=database, file=tmp_path / "a", every_records=1, every_s=1).step(now=NOW) is None
    with pytest.raises(StoreError, match="the ledger is empty"), database.begin() as c:
        take_anchor(c)
    database.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,b\n1,2\n", "line 1: is no anchor"),
        (b'{"seq": 0, "hash": "' + b"a" * 64 + b'", "at": "2026-11-22T10:00:00+00:00"}', "line 1: is no anchor"),
        (b'{"seq": 1, "hash": "x", "at": "2026-11-22T10:00:00+00:00"}', "line 1: is no anchor"),
        (b'{"seq": 1, "hash": "' + b"a" * 64 + b'", "at": "2026-11-22T10:00:00"}', "line 1: is no anchor"),
        (b"\xff\xfe", "it is not text"),
        (b"[" * 100_000, "line 1: is no anchor"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "anchors"
    file.write_bytes(content)
    anchor = Anchor(seq=1, hash="a" * 64, at=datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(StoreError, match=said):
        write_anchor(file, anchor)
    assert file.read_bytes() == content


FIRST, SECOND = (Anchor(seq=n, hash="ab"[n - 1] * 64, at=datetime(2026, 1, n, tzinfo=UTC)) for n in (1, 2))
LINES = f"{FIRST.line()}\n{SECOND.line()}\n".encode()


@pytest.mark.parametrize("filled", [b"", b"\0" * 30], ids=["cut", "filled up with zeros"])
def test_a_file_cut_off_at_any_byte_is_gone_on_with(tmp_path: Path, filled: bytes) -> None:
    """By a full disk, or by a power cut, which may leave zeros."""
    third = Anchor(seq=3, hash="c" * 64, at=datetime(2026, 1, 3, tzinfo=UTC))
    for kept in range(len(LINES) + 1):
        file, left = tmp_path / f"anchors{kept}", LINES[:kept] + filled
        file.write_bytes(left)
        whole = [a for a in (FIRST, SECOND) if a.line().encode() in left]
        last = left.rpartition(b"\n")[2]
        cut_off = [left.count(b"\n") + 1] if last and b"}" not in last else []
        assert (read_anchors(file), cut_off_lines(file)) == (whole, cut_off)
        write_anchor(file, third)
        assert (read_anchors(file), cut_off_lines(file)) == ([*whole, third], cut_off)
        assert file.read_bytes().startswith(left)


def test_the_node_goes_on_anchoring_after_a_line_that_was_cut_off(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "anchors"
    anchors = Anchors(database=database, file=file, every_records=2, every_s=3600)
    first = anchors.step(now=NOW)
    with file.open("a") as f:
        f.write(FIRST.line()[:40])
    with database.begin() as c:
        for _ in range(3):
            ledger.append(c, "received", actor="test")
    second = anchors.step(now=NOW + 1)
    assert first
    assert second
    assert read_anchors(file) == [first, second]


def test_a_file_of_two_ledgers_is_refused(tmp_path: Path) -> None:
    for digest in "ab":
        anchor = Anchor(seq=1, hash=digest * 64, at=datetime(2026, 1, 1, tzinfo=UTC))
        with (tmp_path / "a").open("a") as f:
            f.write(anchor.line() + "\n")
    with pytest.raises(StoreError, match="two different records 1"):
        read_anchors(tmp_path / "a")


def test_an_anchor_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    anchor = Anchor(seq=1, hash="a" * 64, at=datetime(2026, 1, 1, tzinfo=UTC))
    for path in (tmp_path / "no" / "a", tmp_path):
        with pytest.raises(StoreError, match=r"cannot (write|read) the anchor"):
            write_anchor(path, anchor)


# --- exports


def test_an_export_verifies_as_the_ledger_does(database: Database) -> None:
    with database.begin() as c:
        record_export(c, actor="operator:test", after=0, form="jsonl")
        verdict = ledger.verify(c)
        last = [*ledger.events(c)][-1]
    whole = exported(database)
    assert verify_export(StringIO(whole), "x", {}) == (0, verdict)
    assert (last.kind, last.detail) == ("exported", {"format": "jsonl", "first": 1, "last": last.seq})
    after, rest = verify_export(StringIO(exported(database, after=5)), "x", {3: "0" * 64, last.seq: last.hash})
    assert (after, rest.records, rest.last_hash) == (5, verdict.records - 5, verdict.last_hash)


def test_what_was_done_to_an_export_is_found(tmp_path: Path) -> None:
    database = lived(tmp_path / "x.sqlite")
    whole = exported(database).splitlines(keepends=True)
    database.close()
    known = {len(whole): json.loads(whole[-1])["hash"]}
    for n in range(len(whole)):
        changed = [*whole[:n], whole[n].replace('"actor":"', '"actor":"x'), *whole[n + 1 :]]
        assert verify_export(StringIO("".join(changed)), "x", known)[1].broken == n + 1
        if 0 < n < len(whole) - 1:
            removed = whole[:n] + whole[n + 1 :]
            assert verify_export(StringIO("".join(removed)), "x", known)[1].broken == n + 1
    assert verify_export(StringIO("".join(whole[:-1])), "x", known)[1].broken == len(whole)


@given(
    st.one_of(
        st.text(), st.lists(st.sampled_from(['{"seq":1}', '{"seq":true}', "[]", '{"seq":2,"x":1}', "1"])).map("\n".join)
    )
)
def test_anything_is_an_export_or_an_error_in_words(text: str) -> None:
    try:
        assert verify_export(StringIO(text), "x", {})[1].broken is not None
    except CxrnodeError as e:
        assert "x" in str(e)  # noqa: PT017


def test_the_readme_s_script_verifies_an_export_without_cxrnode(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(import hashlib.*?)```", README.read_text(), re.DOTALL)
    database = lived(tmp_path / "x.sqlite")
    (tmp_path / "whole.jsonl").write_text(whole := exported(database))
    (tmp_path / "changed.jsonl").write_text(whole.replace('"intake"', '"nobody"', 1))
    database.close()
    done = {
        name: subprocess.run(
            [sys.executable, "-I", "-c", script, tmp_path / name], capture_output=True, text=True, check=False
        )
        for name in ("whole.jsonl", "changed.jsonl")
    }
    assert done["whole.jsonl"].returncode == 0, done["whole.jsonl"].stderr
    assert "record 2 " in done["changed.jsonl"].stderr
    assert done["changed.jsonl"].returncode == 1
