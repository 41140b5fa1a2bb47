"""Which engine runs a bundle on this machine."""

from __future__ import annotations

from engines.base import Engine, EngineError
from engines.bundle import Bundle
from engines.cpu import CpuEngine

KINDS = ("auto", "cpu")


def make_engine(kind: str, bundle: Bundle, *, threads: int | None = None) -> Engine:
    """The engine of that kind, not yet active; "auto" is the fastest that this machine has. Raises EngineError.

    threads: cores that inference on the CPU may use; None: all.
    """
    if kind not in KINDS:
        raise EngineError(f"no engine '{kind}': choose one of {', '.join(KINDS)}")
    return CpuEngine(bundle, threads=threads)
