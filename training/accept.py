"""May a bundle run in a lower precision? A trial on the validation part, and its record in the bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from math import ceil, floor, inf, log10
from pathlib import Path

import numpy as np

from engines.base import Engine, FloatArray
from engines.bundle import Accepted, Bundle, Manifest, Tolerance, load_bundle
from engines.cpu import CpuEngine
from engines.cpu_low import LowCpuEngine, LowPrecision
from engines.golden import golden_differences
from engines.precision import folded, largest_magnitudes
from engines.preprocess import to_batch
from training.bundle import write_manifest
from training.card import LEAST_FALL
from training.datasets import Part, load_images, load_index
from training.evaluate import Subject, score, some, subject_of_bundle
from training.metrics import Scored, exact
from training.transforms import to_grey

_FILMS, _SEED = 512, 20201108  # int8's scales are calibrated on so many of the training part
_BATCH = 16
_LEFT_OUT, _TRIED_ON = 0.2, 64  # the share of convolutions that int8 harms most stays in float32; films that tell which
_MARGIN = 2  # processors round in different orders, and int8 makes a step of it
_ANY = Tolerance(probabilities=1, cam=inf, tie=1)


class RefusedError(Exception):
    """The precision costs more than it may. Holds the figures."""


def accept(name: str, data: Path, precision: LowPrecision) -> Bundle:
    """Try the bundle in `precision` on the validation part of `data`, and record in it what came of that.

    The record, the tolerance of the golden check and the card change, so the bundle's digest does; of no other file.
    Raises RefusedError with the figures where it loses too much, EngineError, RecipeError: the bundle is as it was.
    """
    bundle = load_bundle(name)
    with _active(CpuEngine(bundle)) as engine:
        subject = subject_of_bundle(bundle, engine)
        whole = _score(subject, data)
    largest = _calibrated(bundle, subject, data) if precision is LowPrecision.INT8 else {}
    with _active(LowCpuEngine(_untried(bundle, precision, largest), precision)) as engine:
        low = _score(subject_of_bundle(bundle, engine), data)
        record = Accepted(**_figures(whole, low), images=len(low), engine=engine.name, largest=largest)
        _refuse(bundle, precision, record)
        tolerance = _tolerance(bundle, engine)
    accepted = _with(bundle, precision, record, tolerance)
    with _active(LowCpuEngine(accepted, precision)):  # as it will be used: its golden check, too
        write_manifest(bundle.folder, accepted.manifest)
    return load_bundle(str(bundle.folder))


def describe(record: Accepted) -> str:
    (accuracy, low_accuracy), (auc, low_auc) = record.accuracy, record.auc
    return (
        f"accuracy {accuracy:.4f} -> {low_accuracy:.4f}, mean AUC {auc:.4f} -> {low_auc:.4f} on {record.images} "
        f"validation images with {record.engine}"
    )


def _score(subject: Subject, data: Path) -> Scored:
    return score(subject, data, some(data, load_index(data, subject.data), Part.VALIDATION, subject.labels))


def _figures(whole: Scored, low: Scored) -> dict[str, tuple[float, float]]:
    def both(figure: Callable[[Scored], float]) -> tuple[float, float]:
        return round(figure(whole), 6), round(figure(low), 6)

    return {"accuracy": both(lambda s: float(s.hit.mean())), "auc": both(lambda s: float(np.nanmean(exact(s)["auc"])))}


def _refuse(bundle: Bundle, precision: LowPrecision, record: Accepted) -> None:
    falls = [before - after for before, after in (record.accuracy, record.auc)]
    if not all(fall < LEAST_FALL for fall in falls):  # nan is refused, too
        raise RefusedError(
            f"{precision} is refused for {bundle.name}: {describe(record)}; each must fall by less than {LEAST_FALL}. "
            "The bundle is as it was"
        )


def _tolerance(bundle: Bundle, engine: Engine) -> Tolerance:
    found = [difference for _, difference in golden_differences(bundle, engine.infer, _ANY)]
    off = _rounded_up(_MARGIN * max(d.probabilities for d in found))
    cam = _rounded_up(_MARGIN * max(d.cam for d in found))
    return Tolerance(probabilities=off, cam=cam, tie=2 * off)  # each of the two best may be off by so much


def _rounded_up(value: float) -> float:
    """To two digits."""
    digits = 1 - floor(log10(max(value, 1e-6)))
    return round(ceil(value * 10**digits) / 10**digits, digits) or 1e-6


def _calibrated(bundle: Bundle, subject: Subject, data: Path) -> dict[str, float]:
    """Scales from the training part, without those of the convolutions that lose most when they alone are in int8.

    A few do most of the harm: all 43 of cxr3-lite2 move a validation image's probability by up to 0.24, without the
    four worst by 0.12, without eight by 0.05, without twelve by as much.
    """
    largest = largest_magnitudes(folded(bundle.model_path), _films(bundle, subject, data))
    films = np.concatenate(list(islice(_films(bundle, subject, data), _TRIED_ON // _BATCH)))
    with _active(CpuEngine(bundle)) as engine:
        want = _log(engine, films)

    def harm(name: str) -> float:
        with _active(
            LowCpuEngine(_untried(bundle, LowPrecision.INT8, {name: largest[name]}), LowPrecision.INT8)
        ) as one:
            return float(np.abs(_log(one, films) - want).mean())

    robust = sorted(largest, key=harm)[: max(1, round(len(largest) * (1 - _LEFT_OUT)))]
    return {name: value for name, value in largest.items() if name in robust}


def _log(engine: Engine, films: FloatArray) -> FloatArray:
    return np.asarray(np.log(engine.infer(films).probabilities + np.float32(1e-6)), np.float32)


def _films(bundle: Bundle, subject: Subject, data: Path) -> Iterator[FloatArray]:
    """Batches of the training part, drawn by a fixed seed."""
    samples = some(data, load_index(data, subject.data), Part.TRAIN, subject.labels)
    drawn = [samples[i] for i in np.random.default_rng(_SEED).permutation(len(samples))[:_FILMS]]
    shape = bundle.manifest.input
    for i in range(0, len(drawn), _BATCH):
        images = load_images(data, drawn[i : i + _BATCH])
        yield to_batch(
            [shape.prepared(to_grey(image)) for image in images],
            shape.channels,
        )


def _untried(bundle: Bundle, precision: LowPrecision, largest: dict[str, float]) -> Bundle:
    """As if that had been accepted, with a tolerance of anything that is a number: so that it can be tried."""
    record = Accepted(accuracy=(1, 1), auc=(1, 1), images=1, engine="none", largest=largest)
    return _with(bundle, precision, record, _ANY)


def _with(bundle: Bundle, precision: LowPrecision, record: Accepted, tolerance: Tolerance) -> Bundle:
    m: Manifest = bundle.manifest
    changed = {
        "accepted": m.accepted | {precision.value: record},
        "tolerance": m.tolerance | {precision.value: tolerance},
    }
    return replace(bundle, manifest=m.model_copy(update=changed))


@contextmanager
def _active(engine: Engine) -> Iterator[Engine]:
    engine.activate()
    try:
        yield engine
    finally:
        engine.deactivate()
