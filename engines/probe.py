"""Can this machine run TensorRT, and what is missing? Asked in a child process, which a bad driver may take down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from engines import probe_child
from engines.base import EngineError
from engines.plan import Machine

_LIBRARY = "libcuda.so.1"
_FOLDERS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/lib/wsl/lib")  # where the loader looks beside its cache
_LOADER_CACHE = Path("/etc/ld.so.cache")
_LIMIT_S = 60.0  # a cold driver and TensorRT's libraries from a slow disk take some ten
_KILLED_S = 2.0
_CUDA = 13000  # as the driver counts: 13.0, which came with driver 580
_CAPABILITY = (7, 5)  # Turing, the oldest that TensorRT 11 and CUDA 13 know
_MEMORY = 1 << 30  # bytes: the context and a small network's buffers, without room for which nothing starts
_LEAST_VERSION = {"tensorrt": 11, "tensorrt_rtx": 1}
_RTX_CAPABILITIES = {(7, 5), (8, 0), (8, 6), (8, 9)}  # and 12.0 on: it builds for an H100, but loads nothing there
_INSTALL = "pip install 'tensorrt>=11' pycuda onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that TensorRT needs; `mend` says what to do where it is not `ok`."""

    what: str
    found: str
    ok: bool
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.found}" + (f": {self.mend}" if self.mend else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found, in the order in which it was asked; `machine` only where every check is ok."""

    checks: tuple[Check, ...]
    machine: Machine | None

    @property
    def missing(self) -> str:
        """What fails, and how to mend it; "" where nothing does."""
        return "; ".join(str(check) for check in self.checks if not check.ok)


class _Answer(NamedTuple):
    name: str
    value: Any
    refused: str | None


def driver_installed() -> bool:
    """Whether the loader would find a libcuda. It is not loaded: a bad one may take the process down."""
    folders = (*os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep), *_FOLDERS)
    if any(folder and Path(folder, _LIBRARY).exists() for folder in folders):
        return True
    with suppress(OSError):
        return _LIBRARY.encode() in _LOADER_CACHE.read_bytes()
    return False


def usable_machine() -> Machine:
    """This machine's GPU and software. Raises EngineError that names everything that is missing."""
    found = probe()
    if found.machine is None:
        raise EngineError(f"TensorRT cannot be used here: {found.missing}")
    return found.machine


def probe(limit_s: float = _LIMIT_S) -> Findings:
    """Ask this machine, for `limit_s` seconds at most. A child that crashes or hangs is a finding, not an error."""
    answers, ended = _asked(limit_s)
    facts = {a.name: a.value for a in answers if a.refused is None}
    checks = [_JUDGES[a.name](a.value, facts) if a.refused is None else _refused(a) for a in answers]
    if ended:
        checks.append(ended)
    whole = facts.keys() == _JUDGES.keys() and all(check.ok for check in checks)
    return Findings(checks=tuple(checks), machine=_machine(facts) if whole else None)


def _asked(limit_s: float) -> tuple[list[_Answer], Check | None]:
    """The answers, and what became of the child if it did not end well."""
    command = [sys.executable, "-P", str(Path(probe_child.__file__))]  # -P: engines/ is no place to import from
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)  # noqa: S603 (our own file)
    hung, out, err = False, b"", b""
    try:
        out, err = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired as e:
        hung, out = True, e.output or b""
        child.kill()
        with suppress(subprocess.TimeoutExpired):  # one that is stuck inside the driver cannot be killed
            out, err = child.communicate(timeout=_KILLED_S)
    said = [json.loads(line) for line in out.splitlines()]
    names = [line["asking"] for line in said if "asking" in line]
    told = [line for line in said if "asking" not in line]
    answers = [_Answer(name, line.get("answer"), line.get("refused")) for name, line in zip(names, told, strict=False)]
    if not hung and child.returncode == 0:
        return answers, None
    how = f"did not end within {limit_s:g} s" if hung else _ending(child.returncode, err)
    what = _WHAT[names[-1]] if len(names) > len(told) else "end"
    mend = "start the machine again; if it stays so, install NVIDIA's driver, pycuda and TensorRT anew"
    return answers, Check(what=what, found=f"the process that asked {how}", ok=False, mend=mend)


