"""Points in time as a person writes them: a date, a date and time, or how long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from cxrnode.errors import CxrnodeError

_AGO = re.compile(
    r"(\d{1,9}) ?(s|m|h|d|w|seconds?|minutes?|hours?|days?|weeks?)( ago)?", re.ASCII | re.IGNORECASE
)  # fmt: skip
_UNIT = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def parse_time(text: str, *, now: datetime, end: bool = False) -> datetime:
    """The moment that `text` means, in UTC: 2026-11-22, 2026-11-22T10:30, 2026-11-22T10:30+01:00, 36h, 2 weeks ago.

    What names no time zone is in this machine's. A date alone is its first moment or, as an `end`, the first moment
    after it. now: timezone-aware. Raises CxrnodeError.
    """
    text = text.strip()
    try:
        if ago := _AGO.fullmatch(text):
            return (now - timedelta(**{_UNIT[ago[2][0].lower()]: int(ago[1])})).astimezone(UTC)
        moment = datetime.fromisoformat(text)
        if end and _DATE.fullmatch(text):
            moment += timedelta(days=1)
        return moment.astimezone(UTC)
    except (ValueError, OverflowError) as e:
        raise CxrnodeError(
            f"'{text}' is no time: write a date (2026-11-22), a date and time (2026-11-22T10:30, or with its zone: "
            "2026-11-22T10:30+01:00), or how long ago (36h, 7d, 2 weeks)"
        ) from e


def stored(moment: datetime) -> str:
    """As the ledger holds times, so that comparing them as text is comparing them."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def local(moment: datetime) -> str:
    """For people: in this machine's time zone, which is named."""
    return moment.astimezone().isoformat(" ", "milliseconds")
