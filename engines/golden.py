"""The golden check: does this engine, on this machine, compute what torch computed when the bundle was exported?

Run by every engine's `activate()`: batches of one, of an odd size and of all golden inputs, rows permuted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from engines.base import EngineError, EngineOutput, FloatArray, IntArray
from engines.bundle import Bundle, Golden, Tolerance

_ODD = 3
_SEED = 20200820  # any fixed number: the same permutations everywhere

Infer = Callable[[FloatArray], EngineOutput]


def check_golden(bundle: Bundle, infer: Infer, *, precision: str = "fp32", sizes: Sequence[int] = ()) -> None:
    """Run the bundle's golden inputs through `infer`. Raises EngineError with the numbers where one differs.

    sizes: more batches to run, of so many images each: the golden inputs, as often repeated as it takes.
    """
    tolerance = bundle.manifest.tolerance.get(precision)
    if tolerance is None:
        raise EngineError(f"bundle {bundle.name} states no tolerance for {precision}: export it again")
    golden = bundle.golden()
    for rows in _batches(len(golden.batch), sizes):
        _compare(infer(golden.batch[rows]), _take(golden, rows), tolerance, f"golden inputs {rows.tolist()}")


def check_shapes(output: EngineOutput, count: int, labels: int) -> EngineOutput:
    """Raises EngineError unless `output` speaks of `count` images and `labels` labels; returns it."""
    shapes = output.probabilities.shape, output.class_index.shape, output.cam.shape
    if shapes[0] != (count, labels) or shapes[1] != (count,) or len(shapes[2]) != 3 or shapes[2][0] != count:
        raise EngineError(
            f"the model returned shapes {shapes} for {count} images and {labels} labels: export the bundle again"
        )
    return output


def _batches(count: int, sizes: Sequence[int]) -> Iterator[IntArray]:
    """Rows of the golden inputs: one, an odd number, all; never in their stored order if there are several."""
    order = np.random.default_rng(_SEED).permutation(count).astype(np.int64)
    for size in dict.fromkeys((1, min(_ODD, count), count, *sizes)):
        yield np.resize(order, size)
    yield order[::-1].copy()


def _take(golden: Golden, rows: IntArray) -> EngineOutput:
    out = golden.output
    return EngineOutput(probabilities=out.probabilities[rows], class_index=out.class_index[rows], cam=out.cam[rows])


def _compare(got: EngineOutput, want: EngineOutput, tolerance: Tolerance, what: str) -> None:
    if got.cam.shape != want.cam.shape or got.probabilities.shape != want.probabilities.shape:
        raise EngineError(
            f"{what}: shapes {got.probabilities.shape}, {got.cam.shape} differ from the reference's "
            f"{want.probabilities.shape}, {want.cam.shape}"
        )
    if not (np.isfinite(got.probabilities).all() and np.isfinite(got.cam).all()):
        raise EngineError(f"{what}: the engine returned values that are not finite; use --engine cpu")
    off = float(np.abs(got.probabilities - want.probabilities).max())
    if off > tolerance.probabilities:
        raise EngineError(f"{what}: probabilities differ by {off:.3g}, more than {tolerance.probabilities:.3g}")
    cam_off = cam_difference(got.cam, want.cam)
    if cam_off > tolerance.cam:
        raise EngineError(f"{what}: Grad-CAM differs by {cam_off:.3g} of its maximum, more than {tolerance.cam:.3g}")
    tied = _margin(want.probabilities) < tolerance.tie
    wrong = np.flatnonzero((got.class_index != want.class_index) & ~tied)
    if len(wrong):
        raise EngineError(
            f"{what}: classes {got.class_index[wrong].tolist()} instead of {want.class_index[wrong].tolist()} "
            f"where the two best probabilities are at least {tolerance.tie:.3g} apart"
        )


def cam_difference(got: FloatArray, want: FloatArray) -> float:
    """Largest absolute difference of two maps [N, h, w], relative to the largest value of all reference maps."""
    return float(np.abs(got - want).max() / max(float(want.max()), 1e-6))


def _margin(probabilities: FloatArray) -> FloatArray:
    """How far apart the two best probabilities of each row are, [N]."""
    best = np.sort(probabilities, axis=1)
    return np.asarray(best[:, -1] - best[:, -2], np.float32)
