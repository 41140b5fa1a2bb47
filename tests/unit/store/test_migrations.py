"""Migrations end at today's schema, on both databases; what 0.1.0 wrote comes through; others are refused in words."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, MetaData, create_engine, event, insert, inspect, select, text

from cxrnode.errors import StoreError
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.migrations import config, upgrade
from cxrnode.store.schema import REVISION, metadata, settings
from tests.support.processes import PROCESSES, at_once

WRITTEN_BY_0_1_0 = (Path(__file__).parent / "data" / "v0_1_0.sql").read_text()
TRIGGERS = {
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal "
    "UNION ALL SELECT proname, prosrc FROM pg_proc WHERE proname LIKE 'ledger%'",
}


@contextmanager
def raw(where: Path | str) -> Iterator[Connection]:
    """One transaction past Database. SQLAlchemy's own begin, so that SQLite's DDL is in it."""
    engine: Engine = create_engine(f"sqlite:///{where}" if isinstance(where, Path) else where)
    if isinstance(where, Path):
        event.listen(engine, "connect", lambda dbapi, _: setattr(dbapi, "isolation_level", None))
        event.listen(engine, "begin", lambda c: c.exec_driver_sql("BEGIN"))
    with engine.begin() as c:
        yield c
    engine.dispose()


def at_0_1_0(where: Path | str) -> None:
    """SQLite: the file as 0.1.0 left it. PostgreSQL, which 0.1.0 did not know: revision 0001 with the same rows."""
    if isinstance(where, Path):
        with sqlite3.connect(where) as old:
            old.executescript(WRITTEN_BY_0_1_0)
        old.close()
        return
    old = sqlite3.connect(":memory:")
    old.executescript(WRITTEN_BY_0_1_0)
    old.row_factory = sqlite3.Row
    with raw(where) as c:
        upgrade(c, "0001")
        tables = MetaData()
        tables.reflect(c, resolve_fks=False)
        for table in tables.sorted_tables:
            if table.name == "alembic_version":
                continue
            columns = {k.name: k for k in table.columns}
            for row in old.execute(f"SELECT * FROM {table.name}"):
                json = {k: text(f"'{row[k]}'::json") for k in row.keys() if str(columns[k].type) == "JSON" and row[k]}  # noqa: SIM118
                c.execute(insert(table).values(dict(row) | json))
    old.close()


def described(c: Connection) -> dict[str, Any]:
    """The whole schema: what each table holds, and the triggers, in no order."""
    found = inspect(c)

    def same(things: list[Any]) -> list[str]:
        return sorted(repr(sorted(dict(t).items(), key=lambda item: item[0])) for t in things)

    def conditions(index: Any) -> dict[str, str]:
        return {k: str(v) for k, v in index.get("dialect_options", {}).items()}

    tables = {
        name: {
            "columns": same([{**k, "type": str(k["type"])} for k in found.get_columns(name)]),
            "primary key": found.get_pk_constraint(name),
            "unique": same(found.get_unique_constraints(name)),
            "checks": same(found.get_check_constraints(name)),
            "foreign keys": same(found.get_foreign_keys(name)),
            "indexes": same([{**i, "dialect_options": conditions(i)} for i in found.get_indexes(name)]),
        }
        for name in found.get_table_names()
    }
    triggers = {tuple(row) for row in c.execute(text(TRIGGERS[c.dialect.name]))}
    return {"tables": tables, "triggers": triggers}


def test_the_revision_is_the_newest_migration(tmp_path: Path) -> None:
    with raw(tmp_path / "x.sqlite") as c:
        assert ScriptDirectory.from_config(config(c)).get_heads() == [REVISION]


def test_migrations_from_nothing_and_the_tables_are_one_schema(where: Path | str) -> None:
    with raw(where) as c:
        upgrade(c)
        assert compare_metadata(MigrationContext.configure(c, opts={"compare_server_default": True}), metadata) == []
        migrated = described(c)
    Database(other := elsewhere(where)).close()
    with raw(other) as c:
        assert described(c) == migrated
    assert len(migrated["tables"]) == len(metadata.tables)
    assert migrated["triggers"]


def elsewhere(where: Path | str) -> Path | str:
    """A second empty database beside the first."""
    if isinstance(where, Path):
        return where.with_name("other.sqlite")
    engine = create_engine(where, isolation_level="AUTOCOMMIT")
    with engine.connect() as c:
        c.execute(text(f"CREATE DATABASE {engine.url.database}_other"))
    engine.dispose()
    return engine.url.set(database=f"{engine.url.database}_other").render_as_string(hide_password=False)


def test_what_0_1_0_wrote_comes_through(where: Path | str) -> None:
    at_0_1_0(where)
    with raw(where) as c:
        before = [tuple(row) for row in c.execute(text("SELECT * FROM ledger ORDER BY seq"))]
    database = Database(where)
    with database.begin() as c:
        after = [tuple(row) for row in c.execute(text("SELECT * FROM ledger ORDER BY seq"))]
        assert [row[:8] for row in after] == before
        assert {row[8:] for row in after} == {(None,) * 5}
        assert ledger.first_broken(c) is None
        assert compare_metadata(MigrationContext.configure(c), metadata) == []
        jobs = {row.id: row for row in c.execute(metadata.tables["job"].select())}
        assert sorted(jobs) == [1, 2, 3, 4, 5, 7]  # the sixth was waiting: it is seen again, with its header
        assert (jobs[1].state, jobs[1].probabilities, jobs[1].priority) == ("reported", [0.93, 0.05, 0.02], 1)
        assert (jobs[3].reason, jobs[3].detail, jobs[3].attempts) == ("lateral", "ViewPosition=LL", 0)
        assert len(c.execute(metadata.tables["instance"].select()).all()) == 6
        studies = c.execute(metadata.tables["study"].select()).all()
        assert sorted(s.study_instance_uid for s in studies) == ["1.2.0", "1.2.1", "1.2.2"]
        sent = c.execute(metadata.tables["delivery"].select()).all()
        assert sorted((d.result_uid, d.state, d.status) for d in sent) == [
            ("2.25.1", "sent", "0x0000"),
            ("2.25.2", "refused", "0xA700"),
        ]
        assert len(c.execute(metadata.tables["result"].select()).all()) == 5
    with pytest.raises(StoreError, match="append-only"), database.begin() as c:
        c.execute(text("DELETE FROM ledger"))
    database.close()
    Database(where).close()  # and again, with nothing to do


def test_a_ledger_of_revision_0002_verifies_and_goes_on(where: Path | str) -> None:
    """Its hash knew no columns to find a record by; what comes after it has them."""
    with raw(where) as c:
        upgrade(c, "0002")
        prev = ledger.GENESIS
        for seq in range(1, 4):
            record = {
                "seq": seq, "at": "2026-11-22T12:00:00.000+00:00", "kind": "received", "actor": "intake",
                "study_instance_uid": "1.2.3" if seq < 3 else None, "prev_hash": prev,
                "detail": f'{{"calling_aet":"PACS","sop_instance_uid":"1.2.3.{seq}"}}',
            }  # fmt: skip
            hashed = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
            prev = sha256(hashed.encode()).hexdigest()
            names, marks = ", ".join(record), ", ".join(f":{k}" for k in record)
            c.execute(text(f"INSERT INTO ledger ({names}, hash) VALUES ({marks}, :hash)"), record | {"hash": prev})
    database = Database(where)
    with database.begin() as c:
        ledger.append(c, "received", actor="intake", study_instance_uid="1.2.3", patient_id="P1", ae_title="PACS")
        assert ledger.verify(c).records == 4
        assert ledger.first_broken(c) is None
        assert c.execute(select(settings.c.value).where(settings.c.key == ledger.UNINDEXED)).scalar_one() == 3
    database.close()


def test_a_migrated_file_is_refused_by_0_1_0(tmp_path: Path) -> None:
    """It looks at user_version alone, and would write rows that we cannot read."""
    at_0_1_0(tmp_path / "ledger.sqlite")
    Database(tmp_path / "ledger.sqlite").close()
    Database(tmp_path / "new.sqlite").close()
    for name in ("ledger.sqlite", "new.sqlite"):
        with raw(tmp_path / name) as c:
            assert c.execute(text("PRAGMA user_version")).scalar_one() != 1


def test_a_migration_that_fails_leaves_the_database_as_it_was(where: Path | str) -> None:
    at_0_1_0(where)
    with raw(where) as c:
        c.execute(text("CREATE TABLE commitment_request (x INTEGER)"))  # in the way of the last step
        before = described(c)
    with pytest.raises(StoreError, match="commitment_request"):
        Database(where)
    with raw(where) as c:
        assert described(c) == before
        assert c.execute(text("SELECT count(*) FROM job")).scalar_one() == 7


@pytest.mark.parametrize("revision", ["0099", "e2b9d5d7a1c3"])
def test_a_newer_or_foreign_revision_is_refused_in_words(where: Path | str, revision: str) -> None:
    Database(where).close()
    with raw(where) as c:
        c.execute(text(f"UPDATE alembic_version SET version_num = '{revision}'"))
    with pytest.raises(StoreError, match=f"revision {revision}.*knows those up to {REVISION}"):
        Database(where)


def test_somebody_else_s_tables_are_refused_in_words(where: Path | str) -> None:
    with raw(where) as c:
        c.execute(text("CREATE TABLE theirs (x INTEGER)"))
    with pytest.raises(StoreError, match="not ours: give cxrnode an empty database"):
        Database(where)


def open_it(where: Path | str, _number: int) -> None:
    database = Database(where)
    with database.begin() as c:
        ledger.append(c, "opened", actor="test")
    database.close()


@pytest.mark.parametrize("old", [False, True], ids=["new", "from 0.1.0"])
def test_several_processes_may_open_it_at_the_same_time(where: Path | str, old: bool) -> None:
    if old:
        at_0_1_0(where)
    at_once(open_it, where)
    database = Database(where)
    with database.begin() as c:
        assert ledger.first_broken(c) is None
        assert sum(e.kind == "opened" for e in ledger.events(c)) == PROCESSES
    database.close()
