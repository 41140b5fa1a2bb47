"""What a start knows of those before it: a GPU that took the process down twice is left alone. Simulated, see there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")

from cxrnode.engine_choice import chosen_engine
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.queue import ENGINE, FALLBACK, GPU_STARTS, Queue
from engines.base import EngineError
from engines.bundle import Bundle
from tests.contract.tiny import SHAPE
from tests.support.make_dicom import phantom
from tests.support.planned_gpu import CHECK, PlannedGpu
from tests.support.simulated_gpu import ELSEWHERE, simulated

if not simulated():
    pytest.skip(ELSEWHERE, allow_module_level=True)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "ledger.sqlite")
    yield database
    database.close()


def setting(database: Database, key: str) -> Any:
    with database.begin(shared=True) as c:
        return Queue("test").get_setting(c, key)


def records(database: Database, kind: str) -> list[dict[str, Any]]:
    with database.begin(shared=True) as c:
        return [event.detail for event in ledger.events(c) if event.kind == kind]


def note_starts(database: Database, starts: int, *, ago_s: float = 0.0) -> None:
    """What so many starts leave that a crash ended: nothing but their own note."""
    with database.begin() as c:
        Queue("test").set_setting(c, GPU_STARTS, {"starts": starts, "at": time.time() - ago_s})


def start(database: Database, bundle: Bundle, kind: str = "auto", films: int = 0) -> str:
    """One start that ends well; the engine's name."""
    with chosen_engine(kind, bundle, threads=1, database=database, actor="test") as active:
        active.wait()
        if films:
            active.submit([phantom(SHAPE.rows, SHAPE.columns, seed) for seed in range(films)]).result()
        return active.wait()


def test_starts_that_end_well_leave_nothing(gpu: PlannedGpu, bundle: Bundle, database: Database) -> None:
    for kind in ("auto", "tensorrt", "auto"):
        assert start(database, bundle, kind).startswith("gpu")
        assert setting(database, GPU_STARTS) is None
    with (
        pytest.raises(RuntimeError, match="ours"),
        chosen_engine("auto", bundle, threads=1, database=database, actor="test"),
    ):
        raise RuntimeError("ours")  # an error of our own is no crash of the driver's
    assert setting(database, GPU_STARTS) is None
    assert not records(database, "engine_fallback")


@pytest.mark.parametrize(
    ("starts", "ago_s", "engine"), [(1, 0, "gpu"), (1, 7200, "gpu"), (2, 0, "cpu"), (2, 7200, "cpu")]
)
def test_after_two_starts_that_a_crash_ended_the_cpu_does_the_work(
    gpu: PlannedGpu, bundle: Bundle, database: Database, starts: int, ago_s: float, engine: str
) -> None:
    note_starts(database, starts, ago_s=ago_s)
    with chosen_engine("auto", bundle, threads=1, database=database, actor="test") as active:
        assert active.wait().startswith(engine)
        noted = setting(database, GPU_STARTS)["starts"]
        assert noted == (1 if ago_s and starts == 1 else 2)  # an hour lies between: no row
        told = records(database, "engine_fallback")
        assert bool(told) == bool(setting(database, FALLBACK)) == (engine == "cpu")
        if engine == "cpu":
            assert "the last 2 starts with the GPU" in told[0]["reason"]
            assert setting(database, ENGINE)["engine"].startswith("cpu")
    assert start(database, bundle).startswith("gpu")  # it was stopped and started


def test_tensorrt_alone_refuses_until_the_node_is_started_again(
    gpu: PlannedGpu, bundle: Bundle, database: Database
) -> None:
    note_starts(database, 2)
    for _ in range(3):
        with pytest.raises(EngineError, match=r"the last 2 starts with the GPU.*start the node again"):
            start(database, bundle, "tensorrt")
    assert not gpu.opened
    assert start(database, bundle, "cpu").startswith("cpu")
    assert start(database, bundle, "tensorrt").startswith("gpu")


def test_a_start_that_fell_back_says_nothing_of_the_gpu(gpu: PlannedGpu, bundle: Bundle, database: Database) -> None:
    gpu.off = [0.01, 0.01]
    assert start(database, bundle).startswith("cpu")
    (told,) = records(database, "engine_fallback")
    assert "probabilities differ by 0.01" in told["reason"]


def test_what_shadowing_found_is_in_the_ledger(
    gpu: PlannedGpu, bundle: Bundle, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(database, bundle, films=3).startswith("gpu")
    gpu.off, gpu.off_after = [0.01, 0.01], CHECK
    with chosen_engine("auto", bundle, threads=1, database=database, actor="test") as active:
        assert active.wait().startswith("gpu")
        said = active.submit([phantom(SHAPE.rows, SHAPE.columns, seed) for seed in range(3)]).result()
        assert [s.prediction.engine[:3] for s in said if s.prediction] == ["cpu"] * 3
        assert setting(database, ENGINE)["engine"].startswith("cpu")
    well, first, second = records(database, "engine_shadowed")
    assert well["engine"].startswith("gpu tensorrt")
    assert (well["images"], well["flips"], well["bundle"]) == (3, 0, bundle.digest)
    assert well["tolerance"] == bundle.manifest.tolerance["fp32"].model_dump()
    assert well["probabilities"] < 1e-5
    assert "fault" not in well
    assert first["probabilities"] == second["probabilities"] == pytest.approx(0.01, abs=1e-5)
    assert "on its first 3 images" in second["fault"]
    assert len(records(database, "engine_fallback")) == 1
