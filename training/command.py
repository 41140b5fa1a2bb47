"""`python -m training fit | evaluate | explain | compare | reproduce | export | accept | compile`: to model bundles."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import cv2
import torch
import typer

from cxrnode import logs
from cxrnode.cli.output import Group, prepare, say, say_error
from engines.base import EngineError
from engines.bundle import SHIPPED, load_bundle
from engines.compile import PrecisionName
from engines.cpu_low import LowPrecision
from training.accept import RefusedError, accept, describe
from training.assess import assess_bundle, assess_run
from training.bundle import Form, export_run
from training.compare import comparison, read_rows, write_comparison
from training.compile import compile_run
from training.devices import open_device
from training.explain import explain_run
from training.export import ExportError
from training.fit import DivergedError, fit
from training.recipe import RecipeError, load_recipe
from training.report import summary, write_report
from training.reproduce import reproduce

app = typer.Typer(cls=Group, help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)

Data = Annotated[
    Path,
    typer.Option(envvar="CXRNODE_DATA", help="index.csv with images/, a folder a class, or DICOM with labels.csv."),
]
Run = Annotated[Path, typer.Argument(help="A run folder that `fit` made.")]
Change = Annotated[list[str] | None, typer.Option("--set", help="Change the recipe: --set fit.epochs=3")]
DeviceName = Annotated[str, typer.Option(help="cpu or cuda; several GPUs: torchrun --nproc-per-node N -m training ...")]
Member = Annotated[int | None, typer.Option(min=1, help="One snapshot of an ensemble: 1, 2, ...")]
Version = Annotated[str, typer.Option(help="The bundle's version.")]
Half = Annotated[
    bool, typer.Option("--half", help="Round large weights to float16: half the size; computing stays float32.")
]
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@app.command("fit")
def fit_command(
    recipe: Annotated[str, typer.Argument(help="A recipe of training/recipes by name, or a TOML file.")],
    data: Data,
    run: Annotated[Path | None, typer.Option("--run", "--out", help="Run folder; default runs/RECIPE.")] = None,
    change: Change = None,
    device: DeviceName = _DEVICE,
) -> None:
    """Fit a recipe. Killed and started again with the same command, it goes on from the last epoch."""
    loaded = load_recipe(recipe, change or ())
    with open_device(device) as where:
        say(f"run folder: {fit(loaded, data, run or Path('runs') / loaded.name, where)}")


@app.command("evaluate")
def evaluate_command(
    data: Data,
    run: Annotated[Path | None, typer.Argument(help="A run folder; or give --bundle.")] = None,
    bundle: Annotated[str | None, typer.Option(help="A bundle's name or folder, run as it ships.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html and figures.json; default: the run folder.")
    ] = None,
    baseline: Annotated[bool, typer.Option(help="Fit a linear classifier on random features too.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda, of a run; a bundle runs on the CPU.")] = _DEVICE,
) -> None:
    """Figures with 95 % intervals: test part, per source, adults, hospitals no fit saw, controls, calibration."""
    if run is not None and bundle is None:
        with open_device(device) as where:
            figures = assess_run(run, data, baseline=baseline, device=where.torch_device)
    elif bundle is not None and run is None:
        figures = assess_bundle(bundle, data)
    else:
        raise typer.BadParameter("give either a run folder or --bundle NAME")
    for line in summary(figures):
        say(line)
    if folder := out or run:
        say(f"report: {write_report(figures, folder)[0]}")


@app.command("explain")
def explain_command(
    run: Run,
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG or DICOM files.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures, NAME-cam.png each.")],
    member: Member = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = _DEVICE,
) -> None:
    """Draw radiograph, Grad-CAM and overlay of every class."""
    with open_device(device) as where:
        explained = explain_run(run, images, out, member=member, device=where.torch_device)
    for one in explained:
        said = ", ".join(f"{label} {p:.3f}" for label, p in zip(one.labels, one.probabilities, strict=True))
        say(f"{one.name}: {said}")


@app.command("compare")
def compare_command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders that were evaluated.")],
    out: Annotated[Path | None, typer.Option(help="Write it too: a .md, .html or .json file.")] = None,
) -> None:
    """Set runs beside each other: figures with intervals, computing time, what they began from; folds as mean and
    standard deviation."""
    rows = read_rows(runs)
    for line in comparison(rows).split("\n"):
        say(line)
    if out:
        write_comparison(rows, out)


@app.command("reproduce")
def reproduce_command(
    paper: Annotated[str, typer.Argument(help="paper1 or paper2.")],
    data: Data,
    runs: Annotated[Path, typer.Option(help="Folder of the runs and of the report.")] = Path("runs"),
    change: Change = None,
    device: DeviceName = _DEVICE,
) -> None:
    """Fit a paper's recipes, or go on with them, and set its figures beside ours, with what differs."""
    with open_device(device) as where:
        say(f"report: {reproduce(paper, data, runs, changes=change or (), device=where)}")


