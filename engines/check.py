"""What engines refuse, and in which words."""

from __future__ import annotations

import numpy as np

from engines.base import EngineError, FloatArray
from engines.bundle import Bundle


class UnusableEngineError(EngineError):
    """No batch will be answered before deactivate() and activate(): there is no sense in trying a smaller one."""


def check_input(bundle: Bundle, batch: FloatArray) -> None:
    """Raises EngineError unless `batch` is what `bundle` takes: float32 [N >= 1, C, H, W]."""
    shape = bundle.manifest.input
    want = (shape.channels, shape.rows, shape.columns)
    if batch.dtype != np.float32 or batch.ndim != 4 or batch.shape[1:] != want or not len(batch):
        raise EngineError(
            f"bundle {bundle.name} takes float32 [N >= 1, {', '.join(map(str, want))}], "
            f"got {batch.dtype} {list(batch.shape)}: make it with engines.preprocess"
        )


def inactive() -> EngineError:
    return EngineError("the engine is not active: call activate() first")
