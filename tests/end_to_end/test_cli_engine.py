"""`cxrnode engine`, and `run-batch` where the GPU is of no use; with a GPU that is: tests/faults/test_gpu_choice.py."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx")

from cxrnode.calibration import calibration_batches
from cxrnode.config import Config
from cxrnode.doctor import _golden
from cxrnode.doctor_destination import Level
from cxrnode.errors import ArchiveError
from cxrnode.monitor import Monitor
from cxrnode.opening import open_database
from cxrnode.serve import run_analyse
from cxrnode.store import ledger
from cxrnode.store.data_dir import establish
from cxrnode.store.database import LEDGER_NAME, Database
from cxrnode.supervisor import Supervisor
from cxrnode.writable import Writable
from engines.bundle import Bundle
from engines.plan import PRECISIONS
from engines.probe import driver_installed
from tests.contract.tiny import SHAPE, seal, tiny_bundle
from tests.support.make_dicom import chest, write
from tests.support.simulated_gpu import simulated_or_skip

no_driver = pytest.mark.skipif(driver_installed(), reason="this machine has an NVIDIA driver")


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """Of a few operators; and a cache of its own for what is built of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tiny_bundle(tmp_path)


@pytest.fixture
def useless_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver and a GPU, simulated, that is too old for TensorRT."""
    for name, value in simulated_or_skip(tmp_path / "simcuda").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SIMCUDA_CAPABILITY", "61")


def cxrnode(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cxrnode", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@no_driver
def test_each_command_says_what_is_missing(bundle: Bundle) -> None:
    missing = "driver library: libcuda.so.1"
    probed = cxrnode("engine", "probe")
    assert probed.returncode == 1
    assert f"fail {missing}" in probed.stdout
    assert "-> install NVIDIA's driver, 580 or later" in probed.stdout
    for command in ("build", "verify"):
        done = cxrnode("engine", command, "--bundle", bundle.folder)
        assert done.returncode == 2
        assert f"error: TensorRT cannot be used here: {missing}" in done.stderr
    listed = cxrnode("engine", "list", "--bundle", bundle.folder)
    assert listed.returncode == 0
    assert "0 engine files in" in listed.stdout
    assert f"this machine: {missing}" in listed.stdout


@no_driver
def test_bench_gives_the_cpus_rates_and_says_what_is_missing_for_others(bundle: Bundle) -> None:
    done = cxrnode("engine", "bench", "--bundle", bundle.folder)
    assert done.returncode == 1
    assert done.stdout.startswith("cpu onnxruntime")
    assert "at 1, " in done.stdout
    assert "not measured: TensorRT cannot be used here" in done.stderr


def test_what_could_never_be_used_is_not_built(bundle: Bundle) -> None:
    done = cxrnode("engine", "build", "--precision", "fp16", "--bundle", bundle.folder)
    assert done.returncode == 2
    assert "states no tolerance for fp16, only for fp32" in done.stderr
    tolerance = dict.fromkeys(PRECISIONS, bundle.manifest.tolerance["fp32"])
    seal(bundle.folder, bundle.manifest.model_copy(update={"tolerance": tolerance}))
    done = cxrnode("engine", "build", "--precision", "int8", "--bundle", bundle.folder)
    assert done.returncode == 2
    assert "give --images FOLDER" in done.stderr


def test_run_batch_falls_back_and_the_ledger_says_why(bundle: Bundle, useless_gpu: None, tmp_path: Path) -> None:
    write(chest(128, 110), tmp_path / "in" / "film")
    run = ("run-batch", tmp_path / "in", "--bundle", bundle.folder, "--format", "csv", "--workers", "1")
    refused = cxrnode(*run, "--out", tmp_path / "none", "--engine", "tensorrt")
    assert refused.returncode == 2
    assert "error: TensorRT cannot be used here: GPU: simulated device, compute capability 6.1" in refused.stderr
    done = cxrnode(*run, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "the CPU does the GPU's work: TensorRT cannot be used here" in done.stderr
    assert "cpu onnxruntime" in done.stdout
    database = Database(tmp_path / "out" / LEDGER_NAME)
    with database.begin() as c:
        found = {event.kind: event.detail for event in ledger.events(c)}
    database.close()
    assert "compute capability 6.1" in str(found["engine_fallback"])
    assert "cpu onnxruntime" in str(found["engine_verified"])


def test_doctor_warns_where_the_gpu_is_of_no_use(bundle: Bundle, useless_gpu: None) -> None:
    config = Config.model_validate({"analyse": {"bundle": str(bundle.folder)}})
    check = _golden(config, bundle)
    assert check.level is Level.WARN
    assert "passes its golden check with cpu onnxruntime" in check.found
    assert "compute capability 6.1" in check.found


def test_films_for_int8_are_prepared_as_those_that_are_analysed(tmp_path: Path) -> None:
    for seed in range(9):
        write(chest(128, 110, seed=seed), tmp_path / f"{seed}.dcm")
    write(chest(128, 110, seed=20, view="LL"), tmp_path / "lateral.dcm")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").touch()
    picture = np.random.default_rng(0).integers(0, 2**16, (40, 32), np.uint16)
    assert cv2.imwrite(str(tmp_path / "x16.png"), picture)
    assert cv2.imwrite(str(tmp_path / "x8.png"), np.stack([picture >> 8] * 3, -1).astype(np.uint8))
    first, second = calibration_batches(tmp_path, SHAPE)
    assert first.shape == (8, 3, 16, 16)
    assert second.shape == (3, 3, 16, 16)
    assert first.dtype == np.float32
    np.testing.assert_allclose(second.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(second[1], second[2], atol=0.1)  # the same picture in 16 and in 8 bits


def test_a_folder_without_films_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ArchiveError, match="holds no chest radiograph"):
        list(calibration_batches(tmp_path, SHAPE))
    with pytest.raises(ArchiveError, match="does not exist"):
        list(calibration_batches(tmp_path / "none", SHAPE))


def test_the_node_says_in_metrics_and_ledger_that_the_gpu_is_of_no_use(
    bundle: Bundle, useless_gpu: None, tmp_path: Path
) -> None:
    config = Config.model_validate({"node": {"data_dir": str(tmp_path)}, "analyse": {"bundle": str(bundle.folder)}})
    stopping = threading.Event()
    stopping.set()
    with open_database(config) as database:
        data_dir = establish(database, tmp_path, make=True)
        run_analyse(
            config,
            database,
            data_dir,
            stopping,
            writable=Writable(stage="analyse", database=database, data_dir=tmp_path),
        )
        monitor = Monitor(config=config, database=database, supervisor=Supervisor(config=tmp_path, stages=[]))
        measures = {m.name: m.samples for m in monitor.metrics()}
        with database.begin() as c:
            found = {event.kind: event.detail for event in ledger.events(c)}
    assert [s.value for s in measures["cxrnode_engine_fallback"]] == [1.0]
    assert "compute capability 6.1" in str(found["engine_fallback"])
    assert "cpu onnxruntime" in str(found["engine_verified"])
