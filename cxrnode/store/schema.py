"""The tables. One SQLite file holds the queue, the results and the ledger, so that one commit covers all three."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 1

metadata = MetaData()

settings = Table(
    "settings",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", JSON, nullable=False),
)

# one row per file seen; the analysis of it is a job with the same id
instance = Table(
    "instance",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("path", Text, nullable=False, unique=True),  # as the user reads it: archive.zip!/member
    Column("location", JSON, nullable=False),  # how to read it again, see archive.Item
    Column("study_instance_uid", String(64)),
    Column("series_instance_uid", String(64)),
    Column("sop_instance_uid", String(64)),
    Column("pixel_digest", String(64)),
    Column("header", LargeBinary),  # what the reports need, see dicom.header
    Index("ix_instance_sop", "sop_instance_uid", "pixel_digest"),
)

# state: received -> analysed (outcome known, study not reported) -> reported
job = Table(
    "job",
    metadata,
    Column("id", Integer, ForeignKey("instance.id"), primary_key=True),
    Column("study_instance_uid", String(64)),
    Column("state", String(16), nullable=False),
    Column("outcome", String(16)),
    Column("reason", String(32)),
    Column("detail", Text),
    Column("class_index", Integer),
    Column("probabilities", JSON),
    Column("cam_max", Float),
    Column("engine", Text),
    Index("ix_job_state", "state", "id"),
    Index("ix_job_study", "study_instance_uid", "state"),
)

result = Table(
    "result",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sop_instance_uid", String(64), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("study_instance_uid", String(64), nullable=False),
    Column("instance_id", Integer, ForeignKey("instance.id")),  # of a capture; an SR belongs to the whole study
    Column("sop_class_uid", String(64), nullable=False),
    Column("path", Text, nullable=False),  # relative to the output folder
    Column("sha256", String(64), nullable=False),
    Index("ix_result_study", "study_instance_uid", "kind"),
    Index("ix_result_instance", "instance_id"),
)

delivery = Table(
    "delivery",
    metadata,
    Column("result_uid", String(64), ForeignKey("result.sop_instance_uid"), primary_key=True),
    Column("destination", String(128), primary_key=True),
    Column("status", String(64), nullable=False),  # "0x0000", or why there is none
    Column("delivered", Integer, nullable=False),
)

ledger = Table(
    "ledger",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("at", String(40), nullable=False),  # ISO 8601, UTC
    Column("kind", String(32), nullable=False),
    Column("actor", String(64), nullable=False),
    Column("study_instance_uid", String(64)),
    Column("detail", Text, nullable=False),  # canonical JSON, the text that was hashed
    Column("prev_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    UniqueConstraint("hash"),
    Index("ix_ledger_study", "study_instance_uid"),
)

APPEND_ONLY = tuple(
    f"CREATE TRIGGER ledger_no_{verb.lower()} BEFORE {verb} ON ledger "
    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    for verb in ("UPDATE", "DELETE")
)
