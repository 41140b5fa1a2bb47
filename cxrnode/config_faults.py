"""What is wrong with a configuration, in words: the key as TOML has it, the value, what it should be, an example.

The examples, and which keys there are, come from example.toml. No secret is ever repeated.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from pydantic_core import ErrorDetails

EXAMPLE = Path(__file__).with_name("example.toml").read_text(encoding="utf-8")
Location = tuple[int | str, ...]
_WORDS = {
    "missing": "is missing",
    "tuple_type": "should be an array",
    "model_type": "should be a table",
    "model_attributes_type": "should be a table",
    "string_type": "should be a string",
    "string_too_short": "is empty",
    "string_pattern_mismatch": "should be 1 to 64 letters, digits and . _ -, the first a letter or digit",
}


def fault(error: ErrorDetails, origins: Mapping[Location, str]) -> str:
    """One line for one of pydantic's errors. `origins`: which variable set which key."""
    origin = next((f" (from {name})" for keys, name in origins.items() if _set(keys, error)), "")
    return f"{spell(error['loc'])}{_shown(error)}{origin}: {_what(error)}"


def spell(loc: Location) -> str:
    """("receive", "allow", 0, "port") as receive.allow[0].port"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{_bare(part)}" for part in loc).removeprefix(".")


def _set(keys: Location, error: ErrorDetails) -> bool:
    """Whether the variable that set `keys` is to blame: for the value at fault, or for the unknown table it is in."""
    loc = error["loc"]
    return loc[: len(keys)] == keys or (error["type"] == "extra_forbidden" and keys[: len(loc)] == loc)


def _what(error: ErrorDetails) -> str:
    loc = error["loc"]
    if error["type"] == "extra_forbidden":
        known = _known_keys(loc[:-1])
        close = get_close_matches(str(loc[-1]), known, n=1)
        return "unknown key; " + (f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}")
    said = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"]
    if "database" not in loc:  # whose words are the node's own
        said = _redact(said)
    what = _WORDS.get(error["type"]) or said.replace("Input should be", "should be")
    return f"{what}; for example: {_last_key(loc)} = {_toml(_example(loc))}"


def _known_keys(loc: Location) -> list[str]:
    table = _example(loc)
    return list(
        dict.fromkeys(key for entry in (_tables(table) if isinstance(table, list) else [table]) for key in entry)
    )


def _shown(error: ErrorDetails) -> str:
    """The value that is wrong, unless it might be, or hold, a secret."""
    value = error["input"]
    if error["type"] == "extra_forbidden" or "database" in error["loc"] or not isinstance(value, str | int | float):
        return ""
    text = _redact(_toml(value))
    return f" = {text if len(text) <= 80 else text[:77] + '...'}"


def _redact(text: str) -> str:
    """Without the user and password of a URL that stands where it should not."""
    return re.sub("/.*@", "/***@", text, flags=re.DOTALL)


def _last_key(loc: Location) -> str:
    return next(_bare(part) for part in reversed(loc) if isinstance(part, str))


def _bare(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_bare(k)} = {_toml(v)}' for k, v in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


@cache
def _whole_example() -> dict[str, Any]:
    """The example with what it leaves commented out."""
    return tomllib.loads(re.sub(r"^#(?=[\w\[{])", "", EXAMPLE, flags=re.MULTILINE))


def _example(loc: Location) -> Any:
    """The example's value at `loc`; of an array of tables, the whole or, further in, a key of any of its tables."""
    at: Any = _whole_example()
    for key in (part for part in loc if isinstance(part, str)):
        at = (
            {k: v for entry in reversed(_tables(at)) for k, v in entry.items()}[key]
            if isinstance(at, list)
            else at[key]
        )
    return at


def _tables(array: list[Any]) -> list[dict[str, Any]]:
    """Of an array that may hold bare values, too."""
    return [entry for entry in array if isinstance(entry, dict)]
