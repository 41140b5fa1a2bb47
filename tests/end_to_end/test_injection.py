"""Names from outside act on no terminal, forge no line, and can be told from each other, whoever prints them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cxrnode import logs
from cxrnode.cli.main import main
from cxrnode.printable import ACTING
from cxrnode.store.database import Database
from cxrnode.store.queue import Queue
from cxrnode.types import Peer
from tests.support.awaiting import await_true
from tests.support.batch import studies
from tests.support.node import Node, running_node
from tests.support.raw import exchange
from tests.support.receiving import associate_rq, c_store_rq, p_data
from tests.support.receiving import command as dimse
from tests.support.store import received

ESC = "\x1b]0;owned\x07"
FORGED = "2026-11-22T10:00:00.000Z CRITICAL node cxrnode: forged"
# as it is on disk -> as it is shown
NAMES = {
    f"{ESC}.dcm": r"\x1b]0;owned\x07.dcm",
    f"a\r\n{FORGED}": rf"a\x0d\x0a{FORGED}",
    "gepj.\u202etxt\u2066": r"gepj.\u202etxt\u2066",
    "[bold red]x[bold]": "[bold red]x[bold]",
    "M\udcfcller": r"M\xfcller",
    "M\\xfcller": r"M\\xfcller",
    "\u009b2J\u200b": r"\u009b2J\u200b",
    "正面 é 🩻": "正面 é 🩻",
}
ACTS = re.compile(f"[{ACTING}]")


def harmless(text: str) -> list[str]:
    """Its lines; nothing in them acts, and none is forged."""
    lines = text.split("\n")
    assert [line for line in lines if ACTS.search(line)] == []
    assert [line for line in lines if line.startswith((FORGED, "failed: forged"))] == []
    return lines


def cxrnode(*arguments: str | Path, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "cxrnode", *map(str, arguments)], capture_output=True, text=True, check=False,
        encoding="utf-8", env=os.environ | {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"} | environment,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A run over a folder, a zip and a tar of hostile names, of which one film of each is cut short."""
    folder = tmp_path_factory.mktemp("hostile")
    film = (studies(folder / "sound", 1) / "s000" / "i0").read_bytes()
    archives = [folder / f"folder{ESC}", folder / f"zip{ESC}.zip", folder / f"tar{ESC}.tar", folder / "empty\n\u202e"]
    for path in (archives[0], archives[3]):
        path.mkdir()
    with zipfile.ZipFile(archives[1], "w") as z, tarfile.open(archives[2], "w", errors="surrogateescape") as t:
        for n, name in enumerate(NAMES):
            data = film[: len(film) // 2] if n == 0 else film if n == 1 else f"no film {n}".encode()
            (archives[0] / name).write_bytes(data)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
            if "\udcfc" not in name:
                z.writestr(name, data)
    out = folder / "out"
    said = cxrnode("run-batch", *archives, "--out", out)
    assert said.returncode == 1, said.stderr
    (folder / "said").write_text(said.stdout + said.stderr, encoding="utf-8")
    return out, archives


def shown_paths(archives: list[Path]) -> set[str]:
    places = [str(a).replace(ESC, r"\x1b]0;owned\x07") for a in archives[:3]]
    places = [places[0], *(f"{place}!" for place in places[1:])]  # members
    every = {f"{place}/{name}" for place in places for name in NAMES.values()}
    return every - {rf"{places[1]}/M\xfcller"}


def test_the_table_and_the_messages(done: tuple[Path, list[Path]]) -> None:
    out, archives = done
    said = "\n".join(harmless((out.parent / "said").read_text(encoding="utf-8")))
    for path in shown_paths(archives):
        assert path in said
    assert said.count("failed: /") == 1  # the others are its duplicates
    assert rf"{str(archives[3]).splitlines()[0]}\x0a\u202e holds no files" in said


def test_the_files_of_the_run(done: tuple[Path, list[Path]]) -> None:
    out, archives = done
    text = (out / "results.csv").read_text(encoding="utf-8")
    harmless(text)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["path"] for row in rows} == shown_paths(archives)
    assert len(text.splitlines()) == len(rows) + 1
    run = (out / "run.json").read_text(encoding="utf-8")
    harmless(run)
    assert any(ESC in word for word in _strings(json.loads(run)))  # JSON is exact: its own escapes keep it harmless


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_run_that_is_printed(done: tuple[Path, list[Path]], form: str) -> None:
    out, archives = done
    said = cxrnode("run-batch", *archives, "--out", out, "--format", form, "--quiet")
    harmless(said.stdout + said.stderr)
    rows = list(csv.DictReader(io.StringIO(said.stdout))) if form == "csv" else json.loads(said.stdout)["results"]
    assert {row["path"] for row in rows} == shown_paths(archives)


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_the_ledger_of_a_run(done: tuple[Path, list[Path]], form: str) -> None:
    out, _ = done
    said = cxrnode("audit", "query", "--out", out, "--limit", "0", "--format", form)
    harmless(said.stdout + said.stderr)
    records = int(said.stderr.split()[0])
    if form == "table":
        assert len(said.stdout.splitlines()) == records
    elif form == "csv":
        assert len(said.stdout.splitlines()) == len(list(csv.DictReader(io.StringIO(said.stdout)))) + 1 == records + 1
    else:
        assert len(json.loads(said.stdout)) == records
    assert rf"a\x0d\x0a{FORGED}" in said.stdout.replace(r"\\", "\\")


