"""The report of an evaluation: one HTML file that needs nothing beside it, and a JSON file with every figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from training.datasets import Part
from training.metrics import FIGURES, Figure
from training.plots import accuracies, commonest, plots
from training.recipe import RecipeError

HTML, JSON = "report.html", "figures.json"
_TEMPLATE = "report.html.j2"
Figures = dict[str, Any]


def write_report(figures: Figures, folder: Path) -> tuple[Path, Path]:
    """The HTML's and the JSON's paths in `folder`, which is made if need be. Raises RecipeError where it cannot be."""
    html, plain = folder / HTML, folder / JSON
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plain.write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        html.write_text(render(figures), encoding="utf-8")
    except OSError as e:
        raise RecipeError(f"cannot write the report into {folder} ({e}): give another folder with --out") from e
    return html, plain


def render(figures: Figures) -> str:
    """The HTML, from what `training.assess` returns."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"figure": in_words, "commonest": commonest}
    return environment.get_template(_TEMPLATE).render(
        f=figures, plots=plots(figures), columns=FIGURES, mixes=mixes(figures["composition"]),
        accuracies=accuracies(figures), parts=[part.value for part in Part],
    )  # fmt: skip


def in_words(f: Figure | None) -> str:
    """Value (low to high)."""
    return "n/a" if f is None else f"{f['value']:.3f} ({f['low']:.3f} to {f['high']:.3f})"


def mixes(composition: list[Figures]) -> list[Figures]:
    """Of each label: its images in all parts, what share is of children, its commonest source and that one's share."""
    rows = []
    for label in dict.fromkeys(row["label"] for row in composition):
        count = {
            (row["source"], row["children"]): sum(row[part.value] for part in Part)
            for row in composition
            if row["label"] == label
        }
        images = sum(count.values())
        source, most = max(((source, n) for (source, _), n in count.items()), key=lambda pair: pair[1])
        children = sum(n for (_, child), n in count.items() if child)
        rows.append(
            {"label": label, "images": images, "children": children / images, "source": source, "share": most / images}
        )
    return rows


def summary(figures: Figures) -> list[str]:
    """A few lines for the terminal, of a report's figures or of a bundle's."""
    lines = []
    for name in ("test", "test_adults", "external", "border_only", "random_baseline"):
        if r := figures.get(name):
            recalls = ", ".join(f"{k} recall {_brief(v['recall'])}" for k, v in r["per_label"].items())
            lines.append(f"{name} ({r['images']} images): accuracy {_brief(r['accuracy'])}; {recalls}")
    lines += [
        f"  {row['source']} {row['label']} ({row['images']}): recall {_brief(row['recall'])}"
        for row in [*figures.get("by_source", []), *figures.get("external_by_source", [])]
    ]
    lines += [f"  {r['label']} ({r['images']}): classed as {r['classes']}" for r in figures.get("other_findings", [])]
    lines += [f"  snapshot {r['member']}: accuracy {_brief(r['accuracy'])}" for r in figures.get("members", [])]
    if calibration := figures.get("calibration"):
        ece = {k: _brief(calibration["test"][k]["ece"]) for k in ("before", "after")}
        lines.append(f"calibration error on the test part: {ece['before']} before, {ece['after']} after")
    if maps := figures.get("randomised_maps"):
        alike = "; ".join(f"{k} {_brief(v['rank_correlation'])}" for k, v in maps["stages"].items())
        lines.append(f"Grad-CAM against random weights, rank correlation: {alike}")
    return lines


def _brief(f: Figure | None) -> str:
    return "n/a" if f is None else f"{f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}]"
