"""Times as people write them, and what is none."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrnode.audit.times import local, parse_time, stored
from cxrnode.errors import CxrnodeError

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.usefixtures("in_berlin")
@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2026-11-22", "2026-11-21T23:00:00.000+00:00", "2026-11-22T23:00:00.000+00:00"),
        ("2026-10-25", "2026-10-24T22:00:00.000+00:00", "2026-10-25T23:00:00.000+00:00"),  # a day of 25 hours
        ("2026-11-22T10:30", "2026-11-22T09:30:00.000+00:00", None),
        ("2026-11-22 10:30:15.5", "2026-11-22T09:30:15.500+00:00", None),
        ("2026-11-22T10:30Z", "2026-11-22T10:30:00.000+00:00", None),
        ("2026-11-22T10:30-05:00", "2026-11-22T15:30:00.000+00:00", None),
        ("36h", "2026-11-21T00:00:00.000+00:00", None),
        (" 7d ", "2026-11-15T12:00:00.000+00:00", None),
        ("2 weeks ago", "2026-11-08T12:00:00.000+00:00", None),
        ("90 Minutes", "2026-11-22T10:30:00.000+00:00", None),
        ("1s", "2026-11-22T11:59:59.000+00:00", None),
        ("2 seconds ago", "2026-11-22T11:59:58.000+00:00", None),
        ("3M", "2026-11-22T11:57:00.000+00:00", None),
        ("1 hour", "2026-11-22T11:00:00.000+00:00", None),
        ("1 Day AGO", "2026-11-21T12:00:00.000+00:00", None),
        ("0d", "2026-11-22T12:00:00.000+00:00", None),
        ("1w", "2026-11-15T12:00:00.000+00:00", None),
        ("2026-11-22T00:00", "2026-11-21T23:00:00.000+00:00", None),  # a date and a time is a moment, as an end too
        ("2026-11-22T10:30:15.5006Z", "2026-11-22T10:30:15.500+00:00", None),
    ],
)
def test_what_is_a_time(text: str, start: str, end: str | None) -> None:
    assert stored(parse_time(text, now=NOW)) == start
    assert stored(parse_time(text, now=NOW, end=True)) == end or start


@pytest.mark.usefixtures("in_berlin")
def test_people_see_their_own_zone() -> None:
    assert local(NOW) == "2026-11-22 13:00:00.000+01:00"


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "22.11.2026", "999999999w", "0001-01-01", "7 moons"])
def test_what_is_none(text: str) -> None:
    try:
        parse_time(text, now=NOW)
    except CxrnodeError as e:
        assert "write a date (2026-11-22)" in str(e)  # noqa: PT017 (0001-01-01 is one east of Greenwich)
    else:
        assert text == "0001-01-01"


@given(st.one_of(st.text(), st.from_regex(r"\d{0,12} ?[smhdw]", fullmatch=True), st.datetimes().map(str)))
def test_anything_is_a_time_or_an_error_in_words(text: str) -> None:
    for end in (False, True):
        try:
            assert parse_time(text, now=NOW, end=end).tzinfo is UTC
        except CxrnodeError:
            continue
