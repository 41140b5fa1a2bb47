"""INSERT ... ON CONFLICT for both databases: one statement, built once, runs on SQLite and on PostgreSQL.

SQLite took PostgreSQL's syntax, and SQLAlchemy's SQLite compiler renders PostgreSQL's construct as it is (the other way
round it fails: SQLite's has no constraint target). tests/contract runs it on both servers. Name what conflicts by
`index_elements`; `constraint=` is PostgreSQL's alone.
"""

from __future__ import annotations

from sqlalchemy.dialects.postgresql import Insert as Upsert
from sqlalchemy.dialects.postgresql import insert as upsert

__all__ = ["Upsert", "upsert"]
