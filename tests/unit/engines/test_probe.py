"""What the probe finds: here, and with a simulated libcuda of each kind. The child that asks is the real one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import engines.probe
from engines.base import EngineError
from engines.plan import Machine
from engines.probe import Findings, driver_installed, probe, usable_machine
from tests.support.simulated_gpu import simulated_or_skip

WELL = ["driver library", "driver", "GPU", "GPU memory", "pycuda", "TensorRT", "onnx"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return simulated_or_skip(tmp_path_factory.mktemp("gpu") / "simcuda")


@pytest.fixture
def gpu(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """For the child that asks; nothing of it is loaded here."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def only_fault(found: Findings) -> str:
    """The one check that failed, in words; no machine is told then."""
    assert found.machine is None
    (fault,) = (c for c in found.checks if not c.ok)
    assert fault.mend
    assert found.missing == str(fault)
    return str(fault)


@pytest.mark.skipif(driver_installed(), reason="this machine has an NVIDIA driver")
def test_without_a_driver_it_says_so_and_asks_no_more() -> None:
    found = probe()
    assert [c.what for c in found.checks] == ["driver library"]
    assert "libcuda.so.1" in found.missing
    assert "install NVIDIA's driver, 580 or later" in found.missing
    with pytest.raises(EngineError, match="TensorRT cannot be used here: driver library"):
        usable_machine()


def test_all_is_well_on_a_machine_that_has_everything(gpu: None) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    found = probe()
    assert [c.what for c in found.checks] == WELL
    assert not found.missing
    assert usable_machine() == found.machine == Machine(
        gpu="simulated device", compute_capability="8.6", driver="CUDA 13.0", module="tensorrt_rtx",
        version=trt.__version__,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("DEVICES", "0", "GPU: the driver finds no GPU: see what nvidia-smi says"),
        ("CAPABILITY", "61", r"GPU: simulated device, compute capability 6\.1: .*--engine cpu"),
        ("CAPABILITY", "90", r"TensorRT: tensorrt_rtx [\d.]+: .*does not run on this GPU: install tensorrt"),
        ("INIT", "803", r"GPU: cuInit: simulated error 803 \(CUDA error 803\): see what nvidia-smi"),
        ("INIT", "-1", r"GPU: the process that asked crashed \(SIGSEGV\): start the machine again"),
    ],
)
def test_what_is_wrong_is_named(gpu: None, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv(f"SIMCUDA_{name}", value)
    found = probe()
    assert re.match(words, only_fault(found))
    if name != "CAPABILITY":  # without a GPU, TensorRT is not imported
        assert [c.what for c in found.checks] == WELL[:3]


def test_an_old_driver_is_named_and_so_is_what_is_newer_than_it(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCUDA_DRIVER", "12040")
    faults = [str(c) for c in probe().checks if not c.ok]
    assert len(faults) == 2
    assert re.match(r"driver: .*CUDA 12\.4: install NVIDIA's driver 580 or later", faults[0])
    assert re.match("pycuda: .*it is newer than the driver", faults[1])


def test_a_driver_that_hangs_is_given_up(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCUDA_INIT", "-2")
    assert "GPU: the process that asked did not end within 1 s" in only_fault(probe(limit_s=1))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("__version__ = '10.3.0'", "TensorRT: tensorrt 10.3.0: it is too old: pip install"),
        ("raise ImportError('libnvinfer.so.11: not there')", "TensorRT: libnvinfer.so.11: not there: pip install"),
        ("import ctypes; ctypes.string_at(0)", "TensorRT: the process that asked crashed (SIGSEGV)"),
        ("import os; os._exit(3)", "TensorRT: the process that asked ended with 3 (noise)"),
        ("import atexit, os; __version__ = '11'; atexit.register(os._exit, 4)", "end: the process that asked ended"),
    ],
)
def test_a_tensorrt_that_is_of_no_use_is_named(
    gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, words: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(f"print('noise')\n{module}\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")
    assert words in only_fault(probe())


def test_a_driver_is_looked_for_without_loading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.probe, "_FOLDERS", ())
    monkeypatch.setattr(engines.probe, "_LOADER_CACHE", tmp_path / "ld.so.cache")
    monkeypatch.setenv("LD_LIBRARY_PATH", f":{tmp_path}")
    assert not driver_installed()
    (tmp_path / "ld.so.cache").write_bytes(b"libc.so.6\0/usr/lib/libcuda.so.1\0")
    assert driver_installed()
    (tmp_path / "ld.so.cache").unlink()
    (tmp_path / "libcuda.so.1").write_bytes(b"no library at all")
    assert driver_installed()
