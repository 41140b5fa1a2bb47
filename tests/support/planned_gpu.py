"""A simulated GPU (see simulated_gpu) for what chooses an engine: the probe, the plans and the golden check are real.

Only what needs a device stands in for TensorRT's: building a plan, and the context that runs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import engines.load
import engines.trt_build
from engines.base import Engine
from engines.bundle import MODEL, Bundle
from engines.load import make_engine
from engines.plan import Machine, Plan, Precision, Sidecar, write_plan
from engines.shadow import Shadowed
from engines.trt_run import OpenContext
from tests.support.execution_context import OnnxContext, plan_of
from tests.support.simulated_gpu import simulation

CHECK = 9  # runs of a context that has batches of 8: the golden check of the tiny bundle's six inputs


@dataclass(slots=True, kw_only=True)
class PlannedGpu:
    """What stands in for TensorRT: how often it built, and by how much each context that it opens errs."""

    off: list[float] = field(default_factory=list)  # of the first contexts; the later ones are right
    off_after: int = 0  # runs of each context that are right
    built: list[Precision] = field(default_factory=list)
    raises: Exception | None = None  # by the builder
    films: int = 0  # that the builder was given
    opened: list[OnnxContext] = field(default_factory=list)
    shadowed: list[Shadowed] = field(default_factory=list)

    def build(
        self, trt: Any, bundle: Bundle, machine: Machine, precision: Precision, folder: Path, *, images: Any = None
    ) -> Plan:
        self.built.append(precision)
        self.films += sum(map(len, images or ()))
        if self.raises:
            raise self.raises
        return write_onnx_plan(bundle, machine, precision, folder)

    def opener(self, trt: Any) -> OpenContext:
        def open_context(plan: bytes) -> OnnxContext:
            context = OnnxContext(plan.partition(b"\n")[0], largest=8, gpu=simulation())
            context.off = self.off.pop(0) if self.off else 0.0
            context.off_after = self.off_after
            self.opened.append(context)
            return context

        return open_context


def write_onnx_plan(bundle: Bundle, machine: Machine, precision: Precision, folder: Path) -> Plan:
    """A plan that names the ONNX, with the sidecar that one of TensorRT's would have; no two are the same."""
    built_at = datetime.now(UTC)
    data = plan_of(bundle.model_path) + b"\n" + str(built_at).encode()
    sidecar = Sidecar(
        bundle=bundle.name, bundle_digest=bundle.digest, onnx_sha256=bundle.manifest.files[MODEL],
        plan_sha256=hashlib.sha256(data).hexdigest(), **asdict(machine), precision=precision, optimal=8,
        largest=8, hardware_compatibility="none", built_at=built_at,
    )  # fmt: skip
    return write_plan(folder, bundle, sidecar, data)


@contextmanager
def planned_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlannedGpu]:
    """Takes TensorRT's place, with a cache in `folder`; nothing may be left on the GPU at the end."""
    gpu = PlannedGpu()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(engines.trt_build, "build_engine", gpu.build)
    monkeypatch.setattr(engines.load, "context_opener", gpu.opener)
    yield gpu
    simulation().fail(0, 0)
    assert not any(simulation().live()[name] for name in ("device", "host", "stream", "event", "context"))


def brought_up(bundle: Bundle, kind: str = "auto", gpu: PlannedGpu | None = None) -> tuple[Engine, list[str]]:
    """An active engine, and why it is not the GPU's, if it is not. gpu: keeps what came of shadowing."""
    told: list[str] = []
    engine = make_engine(kind, bundle, on_fallback=told.append, on_shadowed=gpu.shadowed.append if gpu else None)
    engine.activate()
    return engine, told
