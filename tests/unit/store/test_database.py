"""Opening and writing: durable, one writer at a time, and errors that say how to mend them without a password."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Event, Thread

import pytest
from sqlalchemy import Connection, text

from cxrnode.errors import StorageFullError, StoreAwayError, StoreError
from cxrnode.store.database import Database
from cxrnode.store.schema import settings
from tests.support.postgres import PASSWORD, Postgres


def put(c: Connection, key: str, value: object = 1) -> None:
    c.execute(settings.insert().values(key=key, value=value))


def put_all(database: Database, *names: str) -> None:
    with database.begin() as c:
        for name in names:
            put(c, name)


def keys(database: Database) -> set[str]:
    with database.begin(shared=True) as c:
        return set(c.execute(text("SELECT key FROM settings")).scalars())


def test_a_transaction_is_kept_whole_or_not_at_all(where: Path | str) -> None:
    database = Database(where)
    put_all(database, "kept")
    with pytest.raises(StoreError):
        put_all(database, "lost", "kept")
    with pytest.raises(KeyboardInterrupt):
        interrupted(database, "lost")
    assert keys(database) == {"kept"}
    database.close()


def interrupted(database: Database, name: str) -> None:
    with database.begin() as c:
        put(c, name)
        raise KeyboardInterrupt


def test_one_writer_at_a_time(where: Path | str) -> None:
    """What has begun is alone until it ends: it may read and then write what follows from it."""
    database, began, steps = Database(where), Event(), []

    def second() -> None:
        began.set()
        with database.begin():
            steps.append("second")

    with database.begin() as c:
        thread = Thread(target=second)
        thread.start()
        began.wait()
        for n in range(20):
            put(c, str(n))
        steps.append("first")
    thread.join()
    assert steps == ["first", "second"]
    database.close()


def test_sqlite_commits_are_on_disk_and_foreign_keys_hold(tmp_path: Path) -> None:
    database = Database(tmp_path / "odd ?%&name.sqlite")
    with database.begin() as c:
        wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10000}
        assert {k: c.execute(text(f"PRAGMA {k}")).scalar_one() for k in wanted} == wanted
    with pytest.raises(StoreError, match="FOREIGN KEY"), database.begin() as c:
        c.execute(text("INSERT INTO job (id, state, priority, attempts, not_before) VALUES (7, 'received', 1, 0, 0)"))
    database.close()


def test_postgresql_commits_are_on_disk_and_a_hanging_process_is_ended(postgres: Postgres) -> None:
    url = postgres.new_database()
    with postgres.connect("postgres") as raw:  # whatever the server's administrator prefers
        raw.execute("ALTER ROLE cxrnode SET synchronous_commit = off")
        raw.execute("ALTER ROLE cxrnode SET default_transaction_isolation = 'serializable'")
    try:
        database = Database(url)
        with database.begin() as c:
            wanted = {
                "synchronous_commit": "on",
                "transaction_isolation": "read committed",
                "statement_timeout": "1min",
                "lock_timeout": "30s",
                "idle_in_transaction_session_timeout": "20s",
            }
            assert {k: c.execute(text(f"SHOW {k}")).scalar_one() for k in wanted} == wanted
        database.close()
    finally:
        with postgres.connect("postgres") as raw:
            raw.execute("ALTER ROLE cxrnode RESET ALL")


def hang_up(postgres: Postgres) -> None:
    with postgres.connect("postgres") as raw:
        raw.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )


def cut_off(database: Database, postgres: Postgres) -> None:
    with database.begin() as c:
        hang_up(postgres)
        put(c, "lost")


def test_a_lost_connection_is_one_error_and_then_made_again(postgres: Postgres) -> None:
    database = Database(postgres.new_database())
    with pytest.raises(StoreError, match="cannot use the database"):
        cut_off(database, postgres)
    put_all(database, "kept")
    hang_up(postgres)
    assert keys(database) == {"kept"}  # found dead before it is used
    database.close()


def test_a_full_disk_is_its_own_error(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.sqlite")
    with database.begin() as c:
        c.execute(text("PRAGMA max_page_count = 1"))  # of this connection, which the pool hands out again
    with pytest.raises(StorageFullError, match=r"full.*free some space"):
        put_all(database, "large" * 1_000_000)
    assert keys(database) == set()
    database.close()


def test_a_full_disk_of_the_server_is_its_own_error(postgres: Postgres) -> None:
    """The server says so by its SQLSTATE; the words are in the server's language."""
    database = Database(postgres.new_database())
    with pytest.raises(StorageFullError, match=r"kein Platz.*free some space"), database.begin() as c:
        c.execute(text("DO $$ BEGIN RAISE EXCEPTION 'kein Platz' USING ERRCODE = '53100'; END $$"))
    database.close()


