"""What is printed of text from outside: nothing that acts, nothing lost, nothing escaped twice."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrnode.item import path_text
from cxrnode.printable import json_text, printable

ACTS = [
    chr(n)
    for n in (
        *range(0x20), *range(0x7F, 0xA0), 0xAD, 0x61C, *range(0x200B, 0x2010), *range(0x2028, 0x202F),
        *range(0x2060, 0x2070), 0xFEFF, 0xE0001, 0xE0041, 0xD800, 0xDC80, 0xDFFF,
    )
]  # fmt: skip
HOSTILE = st.text(alphabet=st.one_of(st.sampled_from(ACTS), st.characters(categories=None), st.sampled_from("\\xu0fA")))
UNSEEN = set("\u115f\u1160\u3164\uffa0")  # letters without a shape
WRITTEN = st.characters(categories=["L", "M", "N", "P", "S", "Zs"], exclude_characters=UNSEEN)
ESCAPE = re.compile(r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8}")


@given(HOSTILE)
def test_nothing_that_acts_is_left(text: str) -> None:
    shown = printable(text)
    assert not set(shown) & set(ACTS) - {"\u200d"}
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")


@given(HOSTILE)
def test_a_second_time_changes_nothing(text: str) -> None:
    assert printable(printable(text)) == printable(text)


@given(st.text(alphabet=WRITTEN))
def test_what_people_write_is_left_alone(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "胸部エックス線/正面.dcm", "葛\U000e0100飾", "Röntgen\u3000Müller", "Thorax á la carte", "👩\u200d⚕\ufe0f 🩻",
        "🏳\ufe0f\u200d🌈", "רנטגן", "أشعة", "ก็", "[bold]x[/]", r"C:\new\table", "%s {0} $(id)",
    ],
)  # fmt: skip
def test_names_remain_readable(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("a\r\n2026-11-22 ERROR forged", r"a\x0d\x0a2026-11-22 ERROR forged"),
        ("\x9b2J\x7f", r"\u009b2J\x7f"),
        ("gepj.\u202etxt", r"gepj.\u202etxt"),
        ("a\u200bb\u2028c\ufeff", r"a\u200bb\u2028c\ufeff"),
        ("a\u200db", r"a\u200db"),
        ("tag\U000e0041", r"tag\U000e0041"),
        ("M\udcfcller", r"M\xfcller"),
        ("half \ud83d", r"half \ud83d"),
    ],
)
def test_what_acts_is_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


VALUES = st.recursive(HOSTILE | st.integers() | st.none(), lambda v: st.lists(v) | st.dictionaries(HOSTILE, v))


@given(VALUES)
def test_json_is_ascii_on_one_line_and_says_the_same(value: object) -> None:
    text = json_text(value)
    assert all(" " <= c <= "~" for c in text)
    read = json.loads(text)
    json.dumps(read, ensure_ascii=False).encode("utf-8")  # no half of a character
    if not re.search(r"[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)):
        assert read == value


def test_json_with_indentation_has_its_lines() -> None:
    assert json_text({"a": "x\ny\x7f"}, indent=1) == '{\n "a": "x\\ny\\u007f"\n}'


PARTS = [c.encode("utf-8", "ignore") or b"c" for c in ACTS]
PARTS += [b"\\", b"\\\\", b"x1b", b"\\x1b", b"u202e", b"\\u202e"]
NAME = st.lists(st.one_of(st.binary(min_size=1, max_size=3), st.sampled_from(PARTS)), max_size=8)


@given(NAME, NAME)
def test_two_file_names_never_become_one(one: list[bytes], other: list[bytes]) -> None:
    first, second = (b"".join(parts) for parts in (one, other))
    shown = [path_text(Path("/a") / name.decode("utf-8", "surrogateescape")) for name in (first, second)]
    paths = [Path("/a") / name.decode("utf-8", "surrogateescape") for name in (first, second)]
    assert (shown[0] == shown[1]) == (paths[0] == paths[1])
    assert all(printable(name) == name for name in shown)


def test_a_file_is_found_by_its_shown_name() -> None:
    """As the documentation has it: what is between $' and ' in a shell, of a name without other backslashes."""
    name = "a\x1b[2J\n\u202eb\udcff.dcm"
    said = path_text(name)
    read = ESCAPE.sub(lambda m: m[0].encode().decode("unicode_escape"), said.replace(r"\xff", "\udcff"))
    assert read == name
