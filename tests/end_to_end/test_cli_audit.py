"""`cxrnode audit`, as it is called: what it prints, what it refuses in words, and its exit codes."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from cxrnode.cli.main import main
from cxrnode.store import ledger
from cxrnode.store.database import LEDGER_NAME, Database
from tests.support.audit import PATIENT, SR, lived
from tests.support.store import header, study_uid

Run = Callable[..., tuple[int, str, str]]
STUDY = study_uid(101)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with a ledger, as run-batch leaves it."""
    lived(tmp_path / LEDGER_NAME).close()
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        """(exit code, standard output, standard error); a traceback would be raised here."""
        monkeypatch.setattr(sys, "argv", ["cxrnode", "audit", *map(str, arguments)])
        try:
            main()
        except SystemExit as e:
            code = e.code
        printed = capsys.readouterr()
        return int(code or 0), printed.out, printed.err

    return call


def records(out: Path) -> list[tuple[int, str, str]]:
    database = Database(out / LEDGER_NAME, read_only=True)
    with database.begin() as c:
        found = [(e.seq, e.kind, e.actor) for e in ledger.events(c)]
    database.close()
    return found


def test_a_query_in_each_format(out: Path, run: Run) -> None:
    code, table, said = run("query", "--out", out, "--patient", PATIENT, "--since", "1h", "--limit", 3)
    assert code == 0
    assert len(table.splitlines()) == 3
    assert f"{SR} stored at pacs: 0x0000" in table
    assert "3 records since 20" in said
    assert "these are the newest 3; there are older ones: --limit 0" in said
    code, printed, said = run("query", "--out", out, "--study", STUDY, "--format", "json")
    found = json.loads(printed)
    assert {e["study_instance_uid"] for e in found} == {STUDY}
    assert f"{len(found)} records" in said
    code, printed, _ = run("query", "--out", out, "--study", STUDY, "--format", "csv", "--limit", 0)
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert [(int(r["seq"]), r["hash"]) for r in rows] == [(e["seq"], e["hash"]) for e in found]
    assert json.loads(rows[0]["detail"]) == found[0]["detail"]
    assert run("query", "--out", out, "--patient", "nobody", "--format", "json")[:2] == (0, "[\n]\n")


def test_a_study_and_a_result(out: Path, run: Run) -> None:
    code, told, _ = run("show", STUDY, "--out", out)
    assert code == 0
    assert "stored at pacs: 0x0000" in told
    code, told, _ = run("explain", SR, "--out", out)
    assert code == 0
    assert "weights" in told
    assert run("show", "1.2.3", "--out", out)[0] == 1
    code, _, said = run("explain", header(101, 1).sop_instance_uid, "--out", out)
    assert (code, "no record of a result" in said) == (1, True)


def test_verified_anchored_exported_and_then_forged(out: Path, run: Run) -> None:
    before = len(records(out))
    anchors, copy = out / "kept" / "anchors", out / "ledger.jsonl"
    anchors.parent.mkdir()
    assert run("anchor", anchors, "--out", out)[0] == 0
    code, printed, _ = run("export", "--out", out)
    copy.write_text(printed)
    assert code == 0
    assert [kind for _, kind, _ in records(out)[before:]] == ["anchored", "exported"]
    assert records(out)[-1][2].startswith("operator:")
    assert len(printed.splitlines()) == before + 2
    for how in (("--out", out), ("--file", copy)):
        code, told, _ = run("verify", *how, "--anchor", anchors)
        assert (code, f"{before + 2} records hold, 1 anchor agrees" in told) == (0, True)
    database = Database(out / LEDGER_NAME)
    with database.begin() as c:
        c.execute(text("DROP TRIGGER ledger_no_delete"))
        c.execute(text(f"DELETE FROM ledger WHERE seq >= {before}"))
    database.close()
    code, _, said = run("verify", "--out", out)
    assert (code, "ledger_no_delete" in said, "broken" in said) == (1, True, False)
    code, _, said = run("verify", "--out", out, "--anchor", anchors)
    assert (code, f"broken at record {before}: the end is cut off" in said) == (1, True)


