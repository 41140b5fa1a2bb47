"""Which engine runs a bundle on this machine: TensorRT where all that it needs is there and proves right, else the CPU.

Plans lie in one folder of the user's cache, for the node and for every command: see `plans_folder`.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from engines.base import Engine, EngineError, EngineKind, EngineOutput, FloatArray
from engines.bundle import Bundle
from engines.check import UnusableEngineError, inactive
from engines.cpu import CpuEngine
from engines.cpu_low import LowCpuEngine, LowPrecision
from engines.golden import MismatchError
from engines.plan import Machine, Plan, Precision, plan_path, read_plan
from engines.probe import driver_installed, usable_machine
from engines.shadow import Shadow, Shadowed
from engines.trial import Trials
from engines.trt_run import TensorRtEngine, context_opener

_FASTEST: tuple[Precision, ...] = ("int8", "fp16", "fp32")
_OTHERS_WRITE = 0o022
_NAME_ONE = "set XDG_CACHE_HOME to a folder of this user's own; in a systemd unit: CacheDirectory=cxrnode"
_log = logging.getLogger(__name__)


def make_engine(
    kind: str,
    bundle: Bundle,
    *,
    threads: int | None = None,
    on_fallback: Callable[[str], None] | None = None,
    on_shadowed: Callable[[Shadowed], None] | None = None,
) -> Engine:
    """The engine of that kind, not yet active. Raises EngineError.

    "tensorrt" raises EngineError from activate() where it cannot be had; "auto" runs on the CPU then, and calls
    `on_fallback` with the reason on the engine's thread (None: logs it). Where no driver is installed it says nothing.
    Both run the first images of a new plan on the CPU too, and tell `on_shadowed`, on that thread, what came of it.
    "cpu-bf16" and "cpu-int8" are for bundles that record an accepted trial of that precision (see cpu_low).
    threads: cores that inference on the CPU may use; None: all.
    """
    if kind not in set(EngineKind):
        raise EngineError(f"no engine '{kind}': choose one of {', '.join(EngineKind)}")
    if kind in {EngineKind.CPU_BF16, EngineKind.CPU_INT8}:
        return LowCpuEngine(bundle, LowPrecision(kind.removeprefix("cpu-")), threads=threads)
    cpu = CpuEngine(bundle, threads=threads)
    if not may_use_gpu(kind):
        return cpu
    gpu = PlannedEngine(bundle, Shadow(bundle, cpu, on_shadowed))
    return gpu if kind == "tensorrt" else AutoEngine(gpu, cpu, on_fallback or _warn)


def may_use_gpu(kind: str) -> bool:
    """Whether an engine of that kind tries this machine's GPU."""
    return kind == "tensorrt" or (kind == "auto" and driver_installed())


