"""The ledger is found by its keys: columns and indexes for them; on SQLite, REPLACE is refused too.

No record changes: the columns are NULL in what was written before, and count in the hash only where they are not. The
setting says up to which record only the detail says who and what.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_COLUMNS = {"sop_instance_uid": 64, "ae_title": 64, "patient_id": 64, "accession_number": 64, "outcome": 16}
_NO_REPLACE = (
    "CREATE TRIGGER ledger_no_replace BEFORE INSERT ON ledger "
    "WHEN NEW.seq <= (SELECT max(seq) FROM ledger) OR EXISTS (SELECT 1 FROM ledger WHERE hash = NEW.hash) "
    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
)


def upgrade() -> None:
    for name, length in _COLUMNS.items():
        op.add_column("ledger", sa.Column(name, sa.String(length)))
    op.drop_index("ix_ledger_study", "ledger")
    for key in ("at", "kind"):
        op.create_index(f"ix_ledger_{key}", "ledger", [key, "seq"])
    for key in ("study_instance_uid", *_COLUMNS):
        there = sa.text(f"{key} IS NOT NULL")
        op.create_index(f"ix_ledger_{key}", "ledger", [key, "seq"], sqlite_where=there, postgresql_where=there)
    if op.get_bind().dialect.name == "sqlite":
        op.execute(_NO_REPLACE)
    last = op.get_bind().execute(sa.text("SELECT max(seq) FROM ledger")).scalar()
    if last:
        settings = sa.table("settings", sa.column("key", sa.String), sa.column("value", sa.JSON))
        op.execute(settings.insert().values(key="ledger_unindexed", value=last))
