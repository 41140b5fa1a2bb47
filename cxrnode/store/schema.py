"""The tables. One database holds the queue, the results and the ledger, so that one commit covers all three.

A change here is a new file in migrations/versions, and its number is REVISION; a test proves that both are the same.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from cxrnode.store.triggers import keep_append_only

REVISION = "0005"

metadata = MetaData()


def _held(table: str, *columns: str) -> Index:
    """What is claimed just now: few rows of many."""
    held = text("lease_owner IS NOT NULL")
    return Index(f"ix_{table}_lease", *columns, sqlite_where=held, postgresql_where=held)


# Alembic's own table: which revision the database is at
alembic_version = Table(
    "alembic_version",
    metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

settings = Table(
    "settings",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", JSON, nullable=False),
)

# one row per file seen or instance received; the analysis of it is a job with the same id. Times: seconds since 1970
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
    # of a received instance alone; an archive's files have none of these
    Column("sop_class_uid", String(64)),
    Column("transfer_syntax_uid", String(64)),
    Column("sha256", String(64)),  # of the encoded data set
    Column("size_bytes", BigInteger),
    Column("calling_aet", String(16)),
    Column("called_aet", String(16)),
    Column("host", Text),
    Column("received_at", Float),
    Index("ix_instance_sop", "sop_instance_uid", "pixel_digest"),
    Index("uq_instance_sop_sha256", "sop_instance_uid", "sha256", unique=True),  # SQLite can add it to a table that is
)

# state: received -> claimed -> analysed (outcome known, study not reported) -> reported, or dead (attempts used up)
job = Table(
    "job",
    metadata,
    Column("id", Integer, ForeignKey("instance.id"), primary_key=True),
    Column("study_instance_uid", String(64)),
    Column("state", String(16), nullable=False),
    Column("priority", Integer, nullable=False, default=1),  # 0 STAT, 1 routine
    Column("attempts", Integer, nullable=False, default=0),
    Column("not_before", Float, nullable=False, default=0.0),
    Column("lease_owner", String(64)),
    Column("lease_until", Float),
    Column("last_error", Text),
    Column("outcome", String(16)),
    Column("reason", String(32)),
    Column("detail", Text),
    Column("class_index", Integer),
    Column("probabilities", JSON),
    Column("cam_max", Float),
    Column("engine", Text),
    Column("report_uid", String(64)),  # the newest SR that speaks of it
    Index("ix_job_state", "state", "priority", "id"),
    Index("ix_job_study", "study_instance_uid", "state"),
)

# when a study was last added to, and who is making its report
study = Table(
    "study",
    metadata,
    Column("study_instance_uid", String(64), primary_key=True),
    Column("last_received_at", Float, nullable=False),
    Column("lease_owner", String(64)),
    Column("lease_until", Float),
    Column("attempts", Integer, nullable=False, default=0),
    Column("not_before", Float, nullable=False, default=0.0),
    Column("last_error", Text),
    Column("over_at", Float),  # retention's elapsed time when it first saw the study's work over, see clock
    Column("over_step", Float),  # and its newest ledger record then
    Column("first_received_at", Float),  # the date and time of its results' series
    _held("study", "lease_owner"),
)

result = Table(
    "result",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sop_instance_uid", String(64), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("study_instance_uid", String(64), nullable=False),
    Column("instance_id", Integer, ForeignKey("instance.id")),  # of a capture; of an SR, job.report_uid says it
    Column("sop_class_uid", String(64), nullable=False),
    Column("series_instance_uid", String(64)),
    Column("path", Text, nullable=False),  # relative to the output folder
    Column("sha256", String(64), nullable=False),
    Column("predecessor_uid", String(64)),  # the SR that this one takes the place of
    Index("ix_result_study", "study_instance_uid", "kind"),
    Index("ix_result_instance", "instance_id"),
)

# the outbox. state: pending -> sent -> committed; refused: the destination will not have it (an operator may retry).
# sent is the end where the destination does no storage commitment
delivery = Table(
    "delivery",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("result_uid", String(64), ForeignKey("result.sop_instance_uid"), nullable=False),
    Column("destination", String(128), nullable=False),  # its name in the configuration, or AET@host:port
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("not_before", Float, nullable=False, default=0.0),
    Column("lease_owner", String(64)),
    Column("lease_until", Float),
    Column("status", Text, nullable=False, default=""),  # "0x0000", or why there is none
    Column("transaction_uid", String(64)),  # of the newest commitment request
    Column("updated_at", Float, nullable=False, default=0.0),
    Column("wait_s", Float),  # that ends at not_before: at no other time is it waited
    UniqueConstraint("result_uid", "destination", name="uq_delivery_result_destination"),
    Index("ix_delivery_state", "destination", "state", "not_before"),
    Index("ix_delivery_transaction", "transaction_uid"),
    _held("delivery", "destination", "lease_owner"),
)

# what peers asked us to commit to (we as storage commitment SCP), until they have their answer
commitment_request = Table(
    "commitment_request",
    metadata,
    Column("transaction_uid", String(64), primary_key=True),
    Column("calling_aet", String(16), nullable=False),
    Column("host", Text, nullable=False),
    Column("instances", JSON, nullable=False),  # [[SOP class UID, SOP instance UID], ...]
    Column("attempts", Integer, nullable=False, default=0),
    Column("not_before", Float, nullable=False, default=0.0),
    Column("answered_at", Float),
    Column("wait_s", Float),  # that ends at not_before
)

# every record has the first two
LEDGER_KEYS = (
    "at", "kind", "study_instance_uid", "sop_instance_uid", "ae_title", "patient_id", "accession_number", "outcome",
)  # fmt: skip


def found_by(key: str) -> Index:
    """By this key, in the order of the chain. Records that do not have it cost nothing."""
    there = None if key in LEDGER_KEYS[:2] else text(f"{key} IS NOT NULL")
    return Index(f"ix_ledger_{key}", key, "seq", sqlite_where=there, postgresql_where=there)


ledger = Table(
    "ledger",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", String(40), nullable=False),  # ISO 8601, UTC
    Column("kind", String(32), nullable=False),
    Column("actor", String(64), nullable=False),
    Column("study_instance_uid", String(64)),
    Column("detail", Text, nullable=False),  # canonical JSON, the text that was hashed
    Column("prev_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    # what it is found by, where it says so; in this order at the end, as the migration adds them
    Column("sop_instance_uid", String(64)),
    Column("ae_title", String(64)),  # of the peer, who may send what is no AE title
    Column("patient_id", String(64)),
    Column("accession_number", String(64)),
    Column("outcome", String(16)),
    UniqueConstraint("hash"),
    *(found_by(key) for key in LEDGER_KEYS),
)

keep_append_only(ledger)
