"""A process with a simulated GPU: the real pycuda on simcuda, a libcuda in host memory (tests/support/simcuda).

It proves buffers, threads, chunking, leaks, error codes and the order of work between streams, and nothing about
kernels or about races on a device. In a process of its own, since simcuda takes the place of libcuda for all that the
process loads: `tests/contract/test_simulated_gpu.py` starts it, and runs in it the tests that use this module.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.bundle import Bundle
from engines.trt_run import ExecutionContext, TensorRtEngine
from tests.support.execution_context import OnnxContext, plan_of
from tests.support.pycuda_build import BuildError, build_simcuda, pycuda_path

_MARK = "CXRNODE_SIMCUDA"  # the folder of the library, in the environment of such a process
ELSEWHERE = "runs on a simulated GPU, in the process that tests/contract/test_simulated_gpu.py starts"
LIVE = ("device", "host", "stream", "event", "context", "stack", "reclaimed", "pageable")


def simulated() -> bool:
    """Whether this process has the simulated GPU."""
    return _MARK in os.environ


def simulated_environment(folder: Path) -> dict[str, str]:
    """What to add to the environment of a process with a simulated GPU, built into `folder`. Raises BuildError."""
    library = build_simcuda(folder)
    paths = [str(p) for p in (pycuda_path(), os.environ.get("PYTHONPATH")) if p]
    return {"LD_LIBRARY_PATH": str(library), "PYTHONPATH": os.pathsep.join(paths), _MARK: str(library)}


def simulated_or_skip(folder: Path) -> dict[str, str]:
    """As simulated_environment; skips the test, or fails it where peers are required, if it cannot be built."""
    try:
        return simulated_environment(folder)
    except BuildError as e:
        message = f"no simulated GPU: a C++ compiler, Python's headers and PyPI are wanted: {e}"
        if os.environ.get("CXRNODE_REQUIRE"):
            pytest.fail(message)
        pytest.skip(message)


def run_simulated(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """Run `python COMMAND` in such an environment."""
    return subprocess.run(
        [sys.executable, *command], env=os.environ | environment, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


class Simulation:
    """What simcuda is told and asked."""

    def __init__(self) -> None:
        self._sim = ctypes.CDLL("libcuda.so.1")
        self._sim.sim_call.restype = ctypes.c_char_p
        self._sim.sim_call.argtypes = [ctypes.c_long]
        self._sim.sim_called.restype = self._sim.sim_live.restype = ctypes.c_long
        self._sim.sim_memory.argtypes = [ctypes.c_size_t]
        self._sim.sim_fail.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_int]
        self._sim.sim_launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
        self._tickets = count()
        self._work: dict[int, Callable[[], None]] = {}
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_long)(lambda ticket: self._work.pop(ticket)())

    def fail(self, nth: int, code: int, *, loses_context: bool = False) -> None:
        """Let the nth call from now return `code`; 0: none."""
        self._sim.sim_fail(nth, code, loses_context)

    def lazy(self, on: bool) -> None:
        """Whether the streams work as late as they may; else at once."""
        self._sim.sim_lazy(on)

    def memory(self, size: int) -> None:
        """The device's memory in bytes; 0: as at first, 8 GiB."""
        self._sim.sim_memory(size)

    def called(self) -> int:
        """How many calls there were so far."""
        return int(self._sim.sim_called())

    def calls(self, since: int) -> list[str]:
        """The names of the calls after the first `since`, in order. They must be among the last thousand."""
        return [self._sim.sim_call(i).decode() for i in range(since, self.called())]

    def live(self) -> dict[str, int]:
        """How many of each are alive; and how many objects a context took with it, copies of memory not pinned."""
        return {name: self._sim.sim_live(i) for i, name in enumerate(LIVE)}

    def launch(self, stream: int, work: Callable[[], None]) -> None:
        """As on a device: `work` is done when the stream comes to it."""
        ticket = next(self._tickets)
        self._work[ticket] = work
        self._sim.sim_launch(stream, self._call, ticket)

    def read(self, into: np.ndarray[Any, Any], address: int) -> None:
        """As a kernel reads: no call to the driver."""
        ctypes.memmove(into.ctypes.data, address, into.nbytes)

    def write(self, address: int, values: np.ndarray[Any, Any]) -> None:
        ctypes.memmove(address, values.ctypes.data, values.nbytes)


@cache
def simulation() -> Simulation:
    return Simulation()


def simulated_engine(
    bundle: Bundle, *, largest: int = 8, prepare: Callable[[OnnxContext], None] = lambda context: None
) -> TensorRtEngine:
    """The TensorRT engine on the simulated GPU. prepare: what is done to each execution context it opens."""

    def open_context(plan: bytes) -> ExecutionContext:
        context = OnnxContext(plan, largest=largest, gpu=simulation())
        prepare(context)
        return context

    plan = plan_of(bundle.model_path)
    return TensorRtEngine(bundle, plan, precision="fp32", library="simulated 1", open_context=open_context)
