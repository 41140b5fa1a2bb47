"""Engine files on disk: a plan, and beside it a sidecar that says what it was built of, where and how.

A plan is executable code for one kind of GPU, one TensorRT and one driver. It is built on the machine that runs it and
is only ever loaded when every word of its sidecar fits; anything else is a reason to build it again, and cheap to say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines.base import EngineError
from engines.bundle import MODEL, Bundle
from engines.files import whole

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
Compatibility = Literal["none", "same_compute_capability", "ampere_plus"]
PLAN, SIDECAR, TRIAL = ".plan", ".json", ".trial"  # the last: see engines.trial
_AMPERE = (8, 0)
_SHA256 = r"^[0-9a-f]{64}$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a plan is bound to: one GPU and the software that drives it."""

    gpu: str  # as the driver names it: "NVIDIA L4"
    compute_capability: str  # "8.9"
    driver: str  # "580.82"
    module: str  # "tensorrt" or "tensorrt_rtx"
    version: str  # of that module: "11.4.0.15"


class Sidecar(BaseModel):
    """NAME.json beside NAME.plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: str
    bundle_digest: str = Field(pattern=_SHA256)
    onnx_sha256: str = Field(pattern=_SHA256)  # of the bundle's graph, before it was put into the precision
    plan_sha256: str = Field(pattern=_SHA256)
    gpu: str
    compute_capability: str = Field(pattern=r"^\d+\.\d+$")
    driver: str
    module: str
    version: str
    precision: Precision
    smallest: Literal[1] = 1  # the profile: batches from `smallest` to `largest` run, `optimal` runs best
    optimal: int = Field(ge=1)
    largest: int = Field(ge=1)
    hardware_compatibility: Compatibility
    built_at: AwareDatetime

    @model_validator(mode="after")
    def _ordered(self) -> Sidecar:
        if self.optimal > self.largest:
            raise ValueError(f"optimal batch {self.optimal} is above the largest, {self.largest}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A verified engine file: `data` is what the sidecar's sha256 was compared with, so nothing changes in between."""

    path: Path
    sidecar: Sidecar
    data: bytes


def plan_path(folder: Path, bundle: Bundle, precision: Precision) -> Path:
    return folder / f"{bundle.name}-{bundle.digest[:12]}-{precision}{PLAN}"


def write_plan(folder: Path, bundle: Bundle, sidecar: Sidecar, data: bytes) -> Plan:
    """Write plan, then sidecar, each whole: at no time does a sidecar stand beside a plan that is not its own.

    folder: the node's cache of engines, made if it is not there. Raises EngineError.
    """
    path = plan_path(folder, bundle, sidecar.precision)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # what lies there is run as code
        for suffix in (SIDECAR, TRIAL):
            path.with_suffix(suffix).unlink(missing_ok=True)
        for file, content in ((path, data), (path.with_suffix(SIDECAR), sidecar.model_dump_json(indent=1).encode())):
            with whole(file, mode=0o600) as part:
                part.write_bytes(content)
    except OSError as e:
        raise EngineError(f"cannot write {path} ({e.strerror or e}): free the disk or name another folder") from e
    return Plan(path=path, sidecar=sidecar, data=data)


def read_plan(folder: Path, bundle: Bundle, machine: Machine, precision: Precision) -> Plan:
    """The plan of that bundle for that machine. Raises EngineError that names everything that does not fit."""
    path = plan_path(folder, bundle, precision)
    sidecar = read_sidecar(path.with_suffix(SIDECAR))
    try:
        data = path.read_bytes()
    except OSError as e:
        raise EngineError(f"engine file {path} cannot be read ({e.strerror}): build it again") from e
    faults = [*_differences(sidecar, bundle, machine, precision), *_damage(sidecar, data)]
    if faults:
        raise EngineError(f"engine file {path} does not fit: {'; '.join(faults)}: build it again")
    return Plan(path=path, sidecar=sidecar, data=data)


def list_sidecars(folder: Path) -> list[Path]:
    """Of every engine file in the cache; read each with read_sidecar."""
    return sorted(p for p in folder.glob(f"*{SIDECAR}") if p.with_suffix(PLAN).is_file())


def read_sidecar(path: Path) -> Sidecar:
    """Raises EngineError if it is not there or not one."""
    try:
        return Sidecar.model_validate_json(path.read_bytes())
    except FileNotFoundError as e:
        raise EngineError(f"no engine has been built: {path} is not there; build it first") from e
    except OSError as e:
        raise EngineError(f"{path} cannot be read ({e.strerror}): build the engine again") from e
    except ValidationError as e:
        faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'file'}: {f['msg']}" for f in e.errors())
        raise EngineError(f"{path} describes no engine file ({faults}): build the engine again") from e


def _differences(sidecar: Sidecar, bundle: Bundle, machine: Machine, precision: Precision) -> Iterator[str]:
    """What the sidecar says, against what it has to say here."""
    if not _runs_on(sidecar, machine):
        yield (
            f"it was built for another GPU ({sidecar.gpu}, compute capability {sidecar.compute_capability}; this is "
            f"{machine.gpu}, {machine.compute_capability})"
        )
    wanted = {
        "bundle": (sidecar.bundle, bundle.name),
        "bundle digest": (sidecar.bundle_digest, bundle.digest),
        "model's sha256": (sidecar.onnx_sha256, bundle.manifest.files[MODEL]),
        "library": (sidecar.module, machine.module),
        f"{machine.module} version": (sidecar.version, machine.version),
        "driver": (sidecar.driver, machine.driver),
        "precision": (sidecar.precision, precision),
    }
    yield from (f"{what} was {was}, is {now}" for what, (was, now) in wanted.items() if was != now)


def _damage(sidecar: Sidecar, data: bytes) -> Iterator[str]:
    if not data:
        yield "the plan is empty"
    elif hashlib.sha256(data).hexdigest() != sidecar.plan_sha256:
        yield f"the plan ({len(data)} bytes) was changed or cut short after it was built"


def _runs_on(sidecar: Sidecar, machine: Machine) -> bool:
    if sidecar.hardware_compatibility == "ampere_plus":
        return min(_capability(sidecar.compute_capability), _capability(machine.compute_capability)) >= _AMPERE
    same = sidecar.compute_capability == machine.compute_capability
    return same and (sidecar.gpu == machine.gpu or sidecar.hardware_compatibility == "same_compute_capability")


def _capability(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
