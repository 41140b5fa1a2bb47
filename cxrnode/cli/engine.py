"""`cxrnode engine probe | build | verify | list | bench`: TensorRT on this machine's GPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from cxrnode.cli.output import say
from cxrnode.words import counted
from engines.base import Engine, EngineError, EngineKind, EngineOutput
from engines.bundle import Bundle, load_bundle
from engines.compile import PrecisionName, choose_precision, compile_bundle, describe
from engines.golden import cam_difference
from engines.load import engine_of, make_engine, plans_folder
from engines.plan import PLAN, Machine, Sidecar, list_sidecars, read_plan, read_sidecar
from engines.probe import probe, usable_machine

app = typer.Typer(help="TensorRT: what this machine's GPU needs, its engine files, its speed.", no_args_is_help=True)

_BATCHES = (1, 8, 32)
_BENCH_S = 1.0  # of each engine at each batch size

BundleName = Annotated[str, typer.Option("--bundle", metavar="NAME|PATH", help="Model bundle.")]
PrecisionOption = Annotated[
    PrecisionName | None,
    typer.Option("--precision", show_default="the fastest that the bundle states a tolerance for", help="Precision."),
]


@app.command("probe")
def show_probe() -> None:
    """Check all that TensorRT needs here, and say how to mend what is missing.

    Exit codes: 0 nothing is missing; 1 something is.
    """
    found = probe()
    for check in found.checks:
        say(f"{'ok' if check.ok else 'fail':<5}{check.what}: {check.found}")
        if check.mend:
            say(f"     -> {check.mend}")
    if found.machine is None:
        raise typer.Exit(1)


@app.command()
def build(
    bundle: BundleName = "default",
    precision: PrecisionOption = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For int8: films (DICOM, PNG, JPEG) such as you will analyse; where the bundle records no scales.",
        ),
    ] = None,
) -> None:
    """Build the bundle's engine file for this machine's GPU; takes seconds to minutes. Then run verify.

    Exit codes: 0 built; 2 not, with the reason.
    """
    loaded = load_bundle(bundle)
    wanted = choose_precision(loaded, precision)
    if wanted != "int8":
        compile_bundle(loaded, usable_machine(), wanted, tell=say)
        return
    if images is None and "int8" not in loaded.manifest.accepted:
        raise EngineError("int8 is calibrated on films: give --images FOLDER, some hundred such as you will analyse")
    machine = usable_machine()
    from cxrnode.calibration import calibration_batches  # noqa: PLC0415 (slow to import)

    films = calibration_batches(images, loaded.manifest.input) if images else None
    compile_bundle(loaded, machine, wanted, images=films, tell=say)


@app.command()
def verify(bundle: BundleName = "default", precision: PrecisionOption = None) -> None:
    """Run the golden inputs through the engine file that was built here, and say how far off its answers are.

    Exit codes: 0 within tolerance; 2 not, or there is no engine file that fits.
    """
    loaded = load_bundle(bundle)
    wanted, machine = choose_precision(loaded, precision), usable_machine()
    engine = engine_of(read_plan(plans_folder(), loaded, machine, wanted), loaded, machine)
    engine.activate()  # runs the golden check; raises with the numbers where it fails
    golden = loaded.golden()
    say(f"golden inputs through {engine.name} on {describe(machine)}: ok")
    say(_differences(engine.infer(golden.batch), golden.output))
    say(f"tolerance: {loaded.manifest.tolerance[wanted]}")
    engine.deactivate()


@app.command("list")
def list_plans(bundle: BundleName = "default") -> None:
    """List the engine files of every bundle, and whether they fit this machine and the one given."""
    loaded, found, folder = load_bundle(bundle), probe(), plans_folder()
    sidecars = list_sidecars(folder)
    for path in sidecars:
        name, why = path.with_suffix(PLAN).name, ""
        try:
            s = read_sidecar(path)
            say(f"{name}: built {s.built_at:%Y-%m-%d %H:%M} for {s.gpu} ({s.compute_capability}, driver "
                       f"{s.driver}, {s.module} {s.version}), batches of 1 to {s.largest}")  # fmt: skip
            why = _misfit(folder, s, loaded, found.machine)
        except EngineError as e:
            why = str(e)
        say(f"     -> {why}" if why else "     fits")
    say(f"{counted(len(sidecars), 'engine file')} in {folder}")
    say(f"this machine: {describe(found.machine) if found.machine else found.missing}")


@app.command()
def bench(bundle: BundleName = "default") -> None:
    """Print images/s of the CPU in fp32 and in each precision that the bundle accepts, and of TensorRT where it can be
    had, which is built if it has not been.

    Exit codes: 0 all were measured; 1 some were not.
    """
    loaded = load_bundle(bundle)
    low = (kind for kind in EngineKind if kind.removeprefix("cpu-") in loaded.manifest.accepted)
    measured = [_bench(make_engine(kind, loaded), loaded) for kind in (EngineKind.CPU, *low, EngineKind.TENSORRT)]
    if not all(measured):
        raise typer.Exit(1)


def _bench(engine: Engine, bundle: Bundle) -> bool:
    """Whether it could be measured."""
    try:
        engine.activate()
    except EngineError as e:
        say(f"not measured: {e}", err=True)
        return False
    rates = (f"{_images_per_s(engine, bundle, n):.0f} at {n}" for n in _BATCHES)
    say(f"{engine.name}: {', '.join(rates)} (images/s at a batch of so many)")
    engine.deactivate()
    return True


def _differences(got: EngineOutput, want: EngineOutput) -> str:
    off = float(np.abs(got.probabilities - want.probabilities).max())
    other = int((got.class_index != want.class_index).sum())
    return (f"probabilities are off by {off:.2g} at most, Grad-CAM by {cam_difference(got.cam, want.cam):.2g} of its "
            f"maximum, {other} of {len(want)} classes differ")  # fmt: skip


def _misfit(folder: Path, sidecar: Sidecar, bundle: Bundle, machine: Machine | None) -> str:
    """Why that plan is of no use; "" where it is. Raises EngineError with the reason where it does not fit."""
    if (sidecar.bundle, sidecar.bundle_digest) != (bundle.name, bundle.digest):
        return f"it is of another bundle than {bundle.name} {bundle.digest[:12]}"
    if machine is None:
        return "this machine cannot run it"
    read_plan(folder, bundle, machine, sidecar.precision)
    return ""


def _images_per_s(engine: Engine, bundle: Bundle, count: int) -> float:
    batch = np.resize(bundle.golden().batch, (count, *bundle.golden().batch.shape[1:]))
    engine.infer(batch)
    done, began = 0, time.monotonic()
    while (took := time.monotonic() - began) < _BENCH_S:
        engine.infer(batch)
        done += count
    return done / took
