"""Which engine runs a bundle on this machine: TensorRT where all that it needs is there and proves right, else the CPU.

Plans lie in one folder of the user's cache, for the node and for every command: see `plans_folder`.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from engines.base import Engine, EngineError, EngineOutput, FloatArray
from engines.bundle import Bundle
from engines.check import UnusableEngineError, inactive
from engines.cpu import CpuEngine
from engines.plan import Machine, Plan, Precision, plan_path, read_plan
from engines.probe import driver_installed, usable_machine
from engines.trt_run import TensorRtEngine, context_opener

KINDS = ("auto", "cpu", "tensorrt")
_FASTEST: tuple[Precision, ...] = ("int8", "fp16", "fp32")
_OTHERS_WRITE = 0o022
_log = logging.getLogger(__name__)


def make_engine(
    kind: str, bundle: Bundle, *, threads: int | None = None, on_fallback: Callable[[str], None] | None = None
) -> Engine:
    """The engine of that kind, not yet active. Raises EngineError.

    "tensorrt" raises EngineError from activate() where it cannot be had; "auto" runs on the CPU then, and calls
    `on_fallback` with the reason on the engine's thread (None: logs it). Where no driver is installed it says nothing.
    threads: cores that inference on the CPU may use; None: all.
    """
    if kind not in KINDS:
        raise EngineError(f"no engine '{kind}': choose one of {', '.join(KINDS)}")
    if kind == "tensorrt":
        return PlannedEngine(bundle)
    cpu = CpuEngine(bundle, threads=threads)
    if kind == "cpu" or not driver_installed():
        return cpu
    return AutoEngine(PlannedEngine(bundle), cpu, on_fallback or _warn)


class PlannedEngine:
    """TensorRT on this machine's GPU, by the plan in the cache; one that is missing, does not fit or errs is built."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._engine: TensorRtEngine | None = None

    @property
    def name(self) -> str:
        return self._engine.name if self._engine else "gpu"

    def activate(self) -> None:
        """As Engine.activate; building takes seconds to minutes, and is tried once."""
        if self._engine is not None:
            self._engine.activate()
            return
        machine, folder = usable_machine(), plans_folder()
        precision = best_precision(self._bundle, folder)
        try:
            self._start(read_plan(folder, self._bundle, machine, precision), machine)
        except UnusableEngineError:  # no other plan would mend that
            raise
        except EngineError as e:
            from engines.trt_build import build_engine  # noqa: PLC0415 (brings onnx, which the CPU does without)

            _log.warning("%s: now building it for %s, which may take minutes", e, machine.gpu)
            trt = importlib.import_module(machine.module)
            self._start(build_engine(trt, self._bundle, machine, precision, folder), machine)

    def infer(self, batch: FloatArray) -> EngineOutput:
        if self._engine is None:
            raise inactive()
        return self._engine.infer(batch)

    def deactivate(self) -> None:
        if self._engine is not None:
            self._engine.deactivate()
            self._engine = None

    def _start(self, plan: Plan, machine: Machine) -> None:
        engine = engine_of(plan, self._bundle, machine)
        engine.activate()
        self._engine = engine


class AutoEngine:
    """The GPU's engine, or the CPU's where that does not come up or is lost on the way; no image goes unanswered."""

    def __init__(self, gpu: Engine, cpu: Engine, on_fallback: Callable[[str], None]) -> None:
        self._gpu, self._cpu, self._on_fallback = gpu, cpu, on_fallback
        self._active: Engine | None = None

    @property
    def name(self) -> str:
        return self._active.name if self._active else "auto"

    def activate(self) -> None:
        if self._active is not None:
            self._active.activate()
            return
        try:
            self._gpu.activate()
        except Exception as e:  # noqa: BLE001 (whatever a GPU's software raises: the CPU does the work)
            self._fall_back(e)
        else:
            self._active = self._gpu

    def infer(self, batch: FloatArray) -> EngineOutput:
        if self._active is None:
            raise inactive()
        try:
            return self._active.infer(batch)
        except UnusableEngineError as e:
            if self._active is self._cpu:
                raise
            self._active = None
            self._gpu.deactivate()
            self._fall_back(e)
        return self._cpu.infer(batch)

    def deactivate(self) -> None:
        active, self._active = self._active, None
        if active is not None:
            active.deactivate()

    def _fall_back(self, error: Exception) -> None:
        self._cpu.activate()
        self._active = self._cpu
        self._on_fallback(str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}")


def engine_of(plan: Plan, bundle: Bundle, machine: Machine) -> TensorRtEngine:
    """What runs `plan`, not yet active. Only where a probe found `machine`: without a driver TensorRT crashes."""
    trt = importlib.import_module(machine.module)
    return TensorRtEngine(
        bundle, plan.data, precision=plan.sidecar.precision, library=f"{machine.module} {machine.version}",
        open_context=context_opener(trt),
    )  # fmt: skip


def best_precision(bundle: Bundle, folder: Path) -> Precision:
    """The fastest that the bundle states a tolerance for; int8 only where somebody built it, for that takes films."""
    stated = [p for p in _FASTEST if p in bundle.manifest.tolerance]
    for precision in stated:
        if precision != "int8" or plan_path(folder, bundle, precision).exists():
            return precision
    raise EngineError(f"bundle {bundle.name} states no tolerance for fp16 or fp32: export it again")


def plans_folder() -> Path:
    """$XDG_CACHE_HOME/cxrnode/engines (~/.cache/... without it), which need not exist.

    Raises EngineError where others may write to it: what lies there is run as code.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))  # one that is not absolute is no value, the specification says
    try:
        folder = (cache if cache.is_absolute() else Path.home() / ".cache") / "cxrnode" / "engines"
        found = folder.stat()
    except FileNotFoundError:
        return folder
    except (OSError, RuntimeError) as e:
        raise EngineError(f"no folder for engine files ({e}): set XDG_CACHE_HOME to a folder of this user's own") from e
    if found.st_uid not in {0, os.geteuid()} or found.st_mode & _OTHERS_WRITE:
        raise EngineError(f"others may write to {folder}, and what lies there is run as code: remove it, or chmod 700")
    return folder


def _warn(reason: str) -> None:
    _log.warning("the CPU does the work: %s", reason)
