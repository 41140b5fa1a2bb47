"""A bundle's ONNX to an engine file, by TensorRT or TensorRT for RTX, whichever module is given.

Networks are strongly typed: each value is computed in the type that the graph states (engines.precision), never in
another that the builder finds faster. Nothing here makes a Runtime: without a driver, that ends the process.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engines.base import EngineError, FloatArray
from engines.bundle import MODEL, Bundle, InputShape
from engines.cpu import INPUT, OUTPUTS
from engines.plan import Compatibility, Machine, Plan, Precision, Sidecar, write_plan
from engines.precision import convert

if TYPE_CHECKING:  # both modules have the same API; stubs of this one are made where mypy checks against them
    import tensorrt_rtx as bindings

_log = logging.getLogger(__name__)
_MIB = 1 << 20
_TOLD = 8  # of the builder's messages: the first ones name the cause
_MEND = "run the bundle on the CPU engine, or export it anew"
_OPTION = "leave that option out"


class TensorRT(Protocol):
    """What this file uses of the module `tensorrt` or `tensorrt_rtx`."""

    __version__: str
    Builder: type[bindings.Builder]
    BuilderFlag: type[bindings.BuilderFlag]
    ComputeCapability: type[bindings.ComputeCapability]
    DataType: type[bindings.DataType]
    Dims: type[bindings.Dims]
    HardwareCompatibilityLevel: type[bindings.HardwareCompatibilityLevel]
    ILogger: type[bindings.ILogger]
    MemoryPoolType: type[bindings.MemoryPoolType]
    NetworkDefinitionCreationFlag: type[bindings.NetworkDefinitionCreationFlag]
    OnnxParser: type[bindings.OnnxParser]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How a plan is built; batches of 1 to `largest` run on it, and of `optimal` best."""

    optimal: int = 8
    largest: int = 32
    workspace_mib: int = 2048  # what a layer may use beside the maps; a limit, not a reservation
    hardware_compatibility: Compatibility = "none"
    compute_capabilities: tuple[str, ...] = ()  # ("8.6", ...): of GPUs that are not here; tensorrt_rtx alone can

    def __post_init__(self) -> None:
        if not 1 <= self.optimal <= self.largest:
            raise EngineError(f"batches 1 to {self.largest}, best at {self.optimal}: give 1 <= optimal <= largest")
        if self.workspace_mib < 1:
            raise EngineError(f"a workspace of {self.workspace_mib} MiB: give at least 1")


def build_engine(
    trt: TensorRT, bundle: Bundle, machine: Machine, precision: Precision, folder: Path, *,
    options: BuildOptions | None = None, images: Iterable[FloatArray] | None = None,
) -> Plan:  # fmt: skip
    """Convert, build (seconds to minutes) and write the bundle's plan and sidecar into `folder`. Raises EngineError.

    images: prepared batches for int8 (see engines.precision.convert).
    """
    options = options or BuildOptions()
    timings = folder / f".timing-{machine.module}-{machine.version}-{machine.compute_capability}"
    data = build_plan(trt, convert(bundle, precision, images), bundle.manifest.input, options, timings)
    sidecar = Sidecar(
        bundle=bundle.name, bundle_digest=bundle.digest, onnx_sha256=bundle.manifest.files[MODEL],
        plan_sha256=hashlib.sha256(data).hexdigest(), gpu=machine.gpu, compute_capability=machine.compute_capability,
        driver=machine.driver, module=machine.module, version=machine.version, precision=precision,
        optimal=options.optimal, largest=options.largest, hardware_compatibility=options.hardware_compatibility,
        built_at=datetime.now(UTC),
    )  # fmt: skip
    return write_plan(folder, bundle, sidecar, data)


def build_plan(
    trt: TensorRT, model: bytes, shape: InputShape, options: BuildOptions, timings: Path | None = None
) -> bytes:
    """A plan from ONNX bytes whose values have the types they are to be computed in. Raises EngineError.

    timings: where the builder's measurements are kept for the next build on this machine; they only save time.
    """
    messages: list[str] = []
    logger = _logger(trt, messages)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    _check(parser.parse(model), "cannot read the model", messages)
    _check_ends(trt, network, shape)
    config = builder.create_builder_config()
    _configure(trt, config, options, messages)
    _add_profile(trt, builder, config, shape, options, messages)
    _load_timings(config, timings)
    return _build(builder, network, config, timings, messages)


