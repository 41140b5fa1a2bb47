"""The CPU engine in bfloat16 or int8, by OpenVINO: only where asked for, and where the bundle records that it may.

OpenVINO takes a precision as a hint and computes in another where the processor has no such instructions, without a
word: what it really computes in is read back from the compiled graph.
"""

from __future__ import annotations

from enum import StrEnum
from importlib.metadata import version
from io import BytesIO
from typing import Any

import numpy as np

from engines.base import EngineError, EngineOutput, FloatArray
from engines.bundle import Bundle
from engines.check import check_input, inactive
from engines.cpu import INPUT, OUTPUTS, count_threads
from engines.golden import check_golden, check_shapes

_TYPES = {INPUT: "f32", "probabilities": "f32", "class_index": "i64", "cam": "f32"}


class LowPrecision(StrEnum):
    BF16 = "bf16"
    INT8 = "int8"


# As OpenVINO spells types. int8's hint is of what stands between no quantise nodes.
_HINTS = {LowPrecision.BF16: "bf16", LowPrecision.INT8: "f32"}
_COMPUTED = {LowPrecision.BF16: {"bf16"}, LowPrecision.INT8: {"i8", "u8"}}
_LACKING = {LowPrecision.BF16: "AVX-512 BF16 or AMX", LowPrecision.INT8: "AVX2 or later"}


class LowCpuEngine:
    """One OpenVINO request; not shared between threads."""

    def __init__(self, bundle: Bundle, precision: LowPrecision, *, threads: int | None = None) -> None:
        """threads: as of CpuEngine. Raises EngineError where the bundle records no accepted trial of `precision`."""
        if precision not in bundle.manifest.accepted:
            raise EngineError(
                f"bundle {bundle.name} records no accepted trial of {precision}: run python -m training accept "
                f"{bundle.name} --precision {precision} --data DATA, or use --engine cpu"
            )
        self._bundle, self._precision, self._threads = bundle, precision, count_threads(threads)
        self._request: Any = None

    @property
    def name(self) -> str:
        return f"cpu openvino {version('openvino')} {self._precision}" if self._request else f"cpu {self._precision}"

    def activate(self) -> None:
        if self._request is not None:
            return
        self._request = self._open()
        try:
            check_golden(self._bundle, self.infer, precision=self._precision)
        except BaseException:
            self.deactivate()
            raise

    def infer(self, batch: FloatArray) -> EngineOutput:
        if self._request is None:
            raise inactive()
        check_input(self._bundle, batch)
        try:
            answers = self._request.infer({INPUT: np.ascontiguousarray(batch)})  # its arrays are copies
        except RuntimeError as e:
            raise EngineError(f"OpenVINO failed on a batch of {len(batch)}: {e}") from e
        probabilities, class_index, cam = (answers[name] for name in OUTPUTS)
        output = EngineOutput(probabilities=probabilities, class_index=class_index, cam=cam)
        return check_shapes(output, len(batch), len(self._bundle.labels))

    def deactivate(self) -> None:
        self._request = None

    def _open(self) -> Any:
        try:
            import openvino  # noqa: PLC0415 (an extra, and slow to import)

            from engines.precision import convert  # noqa: PLC0415 (brings onnx, of the same extra)
        except ImportError as e:
            raise EngineError(f"{e.name} is not installed: pip install openvino onnx, or use --engine cpu") from e
        model = convert(self._bundle, "int8" if self._precision is LowPrecision.INT8 else "fp32")
        properties = {
            "INFERENCE_PRECISION_HINT": _HINTS[self._precision], "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False,  # the cores are the decoding workers' too
        }  # fmt: skip
        try:
            core = openvino.Core()
            compiled = core.compile_model(core.read_model(BytesIO(model)), "CPU", properties)
            self._check(compiled, core.get_property("CPU", "FULL_DEVICE_NAME"))
            return compiled.create_infer_request()
        except RuntimeError as e:
            raise EngineError(f"OpenVINO cannot load {self._bundle.model_path}: {e}") from e

    def _check(self, compiled: Any, processor: str) -> None:
        """Raises EngineError unless it computes in the precision, and takes and gives what a bundle's model does."""
        found = {port.any_name: port.element_type.get_type_name() for port in (*compiled.inputs, *compiled.outputs)}
        if found != _TYPES:
            raise EngineError(f"{self._bundle.model_path} has {found}, wanted {_TYPES}: export the bundle again")
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        computed = _convolutions_in(compiled)
        if hint != _HINTS[self._precision] or not computed & _COMPUTED[self._precision]:
            raise EngineError(
                f"OpenVINO computes {', '.join(sorted(computed)) or 'nothing'} on this processor ({processor}), not "
                f"{self._precision}: that wants {_LACKING[self._precision]}; use --engine cpu"
            )


def _convolutions_in(compiled: Any) -> set[str]:
    """The types in which the convolutions of the graph that OpenVINO made of the model are computed: {"f32"}, ..."""
    told = (node.get_rt_info() for node in compiled.get_runtime_model().get_ops())
    return {t["runtimePrecision"].astype(str) for t in told if t["layerType"].astype(str) == "Convolution"}
