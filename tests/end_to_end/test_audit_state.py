"""`cxrnode audit verify` after a run and beside a node: sound as they left it, and each forged row is named."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from cxrnode.store.database import LEDGER_NAME, Database
from tests.support.awaiting import await_true
from tests.support.batch import run, studies
from tests.support.node import Node, running_node
from tests.support.orthanc import free_port
from tests.support.postgres import Postgres

pytestmark = pytest.mark.slow


def verify(*arguments: object) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "cxrnode", "audit", "verify", *map(str, arguments)],
        capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def change(where: Path | str, *statements: str) -> None:
    database = Database(where)
    with database.begin() as c:
        for statement in statements:
            assert c.execute(text(statement)).rowcount > 0
    database.close()


FORGERIES = {
    "job 1: class_index": ("UPDATE job SET class_index = (class_index + 1) % 3 WHERE id = 1",),
    "job 1: outcome": ("UPDATE job SET outcome = 'not_analysed' WHERE id = 1",),
    "job 1: cam_max": ("UPDATE job SET cam_max = cam_max * 2 WHERE id = 1",),
    "instance 1: sop_instance_uid": ("UPDATE instance SET sop_instance_uid = '1.2.3' WHERE id = 1",),
    "instance 1: header": ("UPDATE instance SET header = (SELECT header FROM instance WHERE id = 2) WHERE id = 1",),
}  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    archive = studies(folder / "in", 2, 2)
    (archive / "s999").mkdir()
    (archive / "s999" / "notes.txt").write_text("no DICOM")
    for _ in range(2):  # the second goes on with the first
        done = run(archive, out=folder / "out", options=("--send", "PACS@127.0.0.1:1"))
        assert done.returncode == 1, done.stderr
    return folder / "out"


def test_a_run_is_as_its_records_say(out: Path) -> None:
    code, told, said = verify("--out", out)
    assert (code, said) == (0, "")
    assert "5 images, 6 results and 6 deliveries are as their records say" in told


@pytest.mark.parametrize("what", FORGERIES)
def test_what_is_forged_after_a_run_is_named(out: Path, tmp_path: Path, what: str) -> None:
    (tmp_path / LEDGER_NAME).write_bytes((out / LEDGER_NAME).read_bytes())
    change(tmp_path / LEDGER_NAME, *FORGERIES[what])
    code, told, said = verify("--out", tmp_path)
    assert (code, told) == (1, "")
    assert what in said
    assert "not sound: 1 difference between the tables and the records that made them" in said


def test_many_differences_are_counted(out: Path, tmp_path: Path) -> None:
    (tmp_path / LEDGER_NAME).write_bytes((out / LEDGER_NAME).read_bytes())
    statements = (
        f"INSERT INTO study (study_instance_uid, last_received_at, attempts, not_before) VALUES ('1.2.{n}', 0, 0, 0)"
        for n in range(30)
    )
    change(tmp_path / LEDGER_NAME, *statements)
    code, _, said = verify("--out", tmp_path)
    assert (code, len(said.splitlines())) == (1, 22)
    assert "... and 10 more" in said
    assert "not sound: 30 differences" in said


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    where = "sqlite"
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        where = server.new_database()
    folder = tmp_path_factory.mktemp("node")
    lost = [("pacs", "NOBODY", free_port())]
    with running_node(Node(folder=folder, destinations=lost, database=where)) as running:
        yield running


def test_a_node_at_work_is_as_its_records_say_and_a_forged_row_is_named(node: Node, tmp_path: Path) -> None:
    films = sorted(p for p in studies(tmp_path / "in", 3, 2).rglob("*") if p.is_file())
    assert node.send(*films) == [0] * 6
    where = node.data_dir / LEDGER_NAME if node.database == "sqlite" else node.database
    reader = Database(where, read_only=True)

    def reported() -> bool:
        code, told, said = verify("--config", node.config)
        assert (code, said) == (0, ""), (told, node.log[-3000:])
        with reader.begin() as c:
            done = c.execute(text("SELECT count(*) FROM job WHERE state = 'reported'")).scalar_one()
        return bool(done == 6)

    await_true(reported, lambda: node.log[-3000:], seconds=120.0)
    reader.close()
    assert "6 images, 9 results and 9 deliveries are as their records say" in verify("--config", node.config)[1]
    for what, statements in FORGERIES.items():
        database = Database(where)
        with database.begin() as c:
            of = "class_index, outcome, cam_max FROM job" if "job" in what else "sop_instance_uid, header FROM instance"
            before = c.execute(text(f"SELECT {of} WHERE id = 1")).mappings().one()
        database.close()
        change(where, *statements)
        code, _, said = verify("--config", node.config)
        assert (code, what in said) == (1, True), said
        database = Database(where)
        with database.begin() as c:
            values = ", ".join(f"{k} = :{k}" for k in before)
            c.execute(text(f"UPDATE {what.split()[0]} SET {values} WHERE id = 1"), dict(before))
        database.close()
    assert verify("--config", node.config)[0] == 0
