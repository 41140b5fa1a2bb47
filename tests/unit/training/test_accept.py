"""A lower precision is tried on the validation part; a bundle records it, or stays as it was."""

from __future__ import annotations

import re
from pathlib import Path
from shutil import copytree

import pytest
from typer.testing import CliRunner

pytest.importorskip("openvino")

import openvino

from engines.base import EngineError
from engines.bundle import CARD, MANIFEST, Accepted, load_bundle
from engines.cpu_low import LowPrecision
from engines.load import make_engine
from engines.probe import driver_installed
from training import accept as trial
from training.accept import RefusedError, accept
from training.command import app
from training.datasets import Part, load_index, select
from training.evaluate import evaluate, subject_of_bundle
from training.recipe import DataSpec

INT8 = LowPrecision.INT8


@pytest.fixture
def bundle(folder: Path, tmp_path: Path) -> Path:
    return copytree(folder, tmp_path / "tiny")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_trial_is_recorded_and_the_precision_runs(bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "LEAST_FALL", 0.5)  # a network of a few weights may lose more than one that ships
    before = contents(bundle)
    command = ["accept", str(bundle), "--data", str(data), "--precision", "int8"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert "--engine cpu-int8" in done.output
    assert {name for name, content in contents(bundle).items() if before[name] != content} == {CARD, MANIFEST}

    m = load_bundle(str(bundle)).manifest
    record, samples = m.accepted["int8"], load_index(data, DataSpec.model_validate(m.data["split"]))
    labels = [label.name for label in m.labels]
    assert record.images == len(select(samples, Part.VALIDATION, labels))
    assert all(value > 0 for value in record.largest.values())
    engine = make_engine("cpu-int8", load_bundle(str(bundle)))
    engine.activate()
    assert engine.name == record.engine
    figures = evaluate(subject_of_bundle(load_bundle(str(bundle)), engine), data)
    engine.deactivate()
    hits = sum(b["accuracy"] * b["images"] for b in figures["calibration"]["validation"]["after"]["bins"])
    assert hits / record.images == pytest.approx(record.accuracy[1], abs=1e-3)

    card = (bundle / CARD).read_text()
    assert re.search(rf"\| `cpu-int8` \| {record.accuracy[0]:.4f} \| {record.accuracy[1]:.4f} \|", card)
    assert "python -m training accept tiny --precision int8 --data DATA" in card


def test_what_loses_too_much_is_refused_with_the_figures(
    bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "LEAST_FALL", -1.0)
    before = contents(bundle)
    with pytest.raises(
        RefusedError, match=r"accuracy 0\.\d+ -> 0\.\d+, mean AUC .* on \d+ validation images with cpu open"
    ):
        accept(str(bundle), data, INT8)
    assert contents(bundle) == before


@pytest.mark.parametrize(
    ("accuracy", "auc", "refused"),
    [
        ((0.9665, 0.9634), (0.984, 0.9855), False),
        ((0.9665, 0.9604), (0.984, 0.984), True),
        ((0.9, 0.9), (0.98, 0.974), True),
        ((0.9, 0.95), (0.98, float("nan")), True),
    ],
)
def test_the_rule(folder: Path, accuracy: tuple[float, float], auc: tuple[float, float], refused: bool) -> None:
    record = Accepted(accuracy=accuracy, auc=auc, images=328, engine="cpu")
    if not refused:
        trial._refuse(load_bundle(str(folder)), INT8, record)
        return
    with pytest.raises(RefusedError, match=r"each must fall by less than 0\.005"):
        trial._refuse(load_bundle(str(folder)), INT8, record)


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.101, 0.11), (0.0534, 0.054), (0.05, 0.05), (1.23, 1.3), (0.0, 1e-6), (2e-5, 2e-5)]
)
def test_a_tolerance_is_rounded_up(value: float, rounded: float) -> None:
    assert trial._rounded_up(value) == rounded


@pytest.mark.skipif(
    "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), reason="this processor has bfloat16"
)
def test_a_processor_that_cannot_tries_nothing(bundle: Path, data: Path) -> None:
    before = contents(bundle)
    with pytest.raises(EngineError, match="not bf16"):
        accept(str(bundle), data, LowPrecision.BF16)
    assert contents(bundle) == before


@pytest.mark.skipif(driver_installed(), reason="this machine has an NVIDIA driver")
def test_compile_without_a_gpu_says_what_is_missing_before_it_exports(run: Path, data: Path, tmp_path: Path) -> None:
    command = ["compile", str(run), "--bundle", str(tmp_path / "new"), "--data", str(data)]
    with pytest.raises(EngineError, match=r"driver library.*install NVIDIA's driver"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert not (tmp_path / "new").exists()
