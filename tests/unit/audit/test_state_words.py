"""How `audit verify` compares a value with its record, and shows both."""

from __future__ import annotations

from typing import Any

import pytest

from cxrnode.audit.state import _agree, _json, _shown
from cxrnode.store.schema import metadata


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "nothing"), ("", "''"), ("pacs", "pacs"), (7, "7"), (b"x", "b'x'"), (0, "0"), (0.5, "0.5"),
        ("x" * 80, "x" * 80), ("x" * 81, "x" * 77 + "..."),
    ],
)  # fmt: skip
def test_a_value_is_shown_in_80_characters(value: Any, shown: str) -> None:
    assert _shown(value) == shown


@pytest.mark.parametrize(
    ("told", "got", "same"),
    [(1, 1, True), (1, 1.0, True), (1.0, 1, True), (1, 2, False), (1, "1", False), ("1", 1, False), (None, 0, False),
     (None, None, True), ("a", "a", True), ("a", b"a", False), (0.5, 0.5, True), (0.5, 0.25, False), (True, 1, True)],
)  # fmt: skip
def test_a_number_is_the_same_as_a_column_holds_it(told: Any, got: Any, same: bool) -> None:
    assert _agree(metadata.tables["job"], "attempts", told, got) is same


@pytest.mark.parametrize(("told", "got", "same"), [("waiting", "received", True), ("waiting", "analysed", False)])
def test_a_job_s_state_is_any_that_its_record_allows(told: str, got: str, same: bool) -> None:
    assert _agree(metadata.tables["job"], "state", told, got) is same


def test_json_is_the_same_whether_it_came_as_text_or_not() -> None:
    assert _json('{"b": 1, "a": [2]}') == _json({"a": [2], "b": 1}) == '{"a": [2], "b": 1}'
    assert _json("{") == "\"no JSON: '{'\""
    assert _json({1, 2}) == '"no JSON: {1, 2}"'
