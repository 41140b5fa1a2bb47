"""`audit verify` compares the tables with their records: whatever is forged is named, and a node at work is sound."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import JSON, Connection, Float, Integer, LargeBinary, MetaData, Table, select, text

from cxrnode.audit.state import FREE, Verified, verify_store
from cxrnode.audit.tables import KEYS, TOLD
from cxrnode.errors import StorageFullError, StoreError
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.queue import ENGINE, Queue
from cxrnode.store.schema import metadata
from tests.support.lives import Lives, lived_at_random
from tests.support.store import claim, received
from tests.unit.store.test_migrations import at_0_1_0

MOST = 10
COLUMNS = [(name, column) for name in KEYS for column in metadata.tables[name].c.keys()]  # noqa: SIM118 (columns)
FORGEABLE = [(table, column) for table, columns in TOLD.items() for column in columns]


def verified(database: Database) -> Verified:
    with database.begin() as c:
        return verify_store(c, {}, most=MOST)


def said(database: Database) -> list[str]:
    compared = verified(database).compared
    assert compared
    return [str(d) for d in compared.first]


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = lived_at_random(tmp_path_factory.mktemp("lived") / "x.sqlite")
    yield database
    database.close()


@pytest.fixture(scope="module")
def postgresql(request: pytest.FixtureRequest) -> Iterator[Database]:
    database = lived_at_random(request.getfixturevalue("postgres").new_database())
    yield database
    database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def lived(request: pytest.FixtureRequest) -> Database:
    """A store in which everything happened, on each kind of database; what a test does to it is undone."""
    found: Database = request.getfixturevalue(request.param)
    return found


@contextmanager
def forged(database: Database, *statements: str, **values: Any) -> Iterator[list[str]]:
    """What verification says after these statements, which are undone."""
    with database.begin() as c:
        if c.dialect.name == "sqlite":
            c.execute(text("PRAGMA defer_foreign_keys = ON"))
        else:
            c.execute(text("SET LOCAL session_replication_role = replica") if _is_superuser(c) else text("SELECT 1"))
        for statement in statements:
            assert c.execute(text(statement), values).rowcount > 0, statement
        found = verify_store(c, {}, most=MOST)
        assert found.compared
        yield [str(d) for d in found.compared.first]
        c.rollback()


def _is_superuser(c: Connection) -> bool:
    return bool(c.execute(text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")).scalar_one())


# --- every column


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_a_column_is_compared_or_free_with_its_reason(table: str, column: str) -> None:
    told = column in KEYS[table] or column in TOLD[table]
    assert told != (column in FREE[table])
    assert told or len(FREE[table][column]) > 10


def test_no_table_is_forgotten() -> None:
    others = {"ledger", "alembic_version", "settings", "commitment_request"}  # settings: `run` and `engine`
    assert set(metadata.tables) - others == set(KEYS) == set(TOLD) == set(FREE)


def test_a_store_in_which_everything_happened_is_sound(lived: Database) -> None:
    with lived.begin() as c:
        kinds = {e.kind for e in ledger.events(c)}
    found = verified(lived)
    assert found.compared
    assert (said(lived), found.compared.untold, found.verdict.broken) == ([], 0, None)
    assert all(found.compared.rows[name] > 5 for name in KEYS)
    assert {"forgotten", "several_patients", "retried", "report_failed", "study_reported", "commitment_failed",
            "commitment_postponed", "delivery_reopened", "check_ended"} <= kinds  # fmt: skip


@pytest.mark.parametrize(("table", "column"), FORGEABLE)
def test_a_forged_value_is_named(lived: Database, table: str, column: str) -> None:
    of = metadata.tables[table]
    key = KEYS[table]
    with lived.begin() as c:
        every = c.execute(select(of).order_by(*of.primary_key)).mappings()
        rows = [row for row in every if row[column] is not None]  # SQL's NULL and JSON's
    assert rows, "the store has no such value: let it live longer"
    row = rows[len(rows) // 2]
    where = " AND ".join(f"{k} = :{k}" for k in key)
    keys = {k: row[k] for k in key}
    changed = _other(of, column, row[column])
    with forged(lived, f"UPDATE {table} SET {column} = :changed WHERE {where}", changed=changed, **keys) as found:
        assert len(found) == 1
        name = " for ".join(str(row[k]) for k in key)
        assert found[0].startswith(f"{table} {name}: {column} is "), found


@pytest.mark.parametrize(("table", "column"), FORGEABLE)
def test_a_value_that_is_taken_away_is_named(lived: Database, table: str, column: str) -> None:
    of = metadata.tables[table]
    if not of.c[column].nullable:
        pytest.skip("the database does not allow it")
    last = ", ".join(KEYS[table])
    statement = (
        f"UPDATE {table} SET {column} = NULL WHERE {KEYS[table][0]} IN "
        f"(SELECT {KEYS[table][0]} FROM {table} WHERE {column} IS NOT NULL "
        f"AND CAST({column} AS TEXT) <> 'null' ORDER BY {last} LIMIT 1)"
    )
    with forged(lived, statement) as found:
        assert found
        assert f"{column} is " in found[0]


def _other(of: Table, column: str, value: Any) -> Any:
    kind = of.c[column].type
    if isinstance(kind, JSON):
        return json.dumps({**value, "container": "/etc/passwd"} if isinstance(value, dict) else [*value[::-1], 0.0])
    if isinstance(kind, LargeBinary):
        return value + b"\0"
    if isinstance(kind, Integer | Float):
        return value + 1
    if column == "state":
        return {"job": "received" if value in {"analysed", "reported"} else "reported",
                "delivery": "pending" if value != "pending" else "committed"}[of.name]  # fmt: skip
    if column == "instance_id":
        return None
    return value[:-1] + ("1" if value[-1:] != "1" else "2")


@pytest.mark.parametrize("was", ["analysed", "reported"])
def test_reported_and_analysed_are_told_apart(lived: Database, was: str) -> None:
    other = {"analysed": "reported", "reported": "analysed"}[was]
    with lived.begin() as c:
        found = c.execute(text("SELECT id FROM job WHERE state = :was"), {"was": was}).scalars().first()
    with forged(lived, f"UPDATE job SET state = '{other}' WHERE id = {found}") as differences:
        assert [d.split(", ")[0] for d in differences] == [f"job {found}: state is {other}"]


# --- rows


ROWS = {
    "instance": "INSERT INTO instance (id, path, location) VALUES (77777, 'x', '{}')",
    "study": "INSERT INTO study (study_instance_uid, last_received_at, attempts, not_before) VALUES ('1.2.9', 0, 0, 0)",
    "result": "INSERT INTO result (id, sop_instance_uid, kind, study_instance_uid, sop_class_uid, path, sha256) "
    "VALUES (77777, '1.2.9', 'sr', '1.2.9', '1.2', 'dicom/x', 'ff')",
    "delivery": "INSERT INTO delivery (id, result_uid, destination, state, attempts, not_before, status, updated_at) "
    "SELECT 77777, sop_instance_uid, 'evil', 'pending', 0, 0, '', 0 FROM result ORDER BY id LIMIT 1",
}  # fmt: skip


@pytest.mark.parametrize("table", ROWS)
def test_a_row_without_a_record_is_named(lived: Database, table: str) -> None:
    with forged(lived, ROWS[table]) as found:
        assert len(found) == 1
        assert found[0].startswith(f"{table} ")
        assert found[0].endswith(": no record tells of this row")


def test_a_job_without_a_record_is_named(lived: Database) -> None:
    job = "INSERT INTO job (id, state, priority, attempts, not_before) VALUES (77777, 'received', 1, 0, 0)"
    with forged(lived, ROWS["instance"], job) as found:
        assert found == [f"{t} 77777: no record tells of this row" for t in ("instance", "job")]


def test_rows_that_are_gone_are_named(lived: Database) -> None:
    with lived.begin() as c:
        (one,) = c.execute(text("SELECT result_uid FROM delivery ORDER BY id LIMIT 1")).scalars()
    with forged(lived, f"DELETE FROM delivery WHERE result_uid = '{one}'") as found:
        assert found
        assert all(f"delivery {one} for " in d and "the row is gone; record " in d for d in found)
        assert len(found) <= 2
    with forged(lived, "DELETE FROM delivery", "DELETE FROM result") as found:
        assert len(found) == MOST
    with lived.begin() as c:
        job = c.execute(text("SELECT id FROM job WHERE id NOT IN (SELECT instance_id FROM result "
                             "WHERE instance_id IS NOT NULL) ORDER BY id LIMIT 1")).scalar_one()  # fmt: skip
    with forged(lived, f"DELETE FROM job WHERE id = {job}", f"DELETE FROM instance WHERE id = {job}") as found:
        assert [d.split(";")[0] for d in found] == [f"{t} {job}: the row is gone" for t in ("instance", "job")]
    with forged(lived, "DELETE FROM study WHERE study_instance_uid LIKE '%3'") as found:
        assert [d.split(";")[0] for d in found] == ["study 1.2.826.0.003: the row is gone"]


def test_two_images_that_changed_places_are_named(lived: Database) -> None:
    """Each value is one that some record tells of."""
    with lived.begin() as c:
        one, other = c.execute(
            text("SELECT id, probabilities FROM job WHERE class_index IS NOT NULL ORDER BY id LIMIT 2")
        ).all()
    swap = (
        f"UPDATE job SET report_uid = 'x', class_index = class_index + 1 WHERE id = {one.id}",
        f"UPDATE instance SET path = 'a' || path WHERE id IN ({one.id}, {other.id})",
    )
    with forged(lived, *swap) as found:
        assert len(found) == 4


def test_whatever_sqlite_holds_in_a_column_is_a_difference_and_no_crash(sqlite: Database) -> None:
    for value in ("x'ff00'", "CAST(x'ff7b' AS TEXT)", "'{'", "1e999", "-7", "'\x01'"):
        for table, column in FORGEABLE:
            of = f"SELECT max(rowid) FROM {table} WHERE {column} IS NOT NULL AND {column} <> 'null'"
            with forged(sqlite, f"UPDATE {table} SET {column} = {value} WHERE rowid = ({of})") as found:
                assert len(found) == 1, (table, column, value)
    with forged(sqlite, "UPDATE study SET study_instance_uid = x'ff' WHERE study_instance_uid LIKE '%3'") as found:
        assert len(found) == 2


# --- settings


def test_what_later_results_go_by_is_compared(lived: Database) -> None:
    queue = Queue("analyse")
    with lived.begin() as c:
        run = {"bundle": "b" * 64, "archives": ["/a"], "started_at": "2026-11-22T10:00:00+00:00"}
        queue.set_setting(c, "run", run)
        queue.set_setting(c, ENGINE, {"engine": "cpu", "bundle": "x", "digest": "d" * 64})
        told: dict[str, Any] = {("bundle_digest" if k == "bundle" else k): v for k, v in run.items()}
        ledger.append(c, "run_started", actor="run-batch", bundle="x", **told)
        ledger.append(c, "engine_verified", actor="analyse", engine="cpu", bundle="d" * 64)
        assert verify_store(c, {}, most=MOST).compared.different == 0  # type: ignore[union-attr]
        queue.set_setting(c, "run", run | {"bundle": "e" * 64})
        queue.set_setting(c, ENGINE, {"engine": "cpu", "bundle": "x", "digest": "e" * 64})
        compared = verify_store(c, {}, most=MOST).compared
        assert compared
        assert [d.where for d in compared.first] == ["setting run", "setting engine"]
        c.rollback()


# --- a node at work, and how it ended


@pytest.mark.parametrize("seed", range(2, 6))
def test_whatever_happens_no_row_differs(where: Path | str, seed: int) -> None:
    database = lived_at_random(where, steps=100, seed=seed)
    assert said(database) == []
    database.close()


def test_beside_a_node_at_work_no_row_differs(where: Path | str) -> None:
    """A row and its record are written in one transaction, and read in one."""
    database = Database(where)
    reader = Database(where, read_only=True)
    lives, stop = Lives(database, seed=7), threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                lives.live(30)
        except BaseException as e:  # noqa: BLE001 (the test tells it)
            failed.append(e)

    worker = threading.Thread(target=work)
    worker.start()
    seen: list[int] = []
    try:
        while len(seen) < 15 and not failed:
            with reader.begin() as c:
                found = verify_store(c, {}, most=MOST)
            assert found.compared
            assert found.compared.first == []
            assert found.verdict.broken is None
            seen.append(found.verdict.records)
    finally:
        stop.set()
        worker.join()
        reader.close()
        database.close()
    assert failed == []
    assert len(set(seen)) > 1, "it did nothing meanwhile"


def test_a_reading_transaction_is_of_one_moment_on_postgresql_too(where: Path | str) -> None:
    writer, reader = Database(where), Database(where, read_only=True)
    with reader.begin() as c:
        assert ledger.newest(c) is None
        with writer.begin() as w:
            Queue("intake").receive(w, [received(1, 1)])
        assert ledger.newest(c) is None
        assert c.execute(text("SELECT count(*) FROM job")).scalar_one() == 0
    reader.close()
    writer.close()


# --- what an older cxrnode recorded

LATER = {
    "job", "jobs", "header_sha256", "series_instance_uid", "sop_class_uid", "transfer_syntax_uid", "received_at",
    "priority", "location", "class_index", "cam_max", "objects", "started_at",
}  # fmt: skip
LATER_OF = {"report_made": {"path"}, "delivery_queued": {"sop_instance_uids"}, "report_failed": {"reason", "detail"},
            "several_patients": {"detail"}, "retried": set()}  # fmt: skip
LATER_KINDS = {"study_reported", "check_ended"}
SINCE_0003 = {"received": {"path"}, "report_made": {"predecessor", "model", "software", "sources"}}


@contextmanager
def older(revision: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The ledger as cxrnode of schema 0002 or 0003 wrote it: fewer kinds, fewer fields."""
    append = ledger.append

    def before(c: Connection, kind: str, **said: Any) -> int:
        first = revision == "0002"
        if kind in LATER_KINDS or (first and kind in {"scanned", "claimed"}):
            return 0
        kept = {"job"} if kind == "retried" else set()
        drop = (LATER - kept) | LATER_OF.get(kind, set()) | (SINCE_0003.get(kind, set()) if first else set())
        said = {k: v for k, v in said.items() if k not in drop}
        if said.get("reason") == "gave_up":
            said.pop("pixel_digest", None)
        if not first:
            return append(c, kind, **said)
        for column in ("patient_id", "accession_number"):
            said.pop(column, None)
        detail = {"sop_instance_uid": said.pop("sop_instance_uid", None), "calling_aet": said.pop("ae_title", None),
                  "receipt": said.pop("outcome", None)}  # fmt: skip
        actor, study = said.pop("actor"), said.pop("study_instance_uid", None)
        row = [0, "2026-11-22T12:00:00.000+00:00", kind, actor, study]
        return _append_bare(c, row, {k: v for k, v in {**detail, **said}.items() if v is not None})

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "append", before)
        yield


