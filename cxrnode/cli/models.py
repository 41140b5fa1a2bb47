"""`cxrnode models list | show NAME | verify NAME`."""

from __future__ import annotations

from typing import Annotated

import typer

from cxrnode.cli.output import say, say_table
from cxrnode.dicom.identity import RESEARCH_USE
from cxrnode.words import counted
from engines.bundle import CARD, DEFAULT_BUNDLE, load_bundle, shipped_bundles
from engines.load import make_engine

app = typer.Typer(
    help="The model bundles: what ships, what one says of itself, whether it is intact.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A shipped bundle's name, 'default', or a bundle folder.")]


@app.command("list")
def list_bundles() -> None:
    """List the shipped bundles."""
    rows = []
    for folder in shipped_bundles():
        bundle = load_bundle(str(folder))
        m = bundle.manifest
        name = f"{m.name} (default)" if m.name == DEFAULT_BUNDLE else m.name
        labels = ", ".join(label.name for label in m.labels)
        size = f"{m.input.rows}x{m.input.columns}x{m.input.channels}"
        rows.append((name, m.version, labels, size, bundle.digest[:12]))
    say_table(("name", "version", "labels", "input", "digest"), rows)
    say(RESEARCH_USE)


@app.command()
def show(name: Name) -> None:
    """Print a bundle's model card."""
    bundle = load_bundle(name)
    for line in (bundle.folder / CARD).read_text(encoding="utf-8").split("\n"):
        say(line)


@app.command()
def verify(name: Name) -> None:
    """Check every file's sha256, then run the golden inputs through the engine and compare within tolerance."""
    bundle = load_bundle(name)
    say(f"{bundle.name} {bundle.manifest.version}: sha256 of {counted(len(bundle.manifest.files), 'file')}: ok")
    engine = make_engine("auto", bundle)
    engine.activate()  # runs the golden check; raises with the numbers where it fails
    say(f"golden inputs through {engine.name}: ok (tolerance {bundle.manifest.tolerance['fp32']})")
    engine.deactivate()
