"""Bringing an older database to today's schema. Imported only where needed: Alembic costs a quarter of a second.

A new database is made by `metadata.create_all`; tests prove that the migrations end at the same schema. Forward only:
the way back is a copy of the database from before.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def config(c: Connection) -> Config:
    """Alembic's configuration for the caller's transaction, in which the migration happens as a whole or not at all."""
    made = Config(attributes={"connection": c})
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return made


def upgrade(c: Connection, to: str = "head") -> None:
    """Raises alembic.util.CommandError where the database is at a revision that is not ours."""
    command.upgrade(config(c), to)