class PlannedEngine:
    """TensorRT on this machine's GPU, by the plan in the cache; one that is missing, does not fit or errs is built.

    A plan errs that fails its golden check, or says something else than the CPU of the first images (see shadow). It is
    built anew once; where that one errs too, no plan is tried until something changes (see trial).
    """

    def __init__(self, bundle: Bundle, shadow: Shadow | None = None) -> None:
        """shadow: what follows a plan that is new to this machine; None: nothing does, and it stays new."""
        self._bundle, self._shadow = bundle, shadow
        self._trials: Trials | None = None
        self._plan: Plan | None = None
        self._engine: TensorRtEngine | None = None
        self._rebuilt = False  # because one erred
        self._unusable = ""  # why, after it was active

    @property
    def name(self) -> str:
        return self._engine.name if self._engine else "gpu"

    def activate(self) -> None:
        """As Engine.activate; building takes seconds to minutes."""
        if self._engine is not None:
            self._engine.activate()
            return
        machine, folder = usable_machine(), plans_folder()
        precision = best_precision(self._bundle, folder)
        self._trials = trials = Trials(folder=folder, bundle=self._bundle, machine=machine, precision=precision)
        trials.refuse_failed()
        self._rebuilt, self._unusable = False, ""
        try:
            self._start(trials, read_plan(folder, self._bundle, machine, precision))
        except UnusableEngineError:  # no other plan would mend that
            raise
        except EngineError as e:
            self._build(trials, e)
        self._watch(trials)

    def infer(self, batch: FloatArray) -> EngineOutput:
        """As Engine.infer; UnusableEngineError where the plan turns out to err and no other does better."""
        if self._unusable:
            raise UnusableEngineError(self._unusable)
        if self._engine is None or self._trials is None or self._plan is None:
            raise inactive()
        output = self._engine.infer(batch)
        if self._shadow is None or not self._shadow.following:
            return output
        try:
            if self._shadow.follow(batch, output):
                self._trials.remember(self._plan)
        except MismatchError as e:
            self._replace(self._trials, self._plan, e)
            return self.infer(batch)
        return output

    def deactivate(self) -> None:
        engine, self._engine = self._engine, None
        try:
            if engine is not None:
                engine.deactivate()
        finally:
            if self._shadow is not None:
                self._shadow.end()

    def _replace(self, trials: Trials, plan: Plan, error: MismatchError) -> None:
        """Build another plan in the place of an active one. Raises UnusableEngineError."""
        self.deactivate()
        try:
            if self._rebuilt:
                trials.remember(plan, failed=str(error))
                raise error
            self._build(trials, error)
            self._watch(trials)
        except Exception as e:  # whatever the builder raises: the batch has no answer from here
            self._unusable = str(e) if isinstance(e, EngineError) else f"{type(e).__name__}: {e}"
            raise UnusableEngineError(self._unusable) from e

    def _build(self, trials: Trials, error: EngineError) -> None:
        """Build a plan and start it, since `error`. One that errs too is built once more, and then remembered."""
        from engines.trt_build import build_engine  # noqa: PLC0415 (brings onnx, which the CPU does without)

        self._rebuilt = isinstance(error, MismatchError)
        machine = trials.machine
        _log.warning("%s: now building it for %s, which may take minutes", error, machine.gpu)
        trt = importlib.import_module(machine.module)
        plan = build_engine(trt, self._bundle, machine, trials.precision, trials.folder)
        try:
            self._start(trials, plan)
        except MismatchError as e:
            if self._rebuilt:
                trials.remember(plan, failed=str(e))
                raise
            self._build(trials, e)

    def _start(self, trials: Trials, plan: Plan) -> None:
        engine = engine_of(plan, self._bundle, trials.machine)
        engine.activate()
        self._engine, self._plan = engine, plan

    def _watch(self, trials: Trials) -> None:
        """Have the first images of a plan that is new to this machine shadowed."""
        if self._shadow is None or self._engine is None or self._plan is None or trials.shadowed(self._plan):
            return
        try:
            self._shadow.begin(self._engine.name, trials.precision)
        except BaseException:
            self.deactivate()
            raise


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
    """The folder of plans, which need not exist: $CACHE_DIRECTORY/engines, else $XDG_CACHE_HOME/cxrnode/engines, else
    ~/.cache/cxrnode/engines.

    systemd sets the first for a unit with CacheDirectory=, whose user may well have no home. Raises EngineError where
    there is no place for it, or others may write to it: what lies there is run as code.
    """
    folder = _cache() / "engines"
    try:
        found = folder.stat()
    except FileNotFoundError:
        return folder
    except OSError as e:
        raise EngineError(f"no folder for engine files ({e}): {_NAME_ONE}") from e
    if found.st_uid not in {0, os.geteuid()} or found.st_mode & _OTHERS_WRITE:
        raise EngineError(f"others may write to {folder}, and what lies there is run as code: remove it, or chmod 700")
    return folder


def _cache() -> Path:
    """This user's cache of cxrnode. Raises EngineError."""
    service = Path(os.environ.get("CACHE_DIRECTORY", "").partition(":")[0])  # there may be several (systemd.exec)
    if service.is_absolute():
        return service
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))  # one that is not absolute is no value, the specification says
    if cache.is_absolute():
        return cache / "cxrnode"
    try:
        home = Path.home()
    except RuntimeError as e:
        raise EngineError(f"no folder for engine files: this user has no home ({e}): {_NAME_ONE}") from e
    if not home.is_dir():
        raise EngineError(f"no folder for engine files: this user's home, {home}, is not there: {_NAME_ONE}")
    return home / ".cache" / "cxrnode"


def _warn(reason: str) -> None:
    _log.warning("the CPU does the work: %s", reason)
