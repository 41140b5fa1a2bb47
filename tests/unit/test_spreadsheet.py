"""A CSV that a spreadsheet opens runs nothing that a peer or a file has named itself."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrnode.printable import printable
from cxrnode.spreadsheet import write_csv


def written(value: object) -> str:
    f = io.StringIO(newline="")
    assert write_csv(f, ["cell"], [{"cell": value}], header=False) == 1
    f.seek(0)
    return next(csv.reader(f))[0]


@pytest.mark.parametrize("value", ["=1+1", "@SUM(A1)", "+1", "-1+1", " =1", "\uff1d1"])
def test_what_a_spreadsheet_takes_for_a_formula_is_text(value: str) -> None:
    assert written(value) == f"'{value}"


@given(st.text())
def test_everything_is_as_it_was_but_for_escapes_and_the_mark_of_text(value: str) -> None:
    assert written(value) in (printable(value), f"'{printable(value)}")


@pytest.mark.parametrize("value", ["\t=1", "\r=1", "\n=1", "\ufeff=1", "a\nb", "\x1b]0;x\x07", "a\rb"])
def test_what_acts_is_an_escape_and_a_row_a_line(value: str) -> None:
    f = io.StringIO(newline="")
    write_csv(f, ["cell"], [{"cell": value}], header=False)
    assert f.getvalue() == f"{printable(value)}\n"
    assert f.getvalue().count("\\") >= 1


@pytest.mark.parametrize("value", ["1.2.840.10008", "0.123456", "/a/b=c.dcm", "a-1", "", 12, -0.5, '{"a": 1}'])
def test_the_rest_is_left_alone(value: object) -> None:
    assert written(value) == str(value)


def test_a_header_and_no_unknown_columns() -> None:
    f = io.StringIO(newline="")
    assert write_csv(f, ["a", "b"], [{"a": "=x", "c": "not asked for"}]) == 1
    assert f.getvalue() == "a,b\n'=x,\n"
