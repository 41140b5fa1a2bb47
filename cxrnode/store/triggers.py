"""The ledger's append-only triggers. `metadata.create_all` makes them together with the table."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table, event, text

_TRIGGERS = {
    "sqlite": tuple(
        f"CREATE TRIGGER ledger_no_{verb.lower()} BEFORE {verb} ON ledger "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
        for verb in ("UPDATE", "DELETE")
    ),
    "postgresql": (
        "CREATE FUNCTION ledger_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$",
        "CREATE TRIGGER ledger_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger "
        "FOR EACH STATEMENT EXECUTE FUNCTION ledger_append_only()",
    ),
}


def keep_append_only(ledger: Table) -> None:
    @event.listens_for(ledger, "after_create")
    def _make_triggers(_ledger: Table, c: Connection, **_: Any) -> None:
        for statement in _TRIGGERS[c.dialect.name]:
            c.execute(text(statement))