def test_what_cannot_be_recorded_is_not_exported_unless_asked(
    out: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cxrnode.cli.audit._writable", _fails)
    code, printed, said = run("export", "--out", out)
    assert (code, printed) == (2, "")
    assert "not exported, for the ledger cannot record it: the disk is read-only. --unrecorded" in said
    code, printed, _ = run("export", "--out", out, "--unrecorded", "--after", 3)
    assert (code, json.loads(printed.splitlines()[0])["seq"]) == (0, 4)
    code, _, said = run("anchor", out / "anchors", "--out", out)
    assert (code, "the ledger does not say that it was anchored" in said) == (0, True)


def _fails(*_: object) -> None:
    from cxrnode.errors import StoreError

    raise StoreError("the disk is read-only")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["query", "--study", "1..2"], "no UID"),
        (["query", "--since", "soon"], "'soon' is no time: write a date"),
        (["query", "--since", "1h", "--until", "2h"], "is not before until"),
        (["query", "--kind", "x"], "there is no kind of record 'x'; there are:"),
        (["query", "--patient", ""], "patient id is empty"),
        (["query", "--colour", "red"], "No such option"),
        (["query", "--limit", "-1"], "greater than or equal to 0"),
        (["show", "x"], "'x' is no UID"),
        (["explain", "1.2..4"], "is no UID"),
        (["verify", "--anchor", "/nonexistent"], "cannot read the anchors in /nonexistent"),
        (["verify", "--file", "/nonexistent"], "one of --file, --config and --out"),
        (["anchor", "/nonexistent/a"], "cannot write the anchor to /nonexistent/a"),
    ],
)
def test_what_cannot_be_asked_is_said(out: Path, run: Run, arguments: list[str], said: str) -> None:
    code, printed, told = run(*arguments, "--out", out)
    assert code == 2
    assert printed == ""
    assert said in " ".join(told.split())


@pytest.mark.parametrize("command", [["query"], ["show", "1.2.3"], ["explain", "1.2.3"], ["verify"], ["export"]])
def test_a_database_that_cannot_be_read_is_said(tmp_path: Path, run: Run, command: list[str]) -> None:
    assert run(*command)[::2] == (
        2,
        "error: whose ledger? Give --config FILE (of the node) or --out DIR (of run-batch)\n",
    )
    code, _, said = run(*command, "--out", tmp_path)
    assert (code, "there is no database" in said) == (2, True)
    (tmp_path / LEDGER_NAME).write_text("no database" * 99)
    code, _, said = run(*command, "--out", tmp_path)
    assert (code, "file is not a database" in said) == (2, True)
    code, _, said = run(*command, "--config", tmp_path / "none.toml")
    assert (code, "cannot read the configuration" in said) == (2, True)


def test_a_ledger_of_a_newer_version_is_said(out: Path, run: Run) -> None:
    database = Database(out / LEDGER_NAME)
    with database.begin() as c:
        c.execute(text("UPDATE alembic_version SET version_num = '0099'"))
    database.close()
    for command in (["query"], ["verify"], ["export"], ["anchor", out / "a"]):
        code, _, said = run(*command, "--out", out)
        assert (code, "has schema revision 0099" in said) == (2, True)


def test_a_node_s_ledger_by_its_configuration(out: Path, run: Run) -> None:
    (out / "cxrnode.toml").write_text('[node]\ndata_dir = "."\n[audit]\nanchor_file = "kept/anchors"\n')
    code, told, _ = run("verify", "--config", out / "cxrnode.toml")
    assert (code, "records hold, 0 anchors agree" in told) == (0, True)


def test_an_anchor_that_somebody_changed_is_a_difference(out: Path, run: Run) -> None:
    anchors = out / "anchors"
    assert run("anchor", anchors, "--out", out)[0] == 0
    kept = json.loads(anchors.read_text())
    anchors.write_text(json.dumps(kept | {"hash": "0" * 64}) + "\n")
    code, _, said = run("verify", "--out", out, "--anchor", anchors)
    assert (code, f"broken at record {kept['seq']}: it is another one than its anchor says" in said) == (1, True)
    anchors.write_text(json.dumps(kept | {"seq": kept["seq"] + 9}) + "\n")
    code, _, said = run("verify", "--out", out, "--anchor", anchors)
    assert (code, "the end is cut off" in said) == (1, True)
    anchors.write_text(json.dumps(kept | {"seq": "9"}) + "\n")
    assert run("verify", "--out", out, "--anchor", anchors)[0] == 2


def test_an_anchor_that_was_cut_off_is_told_as_that(out: Path, run: Run) -> None:
    anchors = out / "anchors"
    assert run("anchor", anchors, "--out", out)[0] == 0
    anchors.write_text(anchors.read_text() + anchors.read_text()[:50])
    code, told, said = run("verify", "--out", out, "--anchor", anchors)
    assert (code, "1 anchor agrees" in told) == (0, True)
    assert f"{anchors}, line 2: cut off while it was written, so it is no anchor" in said
