"""The engine on a thread of its own: while it works on a batch, the stage goes on filling the next one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from cxrnode import metrics
from cxrnode.errors import StorageFullError, StoreError, unexpected
from cxrnode.loops import at_work
from cxrnode.types import FloatArray, Prediction
from engines.base import Engine, EngineError
from engines.check import UnusableEngineError
from engines.preprocess import to_batch

_HANGS_S = 900.0  # for a batch: a plan of TensorRT that errs is built anew in it
_DECIMALS = 6  # of a probability: below what batch composition changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the engine said of one image, or why it failed on it."""

    prediction: Prediction | None = None
    cam: FloatArray | None = None
    error: str = ""


class Inference:
    """An engine that is active or coming up. One thread does all its work, as a GPU's context wants it."""

    def __init__(self, engine: Engine, thread: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._thread = thread
        self._activation = thread.submit(engine.activate)
        self._image_s = 0.0  # of the last batch

    def wait(self) -> str:
        """Wait until the engine is up; its name. Raises EngineError where it did not come up."""
        self._activation.result()  # a plan takes minutes to build; until then the stage is not up, and /readyz says so
        return self._engine.name

    def check(self) -> None:
        """Raises EngineError where it is known by now that the engine did not come up."""
        if self._activation.done():
            self._activation.result()

    def submit(self, images: Sequence[FloatArray]) -> Future[list[Said]]:
        """images: [H, W] each, as the worker prepared them. One answer an image, in order."""
        return self._thread.submit(self._infer, images)

    def within(self, seconds: float) -> float:
        """How many images the engine does in so many seconds, as it went last; infinite before the first batch."""
        return seconds / self._image_s if self._image_s else math.inf

    def _infer(self, images: Sequence[FloatArray]) -> list[Said]:
        began = time.monotonic()
        with at_work("inference", _HANGS_S):
            answers = infer_bisecting(self._engine, images)
        took_s = time.monotonic() - began
        self._image_s = took_s / len(images)
        metrics.inferred(len(images), took_s)
        return answers


@contextmanager
def inference(engine: Engine) -> Iterator[Inference]:
    """Bring `engine` up while the caller does other things, and let it go in the end."""
    with ThreadPoolExecutor(1, thread_name_prefix="inference") as thread:
        try:
            yield Inference(engine, thread)
        finally:
            thread.submit(engine.deactivate).result()  # at the end of the process, which a second signal ends at once


def infer_bisecting(engine: Engine, images: Sequence[FloatArray]) -> list[Said]:
    """One answer an image, in order: a batch that fails is halved until the image at fault stands alone.

    Raises what no image is to blame for: UnusableEngineError, StoreError or StorageFullError of what the engine tells,
    MemoryError. Its jobs are retried.
    """
    try:
        output = engine.infer(to_batch(images))
    except (UnusableEngineError, StoreError, StorageFullError, MemoryError):  # no image is to blame
        raise
    except Exception as e:  # noqa: BLE001 (what nobody expects is one image's fault too, until it is every one's)
        if len(images) == 1:
            return [Said(error=str(e) if isinstance(e, EngineError) else unexpected(e).detail)]
        middle = len(images) // 2
        return infer_bisecting(engine, images[:middle]) + infer_bisecting(engine, images[middle:])
    return [
        _said(engine.name, p, int(k), cam)
        for p, k, cam in zip(output.probabilities, output.class_index, output.cam, strict=True)
    ]


def _said(engine: str, probabilities: FloatArray, class_index: int, cam: FloatArray) -> Said:
    if not (np.isfinite(probabilities).all() and np.isfinite(cam).all()):
        return Said(error="the engine gave a probability or a map that is not finite")
    return Said(
        prediction=Prediction(
            probabilities=tuple(round(float(p), _DECIMALS) for p in probabilities),
            class_index=class_index,
            cam_max=round(float(cam.max()), _DECIMALS),
            engine=engine,
        ),
        cam=cam,
    )