@app.command("export")
def export_command(
    run: Run,
    bundle: Annotated[str, typer.Option(help="Name of a shipped bundle, or a folder to write.")],
    data: Data,
    version: Version = "1.0.0",
    evidence: Annotated[Path | None, typer.Option(help="JSON with more figures for the card.")] = None,
    half: Half = False,
    member: Member = None,
) -> None:
    """Write the model bundle of a run: ONNX, golden outputs, figures measured on the ONNX, model card."""
    more: dict[str, Any] | None = json.loads(evidence.read_text(encoding="utf-8")) if evidence else None
    form = Form(half=half, member=member)
    written = export_run(run, data, _folder(bundle), version=version, evidence=more, form=form)
    for line in summary(load_bundle(str(written)).manifest.metrics):
        say(line)
    say(f"bundle: {written}")


@app.command("accept")
def accept_command(
    bundle: Annotated[str, typer.Argument(help="A bundle's name or folder.")],
    data: Data,
    precision: Annotated[LowPrecision, typer.Option(help="To be tried on the CPU, by OpenVINO.")],
) -> None:
    """Try a bundle in a lower precision on the validation part, and record it in the bundle if that costs little."""
    accepted = accept(bundle, data, precision)
    m = accepted.manifest
    say(f"{precision}: {describe(m.accepted[precision])}; tolerance {m.tolerance[precision]}")
    say(f"recorded in {accepted.folder}: cxrnode run-batch --bundle {bundle} --engine cpu-{precision}")


@app.command("compile")
def compile_command(
    run: Annotated[Path, typer.Argument(help="A run folder that `fit` made, or a bundle's name or folder.")],
    bundle: Annotated[str | None, typer.Option(help="Of a run: the bundle to export it to, as of export.")] = None,
    data: Annotated[Path | None, typer.Option(envvar="CXRNODE_DATA", help="Of a run: its data, as of export.")] = None,
    precision: Annotated[
        PrecisionName | None, typer.Option(help="Default: the fastest it has a tolerance for.")
    ] = None,
    version: Version = "1.0.0",
    half: Half = False,
    member: Member = None,
) -> None:
    """Build the engine file for this machine's GPU, as `cxrnode engine build` does; a run is exported first."""

    def export() -> Path:
        if bundle is None or data is None:
            raise RecipeError(f"{run} is no bundle: name one, or export this run with --bundle NAME and --data DATA")
        return export_run(run, data, _folder(bundle), version=version, form=Form(half=half, member=member))

    compile_run(run, precision, export=export, tell=say)


def _folder(bundle: str) -> Path:
    return Path(bundle) if os.sep in bundle else SHIPPED / bundle


def main() -> None:
    prepare()
    logs.begin_command()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    cv2.setNumThreads(1)
    try:
        typer.main.get_command(app)()
    except (RecipeError, DivergedError, ExportError, RefusedError, EngineError) as e:
        say_error(e)
        raise SystemExit(1) from e
