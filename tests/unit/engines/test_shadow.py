"""What counts as a difference between a new engine and the CPU's; with an engine: tests/faults/test_gpu_shadow.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from engines.base import EngineError, EngineOutput, FloatArray
from engines.bundle import Bundle
from engines.cpu import CpuEngine
from engines.golden import MismatchError
from engines.shadow import SHADOWED, Shadow, Shadowed
from tests.contract.tiny import tiny_batch, tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path)


def answers(bundle: Bundle, batch: FloatArray) -> EngineOutput:
    cpu = CpuEngine(bundle)
    cpu.activate()
    return cpu.infer(batch)


def shadow(bundle: Bundle) -> tuple[Shadow, list[Shadowed]]:
    told: list[Shadowed] = []
    made = Shadow(bundle, CpuEngine(bundle), told.append)
    made.begin("new", "fp32")
    return made, told


def test_the_largest_differences_of_all_images_are_told(bundle: Bundle) -> None:
    made, told = shadow(bundle)
    for off in (2e-5, 7e-5, 1e-5):
        batch = tiny_batch(12)
        said = answers(bundle, batch)
        made.follow(batch, replace(said, probabilities=said.probabilities + np.float32(off)))
    (found,) = told
    assert found.images == SHADOWED
    assert found.difference.probabilities == pytest.approx(7e-5, rel=1e-2)
    assert "32 images: probabilities differ by 7e-05 at most" in str(found)
    assert not made.following


@pytest.mark.parametrize(("off", "is_fault"), [(1e-4, False), (1e-2, True)])
def test_a_map_that_is_all_but_zero_is_measured_by_the_golden_maps(bundle: Bundle, off: float, is_fault: bool) -> None:
    """Relative to its own largest value any noise would be an error, and many a film has no map to speak of."""
    made, _ = shadow(bundle)
    batch = tiny_batch(2)
    batch[:, 0] = -1
    said = answers(bundle, batch)
    assert not said.cam.any()
    noisy = replace(said, cam=said.cam + np.float32(off))
    if is_fault:
        with pytest.raises(MismatchError, match="Grad-CAM differs"):
            made.follow(batch, noisy)
    else:
        made.follow(batch, noisy)


def test_a_class_that_differs_and_a_value_that_is_not_finite_are_faults(bundle: Bundle) -> None:
    batch = tiny_batch(4)
    said = answers(bundle, batch)
    made, told = shadow(bundle)
    with pytest.raises(MismatchError, match="2 classes differ"):
        made.follow(batch, replace(said, class_index=said.class_index + np.array([0, 1, 1, 0])))
    assert told[-1].difference.flips == 2
    made, told = shadow(bundle)
    sick = said.cam.copy()
    sick[1] = np.inf
    with pytest.raises(MismatchError, match="not finite"):
        made.follow(batch, replace(said, cam=sick))
    assert "not finite" in told[-1].fault


def test_without_a_tolerance_nothing_can_be_shadowed(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="states no tolerance for fp16"):
        Shadow(bundle, CpuEngine(bundle)).begin("new", "fp16")