def _build(
    builder: bindings.Builder, network: bindings.INetworkDefinition, config: bindings.IBuilderConfig,
    timings: Path | None, messages: list[str],
) -> bytes:  # fmt: skip
    try:
        plan = builder.build_serialized_network(network, config)
    except RuntimeError as e:
        messages.append(str(e))
        plan = None
    data = b"" if plan is None else bytes(plan)
    _check(
        bool(data), "cannot build an engine", messages, "give it more workspace, or run the bundle on the CPU engine"
    )
    _save_timings(config, timings)
    return data


def _logger(trt: TensorRT, messages: list[str]) -> bindings.ILogger:
    """The base class is known only here: parser and builder tell it what is wrong."""

    def log(_: object, severity: bindings.ILogger.Severity, message: str) -> None:
        if severity.value <= trt.ILogger.Severity.ERROR.value:  # 0 is the gravest
            messages.append(message)
        elif severity == trt.ILogger.Severity.WARNING:
            _log.debug("TensorRT: %s", message)

    made: Callable[[], bindings.ILogger] = type("Messages", (trt.ILogger,), {"log": log})
    return made()


def _check(done: bool, what: str, messages: list[str], mend: str = _MEND) -> None:
    if not done:
        told = (
            "; ".join(dict.fromkeys(" ".join(m.split()).rstrip(".") for m in messages[:_TOLD])) or "it gave no reason"
        )
        raise EngineError(f"TensorRT {what}: {told}: {mend}")


def _check_ends(trt: TensorRT, network: bindings.INetworkDefinition, shape: InputShape) -> None:
    """Inputs and outputs are those of a bundle, in name, type and shape; the batch is free."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    found = {t.name: (t.dtype, [t.shape[i] for i in range(len(t.shape))]) for t in inputs}
    wanted = {INPUT: (trt.DataType.FLOAT, [-1, shape.channels, shape.rows, shape.columns])}
    if found != wanted:
        raise EngineError(f"the model takes {_spelt(found)}, wanted {_spelt(wanted)}: export the bundle again")
    names = [t.name for t in outputs]
    if sorted(names) != sorted(OUTPUTS):
        raise EngineError(f"the model gives {', '.join(names)}, wanted {', '.join(OUTPUTS)}: export the bundle again")


def _spelt(ends: Mapping[str, tuple[bindings.DataType, list[int]]]) -> str:
    return ", ".join(f"{name} {dtype.name} {shape}" for name, (dtype, shape) in ends.items()) or "nothing"


def _configure(trt: TensorRT, config: bindings.IBuilderConfig, options: BuildOptions, messages: list[str]) -> None:
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default; float32 means float32, as in the reference outputs
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * _MIB)
    level = getattr(trt.HardwareCompatibilityLevel, options.hardware_compatibility.upper())
    config.hardware_compatibility_level = level
    _check(
        config.hardware_compatibility_level == level, f"refuses hardware compatibility {level.name}", messages, _OPTION
    )
    if not options.compute_capabilities:
        return
    config.num_compute_capabilities = len(options.compute_capabilities)
    for i, wanted in enumerate(options.compute_capabilities):
        capability = getattr(trt.ComputeCapability, f"SM{wanted.replace('.', '')}", None)
        if capability is None:
            raise EngineError(f"TensorRT {trt.__version__} builds for no GPU of compute capability {wanted}")
        _check(config.set_compute_capability(capability, i), f"refuses compute capability {wanted}", messages, _OPTION)


def _add_profile(
    trt: TensorRT, builder: bindings.Builder, config: bindings.IBuilderConfig, shape: InputShape,
    options: BuildOptions, messages: list[str],
) -> None:  # fmt: skip
    profile = builder.create_optimization_profile()
    batches = (1, options.optimal, options.largest)
    least, best, most = (trt.Dims([n, shape.channels, shape.rows, shape.columns]) for n in batches)
    profile.set_shape(INPUT, least, best, most)
    _check(
        config.add_optimization_profile(profile) >= 0,
        "refuses the optimisation profile",
        messages,
        "choose smaller batches",
    )


def _load_timings(config: bindings.IBuilderConfig, path: Path | None) -> None:
    """Timings that are not there, or that the module cannot read, are measured anew."""
    if path is None:
        return
    with _no_deprecation():
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            _log.warning("timings in %s are of no use here and are measured again", path)
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _save_timings(config: bindings.IBuilderConfig, path: Path | None) -> None:
    if path is None:
        return
    with _no_deprecation():
        cache = config.get_timing_cache()
        data = b"" if cache is None else bytes(cache.serialize())
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_bytes(data)


@contextmanager
def _no_deprecation() -> Iterator[None]:
    """TensorRT for RTX measures nothing: there, timings are accepted, do nothing, and warn of that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