def _append_bare(c: Connection, row: list[Any], detail: dict[str, Any]) -> int:
    seq, prev = ledger.newest(c) or (0, ledger.GENESIS)
    values = [seq + 1, *row[1:], json.dumps(detail, sort_keys=True, separators=(",", ":")), prev, "", *[None] * 5]
    values[7] = ledger.hash_of(values)
    marks = {"sqlite": "?", "postgresql": "%s"}[c.dialect.name]
    c.exec_driver_sql(f"INSERT INTO ledger VALUES ({', '.join([marks] * len(values))})", tuple(values))
    return seq + 1


@pytest.mark.parametrize("revision", ["0002", "0003"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_an_older_ledger_does_not_tell_is_no_forgery(
    where: Path | str, revision: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(where)
    lives = Lives(database, seed)
    with older(revision, monkeypatch):
        lives.live(60)
    assert said(database) == []
    lives.live(60)  # and today's goes on with it
    found = verified(database)
    assert said(database) == []
    assert found.compared
    assert found.compared.untold > 0
    assert "the records of an older cxrnode do not tell" in found.compared.in_words()
    with database.begin() as c:
        job = c.execute(text("SELECT min(id) FROM job WHERE class_index IS NOT NULL")).scalar_one()
    with forged(database, f"UPDATE job SET probabilities = '[0.1, 0.2, 0.7]' WHERE id = {job}") as differences:
        assert [d.split(" is ")[0] for d in differences] == [f"job {job}: probabilities"]
    with forged(database, ROWS["result"]) as differences:
        assert differences == ["result 1.2.9: no record tells of this row"]
    database.close()


def test_what_0_1_0_wrote_is_sound_and_told_as_far_as_it_goes(where: Path | str) -> None:
    at_0_1_0(where)
    database = Database(where)
    assert said(database) == []
    for statement in (
        "UPDATE job SET probabilities = '[0.0, 0.05, 0.95]' WHERE id = 1",
        "UPDATE job SET outcome = 'analysed' WHERE id = 3",
        "UPDATE job SET state = 'received' WHERE id = 2",
        "UPDATE result SET sha256 = 'ff' WHERE sop_instance_uid = '2.25.1'",
        "UPDATE delivery SET state = 'sent' WHERE result_uid = '2.25.2'",
        "UPDATE instance SET pixel_digest = 'ff' WHERE id = 5",
    ):
        with forged(database, statement) as found:
            assert len(found) == 1, statement
    with forged(database, "DELETE FROM job WHERE id = 7", "DELETE FROM instance WHERE id = 7") as found:
        assert [d.split(";")[0].split(" ", 1)[0] for d in found] == ["instance", "job"]
    database.close()


# --- what stands in the way


def test_a_broken_chain_is_not_compared(lived: Database) -> None:
    drop = {"sqlite": "DROP TRIGGER ledger_no_update", "postgresql": "DROP TRIGGER ledger_append_only ON ledger"}
    with lived.begin() as c:
        c.execute(text(drop[c.dialect.name]))
        c.execute(text("UPDATE ledger SET detail = '{}' WHERE seq = 3"))
        found = verify_store(c, {}, most=MOST)
        assert (found.verdict.broken, found.compared) == (3, None)
        assert found.missing_triggers
        c.rollback()


@pytest.mark.parametrize("detail", [{"job": "x"}, {}, {"job": 1, "path": 7}])
def test_a_record_of_a_kind_that_is_known_and_of_another_make_is_said(tmp_path: Path, detail: dict[str, Any]) -> None:
    database = Database(tmp_path / "x.sqlite")
    with database.begin() as c:
        ledger.append(c, "delivered", actor="x", **detail)
    with pytest.raises(StoreError, match="record 1 is none that this cxrnode knows"):
        verified(database)
    database.close()


def test_no_room_for_the_temporary_tables_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cxrnode.audit import tables

    database = lived_at_random(tmp_path / "x.sqlite", steps=40)
    monkeypatch.setattr(tables, "_PRAGMAS", ("journal_mode = OFF", "max_page_count = 12"))
    with pytest.raises(StorageFullError, match="set TMPDIR"):
        verified(database)
    database.close()


def test_a_claim_is_no_difference(database: Database) -> None:
    with database.begin() as c:
        Queue("intake").receive(c, [received(1, 1)])
        claim(c)
    assert said(database) == []


def test_the_tables_it_knows_are_the_tables_there_are(database: Database) -> None:
    """Columns as the database has them, and not only as the schema says."""
    with database.begin() as c:
        real = MetaData()
        real.reflect(c)
    for name in KEYS:
        assert set(real.tables[name].c.keys()) == {*KEYS[name], *TOLD[name], *FREE[name]}
