"""Shadowing: the first images of a new engine go through the CPU's engine too, and what both say is compared.

The golden check knows the inputs that travel with the bundle; this is the same question for what comes in here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from engines.base import Engine, EngineOutput, FloatArray
from engines.bundle import Bundle, Tolerance
from engines.golden import Difference, MismatchError, check_difference, difference, take, tolerance_of

SHADOWED = 32  # images: a minute of a busy node, and few enough that the CPU's time for them is not missed
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadowed:
    """What came of shadowing one engine: the largest differences of all its images, and how large they may be."""

    engine: str
    images: int
    difference: Difference
    tolerance: Tolerance
    fault: str = ""  # why it is not to be trusted; "" where it is

    def __str__(self) -> str:
        d = self.difference
        return (
            f"{self.engine} beside the CPU on {self.images} images: probabilities differ by {d.probabilities:.2g} at "
            f"most, Grad-CAM by {d.cam:.2g} of its maximum, {d.flips} classes differ"
        )


class Shadow:
    """Follows one engine at a time, on that engine's thread."""

    def __init__(self, bundle: Bundle, cpu: Engine, tell: Callable[[Shadowed], None] | None = None) -> None:
        """cpu: active only as long as it is needed; tell: what to do with what came of it (None: nothing)."""
        self._bundle, self._cpu, self._tell = bundle, cpu, tell
        self._left = 0
        self._found: Shadowed | None = None
        self._least_cam = 0.0

    @property
    def following(self) -> bool:
        return self._found is not None

    def begin(self, engine: str, precision: str) -> None:
        """Follow that engine from its first image on. Raises EngineError where the CPU's does not come up."""
        tolerance = tolerance_of(self._bundle, precision)
        self._cpu.activate()
        self._least_cam = float(self._bundle.golden().output.cam.max())
        self._left = SHADOWED
        self._found = Shadowed(engine=engine, images=0, difference=Difference(), tolerance=tolerance)

    def follow(self, batch: FloatArray, output: EngineOutput) -> bool:
        """Compare what the engine said of `batch` with what the CPU says of it; True where that was the last.

        Raises MismatchError, after which it no longer follows that engine; EngineError of the CPU's; and what telling
        raises: then nothing was learnt, and the engine's next batch is compared in this one's place.
        """
        if self._found is None:
            raise ValueError("nothing is followed: call begin() first")
        count = min(self._left, len(batch))
        found = self._compared(self._found, output, self._cpu.infer(batch[:count]))
        last = bool(found.fault) or count == self._left
        if last:
            self._report(found)
            self._let_go()
        else:
            self._found, self._left = found, self._left - count
        if found.fault:
            raise MismatchError(found.fault)
        return last

    def end(self) -> None:
        """Follow it no more; what was found so far is told. May be called at any time."""
        try:
            if self._found is not None and self._found.images:
                self._report(self._found)
        finally:
            self._let_go()

    def _compared(self, before: Shadowed, got: EngineOutput, want: EngineOutput) -> Shadowed:
        """An image of which the CPU itself says nothing finite says nothing of the engine."""
        after = replace(before, images=before.images + len(want))
        rows = np.flatnonzero(np.isfinite(want.probabilities).all(axis=1) & np.isfinite(want.cam).all(axis=(1, 2)))
        if not len(rows):
            return after
        what = f"{before.engine} beside the CPU on its first {after.images} images"
        try:
            one = difference(take(got, rows), take(want, rows), before.tolerance, what, least_cam=self._least_cam)
            after = replace(after, difference=_larger(before.difference, one))
            check_difference(one, before.tolerance, what)
        except MismatchError as e:
            return replace(after, fault=str(e))
        return after

    def _report(self, found: Shadowed) -> None:
        _log.log(logging.WARNING if found.fault else logging.INFO, "%s", found)
        if self._tell:
            self._tell(found)

    def _let_go(self) -> None:
        if self._found is not None:
            self._found = None
            self._cpu.deactivate()


def _larger(one: Difference, other: Difference) -> Difference:
    return Difference(
        probabilities=max(one.probabilities, other.probabilities),
        cam=max(one.cam, other.cam),
        flips=one.flips + other.flips,
    )
