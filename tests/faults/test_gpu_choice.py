"""Which engine is chosen where there is a GPU, and what becomes of a plan that is not to be trusted.

On a simulated GPU (tests/support/simulated_gpu.py); the probe, the plans on disk and the golden check are the real
ones. Only what needs a device stands in for TensorRT's: building a plan, and the context that runs it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("onnx")

from cxrnode.cli.main import app
from engines.base import Engine, EngineError
from engines.bundle import Bundle, load_bundle
from engines.check import UnusableEngineError
from engines.cpu import CpuEngine
from engines.load import plans_folder
from engines.plan import plan_path
from tests.contract.tiny import seal, tiny_batch, write_tiny
from tests.support.planned_gpu import PlannedGpu, brought_up
from tests.support.simulated_gpu import ELSEWHERE, simulated, simulation

if not simulated():
    pytest.skip(ELSEWHERE, allow_module_level=True)

LOST = 719  # CUDA_ERROR_LAUNCH_FAILED


def name_of(engine: Engine) -> str:
    """Of an engine that answers as the CPU's does; it is let go."""
    cpu, batch = CpuEngine(load_bundle(str(engine_folder(engine)))), tiny_batch(11)
    cpu.activate()
    want, got, name = cpu.infer(batch), engine.infer(batch), engine.name
    engine.deactivate()
    np.testing.assert_allclose(got.probabilities, want.probabilities, atol=1e-5)
    np.testing.assert_allclose(got.cam, want.cam, atol=1e-5)
    return name


def engine_folder(engine: Any) -> Path:
    folder: Path = (engine._gpu if hasattr(engine, "_gpu") else engine)._bundle.folder
    return folder


@pytest.mark.parametrize("kind", ["auto", "tensorrt"])
def test_a_plan_is_built_once_and_then_read(gpu: PlannedGpu, bundle: Bundle, kind: str) -> None:
    for _ in range(2):
        engine, told = brought_up(bundle, kind)
        assert name_of(engine).startswith("gpu tensorrt")
        assert not told
    assert gpu.built == ["fp32"]
    assert plans_folder().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("fault", ["driver", "truncated", "no sidecar"])
def test_a_plan_that_does_not_fit_is_built_again(
    gpu: PlannedGpu, bundle: Bundle, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    brought_up(bundle)[0].deactivate()
    plan = plan_path(plans_folder(), bundle, "fp32")
    sidecar = plan.with_suffix(".json")
    if fault == "driver":
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"driver": "580.1"}))
    elif fault == "truncated":
        plan.write_bytes(plan.read_bytes()[:-1])
    else:
        sidecar.unlink()
    caplog.clear()
    engine, told = brought_up(bundle)
    assert name_of(engine).startswith("gpu")
    assert not told
    assert len(gpu.built) == 2
    assert "now building it" in caplog.text


def test_a_plan_that_errs_is_built_again_and_used_if_it_is_right_then(gpu: PlannedGpu, bundle: Bundle) -> None:
    brought_up(bundle)[0].deactivate()
    gpu.off = [0.01]
    engine, told = brought_up(bundle)
    assert name_of(engine).startswith("gpu")
    assert not told
    assert len(gpu.built) == 2


def test_a_plan_that_errs_again_leaves_the_work_to_the_cpu(gpu: PlannedGpu, bundle: Bundle) -> None:
    brought_up(bundle)[0].deactivate()
    gpu.off = [0.01, 0.01]
    engine, told = brought_up(bundle)
    assert name_of(engine).startswith("cpu")
    assert len(gpu.built) == 2
    assert ["probabilities differ by 0.01" in reason for reason in told] == [True]
    gpu.off = [0.01, 0.01]
    with pytest.raises(EngineError, match=r"probabilities differ by 0\.01"):
        brought_up(bundle, "tensorrt")


@pytest.mark.parametrize(
    "error", [EngineError("an operator is unsupported"), RuntimeError("an operator is unsupported")]
)
def test_a_build_that_fails_leaves_the_work_to_the_cpu(gpu: PlannedGpu, bundle: Bundle, error: Exception) -> None:
    gpu.raises = error
    engine, told = brought_up(bundle)
    assert name_of(engine).startswith("cpu")
    assert ["an operator is unsupported" in reason for reason in told] == [True]
    with pytest.raises(type(error), match="unsupported"):
        brought_up(bundle, "tensorrt")


