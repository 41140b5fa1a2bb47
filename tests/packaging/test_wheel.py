"""The wheel holds the node and the engines, nothing else, and works in a clean environment without torch."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (made,) = out.glob("*.whl")
    return made


def test_top_level_names_are_exactly_the_node_and_the_engines(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as z:
        top = {name.split("/")[0] for name in z.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"cxrnode", "engines"}


def test_the_wheel_carries_a_whole_bundle(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as z:
        shipped = {Path(n).name for n in z.namelist() if n.startswith("engines/bundles/cxr3-lite2/")}
    assert {"model.onnx", "bundle.json", "golden.npz", "MODEL_CARD.md"} <= shipped


@pytest.mark.slow
def test_installed_alone_it_verifies_its_model_and_needs_no_torch(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", str(wheel)], check=True)
    said = subprocess.run(
        [tmp_path / "venv" / "bin" / "cxrnode", "models", "verify", "default"],
        check=True, capture_output=True, text=True, cwd=tmp_path,
    ).stdout  # fmt: skip
    assert "golden inputs" in said
    installed = subprocess.run([python, "-m", "pip", "list"], check=True, capture_output=True, text=True).stdout
    assert "torch" not in installed.split()
