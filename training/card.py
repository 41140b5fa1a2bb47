"""MODEL_CARD.md from a bundle's manifest: every figure in it was measured on the bundle by `training.evaluate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from engines.bundle import Manifest
from training.pages import table

_SOURCES = {
    "kaggle_kermany": "Kermany et al., children of 1 to 5 years, one hospital (Guangzhou). CC BY 4.0",
    "ieee8023": "Cohen et al., covid-chestxray-dataset: adults, many hospitals, many from publications. Terms per "
    "image; many are non-commercial, or none is stated (table below)",
    "nih_darkcovidnet": "NIH ChestX-ray14, adults, as sampled by DarkCovidNet. Free use with attribution: the NIH "
    "Clinical Center is the provider of these images; Wang et al., ChestX-ray8, CVPR 2017",
    "figure1": "Figure 1 COVID-19 chest X-ray initiative. Research only",
    "actualmed": "Actualmed COVID-19 chest X-ray initiative. Research only",
}

LEAST_FALL = 0.005  # of accuracy and of mean AUC: a precision that loses as much, or more, is refused


def write_card(manifest: Manifest) -> str:
    """The card as Markdown. Sections whose figures were not measured are left out."""
    sections = [
        _head(manifest), _data(manifest), _test(manifest), _sources(manifest), _shortcut(manifest),
        _precisions(manifest), _use(manifest), _again(manifest),
    ]  # fmt: skip
    return "\n\n".join(s for s in sections if s) + "\n"


def _head(m: Manifest) -> str:
    shape, c = m.input, m.calibration
    rows = [
        (x.name, f"({x.code.value}, {x.code.scheme}, {x.code.meaning})", x.present_at, x.absent_below) for x in m.labels
    ]
    return f"""# {m.name} {m.version}

**{m.intended_use}** Not a medical device; no radiologist has assessed its results.

{m.description}. {m.architecture}. Weights at the start of the fit: `{m.data.get("weights", "unknown")}`
(a `run:` is an earlier fit on the same parts; its recipe, of the same name, says what that one started from).

The class is the label of the greatest probability. A label is present at or above `present at`, absent below
`absent below`, undetermined between; both were chosen on the validation part.

{table(["label", "code", "present at", "absent below"], rows)}

Input: {shape.rows}x{shape.columns}, grey copied to {shape.channels} channels, squashed by area averaging (the aspect
ratio is given up), {"its greys equalised to a normal distribution, " if shape.equalise else ""}each image normalised
by its own mean and standard deviation (`engines/preprocess.py`, version {m.preprocess_version}).
Output: probabilities, class, and the raw Grad-CAM of the predicted class (Selvaraju et al. 2017) from the last feature
map, in the same pass. A Grad-CAM says what moved the class, not where a disease is.

Calibration: {c.get("method")}; temperature {c.get("temperature")}, offsets
{", ".join(map(str, c.get("offsets", [])))}; that loss was {c.get("loss_before")} before, {c.get("loss_after")} after;
validation accuracy {c.get("validation_accuracy")} ({c.get("validation_images")} images).
It holds for images like those; of other hospitals' images it promises nothing."""


def _data(m: Manifest) -> str:
    parts: dict[str, list[dict[str, Any]]] = m.data.get("parts", {})
    if not parts:
        return ""
    count: Counter[tuple[str, str]] = Counter()
    licences: Counter[tuple[str, str]] = Counter()
    for part, rows in parts.items():
        for r in rows:
            count[f"{r['source']} {r['label']}", part] += r["images"]
            licences[r["source"], r["license"]] += r["images"]
    names = sorted({name for name, _ in count})
    sources = sorted({source for source, _ in licences})
    return f"""## Data

Images of each part: {m.data.get("rule", "")}: a group joins a patient's images and near
duplicates, and never stands on two sides. External sources were seen by no fit and by no calibration; who chose between
recipes may have looked at them.

{table(["source and label", *parts], [(n, *(count[n, p] for p in parts)) for n in names])}

{_list(f"`{s}`: {_SOURCES.get(s, 'see the index')}." for s in sources)}

{table(["source", "terms stated in the index", "images"], [(s, t, n) for (s, t), n in sorted(licences.items())])}

The bundle holds no image. Its golden inputs are phantoms made by formula."""


def _test(m: Manifest) -> str:
    test = m.metrics.get("test")
    if not test:
        return ""
    adults = m.metrics.get("test_adults")
    text = f"""## Test part (group-disjoint)

The weights that ship were chosen among a few by validation accuracy; the test part had been looked at by then.

{_report(test, m)}"""
    return text + (f"\n\n### Adults only\n\n{_report(adults, m)}" if adults else "")


def _sources(m: Manifest) -> str:
    if "by_source" not in m.metrics:
        return ""
    text = f"## By source\n\nTest part:\n\n{_source_table(m.metrics['by_source'], m)}"
    external = m.metrics.get("external")
    if external:
        text += f"""

## External sources: hospitals that no fit saw

{_report(external, m)}

{_source_table(m.metrics["external_by_source"], m)}"""
    others = m.metrics.get("other_findings")
    if others:
        rows = [(r["label"], r["images"], *r["classes"].values()) for r in others]
        text += f"""

## What it says of findings it does not know

Test images of findings that are none of its labels; every answer is wrong, and it cannot say so.

{table(["finding", "images", *(f"said {x.name}" for x in m.labels)], rows)}"""
    return text


