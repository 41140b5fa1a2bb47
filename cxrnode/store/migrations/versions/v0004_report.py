"""A job names the SR that speaks of it: a study may have several, one a patient. Until now it had one at a time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_NEWEST = (
    "UPDATE job SET report_uid = (SELECT sop_instance_uid FROM result WHERE result.id = (SELECT max(id) FROM result "
    "WHERE result.kind = 'sr' AND result.study_instance_uid = job.study_instance_uid)) WHERE state = 'reported'"
)


def upgrade() -> None:
    op.add_column("job", sa.Column("report_uid", sa.String(64)))
    op.execute(_NEWEST)
