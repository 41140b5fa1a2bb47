"""Whatever is put wherever into a configuration: taken, or refused by name; an unknown key is always refused."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cxrnode.config import load_config
from cxrnode.errors import ConfigError
from tests.support.configuration import WHOLE, document, fault, with_tls_files

SECRET = "geheim"
URL = f"postgresql+psycopg://cxr:{SECRET}@db.example:5432/cxrnode"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tls_files(tmp_path_factory.mktemp("configuration"))


Place = tuple[str | int, ...]


def places(value: Any, at: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every table, list and value of the whole example, with its place."""
    yield at, value
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*at, key))


def spelt(place: Place) -> str:
    parts = []
    for part in place:
        bare = isinstance(part, str) and re.fullmatch(r"[A-Za-z0-9_-]+", part)
        parts.append(
            f"[{part}]" if isinstance(part, int) else f".{part if bare else json.dumps(part, ensure_ascii=False)}"
        )
    return "".join(parts).removeprefix(".")


def names(place: Place) -> list[str]:
    return [part for part in place if isinstance(part, str)]


def put(data: Any, place: Place, value: Any) -> dict[str, Any]:
    changed: dict[str, Any] = copy.deepcopy(data)
    at: Any = changed
    for part in place[:-1]:
        at = at[part]
    at[place[-1]] = value
    return changed


PLACES = list(places(tomllib.loads(WHOLE)))
TABLES = [(place, table) for place, table in PLACES if isinstance(table, dict)]
VALUES = [place for place, _ in PLACES if place]
KNOWN = {name for place in VALUES for name in names(place)}
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
KEYS = WORDS | st.sampled_from(sorted(KNOWN)) | st.sampled_from(["_env_prefix", "__class__", "model_config", "self"])
JUNK = st.recursive(
    WORDS | st.integers(-(2**70), 2**70) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(table=st.sampled_from(TABLES), key=KEYS, value=JUNK)
def test_any_unknown_key_anywhere_is_refused_and_named(
    folder: Path, table: tuple[Place, dict[str, Any]], key: str, value: Any
) -> None:
    place, _ = table
    assume(key not in {p[-1] for p in VALUES if names(p[:-1]) == names(place)})
    said = fault(folder, document(put(tomllib.loads(WHOLE), (*place, key), value)))
    assert f"  {spelt((*place, key))}: unknown key; " in said


@settings(max_examples=200, deadline=None, derandomize=True)
@given(place=st.sampled_from(VALUES), value=JUNK)
def test_any_junk_anywhere_is_taken_or_refused_by_name(folder: Path, place: Place, value: Any) -> None:
    data = put(put(tomllib.loads(WHOLE), ("node", "database"), URL), place, value)
    path = folder / "cxrnode.toml"
    path.write_text(document(data), encoding="utf-8")
    said = refusal(path)
    assert all(line.startswith((f"  {spelt(place[:1])}", "  http: ")) for line in said.splitlines()[1:])
    assert SECRET not in said


def refusal(path: Path) -> str:
    try:
        load_config(path)
    except ConfigError as e:
        return str(e)
    return ""
