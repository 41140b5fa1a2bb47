"""The golden check: does this engine, on this machine, compute what torch computed when the bundle was exported?

Run by every engine's `activate()`: batches of one, of an odd size and of all golden inputs, rows permuted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from engines.base import EngineError, EngineOutput, FloatArray, IntArray
from engines.bundle import Bundle, Tolerance

_ODD = 3
_SEED = 20200820  # any fixed number: the same permutations everywhere

Infer = Callable[[FloatArray], EngineOutput]


class MismatchError(EngineError):
    """An engine says something else than its reference, by more than the bundle's tolerance for its precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far an engine's outputs are from its reference's."""

    probabilities: float = 0.0  # largest absolute difference
    cam: float = 0.0  # see cam_difference
    flips: int = 0  # classes that differ though the reference's two best probabilities are no tie


def check_golden(bundle: Bundle, infer: Infer, *, precision: str = "fp32", sizes: Sequence[int] = ()) -> None:
    """Run the bundle's golden inputs through `infer`. Raises MismatchError with the numbers where one differs.

    sizes: more batches to run, of so many images each: the golden inputs, as often repeated as it takes.
    """
    tolerance = tolerance_of(bundle, precision)
    for what, found in golden_differences(bundle, infer, tolerance, sizes=sizes):
        check_difference(found, tolerance, what)


def golden_differences(
    bundle: Bundle, infer: Infer, tolerance: Tolerance, *, sizes: Sequence[int] = ()
) -> Iterator[tuple[str, Difference]]:
    """Which golden inputs a batch held, and how far `infer` is from the reference on it. Raises MismatchError."""
    golden = bundle.golden()
    for rows in _batches(len(golden.batch), sizes):
        what, want = f"golden inputs {rows.tolist()}", take(golden.output, rows)
        yield what, difference(infer(golden.batch[rows]), want, tolerance, what)


def tolerance_of(bundle: Bundle, precision: str) -> Tolerance:
    """Raises EngineError where the bundle states none."""
    tolerance = bundle.manifest.tolerance.get(precision)
    if tolerance is None:
        raise EngineError(f"bundle {bundle.name} states no tolerance for {precision}: export it again")
    return tolerance


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


def take(output: EngineOutput, rows: IntArray) -> EngineOutput:
    """What `output` says of these images."""
    return EngineOutput(
        probabilities=output.probabilities[rows], class_index=output.class_index[rows], cam=output.cam[rows]
    )


def difference(
    got: EngineOutput, want: EngineOutput, tolerance: Tolerance, what: str, *, least_cam: float = 0.0
) -> Difference:
    """How far `got` is from `want`, the finite outputs of the reference for the same images.

    Raises MismatchError, which begins with `what`, where they cannot be compared. least_cam: see cam_difference.
    """
    if got.cam.shape != want.cam.shape or got.probabilities.shape != want.probabilities.shape:
        raise MismatchError(
            f"{what}: shapes {got.probabilities.shape}, {got.cam.shape} differ from the reference's "
            f"{want.probabilities.shape}, {want.cam.shape}"
        )
    if not (np.isfinite(got.probabilities).all() and np.isfinite(got.cam).all()):
        raise MismatchError(f"{what}: the engine returned values that are not finite; use --engine cpu")
    clear = _margin(want.probabilities) >= tolerance.tie
    same = got.class_index == want.class_index  # where classes differ so do the maps, for each is of its own class
    return Difference(
        probabilities=float(np.abs(got.probabilities - want.probabilities).max()),
        cam=cam_difference(np.where(same[:, None, None], got.cam, want.cam), want.cam, least=least_cam),
        flips=int((~same & clear).sum()),
    )


def check_difference(found: Difference, tolerance: Tolerance, what: str) -> None:
    """Raises MismatchError, which begins with `what`, where that is more than `tolerance`."""
    if found.probabilities > tolerance.probabilities:
        off = f"probabilities differ by {found.probabilities:.3g}, more than {tolerance.probabilities:.3g}"
    elif found.cam > tolerance.cam:
        off = f"Grad-CAM differs by {found.cam:.3g} of its maximum, more than {tolerance.cam:.3g}"
    elif found.flips:
        off = f"{found.flips} classes differ where the two best probabilities are at least {tolerance.tie:.3g} apart"
    else:
        return
    raise MismatchError(f"{what}: {off}")


def cam_difference(got: FloatArray, want: FloatArray, *, least: float = 0.0) -> float:
    """Largest absolute difference of two maps [N, h, w], relative to the largest value of all reference maps.

    least: what that value is taken for where it is smaller, as for a film whose map is all but zero.
    """
    return float(np.abs(got - want).max() / max(float(want.max()), least, 1e-6))


def _margin(probabilities: FloatArray) -> FloatArray:
    """How far apart the two best probabilities of each row are, [N]."""
    best = np.sort(probabilities, axis=1)
    return np.asarray(best[:, -1] - best[:, -2], np.float32)
