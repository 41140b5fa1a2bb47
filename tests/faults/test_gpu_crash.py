"""The GPU's driver takes the engine's process down in the middle of a batch, in a real node on a simulated GPU."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from cxrnode.store import ledger
from cxrnode.store.database import LEDGER_NAME, Database
from engines.load import plans_folder
from engines.probe import usable_machine
from tests.contract.tiny import tiny_bundle
from tests.support.audit import faults
from tests.support.awaiting import await_true, film
from tests.support.faulty_pacs import AET, faulty_pacs
from tests.support.node import Node, running_node
from tests.support.planned_gpu import write_onnx_plan
from tests.support.simulated_gpu import simulated_or_skip

ROOT = Path(__file__).parents[2]


@pytest.fixture
def crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nodes of this test have a GPU, and a plan for it; while this file is there, it crashes."""
    environment = simulated_or_skip(tmp_path / "simcuda")
    paths = (str(ROOT / "tests/support/tensorrt_stand_in"), str(ROOT), environment["PYTHONPATH"])
    bundle, crash = tiny_bundle(tmp_path), tmp_path / "crash"
    ours = {
        "PYTHONPATH": os.pathsep.join(paths),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "SIMULATED_CRASH": str(crash),
        "CXRNODE_ANALYSE__BUNDLE": str(bundle.folder),
    }
    for name, value in (environment | ours).items():
        monkeypatch.setenv(name, value)
    write_onnx_plan(bundle, usable_machine(), "fp32", plans_folder())
    return crash


@pytest.mark.slow
def test_a_gpu_that_kills_its_process_loses_no_study_and_no_listener(crash: Path, tmp_path: Path) -> None:
    with faulty_pacs() as pacs:
        node = Node(folder=tmp_path / "node", destinations=[("pacs", AET, pacs.port)], commitment=False)
        with running_node(node):
            assert "gpu tensorrt 11.0.simulated fp32 verified" in node.log
            listener = node.stages()["intake"]
            assert node.send(film(tmp_path, 1)) == [0]
            await_true(lambda: len(pacs.stored) == 2, lambda: node.log[-3000:])
            crash.touch()
            studies = 1
            while "the CPU does the GPU's work" not in node.log:  # two deaths and three starts later
                studies += 1
                assert node.send(film(tmp_path, studies)) == [0]
                assert studies < 60, node.log[-3000:]
                time.sleep(1)
            await_true(lambda: len(pacs.stored) == 2 * studies, lambda: node.log[-3000:])
            metrics = node.http("/metrics").decode()
            assert node.stages()["intake"] == listener
            node.stop()
        assert set(pacs.stored.values()) == {1}
        results = Counter(ds.StudyInstanceUID for ds in pacs.data_sets)
        assert list(results.values()) == [2] * studies
        named = {v for ds in pacs.data_sets for v in ds.SoftwareVersions if v.startswith(("cpu ", "gpu "))}
    assert len(named) == 2
    assert node.log.count("analyse ended with -11") == 2
    assert re.search(r'^cxrnode_stage_deaths_total\{stage="analyse"\} 2', metrics, re.MULTILINE)
    assert re.search(r"^cxrnode_engine_fallback 1", metrics, re.MULTILINE)
    jobs = node.rows("SELECT engine, attempts, outcome FROM job ORDER BY id")
    assert {outcome for _, _, outcome in jobs} == {"analysed"}
    assert [engine[:3] for engine, _, _ in jobs] == ["gpu"] + ["cpu"] * (studies - 1)
    assert max(attempts for _, attempts, _ in jobs) <= 3  # each death cost those in hand one
    database = Database(node.data_dir / LEDGER_NAME)
    with database.begin() as c:
        reasons = [event.detail["reason"] for event in ledger.events(c) if event.kind == "engine_fallback"]
        assert faults(c) == []
    database.close()
    assert ["the last 2 starts with the GPU of" in str(reason) for reason in reasons] == [True]