def test_an_error_quotes_no_values(where: Path | str) -> None:
    """They may be a patient's."""
    database = Database(where)
    with pytest.raises(StoreError) as caught:
        put_all(database, "DOE^JANE", "DOE^JANE")
    assert "DOE" not in str(caught.value)
    database.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgres://cxrnode:s3cret@localhost/cxrnode",
        "postgresql+asyncpg://cxrnode:s3cret@localhost/cxrnode",
        "postgresql+psycopg://cxrnode:x@localhost:s3cret/cxrnode",
        "postgresql+psycopg://cxrnode:s3cret@localhost",
        "mysql://cxrnode:s3cret@localhost/cxrnode",
        "s3cret",
    ],
)
def test_a_url_that_is_none_of_ours_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(StoreError, match="postgresql\\+psycopg://user:password@host:5432/cxrnode") as caught:
        Database(url)
    assert "s3cret" not in str(caught.value)


def test_a_refused_password_is_not_printed(postgres: Postgres) -> None:
    with pytest.raises(StoreError, match="password authentication failed") as caught:
        Database(postgres.url("postgres", password="s3cret"))
    assert "s3cret" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cxrnode on this host.*Is the server up"):
        Database(f"postgresql+psycopg://cxrnode:s3cret@/cxrnode?host={tmp_path}")


def test_a_missing_driver_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match="pip install 'psycopg\\[binary\\]'"):
        Database("postgresql+psycopg://cxrnode:s3cret@localhost/cxrnode")


def test_a_file_that_is_no_database_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="cannot use the database"):
        Database(path)


def test_a_new_file_needs_no_alembic(tmp_path: Path) -> None:
    """It would cost every short run a quarter of a second."""
    script = (
        "import sys; from pathlib import Path; from cxrnode.store.database import Database\n"
        "for _ in range(2): Database(Path(sys.argv[1])).close()\n"
        "sys.exit('alembic' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "x.sqlite")], check=True)


def test_what_the_server_and_the_connection_are_told(postgres: Postgres) -> None:
    """Committed is on disk, and what hangs ends by itself, at the server or on the way to it."""
    url = postgres.new_database()
    database = Database(url)
    names = (
        "synchronous_commit", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout",
        "default_transaction_read_only",
    )  # fmt: skip
    with database.begin() as c:
        told = [str(c.exec_driver_sql(f"SHOW {name}").scalar_one()) for name in names]
        raw = c.connection.dbapi_connection
        assert raw
        way = raw.info.get_parameters()
    assert told == ["on", "1min", "30s", "20s", "off"]
    bounds = ("connect_timeout", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")
    assert [way[name] for name in bounds] == ["10", "30", "10", "3", "30000"]
    reader = Database(url, read_only=True)
    with reader.begin() as c:
        assert c.exec_driver_sql("SHOW default_transaction_read_only").scalar_one() == "on"
        assert c.exec_driver_sql("SHOW statement_timeout").scalar_one() == "0"
    reader.close()
    database.close()


def test_what_only_reads_cannot_write(where: Path | str) -> None:
    database = Database(where)
    with pytest.raises(StoreError), database.read() as c:
        put(c, "written")
    put_all(database, "kept")  # on the same connection, where it is used again
    assert keys(database) == {"kept"}
    database.close()


def test_a_server_that_is_away_is_told_with_what_to_look_at() -> None:
    with pytest.raises(StoreAwayError, match=r"nobody on this host .*Is the server up, and may this user make and"):
        Database("postgresql+psycopg://u:p@/nobody?host=/nowhere")
    with pytest.raises(StoreAwayError, match="Is the server up, and may this user read tables there"):
        Database("postgresql+psycopg://u:p@/nobody?host=/nowhere", read_only=True)
