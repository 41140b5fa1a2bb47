"""An execution context without TensorRT: onnxruntime runs the bundle's ONNX on copies of what lies on the device.

Stands where TensorRT's stands, so that everything around the network is exercised: on simcuda, where the run waits its
turn in the stream, and on a real GPU, where it waits for the device and computes on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from engines.cpu import INPUT
from engines.cuda_buffers import import_pycuda

Array = np.ndarray[Any, np.dtype[Any]]
_NAMES = {"tensor(float)": "FLOAT", "tensor(int64)": "INT64"}


class Device(Protocol):
    """Where the context's memory lies."""

    def launch(self, stream: int, work: Callable[[], None]) -> None:
        """Do `work` when the stream comes to it."""
        ...

    def read(self, into: Array, address: int) -> None: ...
    def write(self, address: int, values: Array) -> None: ...


@dataclass(frozen=True, slots=True)
class Dtype:
    name: str


class OnnxContext:
    """ExecutionContext and PlanEngine in one."""

    def __init__(self, plan: bytes, *, largest: int = 8, gpu: Device, threads: int = 1) -> None:
        """plan: the path of an ONNX file (see plan_of); threads: that onnxruntime may use, 0: one a core."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._session: Any = ort.InferenceSession(plan.decode(), options)
        self._values: dict[str, Any] = {v.name: v for v in (*self._session.get_inputs(), *self._session.get_outputs())}
        self.largest = largest
        self.least = 1
        self.dtypes = {name: _NAMES[v.type] for name, v in self._values.items()}
        self.refuse = ""  # the method that returns False
        self.off = 0.0  # added to every probability: a GPU that errs
        self.off_after = 0  # runs, of which it adds nothing
        self._address: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()
        self._gpu = gpu

    @property
    def engine(self) -> OnnxContext:
        return self

    @property
    def num_io_tensors(self) -> int:
        return len(self._values)

    def get_tensor_name(self, index: int, /) -> str:
        return list(self._values)[index]

    def get_tensor_dtype(self, name: str, /) -> Dtype:
        return Dtype(self.dtypes[name])

    def get_tensor_shape(self, name: str, /) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else -1 for d in self._values[name].shape)

    def get_tensor_profile_shape(self, name: str, profile: int, /) -> list[tuple[int, ...]]:
        rest = self.get_tensor_shape(name)[1:]
        return [(n, *rest) for n in (self.least, self.largest, self.largest)]

    def set_input_shape(self, name: str, shape: tuple[int, ...], /) -> bool:
        self._shape = shape
        return self.refuse != "set_input_shape" and 1 <= shape[0] <= self.largest

    def set_tensor_address(self, name: str, address: int, /) -> bool:
        self._address[name] = address
        return self.refuse != "set_tensor_address"

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self.refuse == "execute_async_v3":
            return False
        address, shape = dict(self._address), self._shape
        self._gpu.launch(stream_handle, lambda: self._run(address, shape))
        return True

    def _run(self, address: dict[str, int], shape: tuple[int, ...]) -> None:
        images = np.empty(shape, np.float32)
        self._gpu.read(images, address[INPUT])
        names = [n for n in self._values if n != INPUT]
        off = 0.0 if self.off_after > 0 else self.off
        self.off_after -= 1
        for name, value in zip(names, self._session.run(names, {INPUT: images}), strict=True):
            wrong = value + np.float32(off) if name == "probabilities" else value
            dtype = np.int32 if self.dtypes[name] == "INT32" else wrong.dtype
            self._gpu.write(address[name], np.ascontiguousarray(wrong, dtype))


def plan_of(model: Path) -> bytes:
    return str(model).encode()


class RealGpu:
    """Waits for all that was queued, copies to the host, and back."""

    def launch(self, stream: int, work: Callable[[], None]) -> None:
        cuda = import_pycuda()
        cuda.Context.synchronize()
        work()

    def read(self, into: Array, address: int) -> None:
        import_pycuda().memcpy_dtoh(into, address)

    def write(self, address: int, values: Array) -> None:
        import_pycuda().memcpy_htod(address, values)
