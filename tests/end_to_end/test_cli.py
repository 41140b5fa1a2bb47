"""Every command is documented, and says what is wrong in words."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cxrnode import __version__
from cxrnode.cli.run_batch import parse_destination
from cxrnode.types import Destination
from engines.bundle import SHIPPED

README = Path(__file__).parents[2] / "README.md"
COMMANDS = (
    "run-batch", "serve", "doctor", "config check", "config example", "queue list", "queue show", "queue retry",
    "queue bury", "models list", "models show", "models verify", "engine probe", "engine build", "engine verify",
    "engine list", "engine bench",
)  # fmt: skip


def cxrnode(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cxrnode", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_stands_in_the_readme(command: str) -> None:
    assert cxrnode(*command.split(), "--help").returncode == 0
    assert f"cxrnode {command}" in README.read_text(encoding="utf-8")


def test_version_and_no_arguments() -> None:
    assert cxrnode("--version").stdout.strip() == f"cxrnode {__version__}"
    assert "Research use only" in " ".join(cxrnode("--help").stdout.split())


def test_models_list_show_verify() -> None:
    assert "cxr3-lite2 (default)" in cxrnode("models", "list").stdout
    card = cxrnode("models", "show", "cxr3-lite2").stdout
    assert "esearch use" in card
    verified = cxrnode("models", "verify", "default")
    assert verified.returncode == 0
    assert "golden inputs" in verified.stdout


def test_a_bundle_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(SHIPPED / "cxr3-lite2", tmp_path / "mine")
    with (folder / "MODEL_CARD.md").open("a", encoding="utf-8") as f:
        f.write("no side effects")
    refused = cxrnode("models", "verify", str(folder))
    assert refused.returncode == 2
    assert "does not match its sha256" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ORTHANC@127.0.0.1:4242", Destination(ae_title="ORTHANC", host="127.0.0.1", port=4242)),
        ("A B@[::1]:104", Destination(ae_title="A B", host="::1", port=104)),
    ],
)
def test_destinations(text: str, expected: Destination) -> None:
    assert parse_destination(text) == expected
