"""A CSV that a spreadsheet opens runs nothing that a peer or a file has named itself."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrnode.spreadsheet import write_csv


def written(value: object) -> str:
    f = io.StringIO(newline="")
    assert write_csv(f, ["cell"], [{"cell": value}], header=False) == 1
    f.seek(0)
    return next(csv.reader(f))[0]


@pytest.mark.parametrize("value", ["=1+1", "@SUM(A1)", "+1", "-1+1", "\t=1", "\r=1", "\n=1", " =1", "\uff1d1"])
def test_what_a_spreadsheet_takes_for_a_formula_is_text(value: str) -> None:
    assert written(value) == f"'{value}"


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_everything_is_as_it_was_or_marked_as_text(value: str) -> None:
    assert written(value) in (value, f"'{value}")


@pytest.mark.parametrize("value", ["1.2.840.10008", "0.123456", "/a/b=c.dcm", "a-1", "", 12, -0.5, '{"a": 1}'])
def test_the_rest_is_left_alone(value: object) -> None:
    assert written(value) == str(value)


def test_a_header_and_no_unknown_columns() -> None:
    f = io.StringIO(newline="")
    assert write_csv(f, ["a", "b"], [{"a": "=x", "c": "not asked for"}]) == 1
    assert f.getvalue() == "a,b\n'=x,\n"
