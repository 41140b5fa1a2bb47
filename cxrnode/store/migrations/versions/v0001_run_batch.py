"""The schema of cxrnode 0.1.0: run-batch over archives."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_LEDGER_APPEND_ONLY = {
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


def upgrade() -> None:
    op.create_table(
        "settings",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("value", sa.JSON, nullable=False),
    )
    op.create_table(
        "instance",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("path", sa.Text, nullable=False, unique=True),
        sa.Column("location", sa.JSON, nullable=False),
        sa.Column("study_instance_uid", sa.String(64)),
        sa.Column("series_instance_uid", sa.String(64)),
        sa.Column("sop_instance_uid", sa.String(64)),
        sa.Column("pixel_digest", sa.String(64)),
        sa.Column("header", sa.LargeBinary),
    )
    op.create_index("ix_instance_sop", "instance", ["sop_instance_uid", "pixel_digest"])
    op.create_table(
        "job",
        sa.Column("id", sa.Integer, sa.ForeignKey("instance.id"), primary_key=True),
        sa.Column("study_instance_uid", sa.String(64)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("outcome", sa.String(16)),
        sa.Column("reason", sa.String(32)),
        sa.Column("detail", sa.Text),
        sa.Column("class_index", sa.Integer),
        sa.Column("probabilities", sa.JSON),
        sa.Column("cam_max", sa.Float),
        sa.Column("engine", sa.Text),
    )
    op.create_index("ix_job_state", "job", ["state", "id"])
    op.create_index("ix_job_study", "job", ["study_instance_uid", "state"])
    op.create_table(
        "result",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False, unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("study_instance_uid", sa.String(64), nullable=False),
        sa.Column("instance_id", sa.Integer, sa.ForeignKey("instance.id")),
        sa.Column("sop_class_uid", sa.String(64), nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
    )
    op.create_index("ix_result_study", "result", ["study_instance_uid", "kind"])
    op.create_index("ix_result_instance", "result", ["instance_id"])
    op.create_table(
        "delivery",
        sa.Column("result_uid", sa.String(64), sa.ForeignKey("result.sop_instance_uid"), primary_key=True),
        sa.Column("destination", sa.String(128), primary_key=True),
        sa.Column("status", sa.String(64), nullable=False),
        sa.Column("delivered", sa.Integer, nullable=False),
    )
    op.create_table(
        "ledger",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("study_instance_uid", sa.String(64)),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("prev_hash", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.UniqueConstraint("hash"),
    )
    op.create_index("ix_ledger_study", "ledger", ["study_instance_uid"])
    for statement in _LEDGER_APPEND_ONLY[op.get_bind().dialect.name]:
        op.execute(statement)
