"""The report's pictures, SVGs in data URIs. Colours of Okabe and Ito (2008), which the colour-blind can tell."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from training.metrics import Figure, Row

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "cxrnode",  # the same figures, the same file
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def plots(figures: dict[str, Any]) -> dict[str, str]:
    """Name to data URI, of every picture that `figures` has the numbers for."""
    labels: list[str] = figures["labels"]
    makers: dict[str, Callable[[], Canvas]] = {"accuracies": partial(_accuracies, figures)}
    for part in ("test", "external"):
        if r := figures.get(part):
            makers[f"confusion_{part}"] = partial(_confusion, r, labels)
            makers[f"roc_{part}"] = partial(_roc, r, labels)
    if figures.get("calibration"):
        makers["reliability"] = partial(_reliability, figures["calibration"])
    if figures.get("curves"):
        makers["curves"] = partial(_curves, figures["curves"])
    if figures.get("randomised_maps"):
        makers["maps"] = partial(_maps, figures["randomised_maps"]["examples"])
    with mpl.rc_context(_STYLE):
        return {name: _uri(make()) for name, make in makers.items()}


def commonest(r: Row) -> float:
    """The accuracy of always saying the commonest label."""
    return float(max(v["n"] for v in r["per_label"].values()) / r["images"])


def accuracies(figures: dict[str, Any]) -> list[tuple[str, int, Figure]]:
    """(what, images, accuracy) of everything that was measured, controls last."""
    names = {
        "test": "test part",
        "test_adults": "adults of the test part",
        "external": "hospitals no fit saw",
        "border_only": "control: border only",
        "random_baseline": "control: random weights",
    }
    return [(text, r["images"], r["accuracy"]) for key, text in names.items() if (r := figures.get(key))]


def _accuracies(figures: dict[str, Any]) -> Canvas:
    rows = accuracies(figures)
    canvas, (ax,) = _new(7.2, 0.9 + 0.32 * len(rows))
    for y, (name, images, f) in enumerate(rows):
        colour = _COLOURS[1] if name.startswith("control") else _COLOURS[0]
        ax.errorbar(f["value"], -y, xerr=_arms(f), fmt="o", color=colour, capsize=3)
        ax.text(1.02, -y, f"{f['value']:.3f}   n = {images}", va="center")
    share = commonest(figures["test"])
    ax.axvline(share, color="0.5", linestyle="--", linewidth=1)
    ax.text(share, 0.62, f"always the test part's commonest label: {share:.2f}", ha="center", color="0.35", fontsize=8)
    ax.set(xlim=(0, 1), ylim=(-len(rows) + 0.5, 0.6), xlabel="accuracy, 95 % interval")
    ax.set_yticks([-y for y in range(len(rows))], [name for name, *_ in rows])
    return canvas


def _confusion(r: Row, labels: Sequence[str]) -> Canvas:
    canvas, (ax,) = _new(0.9 * len(labels) + 1.5, 0.75 * len(labels) + 1.1)
    counts = np.array(r["confusion"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1.2, aspect="auto")
    for (i, j), n in np.ndenumerate(counts):
        f = r["confusion_shares"][i][j]
        text = f"{n}" if f is None else f"{n}\n{f['value']:.2f} ({f['low']:.2f}–{f['high']:.2f})"
        ax.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if shares[i, j] > 0.6 else "black")
    ax.set_xticks(range(len(labels)), labels)
    ax.set_yticks(range(len(labels)), labels)
    ax.set(xlabel="class (what the network said)", ylabel="label")
    return canvas


def _roc(r: Row, labels: Sequence[str]) -> Canvas:
    canvas, (ax,) = _new(4.2, 3.6)
    x = r["roc"]["false_positive_rate"]
    for colour, label in zip(_cycle(len(labels)), labels, strict=True):
        if curve := r["roc"]["per_label"].get(label):
            ax.plot(x, curve["sensitivity"], color=colour, label=f"{label}, AUC {_text(r['per_label'][label]['auc'])}")
            ax.fill_between(x, curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
    ax.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1)
    ax.set(xlim=(-0.01, 1), ylim=(0, 1.01), xlabel="1 - specificity", ylabel="sensitivity (recall)")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower right", frameon=False, fontsize=8)
    return canvas


def _reliability(calibration: dict[str, Any]) -> Canvas:
    parts = [name for name in ("validation", "test") if name in calibration]
    canvas, axes = _new(3.5 * len(parts), 3.3, columns=len(parts))
    for ax, part in zip(axes, parts, strict=True):
        ax.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1)
        for colour, name in ((_COLOURS[1], "before"), (_COLOURS[0], "after")):
            r = calibration[part][name]
            x, y, n = (np.array([b[key] for b in r["bins"]]) for key in ("confidence", "accuracy", "images"))
            ax.plot(x, y, color=colour, linewidth=1)
            ax.scatter(x, y, s=6 + 120 * n / n.sum(), color=colour, alpha=0.7, label=f"{name}: ECE {_text(r['ece'])}")
        ax.set(xlim=(0, 1.02), ylim=(0, 1.05), xlabel="confidence", ylabel="share that is right")
        ax.set_title(f"{part} part", fontsize=9)
        for handle in ax.legend(loc="upper left", frameon=False, fontsize=8).legend_handles:
            if handle is not None:
                handle.set(sizes=[30])
    return canvas


def _curves(rows: Sequence[dict[str, float]]) -> Canvas:
    canvas, axes = _new(7.2, 2.8, columns=2)
    epochs = [row["epoch"] for row in rows]
    for ax, name in zip(axes, ("loss", "accuracy"), strict=True):
        ax.plot(
            epochs, [row[name] for row in rows], color=_COLOURS[1], marker=".", label="as fitted (augmented, dropout)"
        )
        ax.plot(epochs, [row[f"validation_{name}"] for row in rows], color=_COLOURS[0], marker=".", label="validation")
        ax.set(xlabel="epoch", ylabel=name)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].legend(frameon=False, fontsize=8)
    return canvas


def _maps(examples: Sequence[dict[str, Any]]) -> Canvas:
    stages = {"fitted": "as fitted", "head": "head random", "whole": "all random"}
    canvas = Canvas(figsize=(4.6, 1.35 * len(examples) + 0.3), layout="constrained")
    for row, example in enumerate(examples):
        for column, (stage, text) in enumerate(stages.items()):
            ax = canvas.add_subplot(len(examples), len(stages), row * len(stages) + column + 1)
            ax.imshow(np.array(example[stage]), cmap="inferno", vmin=0, vmax=1, interpolation="bilinear")
            ax.set_xticks([])
            ax.set_yticks([])
            if row == 0:
                ax.set_title(text, fontsize=9)
            if column == 0:
                ax.set_ylabel(f"{example['label']}\n(said {example['said']})", fontsize=8)
    return canvas


def _new(width: float, height: float, columns: int = 1) -> tuple[Canvas, list[Axes]]:
    canvas = Canvas(figsize=(width, height), layout="constrained")
    return canvas, list(canvas.subplots(1, columns, squeeze=False)[0])


def _uri(canvas: Canvas) -> str:
    svg = BytesIO()
    canvas.savefig(svg, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{b64encode(svg.getvalue()).decode()}"


def _arms(f: Figure) -> list[list[float]]:
    return [[max(0.0, f["value"] - f["low"])], [max(0.0, f["high"] - f["value"])]]


def _cycle(n: int) -> list[str]:
    return [_COLOURS[k % len(_COLOURS)] for k in range(n)]


def _text(f: Figure | None) -> str:
    return "n/a" if f is None else f"{f['value']:.3f}"