def test_a_probe_that_fails_leaves_the_work_to_the_cpu(
    gpu: PlannedGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMCUDA_CAPABILITY", "61")
    engine, told = brought_up(bundle)
    assert name_of(engine).startswith("cpu")
    assert not gpu.built
    assert ["compute capability 6.1" in reason for reason in told] == [True]
    with pytest.raises(EngineError, match=r"compute capability 6\.1"):
        brought_up(bundle, "tensorrt")


def test_a_folder_that_others_may_write_to_is_not_trusted(gpu: PlannedGpu, bundle: Bundle) -> None:
    brought_up(bundle)[0].deactivate()
    plans_folder().chmod(0o777)
    engine, told = brought_up(bundle)
    assert name_of(engine).startswith("cpu")
    assert ["others may write to" in reason for reason in told] == [True]


def test_a_gpu_that_is_lost_midway_costs_no_image(gpu: PlannedGpu, bundle: Bundle) -> None:
    engine, told = brought_up(bundle)
    want = engine.infer(tiny_batch(5))
    simulation().fail(5, LOST, loses_context=True)
    np.testing.assert_allclose(engine.infer(tiny_batch(5)).probabilities, want.probabilities, atol=1e-5)
    assert ["context is lost" in reason for reason in told] == [True]
    assert name_of(engine).startswith("cpu")
    assert len(told) == 1
    engine.activate()  # the next life begins on the GPU again
    assert name_of(engine).startswith("gpu")


def test_tensorrt_alone_refuses_to_go_on_without_its_gpu(gpu: PlannedGpu, bundle: Bundle) -> None:
    engine, _ = brought_up(bundle, "tensorrt")
    simulation().fail(5, LOST, loses_context=True)
    for _ in range(2):
        with pytest.raises(UnusableEngineError):
            engine.infer(tiny_batch(5))
    engine.deactivate()


def test_the_fastest_precision_with_a_tolerance_is_chosen(gpu: PlannedGpu, bundle: Bundle, tmp_path: Path) -> None:
    fp32 = bundle.manifest.tolerance["fp32"]
    seal(bundle.folder, bundle.manifest.model_copy(update={"tolerance": dict.fromkeys(("fp32", "fp16", "int8"), fp32)}))
    bundle = load_bundle(str(bundle.folder))
    engine, _ = brought_up(bundle)
    assert name_of(engine).endswith("fp16")  # int8 takes films, which only a person can give
    assert cv2.imwrite(str(tmp_path / "film.png"), np.arange(400, dtype=np.uint8).reshape(20, 20))
    asked = ["engine", "build", "--precision", "int8", "--bundle", str(bundle.folder), "--images", str(tmp_path)]
    assert CliRunner().invoke(app, asked, catch_exceptions=False).exit_code == 0
    assert gpu.films == 1
    engine, _ = brought_up(bundle)
    assert name_of(engine).endswith("int8")


def test_the_commands(gpu: PlannedGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["engine", *arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return " ".join(done.output.split())

    name = str(bundle.folder)
    monkeypatch.setattr("cxrnode.cli.engine._BENCH_S", 0.02)
    assert "fail" not in command("probe")
    with pytest.raises(EngineError, match=r"no engine has been built.*build it first"):
        command("verify", "--bundle", name)
    built = command("build", "--bundle", name)
    assert "building tiny fp32 for simulated device (compute capability 8.6" in built
    assert "batches of 1 to 8" in built
    verified = command("verify", "--bundle", name)
    assert "ok probabilities are off by" in verified
    assert "0 of 6 classes differ" in verified
    listed = command("list", "--bundle", name)
    assert "for simulated device (8.6, driver CUDA 13.0, tensorrt_rtx" in listed
    assert "batches of 1 to 8 fits 1 engine file in" in listed
    other = str(write_tiny(bundle.folder.parent / "other", spoil="cam"))
    assert "it is of another bundle than tiny" in command("list", "--bundle", other)
    rates = command("bench", "--bundle", name)
    assert "cpu onnxruntime" in rates
    assert "gpu tensorrt" in rates
    assert gpu.built == ["fp32"]
    gpu.off = [0.01]
    with pytest.raises(EngineError, match=r"probabilities differ by 0\.01"):
        command("verify", "--bundle", name)
    plan_path(plans_folder(), bundle, "fp32").write_bytes(b"x")
    assert "was changed or cut short" in command("list", "--bundle", name)
