"""A real NVIDIA GPU, where there is one: the engine on it, with TensorRT's execution context or one in its place.

Two stand in for TensorRT's, so that copies, streams and events of the real driver are exercised without it: the ONNX in
onnxruntime on the host, and the tiny test network in torch, whose kernels run on the very stream that the engine names.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from functools import cache
from typing import Any

import pytest

from engines.bundle import Bundle
from engines.cpu import INPUT
from engines.plan import Precision
from engines.precision import convert
from engines.probe import probe
from engines.trt_build import BuildOptions, build_plan
from engines.trt_run import ExecutionContext, OpenContext, TensorRtEngine, context_opener
from tests.contract.tiny import WEIGHT
from tests.support.execution_context import OnnxContext, RealGpu, plan_of

ON_HOST = "onnxruntime on the host"
NETWORKS = (ON_HOST, "torch", "tensorrt")
_IN_PLACE_OF = {"TensorRT", "onnx"}  # what the stand-ins do without


@cache
def missing_gpu() -> str:
    """Why there is no GPU to test on; "" where there is one, with or without TensorRT."""
    return "; ".join(str(check) for check in probe().checks if not (check.ok or check.what in _IN_PLACE_OF))


def tensorrt() -> Any:
    """The module, where it is installed; skips the test where not. Never to be used without a driver."""
    for name in ("tensorrt", "tensorrt_rtx"):
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(name)
    pytest.skip("neither tensorrt nor tensorrt_rtx is installed")


def gpu_engine(network: str, bundle: Bundle, *, largest: int = 8, precision: Precision = "fp32") -> TensorRtEngine:
    """The engine on the real GPU, with one of NETWORKS (torch: tiny bundles only); skips the test if it cannot be."""
    if network == "tensorrt":
        trt = tensorrt()
        plan = _built(hashlib.sha256(bundle.model_path.read_bytes()).hexdigest(), bundle, largest, precision)
        open_context, library = context_opener(trt), f"{trt.__name__} {trt.__version__}"
    else:
        if network == "torch":
            pytest.importorskip("torch")
        plan, library = plan_of(bundle.model_path), f"{network} 1"
        open_context = _opener(TorchContext if network == "torch" else OnnxContext, largest)
    return TensorRtEngine(bundle, plan, precision=precision, library=library, open_context=open_context)


def _opener(kind: type[OnnxContext], largest: int) -> OpenContext:
    def open_context(plan: bytes) -> ExecutionContext:
        return kind(plan, largest=largest, gpu=RealGpu(), threads=0)

    return open_context


_plans: dict[tuple[str, int, str], bytes] = {}


def _built(digest: str, bundle: Bundle, largest: int, precision: Precision) -> bytes:
    """Building takes seconds to minutes: once a network."""
    key = digest, largest, precision
    if key not in _plans:
        options = BuildOptions(optimal=largest, largest=largest)
        _plans[key] = build_plan(tensorrt(), convert(bundle, precision), bundle.manifest.input, options)
    return _plans[key]


class _OnDevice:
    """Device memory, as torch takes it without a copy."""

    def __init__(self, address: int, shape: tuple[int, ...], typestr: str) -> None:
        self.__cuda_array_interface__ = {"shape": shape, "typestr": typestr, "data": (address, False), "version": 3}


@cache
def on_device(address: int, shape: tuple[int, ...], typestr: str = "<f4") -> Any:
    """A torch tensor of that memory; one for each, for torch keeps some memory of every view that it makes."""
    import torch

    return torch.as_tensor(_OnDevice(address, shape, typestr), device="cuda")


@cache
def torch_stream(handle: int) -> Any:
    """torch's view of a stream that it did not make."""
    import torch

    return torch.cuda.ExternalStream(handle)  # type: ignore[no-untyped-call]


def empty_torchs_cache() -> None:
    """torch keeps what it has allocated for each stream that it ever saw: that is no engine's memory."""
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


class TorchContext(OnnxContext):
    """The tiny network (tests/contract/tiny.py) in torch, on the stream it is given; returns before it is done."""

    _weight: Any = None

    def execute_async_v3(self, stream_handle: int) -> bool:
        import torch

        if self._weight is None:
            self._weight = torch.from_numpy(WEIGHT).cuda()
        count = self._shape[0]
        images = on_device(self._address[INPUT], self._shape)
        with torch.no_grad(), torch.cuda.stream(torch_stream(stream_handle)):
            logits = (images.mean((2, 3))[:, :, None] * self._weight).sum(1)  # cuBLAS keeps 32 MiB a stream for good
            on_device(self._address["probabilities"], (count, 3)).copy_(logits.softmax(1))
            on_device(self._address["class_index"], (count,), "<i8").copy_(logits.argmax(1))
            blocks = torch.nn.functional.avg_pool2d(images[:, 0], 4)
            on_device(self._address["cam"], (count, 4, 4)).copy_(blocks.relu())
        return True
