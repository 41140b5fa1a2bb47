"""Where torch, or another of the extra's, is not installed, the command says how it is, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("missing", ["torch", "timm", "sklearn"])
def test_how_to_install_is_said(missing: str) -> None:
    code = (
        f"import sys, runpy\nsys.modules[{missing!r}] = None\nsys.argv = ['training', '--help']\n"
        "runpy.run_module('training', run_name='__main__')"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (said.returncode, said.stdout) == (2, "")
    assert f"training needs {missing}, which is not installed" in said.stderr
    assert "pip install -e '.[train]'" in said.stderr
    assert "https://download.pytorch.org/whl/cpu" in said.stderr
    assert "Traceback" not in said.stderr
