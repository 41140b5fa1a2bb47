"""What prints goes through the outlets that show text from outside as it is (`cxrnode.printable`), and past none."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import cxrnode

ROOT = Path(cxrnode.__file__).parent.parent
PRINTS = {
    "print", "typer.echo", "typer.secho", "click.echo", "click.secho", "rich.print", "Console", "sys.stdout",
    "sys.stderr", "sys.__stdout__", "sys.__stderr__", "tqdm.write",
}  # fmt: skip
OUTLETS = {
    "cxrnode/cli/output.py": {"sys.stdout", "sys.stderr", "Console"},
    "cxrnode/logs.py": {"sys.stderr"},
    "cxrnode/cli/progress.py": {"sys.stderr", "Console"},  # is it a terminal? And the bar: no name is in it
    "training/__main__.py": {"sys.stderr"},  # before anything can be imported
    "training/fit.py": {"sys.stderr", "tqdm.write"},  # is it a terminal? And beside the bar, through `printable`
    "engines/probe_child.py": {"print"},  # JSON for the process that asks
}


def prints(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {ast.unparse(node) for node in nodes if isinstance(node, ast.Name | ast.Attribute)} & PRINTS


def sources() -> Iterator[Path]:
    for package in ("cxrnode", "engines", "training"):
        yield from (ROOT / package).rglob("*.py")


def test_nothing_prints_past_the_outlets() -> None:
    found = {path.relative_to(ROOT).as_posix(): said for path in sources() if (said := prints(path))}
    assert found == OUTLETS


def test_json_that_is_printed_is_of_the_outlet() -> None:
    for path in (ROOT / "cxrnode/cli").glob("*.py"):
        assert "json.dumps" not in path.read_text(encoding="utf-8"), path


def test_the_search_finds_what_prints(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text("import sys\nprint(1)\nsys.stdout.write('x')\ntyper.echo('y')\nConsole().print('z')\n")
    assert prints(source) == {"print", "sys.stdout", "typer.echo", "Console"}
