"""Starts the process in which the TensorRT engine runs on a simulated GPU, and the tests that want one in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.simulated_gpu import run_simulated, simulated, simulated_or_skip

TESTS = (
    "tests/contract/test_engine.py",
    "tests/faults/test_gpu_faults.py",
    "tests/faults/test_gpu_choice.py",
    "tests/faults/test_gpu_compile.py",
    "tests/faults/test_gpu_shadow.py",
    "tests/faults/test_gpu_starts.py",
)


@pytest.mark.skipif(simulated(), reason="this is that process")
def test_the_tensorrt_engine_on_a_simulated_gpu(tmp_path: Path) -> None:
    """Every test of the contract and of the faults, none of them skipped."""
    environment = simulated_or_skip(tmp_path / "simcuda")
    done = run_simulated(environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS)
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout, done.stdout[-5000:]