def _ending(code: int, err: bytes) -> str:
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    lines = err.decode(errors="replace").split("\n")
    return f"ended with {code} ({next((s for s in reversed(lines) if s.strip()), 'without a word')})"


def _refused(answer: _Answer) -> Check:
    return Check(what=_WHAT[answer.name], found=answer.refused or "", ok=False, mend=_MENDS[answer.name])


def _machine(facts: dict[str, Any]) -> Machine:
    driver, gpu, library = facts["driver"], facts["gpu"], facts["tensorrt"]
    return Machine(
        gpu=gpu["name"], compute_capability="{}.{}".format(*gpu["capability"]),
        driver=driver["version"] or f"CUDA {_spelt(driver['cuda'])}", module=library["module"],
        version=library["version"],
    )  # fmt: skip


# --- judging --------------------------------------------------------------------------------------------------------

Facts = dict[str, Any]
_WHAT = {
    "library": "driver library", "driver": "driver", "gpu": "GPU", "memory": "GPU memory", "pycuda": "pycuda",
    "tensorrt": "TensorRT", "onnx": "onnx",
}  # fmt: skip
_NO_DRIVER = "install NVIDIA's driver, 580 or later; a container must be started with the GPU (docker run --gpus all)"
_MENDS = {
    "library": _NO_DRIVER, "driver": _NO_DRIVER,
    "gpu": "see what nvidia-smi says; start the machine again after a new driver, and a container with --gpus all",
    "memory": "stop what else uses the GPU (nvidia-smi shows it)",
    "pycuda": _INSTALL, "tensorrt": _INSTALL, "onnx": _INSTALL,
}  # fmt: skip


def _judged(name: str, found: str, ok: bool, mend: str = "") -> Check:
    return Check(what=_WHAT[name], found=found, ok=ok, mend="" if ok else mend or _MENDS[name])


def _spelt(cuda: int) -> str:
    return f"{cuda // 1000}.{cuda % 1000 // 10}"


def _library(_value: Any, _facts: Facts) -> Check:
    return _judged("library", f"{_LIBRARY} loads", True)


def _driver(value: Any, _facts: Facts) -> Check:
    found = f"{value['version'] or 'of unknown number'}, for CUDA {_spelt(value['cuda'])}"
    return _judged("driver", found, value["cuda"] >= _CUDA, "install NVIDIA's driver 580 or later (CUDA 13)")


def _gpu(value: Any, _facts: Facts) -> Check:
    found = "{}, compute capability {}.{}".format(value["name"], *value["capability"])
    mend = "TensorRT wants 7.5 (Turing) or later: use --engine cpu"
    return _judged("gpu", found, tuple(value["capability"]) >= _CAPABILITY, mend)


def _memory(value: Any, _facts: Facts) -> Check:
    return _judged("memory", f"{value >> 20} MiB free", value >= _MEMORY)


def _pycuda(value: Any, facts: Facts) -> Check:
    made_for = value["cuda"][0] * 1000 + value["cuda"][1] * 10
    found = f"{value['version']}, built with CUDA {_spelt(made_for)}"
    mend = "it is newer than the driver: update the driver, or build pycuda again with that CUDA's headers"
    return _judged("pycuda", found, made_for <= facts["driver"]["cuda"], mend)


def _tensorrt(value: Any, facts: Facts) -> Check:
    major, found = value["version"].split(".")[0], f"{value['module']} {value['version']}"
    if not (major.isdecimal() and int(major) >= _LEAST_VERSION[value["module"]]):
        return _judged("tensorrt", found, False, f"it is too old: {_INSTALL}")
    capability = tuple(facts.get("gpu", {}).get("capability", (12, 0)))
    old = capability < _CAPABILITY  # which was said of the GPU
    ok = value["module"] != "tensorrt_rtx" or old or capability in _RTX_CAPABILITIES or capability >= (12, 0)
    mend = "TensorRT for RTX does not run on this GPU: install tensorrt, version 11 or later, from NVIDIA's index"
    return _judged("tensorrt", found, ok, mend)


def _onnx(value: Any, _facts: Facts) -> Check:
    return _judged("onnx", value, True)


_JUDGES: dict[str, Callable[[Any, Facts], Check]] = {
    "library": _library, "driver": _driver, "gpu": _gpu, "memory": _memory, "pycuda": _pycuda, "tensorrt": _tensorrt,
    "onnx": _onnx,
}  # fmt: skip
