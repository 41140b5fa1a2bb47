"""Starts the process in which the TensorRT engine runs on a simulated GPU, and the tests that want one in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.pycuda_build import BuildError
from tests.support.simulated_gpu import run_simulated, simulated

TESTS = ("tests/contract/test_engine.py", "tests/faults/test_gpu_faults.py")


@pytest.mark.skipif(simulated(), reason="this is that process")
def test_the_tensorrt_engine_on_a_simulated_gpu(tmp_path: Path) -> None:
    """Every test of the contract and of the faults, none of them skipped."""
    try:
        done = run_simulated(tmp_path / "simcuda", "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS)
    except BuildError as e:
        message = f"no simulated GPU: a C++ compiler, Python's headers and PyPI are wanted: {e}"
        if os.environ.get("CXRNODE_REQUIRE"):
            pytest.fail(message)
        pytest.skip(message)
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout, done.stdout[-5000:]
