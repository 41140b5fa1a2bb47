"""What is printed can be read: on narrow terminals, in other encodings, through a pipe that closes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.support.batch import command, studies
from tests.support.orthanc import free_port

FOLDER = "胸部エックス線/a very long name of a folder from a site that loves long names/exports of 2026"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An archive, and the folder of its results."""
    folder = tmp_path_factory.mktemp("terminal")
    archive, out = studies(folder / "in", 1), folder / "out"
    (archive / FOLDER).mkdir(parents=True)
    film = (archive / "s000" / "i0").read_bytes()
    (archive / FOLDER / "正面.dcm").write_bytes(film[: len(film) // 2])
    (archive / "notes.txt").write_text("no film")
    assert subprocess.run(command(archive, out=out, options=("--quiet",)), check=False).returncode == 1
    return archive, out


def run(done: tuple[Path, Path], *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    archive, out = done
    return subprocess.run(
        command(archive, out=out, options=options), capture_output=True, text=True, check=False,
        encoding=environment.get("PYTHONIOENCODING", "utf-8"), env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_table_fits_and_names_every_file(done: tuple[Path, Path], columns: int) -> None:
    said = run(done, COLUMNS=str(columns), TERM="dumb", NO_COLOR="1").stdout.splitlines()
    table = said[:-1]  # the last line names the folder, however long its path is
    assert max(map(cell_len, table)) <= columns
    (cut,) = (n for n, line in enumerate(table) if "正面.dcm" in line)
    assert "failed" in table[cut]
    assert "~" in table[cut]  # the middle of the path is left out, its end is there
    assert table[cut + 1].startswith("    truncated:")  # the reason, on a line of its own
    assert "1 analysed, 1 not analysed, 1 failed" in " ".join(table)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_what_the_encoding_lacks_is_an_escape(done: tuple[Path, Path], encoding: str) -> None:
    said = run(done, PYTHONIOENCODING=encoding, COLUMNS="100")
    assert said.returncode == 1  # for the film that was cut short, and no other reason
    assert "Traceback" not in said.stderr
    assert r"\u6b63\u9762.dcm" in said.stdout
    assert r"\u6b63\u9762.dcm" in said.stderr


def test_a_pacs_that_is_down_is_one_line(done: tuple[Path, Path]) -> None:
    _, out = done
    port = free_port()
    said = run(done, "--send", f"PACS@127.0.0.1:{port}").stderr
    (line,) = (line for line in said.splitlines() if f"127.0.0.1:{port}: " in line and "failed" in line)
    for words in (f"2 results not delivered to PACS@127.0.0.1:{port}", "no connection", "run the same command again"):
        assert words in line
    assert str(out / "dicom") in line
    assert "in a row" not in said


@pytest.mark.parametrize(
    "arguments",
    [["audit", "query"], ["audit", "query", "--format", "json"], ["audit", "query", "--format", "csv"],
     ["audit", "export"], ["config", "example"], ["models", "show", "default"], ["run-batch", "--format", "csv"]],
)  # fmt: skip
def test_a_reader_that_goes_away_ends_it_quietly(done: tuple[Path, Path], arguments: list[str]) -> None:
    archive, out = done
    if arguments[0] == "audit":
        arguments = [*arguments, "--out", str(out)]
    if arguments[0] == "run-batch":
        arguments = [*arguments, str(archive), "--out", str(out), "--quiet"]
    reading, writing = os.pipe()
    os.close(reading)  # before the first word
    try:
        said = subprocess.run(
            [sys.executable, "-m", "cxrnode", *arguments],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert (said.returncode, said.stderr) == (141, "")  # as a shell has it of a tool that SIGPIPE ended


def test_a_full_disk_under_the_output_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        said = subprocess.run(
            [sys.executable, "-m", "cxrnode", "config", "example"], stdout=full, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    assert said.returncode == 1
    assert said.stderr == "error: cannot write the output: No space left on device\n"
