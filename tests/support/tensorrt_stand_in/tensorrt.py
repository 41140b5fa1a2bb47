"""In TensorRT's place, in the processes of a real node on a simulated GPU: put this folder on PYTHONPATH.

A plan names an ONNX file (see tests/support/planned_gpu.py), which onnxruntime runs. While the file of SIMULATED_CRASH
is there, the process dies of a segmentation fault in the middle of a batch that is not of golden inputs.
"""

from __future__ import annotations

import ctypes
import os
from enum import Enum
from pathlib import Path
from typing import Any

__version__ = "11.0.simulated"


class ILogger:
    class Severity(Enum):
        ERROR = 1


class Runtime:
    """And engine, as far as the node can tell."""

    def __init__(self, logger: ILogger) -> None:
        self._plan = b""

    def deserialize_cuda_engine(self, plan: bytes) -> Runtime:
        self._plan = plan
        return self

    def create_execution_context(self) -> Any:
        import numpy as np

        from engines.bundle import GOLDEN
        from engines.cpu import INPUT
        from tests.support.execution_context import OnnxContext
        from tests.support.simulated_gpu import simulation

        model = self._plan.partition(b"\n")[0]
        with np.load(Path(model.decode()).parent / GOLDEN) as z:
            golden = {image.tobytes() for image in z["batch"]}

        class Context(OnnxContext):
            def _run(self, address: dict[str, int], shape: tuple[int, ...]) -> None:
                image = np.empty(shape[1:], np.float32)
                simulation().read(image, address[INPUT])
                if Path(os.environ["SIMULATED_CRASH"]).exists() and image.tobytes() not in golden:
                    ctypes.string_at(0)
                super()._run(address, shape)

        return Context(model, largest=8, gpu=simulation())
