from __future__ import annotations

import pytest

from cxrnode.cli.output import cut, flow, padded
from cxrnode.words import counted


@pytest.mark.parametrize(
    ("n", "noun", "said"),
    [(1, "image", "1 image"), (0, "image", "0 images"), (2, "study", "2 studies"), (1, "study", "1 study"),
     (3, "day", "3 days"), (2, "more file", "2 more files")],
)  # fmt: skip
def test_one_is_no_plural(n: int, noun: str, said: str) -> None:
    assert counted(n, noun) == said


@pytest.mark.parametrize("text", ["/archive/a/b/c/film.dcm", "/archive/胸部エックス線/正面.dcm", "短", ""])
@pytest.mark.parametrize("columns", [8, 15, 40])
def test_a_path_is_cut_in_the_middle_and_fits(text: str, columns: int) -> None:
    from rich.cells import cell_len

    short = cut(text, columns)
    assert cell_len(short) <= columns
    assert cell_len(padded(text, columns)) == columns
    if cell_len(text) > columns:
        begin, _, end = short.partition("~")
        assert begin
        assert text.startswith(begin.rstrip())
        assert text.endswith(end)
    else:
        assert short == text


def test_fields_go_to_the_next_line_whole() -> None:
    uid = "1.2.826.0.1." + "7" * 40
    lines = flow(["7  reported", uid, "why it was not: a long story of many words"], columns=60, indent=8)
    assert lines == ["7  reported", " " * 8 + uid, " " * 8 + "why it was not: a long story of many words"]
    assert flow(["7", "", "8"], columns=60, indent=8) == ["7  8"]
