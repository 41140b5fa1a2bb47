"""Waits are kept beside their times, and retention counts its own days; leases are found by an index of their own; a
study remembers when it began, which its results' series say.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("study", sa.Column("over_at", sa.Float))
    op.add_column("study", sa.Column("over_step", sa.Float))
    op.add_column("study", sa.Column("first_received_at", sa.Float))
    for table in ("delivery", "commitment_request"):
        op.add_column(table, sa.Column("wait_s", sa.Float))
    held = sa.text("lease_owner IS NOT NULL")
    for table, columns in {"study": ["lease_owner"], "delivery": ["destination", "lease_owner"]}.items():
        op.create_index(f"ix_{table}_lease", table, columns, sqlite_where=held, postgresql_where=held)