def test_the_life_of_a_study_and_the_rest_of_the_ledger(done: tuple[Path, list[Path]]) -> None:
    out, _ = done
    for arguments in (["show", "1.2.826.0.1.1"], ["verify"], ["export"], ["export", "--format", "atna"]):
        said = cxrnode("audit", *arguments, "--out", out)
        assert said.returncode == 0
        harmless(said.stdout + said.stderr)


SHORT = "P\x1b[2J\n\u202e"
HOSTILE = f"x{ESC}\n{FORGED}\u202e[red]y[/]"
SHOWN = rf"x\x1b]0;owned\x07\x0a{FORGED}\u202e[red]y[/]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run-batch", HOSTILE, "--out", "out"],
        ["run-batch", ".", "--out", "out", "--send", HOSTILE],
        ["run-batch", ".", "--out", "out", "--bundle", HOSTILE],
        ["run-batch", ".", "--out", "out", "--engine", HOSTILE],
        ["run-batch", ".", "--out", "out", "--batch-size", HOSTILE],
        ["run-batch", ".", "--out", "file", "--" + HOSTILE],
        [HOSTILE], ["--" + HOSTILE], ["queue", HOSTILE], ["audit", "show", HOSTILE, HOSTILE],
        ["models", "show", HOSTILE], ["models", "verify", HOSTILE], ["engine", "verify", "--bundle", HOSTILE],
        ["engine", "build", "--bundle", HOSTILE], ["engine", "list", "--bundle", HOSTILE],
        ["config", "check", HOSTILE], ["config", "check", f"bad{ESC}.toml"], ["config", "check", f"key{ESC}.toml"],
        ["doctor", "--config", HOSTILE], ["serve", "--config", HOSTILE], ["doctor", "--config", f"bad{ESC}.toml"],
        ["queue", "list", "--config", "good.toml", "--destination", HOSTILE],
        ["queue", "show", "--config", "good.toml", HOSTILE],
        ["audit", "query", "--out", HOSTILE], ["audit", "query", "--config", "good.toml", "--study", HOSTILE],
        ["audit", "query", "--config", "good.toml", "--since", HOSTILE],
        ["audit", "query", "--config", "good.toml", "--kind", HOSTILE],
        ["audit", "show", HOSTILE, "--config", "good.toml"], ["audit", "explain", HOSTILE, "--config", "good.toml"],
        ["audit", "verify", "--file", HOSTILE], ["audit", "verify", "--file", f"export{ESC}"],
        ["audit", "anchor", f"no/{HOSTILE}", "--config", "good.toml"],
    ],
    ids=lambda a: " ".join(a)[:40].encode("ascii", "backslashreplace").decode().replace("\x1b", "^"),
)  # fmt: skip
def test_what_a_command_says_of_its_arguments(
    hostile_folder: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(hostile_folder)
    monkeypatch.setenv("COLUMNS", "600")
    monkeypatch.setattr(sys, "argv", ["cxrnode", *arguments])
    monkeypatch.setattr(logs, "begin_command", lambda: None)  # this process's hooks are pytest's
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code in (1, 2)
    assert said.err
    harmless(said.out + said.err)


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    escaped = HOSTILE.replace("\x1b", r"\u001b").replace("\x07", r"\u0007").replace("\n", r"\n")
    (folder / "good.toml").write_text("[node]\ndata_dir = 'var'\n", encoding="utf-8")
    (folder / f"bad{ESC}.toml").write_text(f'[node]\nae_title = "{escaped}"\nport = "{escaped}"\n', encoding="utf-8")
    (folder / f"key{ESC}.toml").write_text(f'["{escaped}"]\n"{escaped}" = 1\n', encoding="utf-8")
    (folder / f"export{ESC}").write_text(f'{{"seq": 1, "{escaped}": "{escaped}"}}\n', encoding="utf-8")
    (folder / "file").write_text("x")
    database = Database(_private(folder / "var") / "ledger.sqlite")
    with database.begin() as c:
        peer = Peer(calling_aet=HOSTILE, called_aet=HOSTILE, host=HOSTILE)
        image = replace(received(1, 1, at=time.time()), peer=peer, patient_id=SHORT, accession_number=SHORT)
        Queue(HOSTILE).receive(c, [image])
        c.exec_driver_sql("UPDATE job SET attempts = 2, last_error = ?", (HOSTILE,))
    database.close()
    return folder


def _private(folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    return folder


@pytest.mark.parametrize("form", ["table", "csv", "json"])
@pytest.mark.parametrize("command", [("queue", "list"), ("audit", "query")])
def test_what_a_sender_called_itself(hostile_folder: Path, command: tuple[str, str], form: str) -> None:
    said = cxrnode(*command, "--config", hostile_folder / "good.toml", "--format", form)
    assert said.returncode == 0
    harmless(said.stdout + said.stderr)
    if form == "table":
        assert SHOWN in said.stdout
    elif form == "csv":
        row = next(csv.DictReader(io.StringIO(said.stdout)))
        assert SHOWN in row.values()
    else:
        assert HOSTILE in json.loads(said.stdout)[0].values()


def test_one_image_of_such_a_sender(hostile_folder: Path) -> None:
    config = hostile_folder / "good.toml"
    said = cxrnode("queue", "show", "1", "--config", config)
    lines = harmless(said.stdout + said.stderr)
    assert {f"calling_aet: {SHOWN}", f"host: {SHOWN}", f"last_error: {SHOWN}"} <= set(lines)
    study = next(line for line in lines if line.startswith("study_instance_uid")).split()[1]
    lines = harmless(cxrnode("audit", "show", study, "--config", config).stdout)
    assert r"patient P\x1b[2J\x0a\u202e, accession number P\x1b[2J\x0a\u202e" in lines


def test_a_variable_of_the_environment(hostile_folder: Path) -> None:
    said = cxrnode("config", "check", hostile_folder / "good.toml", CXRNODE_NODE__AE_TITLE=HOSTILE)
    assert said.returncode == 2
    harmless(said.stderr)
    assert "CXRNODE_NODE__AE_TITLE" in said.stderr


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_log_of_a_node(tmp_path: Path, form: str) -> None:
    """AE titles, SOP Instance UIDs and bytes as no library would send them.

    Control characters in an AE title end the association before anybody reads it.
    """
    titles = ["\x1b[2J", "A\r\nERROR x", "B\x9b", "C\xff\xfe", "\x00\x07", "D\x7f\x85"]
    with running_node(Node(folder=tmp_path, extra=f'[log]\nformat = "{form}"\nlevel = "debug"')) as node:
        for title in titles:
            for calling, called in ((title, "CXRNODE"), ("PACS", title), (title, title)):
                exchange(node.port, associate(calling, called))
        exchange(node.port, b"GET /\x1b[2J HTTP/1.1\r\nERROR forged\r\n\r\n")
        store = p_data(1, 3, dimse(c_store_rq(CR, b"1.2\x1b[2J\nERROR forged"))) + p_data(1, 2, b"\x1b[2J")
        exchange(node.port, associate("PACS", "CXRNODE"), store)
        exchange(node.port, associate("[red]x[/]", "CXRNODE"))
        await_true(lambda: "association aborted" in node.log, lambda: node.log)
        await_true(lambda: rejected(node), lambda: node.log)
        for output_format in ("table", "csv", "json"):
            said = cxrnode("audit", "query", "--config", node.config, "--limit", "0", "--format", output_format)
            assert said.returncode == 0
            harmless(said.stdout + said.stderr)
        node.stop()
        lines = harmless(node.log)
    if form == "json":
        assert all(isinstance(json.loads(line), dict) for line in filter(None, lines))
    else:
        assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z [A-Z]+ \w+ ", line) for line in filter(None, lines))


CR = "1.2.840.10008.5.1.4.1.1.1"


def associate(calling: str, called: str) -> bytes:
    """An A-ASSOCIATE-RQ with these bytes as AE titles."""
    whole = associate_rq((1, CR, "1.2.840.10008.1.2.1"))
    titles = called.encode("latin-1").ljust(16) + calling.encode("latin-1").ljust(16)
    return whole[:10] + titles + whole[42:]


def rejected(node: Node) -> list[tuple[object, ...]]:
    return node.rows("SELECT seq FROM ledger WHERE kind = 'association_rejected'")
