"""The first images of a new plan go through the CPU too; and what is remembered of plans, on a simulated GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("onnx")

import engines.trt_run
from cxrnode.cli.main import app
from engines.base import EngineError, EngineOutput, FloatArray
from engines.bundle import Bundle
from engines.check import UnusableEngineError
from engines.cpu import CpuEngine
from engines.load import plans_folder
from engines.plan import TRIAL, plan_path
from engines.shadow import SHADOWED, Shadowed
from tests.contract.tiny import tiny_batch
from tests.support.planned_gpu import CHECK, PlannedGpu, brought_up
from tests.support.simulated_gpu import ELSEWHERE, simulated

if not simulated():
    pytest.skip(ELSEWHERE, allow_module_level=True)


def by_cpu(bundle: Bundle, batch: FloatArray) -> EngineOutput:
    cpu = CpuEngine(bundle)
    cpu.activate()
    return cpu.infer(batch)


def trial(bundle: Bundle) -> Path:
    return plan_path(plans_folder(), bundle, "fp32").with_suffix(TRIAL)


def test_the_first_images_of_a_new_plan_are_shadowed_once(
    gpu: PlannedGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadowed: list[int] = []
    infer = CpuEngine.infer

    def counted(self: CpuEngine, batch: FloatArray) -> EngineOutput:
        shadowed.append(len(batch))
        return infer(self, batch)

    engine, told = brought_up(bundle, gpu=gpu)
    monkeypatch.setattr(CpuEngine, "infer", counted)
    for _ in range(4):
        engine.infer(tiny_batch(10))
    assert shadowed == [10, 10, 10, SHADOWED - 30]
    (found,) = gpu.shadowed
    assert found.images == SHADOWED
    assert found.engine.startswith("gpu tensorrt")
    assert 0 <= found.difference.probabilities < 1e-5
    assert (found.difference.flips, found.fault) == (0, "")
    assert found.tolerance == bundle.manifest.tolerance["fp32"]
    engine.deactivate()
    for kind in ("auto", "tensorrt"):
        shadowed.clear()
        engine, _ = brought_up(bundle, kind, gpu)
        engine.infer(tiny_batch(10))
        engine.deactivate()
        assert not shadowed
    assert len(gpu.shadowed) == 1
    assert not told


def test_a_shadow_that_was_cut_short_is_told_and_begins_anew(gpu: PlannedGpu, bundle: Bundle) -> None:
    for _ in range(2):
        engine, _ = brought_up(bundle, gpu=gpu)
        engine.infer(tiny_batch(5))
        engine.deactivate()
    assert [found.images for found in gpu.shadowed] == [5, 5]
    assert not trial(bundle).exists()


def test_a_plan_that_errs_on_real_images_is_built_again_and_says_nothing(gpu: PlannedGpu, bundle: Bundle) -> None:
    gpu.off, gpu.off_after = [0.01], CHECK + 1
    engine, told = brought_up(bundle, gpu=gpu)
    for seed in range(3):
        got = engine.infer(tiny_batch(6, seed=seed))
        np.testing.assert_allclose(got.probabilities, by_cpu(bundle, tiny_batch(6, seed=seed)).probabilities, atol=1e-5)
    assert len(gpu.built) == 2
    assert engine.name.startswith("gpu")
    assert not told
    engine.deactivate()
    first, second = gpu.shadowed
    assert first.images == 12
    assert "on its first 12 images: probabilities differ by 0.01" in first.fault
    assert first.difference.probabilities == pytest.approx(0.01, abs=1e-5)
    assert (second.images, second.fault) == (12, "")  # the batch that was in doubt, and the next


def test_a_second_plan_that_errs_on_real_images_leaves_the_work_to_the_cpu(gpu: PlannedGpu, bundle: Bundle) -> None:
    gpu.off, gpu.off_after = [0.01, 0.01], CHECK
    engine, told = brought_up(bundle, gpu=gpu)
    batch = tiny_batch(6)
    want = by_cpu(bundle, batch)
    for _ in range(2):
        np.testing.assert_array_equal(engine.infer(batch).probabilities, want.probabilities)
        assert engine.name.startswith("cpu")
    assert len(gpu.built) == 2
    assert [bool(found.fault) for found in gpu.shadowed] == [True, True]
    assert ["beside the CPU on its first 6 images" in reason for reason in told] == [True]
    engine.deactivate()
    engine, told = brought_up(bundle)  # the next start does not build it again, and says why
    assert engine.name.startswith("cpu")
    assert len(gpu.built) == 2
    assert ["built anew for simulated device erred as well on" in reason for reason in told] == [True]
    assert "to try again: cxrnode engine build" in told[0]
    engine.deactivate()


def test_tensorrt_alone_refuses_what_errs_on_real_images(gpu: PlannedGpu, bundle: Bundle) -> None:
    gpu.off, gpu.off_after = [0.01, 0.01], CHECK
    engine, _ = brought_up(bundle, "tensorrt", gpu)
    for _ in range(2):
        with pytest.raises(UnusableEngineError, match="beside the CPU on its first 6 images"):
            engine.infer(tiny_batch(6))
    engine.deactivate()
    with pytest.raises(EngineError, match="erred as well"):
        brought_up(bundle, "tensorrt")


def test_a_build_that_fails_while_images_wait_leaves_them_to_the_cpu(gpu: PlannedGpu, bundle: Bundle) -> None:
    gpu.off, gpu.off_after = [0.01], CHECK
    engine, told = brought_up(bundle, gpu=gpu)
    gpu.raises = RuntimeError("out of patience")
    batch = tiny_batch(6)
    np.testing.assert_array_equal(engine.infer(batch).probabilities, by_cpu(bundle, batch).probabilities)
    assert told == ["RuntimeError: out of patience"]
    engine.deactivate()
    gpu.raises = None
    engine, told = brought_up(bundle)  # nothing is known against another plan
    assert engine.name.startswith("gpu")
    engine.deactivate()


@pytest.mark.parametrize("freed_by", ["engine build", "another driver", "a file that is damaged"])
def test_a_plan_that_keeps_failing_is_tried_again_when_something_changed(
    gpu: PlannedGpu, bundle: Bundle, freed_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.off = [0.01, 0.01]
    for _ in range(2):
        engine, told = brought_up(bundle)
        engine.deactivate()
        assert (len(gpu.built), len(told)) == (2, 1)
    if freed_by == "engine build":
        done = CliRunner().invoke(app, ["engine", "build", "--bundle", str(bundle.folder)], catch_exceptions=False)
        assert done.exit_code == 0
        assert not trial(bundle).exists()
    elif freed_by == "another driver":
        trial(bundle).write_text(json.dumps(json.loads(trial(bundle).read_text()) | {"driver": "570.1"}))
    else:
        trial(bundle).write_text("{")
    engine, told = brought_up(bundle)
    assert engine.name.startswith("gpu")
    assert not told
    assert ("cannot be read" in caplog.text) == (freed_by == "a file that is damaged")
    engine.deactivate()


def test_an_image_of_which_the_cpu_says_nothing_finite_is_not_the_gpus_fault(gpu: PlannedGpu, bundle: Bundle) -> None:
    engine, told = brought_up(bundle, gpu=gpu)
    batch = tiny_batch(3)
    batch[1] = np.nan
    assert np.isnan(engine.infer(batch).probabilities).any(axis=1).tolist() == [False, True, False]
    assert engine.name.startswith("gpu")
    engine.deactivate()
    assert not told
    assert [found.fault for found in gpu.shadowed] == [""]


def test_a_ledger_that_cannot_be_written_lets_nothing_pass(gpu: PlannedGpu, bundle: Bundle) -> None:
    """The batch fails with the ledger's error, and the engine that errs is not taken for sound after that."""
    full = [OSError("no space"), None]

    class Told(list[Shadowed]):
        def append(self, found: Shadowed) -> None:
            if full and (error := full.pop(0)):
                raise error
            super().append(found)

    gpu.off, gpu.off_after, gpu.shadowed = [0.01], CHECK, Told()
    engine, _ = brought_up(bundle, gpu=gpu)
    with pytest.raises(OSError, match="no space"):
        engine.infer(tiny_batch(6))
    got = engine.infer(tiny_batch(6))
    np.testing.assert_allclose(got.probabilities, by_cpu(bundle, tiny_batch(6)).probabilities, atol=1e-5)
    assert len(gpu.built) == 2
    engine.deactivate()


def test_a_gpu_that_begins_to_err_hands_its_work_to_the_cpu(
    gpu: PlannedGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the golden check that is repeated; no plan would mend a GPU that was right before."""
    monkeypatch.setattr(engines.trt_run, "RECHECK_EVERY", 10)
    engine, told = brought_up(bundle)
    for _ in range(15):
        engine.infer(tiny_batch(4))
    gpu.opened[-1].off = 0.01
    for _ in range(10):
        got = engine.infer(tiny_batch(4))
    np.testing.assert_array_equal(got.probabilities, by_cpu(bundle, tiny_batch(4)).probabilities)
    assert engine.name.startswith("cpu")
    assert ["no longer passes its golden check" in reason for reason in told] == [True]
    assert len(gpu.built) == 1
    engine.deactivate()
