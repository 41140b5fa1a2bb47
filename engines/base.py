"""The seam between the node and whatever runs a network."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class EngineKind(StrEnum):
    """What engines.load.make_engine makes, as --engine and analyse.engine spell it."""

    AUTO = "auto"
    CPU = "cpu"  # float32
    CPU_BF16 = "cpu-bf16"
    CPU_INT8 = "cpu-int8"
    TENSORRT = "tensorrt"


class EngineError(Exception):
    """An engine cannot be loaded, fails its golden check, or fails on a batch. Says what and how to mend it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOutput:
    """What a network says of N images and K labels. All arrays are copies that the caller owns."""

    probabilities: FloatArray  # [N, K], calibrated, each row sums to 1
    class_index: IntArray  # [N], arg max of the row as the network computed it
    cam: FloatArray  # [N, h, w], raw Grad-CAM of the predicted class, >= 0, never normalised

    def __len__(self) -> int:
        return len(self.probabilities)


class Engine(Protocol):
    """activate -> infer ... -> deactivate, on one thread."""

    @property
    def name(self) -> str:
        """What ran: kind, library and version, precision; goes into reports and the ledger."""
        ...

    def activate(self) -> None:
        """Load, warm up and run the bundle's golden check; raises EngineError, after which nothing is held."""
        ...

    def infer(self, batch: FloatArray) -> EngineOutput:
        """Run `batch`, float32 [N, C, H, W] as `preprocess.to_batch` makes it, N >= 1. Raises EngineError."""
        ...

    def deactivate(self) -> None:
        """Let go of everything; may be called twice."""
        ...
