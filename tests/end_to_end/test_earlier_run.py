"""A folder of another run is refused before anything in it changes, and the message says how to go on with it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cxrnode.cli.main import app
from cxrnode.earlier_run import check_same, run_of
from cxrnode.errors import StoreError
from cxrnode.store.database import LEDGER_NAME, Database
from engines.bundle import load_bundle
from tests.support.batch import studies

WRITTEN_BY_0_1_0 = (Path(__file__).parents[1] / "unit" / "store" / "data" / "v0_1_0.sql").read_text()
OF_0_1_0 = "ab" * 32


def run(archive: Path, out: Path, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["run-batch", str(archive), "--out", str(out), "--quiet", *options])
    refused = isinstance(done.exception, StoreError)  # which `main` says, with exit code 2
    return 2 if refused else done.exit_code, done.stderr + str(done.exception or "")


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(folder)): (p.lstat().st_mode, p.read_bytes() if p.is_file() else b"")
        for p in folder.rglob("*")
    }


def by_0_1_0(out: Path) -> None:
    out.mkdir(mode=0o755)
    with sqlite3.connect(out / LEDGER_NAME) as old:
        old.executescript(WRITTEN_BY_0_1_0)
        old.execute("PRAGMA journal_mode=WAL")
    old.close()
    (out / "dicom").mkdir()
    (out / "dicom" / ".x.dcm.00.part").write_bytes(b"half")
    (out / LEDGER_NAME).chmod(0o644)


def killed_by_0_1_0(out: Path) -> None:
    """Its newest records are in the write-ahead log."""
    by_0_1_0(out)
    alive = sqlite3.connect(out / LEDGER_NAME)
    alive.execute("UPDATE settings SET value = replace(value, '/archive', '/elsewhere')")
    alive.commit()
    copy = out.with_name("copy")
    shutil.copytree(out, copy)
    alive.close()
    shutil.rmtree(out)
    copy.rename(out)
    assert (out / f"{LEDGER_NAME}-wal").stat().st_size


@pytest.mark.parametrize(("made", "archive"), [(by_0_1_0, "/archive"), (killed_by_0_1_0, "/elsewhere")])
def test_an_older_folder_of_another_bundle_stays_as_it_is(
    made: Callable[[Path], None], archive: str, tmp_path: Path
) -> None:
    out, bundle = tmp_path / "out", load_bundle("default")
    studies(tmp_path / "in", 1, size=(128, 128))
    made(out)
    before = everything(out)
    code, said = run(tmp_path / "in", out)
    assert (code, everything(out) == before) == (2, True)
    assert f"made with the model bundle (digest {OF_0_1_0[:12]})" in said
    assert f"this is {bundle.name} {bundle.manifest.version} (digest {bundle.digest[:12]})" in said
    assert f"is of {archive}, and not of {tmp_path / 'in'}" in said
    assert "give --bundle with the folder of that bundle and the same archives" in said
    assert "another --out" in said
    assert "--restart" in said
    (out / "run.json").write_text(
        json.dumps({"bundle": {"name": "ours", "version": "0.9", "digest": OF_0_1_0}}), encoding="utf-8"
    )
    assert f"made with the model bundle ours 0.9 (digest {OF_0_1_0[:12]})" in run(tmp_path / "in", out)[1]


def test_the_bundle_it_was_made_with_is_named_and_goes_on(tmp_path: Path) -> None:
    out, archive = tmp_path / "out", studies(tmp_path / "in", 1, size=(128, 128))
    assert run(archive, out, "--bundle", "resnet50-cxr3")[0] == 0
    made, now = load_bundle("resnet50-cxr3"), load_bundle("default")
    before = everything(out)
    code, said = run(archive, out)
    assert (code, everything(out) == before) == (2, True)
    assert f"made with the model bundle {made.name} {made.manifest.version} (digest {made.digest[:12]})" in said
    assert f"and this is {now.name} {now.manifest.version}" in said
    assert "To go on with it, give --bundle resnet50-cxr3; for a run of its own, give another --out" in said
    assert run(archive, out, "--bundle", "resnet50-cxr3")[0] == 0


def test_a_run_json_cut_off_at_any_byte_costs_the_bundle_s_name_alone(tmp_path: Path) -> None:
    told = json.dumps({"bundle": {"name": "ours", "version": "0.9", "digest": OF_0_1_0}}).encode()
    found, wanted = {"bundle": OF_0_1_0, "archives": ["/a"]}, run_of(load_bundle("default"), [Path("/a")])
    for kept in range(len(told)):
        (tmp_path / "run.json").write_bytes(told[:kept])
        with pytest.raises(StoreError, match=rf"the model bundle \(digest {OF_0_1_0[:12]}\), and this is"):
            check_same(tmp_path, found, wanted)


def test_other_archives_are_named(tmp_path: Path) -> None:
    out, archive = tmp_path / "out", studies(tmp_path / "in", 1, size=(128, 128))
    assert run(archive, out)[0] == 0
    before = everything(out)
    code, said = run(archive / "s000", out)
    assert (code, everything(out) == before) == (2, True)
    assert f"is of {archive}, and not of {archive / 's000'}. To go on with it, give the same archives" in said


@pytest.mark.parametrize("name", ["notes.txt", LEDGER_NAME])
def test_a_folder_that_is_none_of_ours_stays_as_it_is(tmp_path: Path, name: str) -> None:
    out, archive = tmp_path / "out", studies(tmp_path / "in", 1, size=(128, 128))
    out.mkdir()
    foreign(out / name)
    before = everything(out)
    assert run(archive, out)[0] == 2
    assert everything(out) == before


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as theirs:
        theirs.execute("CREATE TABLE notes (a)")
    theirs.close()


def test_a_database_that_is_none_of_ours_stays_as_it_is(tmp_path: Path) -> None:
    foreign(tmp_path / "notes.sqlite")
    before = everything(tmp_path)
    with pytest.raises(StoreError, match="holds tables that are not ours"):
        Database(tmp_path / "notes.sqlite")
    assert everything(tmp_path) == before


def test_an_older_node_s_queue_is_not_migrated_by_hand(tmp_path: Path) -> None:
    by_0_1_0(tmp_path / "node")
    (tmp_path / "cxrnode.toml").write_text('[node]\ndata_dir = "node"\n')
    before = everything(tmp_path / "node")
    done = CliRunner().invoke(app, ["queue", "retry", "1", "--config", str(tmp_path / "cxrnode.toml")])
    assert isinstance(done.exception, StoreError)
    contents = {k: content for k, (_, content) in everything(tmp_path / "node").items()}
    assert {k: v for k, v in contents.items() if not k.endswith(("-wal", "-shm"))} == {
        k: content for k, (_, content) in before.items()
    }
