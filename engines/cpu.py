"""The CPU engine: onnxruntime in float32. Chosen over OpenVINO by tests/bench/engines_cpu.py.

Lower precisions run on OpenVINO: engines.cpu_low.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime as ort

from engines.base import EngineError, EngineOutput, FloatArray
from engines.bundle import Bundle
from engines.check import check_input, inactive
from engines.golden import check_golden, check_shapes

INPUT, OUTPUTS = "images", ["probabilities", "class_index", "cam"]
_PROVIDERS = ["CPUExecutionProvider"]
_TYPES = {INPUT: "tensor(float)", "probabilities": "tensor(float)", "class_index": "tensor(int64)",
          "cam": "tensor(float)"}  # fmt: skip
_QUIET = 3  # onnxruntime's severity: errors only


class CpuEngine:
    """One onnxruntime session. Not shared between threads while it is being activated or let go."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        """threads: how many cores one inference may use; None: all that this process may run on."""
        self._bundle = bundle
        self._threads = count_threads(threads)
        self._session: Any = None

    @property
    def name(self) -> str:
        return f"cpu onnxruntime {ort.__version__} fp32"

    def activate(self) -> None:
        if self._session is not None:
            return
        self._session = self._open()
        try:
            check_golden(self._bundle, self.infer)
        except BaseException:
            self.deactivate()
            raise

    def infer(self, batch: FloatArray) -> EngineOutput:
        if self._session is None:
            raise inactive()
        check_input(self._bundle, batch)
        try:
            probabilities, class_index, cam = self._session.run(OUTPUTS, {INPUT: np.ascontiguousarray(batch)})
        except Exception as e:  # onnxruntime's exceptions share no base class
            raise EngineError(f"onnxruntime failed on a batch of {len(batch)}: {e}") from e
        output = EngineOutput(probabilities=probabilities, class_index=class_index, cam=cam)
        return check_shapes(output, len(batch), len(self._bundle.labels))

    def deactivate(self) -> None:
        self._session = None

    def _open(self) -> Any:
        try:
            session = ort.InferenceSession(self._bundle.model_path, _options(self._threads), providers=_PROVIDERS)
        except Exception as e:  # onnxruntime's exceptions share no base class
            raise EngineError(f"onnxruntime cannot load {self._bundle.model_path}: {e}") from e
        found = {v.name: v.type for v in (*session.get_inputs(), *session.get_outputs())}
        if found != _TYPES:
            raise EngineError(f"{self._bundle.model_path} has {found}, wanted {_TYPES}: export the bundle again")
        if session.get_providers() != _PROVIDERS:
            raise EngineError(f"onnxruntime chose {session.get_providers()}, wanted {_PROVIDERS}")
        return session


def count_threads(threads: int | None) -> int:
    """Those given, or as many as this process has cores. Raises EngineError."""
    if threads is not None and threads < 1:
        raise EngineError(f"threads is {threads}: give at least 1, or None for every core")
    return threads or len(os.sched_getaffinity(0))


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    # Idle threads must sleep: the cores belong to the workers that decode while the engine waits for them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # float32 stays float32: on some ARM processors onnxruntime would multiply in bfloat16 if it were asked to.
    options.add_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16", "0")
    return options
