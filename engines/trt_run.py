"""The TensorRT engine: runs a plan (see trt_build) on an NVIDIA GPU, by pycuda.

Without a GPU it is tested on a libcuda in host memory with an execution context that runs the ONNX: see tests/gpu for
what runs on a GPU.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from engines.base import EngineError, EngineOutput, FloatArray
from engines.bundle import Bundle
from engines.check import UnusableEngineError, check_input, inactive
from engines.cpu import INPUT, OUTPUTS
from engines.cuda_buffers import DoubleBuffer, Gpu, Tensors, cuda_errors
from engines.golden import check_golden, check_shapes

if TYPE_CHECKING:  # the API of `tensorrt`, of which there are no stubs without an index of NVIDIA's
    import tensorrt_rtx as bindings

_log = logging.getLogger(__name__)

# Batches between two golden checks: a check is about six batches, so that this is near 1 % of the time, and at 32
# images a batch a GPU that has begun to err is found within 16,000 images.
RECHECK_EVERY = 500
_REBUILD = "build the engine again: cxrnode engine build"
_TYPES = {INPUT: ("FLOAT",), "probabilities": ("FLOAT",), "class_index": ("INT64", "INT32"), "cam": ("FLOAT",)}
_NUMPY = {"FLOAT": np.float32, "INT64": np.int64, "INT32": np.int32}


class PlanEngine(Protocol):
    """What is used of TensorRT's ICudaEngine."""

    @property
    def num_io_tensors(self) -> int: ...
    def get_tensor_name(self, index: int, /) -> str: ...
    def get_tensor_dtype(self, name: str, /) -> Any: ...  # an enumeration, of which `name` is used
    def get_tensor_shape(self, name: str, /) -> Any: ...  # iterable of int, -1 where dynamic
    def get_tensor_profile_shape(self, name: str, profile: int, /) -> Any: ...  # shapes: least, best, largest


class ExecutionContext(Protocol):
    """What is used of TensorRT's IExecutionContext."""

    @property
    def engine(self) -> PlanEngine: ...
    def set_input_shape(self, name: str, shape: tuple[int, ...], /) -> bool: ...
    def set_tensor_address(self, name: str, address: int, /) -> bool: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


OpenContext = Callable[[bytes], ExecutionContext]


class TensorRT(Protocol):
    """What is used of the module `tensorrt` or `tensorrt_rtx`."""

    __version__: str
    ILogger: type[bindings.ILogger]
    Runtime: type[bindings.Runtime]


def context_opener(trt: TensorRT) -> OpenContext:
    """What makes an execution context of a plan. Call it only where there is a driver: see trt_build."""

    def open_context(plan: bytes) -> ExecutionContext:
        said: deque[str] = deque(maxlen=3)
        engine = trt.Runtime(_logger(trt, said)).deserialize_cuda_engine(plan)
        context: ExecutionContext | None = None if engine is None else engine.create_execution_context()
        if context is None:
            what = "load the plan" if engine is None else "make room for the plan to run (nvidia-smi shows who has it)"
            why = "; ".join(said) or "it does not say why"
            raise EngineError(f"TensorRT {trt.__version__} cannot {what}: {why}: {_REBUILD}")
        return context

    return open_context


def _logger(trt: TensorRT, said: deque[str]) -> bindings.ILogger:
    """Keeps what TensorRT says last and passes all its errors on. The base class is known only here."""

    def log(_: object, severity: bindings.ILogger.Severity, message: str) -> None:
        if severity.value <= trt.ILogger.Severity.ERROR.value:  # 0 is the gravest
            _log.error("TensorRT: %s", message)
            said.append(message)

    made: Callable[[], bindings.ILogger] = type("Log", (trt.ILogger,), {"log": log})
    return made()


