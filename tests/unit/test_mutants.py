"""The mutation run's own rules (`make mutants` is not part of `make test`)."""

from __future__ import annotations

import pytest

from tests.mutants.__main__ import ROOT, modules, stale
from tests.mutants.groups import GROUPS
from tests.mutants.operators import mutants


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a < b", {"x = ((a) <= (b))"}),
        ("x = a == b != c", {"x = ((a) != (b) != (c))", "x = ((a) == (b) == (c))"}),
        ("x = not a", {"x = (bool(a))"}),
        ("x = a and b", {"x = (a or b)"}),
        ("x = a + 60", {"x = (a - 60)", "x = a + 61"}),
        ("x = 'STAT'", {"x = 'STATX'"}),
        ("x = True", {"x = False"}),
        ("f(a, b, c=d)", {"pass", "(f(b, a, c=d))", "(f(a, b))"}),
        ("if a:\n    raise E('words')", {"if not a:\n    raise E('words')", "if a:\n    pass"}),
        ("def f() -> int:\n    return g", {"def f() -> int:\n    return None"}),
        ("x = s.order_by(k)", {"x = (s)"}),
        ("x = {a.b, a.c}", {"x = ({a.b})", "x = ({a.c})"}),
        ("log.info('words', 1)", set()),
        ("'''words'''", set()),
        ("def f(x: int = 1) -> None: ...", {"def f(x: int = 2) -> None: ..."}),
    ],
)
def test_what_is_changed(source: str, expected: set[str]) -> None:
    made = {m.apply(source).replace("not (a)", "not a").replace("(not a)", "not a") for m in mutants("x.py", source)}
    assert made == expected


def test_no_module_of_these_packages_is_left_out() -> None:
    there = {p.relative_to(ROOT).as_posix() for name in ("store", "dicom", "report", "audit")
             for p in (ROOT / "cxrnode" / name).glob("*.py")}  # fmt: skip
    assert there <= {path for group in GROUPS.values() for path in modules(group, [])}


def test_every_mutant_of_the_node_is_a_program() -> None:
    for group in GROUPS.values():
        for path in modules(group, []):
            text = (ROOT / path).read_text()
            for mutant in mutants(path, text)[::10]:
                compile(mutant.apply(text), path, "exec")


def test_the_list_of_equivalent_mutants_fits_the_source() -> None:
    assert stale() == []
