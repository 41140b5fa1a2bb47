"""What is the CPU engine's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from engines.base import EngineError, EngineOutput
from engines.bundle import MODEL
from engines.cpu import CpuEngine
from engines.golden import check_golden, check_shapes
from engines.load import make_engine
from tests.contract.tiny import seal, tiny_batch, tiny_bundle


def test_other_output_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="export the bundle again"):
        CpuEngine(tiny_bundle(tmp_path, output="map")).activate()


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    (bundle.folder / MODEL).write_bytes(b"not an ONNX")
    seal(bundle.folder, bundle.manifest)
    with pytest.raises(EngineError, match="cannot load"):
        CpuEngine(bundle).activate()


def test_threads_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="at least 1"):
        CpuEngine(tiny_bundle(tmp_path), threads=0)


def test_one_and_several_threads_agree(tmp_path: Path) -> None:
    bundle, batch = tiny_bundle(tmp_path), tiny_batch(5)
    outputs = []
    for threads in (1, 2):
        engine = CpuEngine(bundle, threads=threads)
        engine.activate()
        outputs.append(engine.infer(batch).probabilities)
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)


def test_no_such_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="choose one of auto, cpu"):
        make_engine("tpu", tiny_bundle(tmp_path))


def test_a_precision_without_a_tolerance_is_refused(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    with pytest.raises(EngineError, match="no tolerance for int8"):
        check_golden(bundle, CpuEngine(bundle).infer, precision="int8")


def test_golden_check_sees_values_that_are_not_finite(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    golden = bundle.golden()

    def broken(batch: np.ndarray) -> EngineOutput:
        n = len(batch)
        cam = np.full((n, 4, 4), np.nan, np.float32)
        return EngineOutput(probabilities=golden.output.probabilities[:n], class_index=np.zeros(n, np.int64), cam=cam)

    with pytest.raises(EngineError, match="not finite"):
        check_golden(bundle, broken)


def test_golden_check_sees_rows_out_of_order(tmp_path: Path) -> None:
    """An engine that gives the stored answers whatever it is asked."""
    bundle = tiny_bundle(tmp_path)
    out = bundle.golden().output

    def by_rote(batch: np.ndarray) -> EngineOutput:
        n = len(batch)
        return EngineOutput(probabilities=out.probabilities[:n], class_index=out.class_index[:n], cam=out.cam[:n])

    with pytest.raises(EngineError, match="differ"):
        check_golden(bundle, by_rote)


def test_too_few_answers_are_seen() -> None:
    out = EngineOutput(
        probabilities=np.zeros((2, 3), np.float32),
        class_index=np.zeros(2, np.int64),
        cam=np.zeros((2, 4, 4), np.float32),
    )
    with pytest.raises(EngineError, match="for 3 images"):
        check_shapes(out, 3, 3)
