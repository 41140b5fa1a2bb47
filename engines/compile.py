"""A bundle to an engine file for this machine's GPU: `cxrnode engine build` and `python -m training compile`."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable
from enum import StrEnum

from engines.base import EngineError, FloatArray
from engines.bundle import Bundle
from engines.load import best_precision, plans_folder
from engines.plan import Machine, Plan, Precision

_MIB = 1 << 20


class PrecisionName(StrEnum):
    """engines.plan.Precision, for a command line."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


def choose_precision(bundle: Bundle, given: PrecisionName | None) -> Precision:
    """That given, or the best. Raises EngineError where nothing says how far off such an engine may be: it could not be
    used."""
    if given is None:
        return best_precision(bundle, plans_folder())
    if given.value not in bundle.manifest.tolerance:
        stated = ", ".join(bundle.manifest.tolerance)
        mend = "run python -m training accept" if given is PrecisionName.INT8 else "export the bundle again"
        raise EngineError(
            f"bundle {bundle.name} states no tolerance for {given}, only for {stated}: choose one of these, or {mend}"
        )
    return given.value


def compile_bundle(
    bundle: Bundle, machine: Machine, precision: Precision, *,
    images: Iterable[FloatArray] | None = None, tell: Callable[[str], None],
) -> Plan:  # fmt: skip
    """Build the engine file into the user's cache, which takes seconds to minutes. Raises EngineError.

    images: as of engines.precision.convert; tell: called with what is done and what was.
    """
    from engines.trt_build import build_engine  # noqa: PLC0415 (brings onnx, which only building wants)

    tell(f"building {bundle.name} {precision} for {describe(machine)}")
    began = time.monotonic()
    trt = importlib.import_module(machine.module)
    plan = build_engine(trt, bundle, machine, precision, plans_folder(), images=images)
    tell(f"{plan.path}: {len(plan.data) / _MIB:.1f} MiB, batches of 1 to {plan.sidecar.largest}, "
         f"in {time.monotonic() - began:.0f} s; now run: cxrnode engine verify")  # fmt: skip
    return plan


def describe(machine: Machine) -> str:
    return (f"{machine.gpu} (compute capability {machine.compute_capability}, driver {machine.driver}, "
            f"{machine.module} {machine.version})")  # fmt: skip
