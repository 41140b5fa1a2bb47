"""Asks this machine what TensorRT needs, one question after the other. Run by engines.probe as a process of its own.

The standard library only, and by its path: whatever a driver does to this process, its last line says where it ended.
A line of JSON before each question, {"asking": NAME}, and one after it: {"answer": ...} or {"refused": WHY}.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from typing import Any, TextIO

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NAME_SIZE = 256


class _Refused(Exception):  # noqa: N818 (an answer)
    pass


class _Driver:
    """libcuda by ctypes: what is asked before it is known whether pycuda can be imported."""

    def __init__(self) -> None:
        self._cuda: Any = None

    def load(self) -> bool:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        return True

    def version(self) -> dict[str, Any]:
        cuda = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(cuda))
        return {"cuda": cuda.value, "version": _nvml_version()}

    def gpu(self) -> dict[str, Any]:
        count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(_NAME_SIZE)
        self._call("cuInit", 0)
        self._call("cuDeviceGetCount", ctypes.byref(count))
        if not count.value:
            raise _Refused("the driver finds no GPU")
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDeviceGetName", name, _NAME_SIZE, device)
        capability = [ctypes.c_int(), ctypes.c_int()]
        for value, attribute in zip(capability, (_MAJOR, _MINOR), strict=True):
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        return {"name": name.value.decode(errors="replace"), "capability": [v.value for v in capability]}

    def memory(self) -> int:
        """Bytes that are free, which only a context can ask."""
        context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self._call("cuCtxPushCurrent_v2", context)
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        self._call("cuCtxPopCurrent_v2", ctypes.byref(context))
        self._call("cuDevicePrimaryCtxRelease_v2", 0)
        return free.value

    def _call(self, name: str, *arguments: Any) -> None:
        if code := getattr(self._cuda, name)(*arguments):
            said = ctypes.c_char_p()
            self._cuda.cuGetErrorString(code, ctypes.byref(said))
            raise _Refused(f"{name}: {(said.value or b'unknown error').decode()} (CUDA error {code})")


def _nvml_version() -> str:
    """The driver's own number, "580.82.07"; "" where nobody tells it."""
    text = ctypes.create_string_buffer(_NAME_SIZE)
    with suppress(OSError, AttributeError):
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if not nvml.nvmlInit_v2() and not nvml.nvmlSystemGetDriverVersion(text, _NAME_SIZE):
            return text.value.decode()
    return ""


def _pycuda() -> dict[str, Any]:
    cuda = importlib.import_module("pycuda.driver")
    return {"version": version("pycuda"), "cuda": list(cuda.get_version())}


def _tensorrt() -> dict[str, Any]:
    for name in ("tensorrt", "tensorrt_rtx"):
        if importlib.util.find_spec(name) is not None:
            return {"module": name, "version": importlib.import_module(name).__version__}
    raise _Refused("neither tensorrt nor tensorrt_rtx is installed")


def _onnx() -> str:
    if importlib.util.find_spec("onnx") is None:
        raise _Refused("onnx is not installed")
    return version("onnx")


def _ask(out: TextIO, name: str, question: Callable[[], Any]) -> bool:
    print(json.dumps({"asking": name}), file=out, flush=True)
    try:
        answer = {"answer": question()}
    except Exception as e:  # noqa: BLE001 (an import may raise anything; that is the finding)
        answer = {"refused": " ".join(str(e).split()) or type(e).__name__}
    print(json.dumps(answer), file=out, flush=True)
    return "answer" in answer


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is none of ours
    driver = _Driver()
    needed = {"library": driver.load, "driver": driver.version, "gpu": driver.gpu, "memory": driver.memory}
    # Without a driver and a GPU, TensorRT is not imported: what it would do is not ours to find out.
    if all(_ask(out, name, question) for name, question in needed.items()):
        for name, question in (("pycuda", _pycuda), ("tensorrt", _tensorrt), ("onnx", _onnx)):
            _ask(out, name, question)


if __name__ == "__main__":
    main()
