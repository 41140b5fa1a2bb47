"""The ledger's append-only triggers. `metadata.create_all` makes them together with the table."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table, event, text

# REPLACE deletes what is in its way without a trigger for it, whatever a stranger's connection is set to
NO_REPLACE = (
    "CREATE TRIGGER ledger_no_replace BEFORE INSERT ON ledger "
    "WHEN NEW.seq <= (SELECT max(seq) FROM ledger) OR EXISTS (SELECT 1 FROM ledger WHERE hash = NEW.hash) "
    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
)
_SQLITE = {
    "ledger_no_update": "CREATE TRIGGER ledger_no_update BEFORE UPDATE ON ledger "
    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    "ledger_no_delete": "CREATE TRIGGER ledger_no_delete BEFORE DELETE ON ledger "
    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    "ledger_no_replace": NO_REPLACE,
}
_FUNCTION_BODY = " BEGIN RAISE EXCEPTION 'the ledger is append-only'; END "
_POSTGRESQL = {
    "ledger_append_only()": "CREATE FUNCTION ledger_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    f"$${_FUNCTION_BODY}$$",
    "ledger_append_only": "CREATE TRIGGER ledger_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger "
    "FOR EACH STATEMENT EXECUTE FUNCTION ledger_append_only()",
}
_TRIGGERS = {"sqlite": _SQLITE, "postgresql": _POSTGRESQL}
# enabled for everyone; tgtype: BEFORE (2), DELETE (8), UPDATE (16), TRUNCATE (32), once a statement (no 1)
_POSTGRESQL_SOUND = text(
    "SELECT 1 FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE t.tgrelid = 'ledger'::regclass "
    "AND t.tgname = 'ledger_append_only' AND t.tgenabled IN ('O', 'A') AND t.tgtype = 58 AND p.prosrc = :body"
)


def keep_append_only(ledger: Table) -> None:
    @event.listens_for(ledger, "after_create")
    def _make_triggers(_ledger: Table, c: Connection, **_: Any) -> None:
        for statement in _TRIGGERS[c.dialect.name].values():
            c.execute(text(statement))


def missing_triggers(c: Connection) -> list[str]:
    """Those that were dropped, switched off or replaced: whoever did it could change records."""
    if c.dialect.name == "postgresql":
        sound = c.execute(_POSTGRESQL_SOUND, {"body": _FUNCTION_BODY}).first()
        return [] if sound else ["ledger_append_only"]
    triggers = c.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"))
    there = {row.name: row.sql for row in triggers}
    return [name for name, sql in _SQLITE.items() if there.get(name) != sql]
