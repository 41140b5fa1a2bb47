"""`cxrnode engine build` and `python -m training compile` on a simulated GPU: the same engine file by the same code."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("onnx")

from cxrnode.cli.main import app
from engines.bundle import Bundle
from engines.compile import PrecisionName
from engines.cpu_low import LowPrecision
from engines.load import plans_folder
from engines.plan import read_plan
from engines.probe import usable_machine
from tests.contract.tiny import accepted, tiny_bundle
from tests.support.planned_gpu import PlannedGpu
from tests.support.simulated_gpu import ELSEWHERE, simulated
from training.compile import compile_run
from training.recipe import RecipeError

if not simulated():
    pytest.skip(ELSEWHERE, allow_module_level=True)


def built(bundle: Bundle) -> str:
    """What `cxrnode engine build` said."""
    done = CliRunner().invoke(app, ["engine", "build", "--bundle", str(bundle.folder)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def compiled(bundle: Bundle, precision: PrecisionName | None = None) -> str:
    """What `python -m training compile` said (its command line imports torch, which a simulated GPU confuses)."""
    told: list[str] = []
    compile_run(bundle.folder, precision, export=refused, tell=told.append)
    return " ".join(told)


def refused() -> Path:
    raise RecipeError("this is no run")


def test_both_commands_build_the_same(gpu: PlannedGpu, tmp_path: Path) -> None:
    bundle, sidecars = tiny_bundle(tmp_path), []
    for build in (built, compiled):
        told = build(bundle)
        assert "building tiny fp32 for simulated device (compute capability 8.6" in told
        assert "now run: cxrnode engine verify" in told
        sidecar = read_plan(plans_folder(), bundle, usable_machine(), "fp32").sidecar
        sidecars.append(sidecar.model_dump(exclude={"built_at", "plan_sha256"}))
    assert sidecars[0] == sidecars[1]
    assert gpu.built == ["fp32", "fp32"]


def test_a_run_is_exported_first(gpu: PlannedGpu, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    plan = compile_run(tmp_path / "run", None, export=lambda: tiny_bundle(tmp_path).folder, tell=print)
    assert plan.sidecar.bundle == "tiny"
    with pytest.raises(RecipeError, match="no run"):
        compile_run(tmp_path / "run", None, export=refused, tell=print)


def test_int8_needs_no_films_where_the_bundle_records_its_scales(gpu: PlannedGpu, tmp_path: Path) -> None:
    compiled(accepted(tiny_bundle(tmp_path), LowPrecision.INT8), PrecisionName.INT8)
    assert gpu.built == ["int8"]
    assert gpu.films == 0