class TensorRtEngine:
    """One plan on one GPU. Buffers for its largest batch are made once; larger batches go through in chunks.

    All calls must come from the thread that called activate().
    """

    def __init__(
        self, bundle: Bundle, plan: bytes, *, precision: str, library: str, open_context: OpenContext, device: int = 0
    ) -> None:
        """precision: names the bundle's tolerance; library: what runs the plan, and its version; device: ordinal."""
        self._bundle = bundle
        self._plan = plan
        self._precision = precision
        self._library = library
        self._open_context = open_context
        self._device = device
        self._thread = 0
        self._gpu: Gpu | None = None
        self._context: ExecutionContext | None = None
        self._buffers: DoubleBuffer | None = None
        self._largest = 0
        self._unchecked = 0  # batches since the last golden check
        self._unusable = ""  # why

    @property
    def name(self) -> str:
        return f"gpu {self._library} {self._precision}"

    def activate(self) -> None:
        if self._gpu is not None:
            self._check_thread()
            return
        self._thread = threading.get_ident()
        self._gpu = Gpu(self._device)
        try:
            with cuda_errors(f"activating {self.name}"), self._gpu.current():
                self._open()
            self._check_golden()
        except BaseException:
            self.deactivate()
            raise
        self._unusable = ""

    def infer(self, batch: FloatArray) -> EngineOutput:
        """As Engine.infer; UnusableEngineError where a later golden check failed or the GPU is lost."""
        if self._gpu is None:
            raise inactive()
        self._check_thread()
        if self._unusable:
            raise UnusableEngineError(self._unusable)
        check_input(self._bundle, batch)
        try:
            if self._unchecked >= RECHECK_EVERY:
                self._check_again()
            self._unchecked += 1
            return self._run(batch)
        except UnusableEngineError as e:
            self._unusable = str(e)
            raise

    def deactivate(self) -> None:
        if self._gpu is None:
            return
        self._check_thread()
        gpu, self._gpu = self._gpu, None
        gpu.close(self._let_go)

    def __del__(self) -> None:
        """One that was dropped while active is let go on whichever thread the garbage collector happens to run.

        pycuda itself frees on no thread but the one that made a context, and leaks what is collected elsewhere.
        """
        if self._gpu is None or sys.is_finalizing():
            return
        gpu, self._gpu = self._gpu, None
        gpu.close(self._let_go)
        message = f"{self.name} was dropped while it was active: call deactivate()"
        warnings.warn(message, ResourceWarning, stacklevel=1, source=self)

    def _let_go(self) -> None:
        if self._buffers is not None:
            self._buffers.close()
        self._buffers = self._context = None

    def _open(self) -> None:
        self._context = self._open_context(self._plan)
        inputs, outputs, self._largest = _tensors(self._context.engine, self._bundle)
        self._buffers = DoubleBuffer(inputs=inputs, outputs=outputs, largest=self._largest)

    def _check_thread(self) -> None:
        if threading.get_ident() != self._thread:
            raise EngineError("the engine was activated on another thread: call it from that one only")

    def _check_golden(self) -> None:
        """The last size goes twice through each set of buffers, the second time with one image."""
        sizes = (self._largest, 3 * self._largest + 1)
        check_golden(self._bundle, self._run, precision=self._precision, sizes=sizes)
        self._unchecked = 0

    def _check_again(self) -> None:
        try:
            self._check_golden()
        except EngineError as e:
            raise UnusableEngineError(
                f"{self.name} no longer passes its golden check: {e}. It passed it {RECHECK_EVERY} batches ago; "
                "what it said since then is in doubt"
            ) from e

    def _run(self, batch: FloatArray) -> EngineOutput:
        if self._gpu is None or self._buffers is None:
            raise inactive()
        with cuda_errors(f"{self.name} on a batch of {len(batch)}"), self._gpu.current():
            found = self._buffers.run(batch, self._enqueue)
        output = EngineOutput(
            probabilities=found["probabilities"],
            class_index=found["class_index"].astype(np.int64, copy=False),
            cam=found["cam"],
        )
        return check_shapes(output, len(batch), len(self._bundle.labels))

    def _enqueue(self, addresses: dict[str, int], count: int, stream: int) -> None:
        if self._context is None:
            raise inactive()
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise EngineError(f"{self.name} does not take an address for {name}: {_REBUILD}")
        shape = self._bundle.manifest.input
        if not self._context.set_input_shape(INPUT, (count, shape.channels, shape.rows, shape.columns)):
            raise EngineError(f"{self.name} does not take a batch of {count}: {_REBUILD}")
        if not self._context.execute_async_v3(stream):
            raise EngineError(f"{self.name} did not start on a batch of {count}: see the log; {_REBUILD}")


def _tensors(engine: PlanEngine, bundle: Bundle) -> tuple[Tensors, Tensors, int]:
    """The plan's input, its outputs and its largest batch. Raises EngineError unless they are the bundle's."""
    names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    if names != _TYPES.keys():
        raise EngineError(f"the plan has the tensors {sorted(names)}, wanted {sorted(_TYPES)}: {_REBUILD}")
    shape = bundle.manifest.input
    image = (shape.channels, shape.rows, shape.columns)
    want = {INPUT: image, "probabilities": (len(bundle.labels),), "class_index": ()}
    tensors: Tensors = {}
    for name in (INPUT, *OUTPUTS):
        dtype, (_, *rest) = engine.get_tensor_dtype(name).name, engine.get_tensor_shape(name)
        if dtype not in _TYPES[name] or tuple(rest) != want.get(name, tuple(rest)) or min(rest, default=1) < 1:
            raise EngineError(f"the plan's {name} is {dtype} {rest} an image, which is not the bundle's: {_REBUILD}")
        tensors[name] = (tuple(rest), _NUMPY[dtype])
    least, _, largest = (int(next(iter(s))) for s in engine.get_tensor_profile_shape(INPUT, 0))
    if least != 1:
        raise EngineError(f"the plan takes no batch of fewer than {least}: {_REBUILD}")
    return {INPUT: tensors.pop(INPUT)}, tensors, largest
