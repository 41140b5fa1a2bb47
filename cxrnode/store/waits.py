"""A wait is kept beside the time at which it ends, so that a jump of the clock cannot stretch it."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Table, func, or_


def is_due(table: Table, now: float) -> ColumnElement[bool]:
    """Whether no wait is on. It is from `not_before - wait_s` to `not_before`, by the clock that set it; a clock that
    says another time ended it, or was set back since, and then it is not waited for it to come back."""
    ends, wait_s = table.c.not_before, func.coalesce(table.c.wait_s, 0.0)
    return or_(ends <= now, ends - wait_s > now)
