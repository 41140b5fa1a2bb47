"""A run, or a bundle that was exported, to an engine file for this machine's GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engines.bundle import MANIFEST, SHIPPED, load_bundle
from engines.compile import PrecisionName, choose_precision, compile_bundle
from engines.plan import Plan
from engines.probe import usable_machine


def compile_run(
    run: Path, precision: PrecisionName | None, *, export: Callable[[], Path], tell: Callable[[str], None]
) -> Plan:
    """Build the plan of the bundle `run`, a folder or a shipped one's name, or of the one that `export` makes of it.

    tell: called with what goes on. Raises EngineError, where there is no GPU to build for before anything is exported,
    and what `export` raises.
    """
    machine = usable_machine()
    exported = any((folder / MANIFEST).is_file() for folder in (run, SHIPPED / run))
    bundle = load_bundle(str(run if exported else export()))
    return compile_bundle(bundle, machine, choose_precision(bundle, precision), tell=tell)
