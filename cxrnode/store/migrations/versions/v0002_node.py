"""The node: received instances, leases, studies, the outbox, commitment requests. The ledger stays untouched."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for of_a_received_instance in (
        sa.Column("sop_class_uid", sa.String(64)),
        sa.Column("transfer_syntax_uid", sa.String(64)),
        sa.Column("sha256", sa.String(64)),
        sa.Column("size_bytes", sa.BigInteger),
        sa.Column("calling_aet", sa.String(16)),
        sa.Column("called_aet", sa.String(16)),
        sa.Column("host", sa.Text),
        sa.Column("received_at", sa.Float),
    ):
        op.add_column("instance", of_a_received_instance)
    op.create_index("uq_instance_sop_sha256", "instance", ["sop_instance_uid", "sha256"], unique=True)
    op.add_column("result", sa.Column("series_instance_uid", sa.String(64)))
    op.add_column("result", sa.Column("predecessor_uid", sa.String(64)))
    _forget_what_was_only_seen()
    _job()
    _delivery()
    op.create_table(
        "study",
        sa.Column("study_instance_uid", sa.String(64), primary_key=True),
        sa.Column("last_received_at", sa.Float, nullable=False),
        sa.Column("lease_owner", sa.String(64)),
        sa.Column("lease_until", sa.Float),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("last_error", sa.Text),
    )
    op.execute(  # they have been quiet for long
        "INSERT INTO study (study_instance_uid, last_received_at, attempts, not_before) "
        "SELECT DISTINCT study_instance_uid, 0, 0, 0 FROM job WHERE study_instance_uid IS NOT NULL"
    )
    op.create_table(
        "commitment_request",
        sa.Column("transaction_uid", sa.String(64), primary_key=True),
        sa.Column("calling_aet", sa.String(16), nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("instances", sa.JSON, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("answered_at", sa.Float),
    )


def _forget_what_was_only_seen() -> None:
    """0.1.0 kept no header of an image before its analysis, and now a claim needs it. The next run sees it again."""
    op.execute("CREATE TABLE waiting AS SELECT id FROM job WHERE state = 'received'")
    op.execute("DELETE FROM job WHERE id IN (SELECT id FROM waiting)")
    op.execute("DELETE FROM instance WHERE id IN (SELECT id FROM waiting)")
    op.drop_table("waiting")


def _job() -> None:
    kept = "id, study_instance_uid, state, outcome, reason, detail, class_index, probabilities, cam_max, engine"
    _remake(
        "job",
        sa.Column("id", sa.Integer, sa.ForeignKey("instance.id"), primary_key=True),
        sa.Column("study_instance_uid", sa.String(64)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("lease_owner", sa.String(64)),
        sa.Column("lease_until", sa.Float),
        sa.Column("last_error", sa.Text),
        sa.Column("outcome", sa.String(16)),
        sa.Column("reason", sa.String(32)),
        sa.Column("detail", sa.Text),
        sa.Column("class_index", sa.Integer),
        sa.Column("probabilities", sa.JSON),
        sa.Column("cam_max", sa.Float),
        sa.Column("engine", sa.Text),
        columns=f"{kept}, priority, attempts, not_before",
        values=f"{kept}, 1, 0, 0",
    )
    op.create_index("ix_job_state", "job", ["state", "priority", "id"])
    op.create_index("ix_job_study", "job", ["study_instance_uid", "state"])


def _delivery() -> None:
    _remake(
        "delivery",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("result_uid", sa.String(64), sa.ForeignKey("result.sop_instance_uid"), nullable=False),
        sa.Column("destination", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("lease_owner", sa.String(64)),
        sa.Column("lease_until", sa.Float),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("transaction_uid", sa.String(64)),
        sa.Column("updated_at", sa.Float, nullable=False),
        sa.UniqueConstraint("result_uid", "destination", name="uq_delivery_result_destination"),
        columns="result_uid, destination, state, attempts, not_before, status, updated_at",
        values="result_uid, destination, CASE delivered WHEN 1 THEN 'sent' ELSE 'refused' END, 0, 0, status, 0",
    )
    op.create_index("ix_delivery_state", "delivery", ["destination", "state", "not_before"])
    op.create_index("ix_delivery_transaction", "delivery", ["transaction_uid"])


def _remake(table: str, *elements: Any, columns: str, values: str) -> None:
    """Make a table anew with its rows, for what SQLite cannot alter. Only for a table that no other refers to."""
    op.execute(f"CREATE TABLE {table}_before AS SELECT * FROM {table}")  # noqa: S608 (our own names)
    op.drop_table(table)
    op.create_table(table, *elements)
    op.execute(f"INSERT INTO {table} ({columns}) SELECT {values} FROM {table}_before")  # noqa: S608
    op.drop_table(f"{table}_before")
