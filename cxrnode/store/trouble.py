"""Whose fault an error of the store is: its own, or that of what it was given."""

from __future__ import annotations

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError

from cxrnode.errors import StorageFullError, StoreError


def is_trouble(error: BaseException) -> bool:
    """The database or the disk is in trouble, which no image, study or result is to blame for.

    Not where the database is well and will not have these values.
    """
    cause = error.__cause__
    of_values = isinstance(cause, DataError | IntegrityError) or (
        isinstance(cause, StatementError) and not isinstance(cause, DBAPIError)
    )
    return isinstance(error, StorageFullError) or (isinstance(error, StoreError) and not of_values)
