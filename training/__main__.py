"""`python -m training fit | evaluate | export`: from labelled radiographs to a model bundle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import cv2
import torch
import typer

from engines.base import EngineError
from engines.bundle import SHIPPED, load_bundle
from engines.cpu import CpuEngine
from training.bundle import calibrate, export_run
from training.calibrate import softmax
from training.evaluate import Subject, evaluate, subject_of_bundle
from training.export import ExportError
from training.fit import DivergedError, fit, load_run, predict_grey
from training.recipe import RecipeError, load_recipe

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)

Data = Annotated[Path, typer.Option(envvar="CXRNODE_DATA", help="Folder that holds index.csv and images/.")]
Run = Annotated[Path, typer.Argument(help="A run folder that `fit` made.")]


@app.command("fit")
def fit_command(
    recipe: Annotated[str, typer.Argument(help="A recipe of training/recipes by name, or a TOML file.")],
    data: Data,
    run: Annotated[Path | None, typer.Option("--run", "--out", help="Run folder; default runs/RECIPE.")] = None,
) -> None:
    """Fit a recipe. Killed and started again with the same command, it goes on from the last epoch."""
    loaded = load_recipe(recipe)
    typer.echo(f"run folder: {fit(loaded, data, run or Path('runs') / loaded.name)}")


@app.command("evaluate")
def evaluate_command(
    data: Data,
    run: Annotated[Path | None, typer.Argument(help="A run folder; or give --bundle.")] = None,
    bundle: Annotated[str | None, typer.Option(help="A bundle's name or folder, run as it ships.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file too.")] = None,
) -> None:
    """Figures with 95 % intervals on the test part, per source, adults only, external sources, border-only control."""
    if (run is None) == (bundle is None):
        raise typer.BadParameter("give either a run folder or --bundle NAME")
    figures = _evaluate_bundle(bundle, data) if bundle else _evaluate_run(Path(run or ""), data)
    if out:
        out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    for line in summary(figures):
        typer.echo(line)


@app.command("export")
def export_command(
    run: Run,
    bundle: Annotated[str, typer.Option(help="Name of a shipped bundle, or a folder to write.")],
    data: Data,
    version: Annotated[str, typer.Option(help="The bundle's version.")] = "1.0.0",
    evidence: Annotated[Path | None, typer.Option(help="JSON with more figures for the card.")] = None,
) -> None:
    """Write the model bundle of a run: ONNX, golden outputs, figures measured on the ONNX, model card."""
    folder = Path(bundle) if os.sep in bundle else SHIPPED / bundle
    more: dict[str, Any] | None = json.loads(evidence.read_text(encoding="utf-8")) if evidence else None
    written = export_run(run, data, folder, version=version, evidence=more)
    for line in summary(load_bundle(str(written)).manifest.metrics):
        typer.echo(line)
    typer.echo(f"bundle: {written}")


def _evaluate_bundle(name: str, data: Path) -> dict[str, Any]:
    loaded = load_bundle(name)
    engine = CpuEngine(loaded)
    engine.activate()
    try:
        return evaluate(subject_of_bundle(loaded, engine), data)
    finally:
        engine.deactivate()


def _evaluate_run(run: Path, data: Path) -> dict[str, Any]:
    recipe, network = load_run(run)
    temperature = calibrate(recipe, network, data).temperature
    subject = Subject(
        predict=lambda images: softmax(predict_grey(network, recipe, images), temperature),
        labels=tuple(recipe.label_names), data=recipe.data,
    )  # fmt: skip
    return evaluate(subject, data)


def summary(figures: dict[str, Any]) -> list[str]:
    """A few lines for the terminal."""
    lines = []
    for name in ("test", "test_adults", "external", "border_only"):
        if r := figures.get(name):
            recalls = ", ".join(f"{k} recall {_brief(v['recall'])}" for k, v in r["per_label"].items())
            lines.append(f"{name} ({r['images']} images): accuracy {_brief(r['accuracy'])}; {recalls}")
    lines += [
        f"  {row['source']} {row['label']} ({row['images']}): recall {_brief(row['recall'])}"
        for row in [*figures.get("by_source", []), *figures.get("external_by_source", [])]
    ]
    others = figures.get("other_findings", [])
    return lines + [f"  {row['label']} ({row['images']}): classed as {row['classes']}" for row in others]


def _brief(f: dict[str, float] | None) -> str:
    return "n/a" if f is None else f"{f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}]"


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    cv2.setNumThreads(1)
    try:
        app()
    except (RecipeError, DivergedError, ExportError, EngineError) as e:
        typer.echo(f"error: {e}", err=True)
        raise SystemExit(1) from e


if __name__ == "__main__":
    main()