def _shortcut(m: Manifest) -> str:
    border = m.metrics.get("border_only")
    if not border:
        return ""
    text = f"""## The shortcut: age and source

Nearly all viral and most normal images are of small children from one hospital; every COVID-19 image is of an adult.
A network can tell children from adults, or one hospital's films from another's, and score well without seeing any
disease. So the accuracy above proves little; the rows per source, the adults and the external sources say more.

Adult normals of NIH ChestX-ray14 are in the training part, without which any adult's film would look like
COVID-19. This lessens the age shortcut and leaves another: among adults, `normal` is nearly one source (NIH) and
`covid` another. The test rows of NIH are of patients that no fit saw, not of a hospital that no fit saw.

Control: the same test images with only the outer tenth of each side visible, where there is hardly any lung, give
accuracy {_figure(border["accuracy"])}. What exceeds the share of the commonest class ({_commonest(border)}) comes from
the frame, not the lungs.

{_report(border, m)}"""
    evidence = m.metrics.get("leave_source_out")
    if evidence:
        text += f"\n\n### Without NIH in the fit\n\n{evidence.get('what', '')}\n\n{_source_table(evidence['rows'], m)}"
    return text


def _precisions(m: Manifest) -> str:
    if not m.accepted:
        return ""
    head = ["engine", "accuracy fp32", "its", "mean AUC fp32", "its", "images", "tried with", "golden tolerance"]
    rows = [
        (f"`cpu-{name}`", *(f"{x:.4f}" for x in (*a.accuracy, *a.auc)), a.images, a.engine,
         m.tolerance[name].probabilities)
        for name, a in m.accepted.items()
    ]  # fmt: skip
    return f"""## Precisions

All other figures are of float32. These precisions run where they are asked for: accepted because on the validation part
accuracy falls by less than {100 * LEAST_FALL:g} points and mean AUC by less than {LEAST_FALL:g}. One that is not in the
table was not tried or not accepted, and is refused. Single answers differ by more than these means.

{table(head, rows)}"""


def _use(m: Manifest) -> str:
    return f"""## Limits

- {m.intended_use} Not for triage, screening or exclusion of any disease.
- It knows three answers. Bacterial pneumonia, tumours, effusions, everything else get one of them (table above).
- Viral pneumonia of adults is represented by a handful of images.
- COVID-19 of 2020, unvaccinated, mostly hospitalised patients; labels from publications, unchecked here.
- Frontal radiographs only. Lateral views, other body parts and photographs of films were not in the fit.
- 95 % intervals are bootstraps over groups; they do not cover what differs from hospital to hospital.

Licence of the weights: {m.license}."""


def _again(m: Manifest) -> str:
    recipe, weights = m.data.get("recipe", {}).get("name", "RECIPE"), str(m.data.get("weights", ""))
    base = weights.removeprefix("run:")
    runs = base.split(",") if base != weights else []
    first = "".join(f"python -m training fit {Path(run).name} --data DATA --run {run}\n    " for run in runs)
    options = "".join(f" {option}" for option in [m.data.get("export", "")] if option)
    accept = "".join(f"\n    python -m training accept {m.name} --precision {name} --data DATA" for name in m.accepted)
    return f"""## Make it again

    python -m training evaluate --bundle {m.name} --data DATA    # every figure above, from the ONNX through the engine
    cxrnode models verify {m.name}                               # files and golden inputs
    {first}python -m training fit {recipe} --data DATA --run runs/{recipe}
    python -m training export runs/{recipe} --bundle {m.name} --data DATA --version {m.version}{options}{accept}"""


def _report(r: dict[str, Any], m: Manifest) -> str:
    """Accuracy, figures of each label, confusion matrix."""
    columns = ["precision", "recall", "specificity", "f1", "auc"]
    rows = [(k, v["n"], *(_figure(v[c]) for c in columns)) for k, v in r["per_label"].items()]
    names = [x.name for x in m.labels]
    confusion = [(f"**{n}**", *row) for n, row in zip(names, r["confusion"], strict=True) if sum(row)]
    return f"""{r["images"]} images, {r["groups"]} groups. Accuracy **{_figure(r["accuracy"])}**.

{table(["label", "images", *columns], rows)}

{table(["label / class", *names], confusion)}"""


def _source_table(rows: Sequence[dict[str, Any]], m: Manifest) -> str:
    body = [(r["source"], r["label"], r["images"], _figure(r["recall"]), *r["classes"].values()) for r in rows]
    return table(["source", "label", "images", "recall", *(f"said {x.name}" for x in m.labels)], body)


def _commonest(r: dict[str, Any]) -> str:
    """Share of the label with the most images."""
    return f"{max(v['n'] for v in r['per_label'].values()) / r['images']:.3f}"


def _figure(f: dict[str, float] | None) -> str:
    """Value (low - high)."""
    return "n/a" if f is None else f"{f['value']:.3f} ({f['low']:.3f} - {f['high']:.3f})"


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
