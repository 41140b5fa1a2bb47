"""The three stages as processes of their own on one PostgreSQL, as they would run on three machines."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.schema import delivery
from tests.interop.conftest import require
from tests.support.audit import faults
from tests.support.awaiting import ONE_SET, await_true, film, results_of
from tests.support.node import Node
from tests.support.orthanc import AET, free_port, missing_orthanc, running_orthanc
from tests.support.postgres import Postgres

pytestmark = pytest.mark.interop
STAGES = ("intake", "analyse", "deliver")


@contextmanager
def running_stage(node: Node, stage: str) -> Iterator[subprocess.Popen[bytes]]:
    process = node.start_alone(stage)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_three_stages_on_one_server(postgres: Postgres, tmp_path: Path) -> None:
    require(missing_orthanc())
    port, url = free_port(), postgres.new_database()
    node = Node(folder=tmp_path / "node", destinations=[("pacs", AET, port)], database=url)
    node.write_config()
    modalities = {"cxrnode": ["CXRNODE", "127.0.0.1", node.port]}
    with running_orthanc(tmp_path / "pacs", modalities, dicom_port=port) as orthanc, ExitStack() as stack:
        stages = [stack.enter_context(running_stage(node, stage)) for stage in STAGES]
        for stage, port in node.pages.items():
            await_true(lambda at=port: node.readiness(at)["ready"], lambda: node.log[-3000:])  # type: ignore[misc]
            up = [line for line in node.http("/metrics", port).decode().splitlines() if "cxrnode_stage_up{" in line]
            assert up == [f'cxrnode_stage_up{{stage="{stage}"}} 1.0']
        assert node.send(*(film(tmp_path, number) for number in (1, 2, 3))) == [0, 0, 0]
        for number in (1, 2, 3):
            await_true(lambda n=number: results_of(orthanc, n) == ONE_SET, lambda: node.log[-3000:])  # type: ignore[misc]
        database = Database(url)
        stack.callback(database.close)

        def states() -> list[str]:
            with database.begin(shared=True) as c:
                return list(c.execute(select(delivery.c.state)).scalars())

        await_true(lambda: states() == ["committed"] * 6, lambda: f"{states()}\n{node.log[-3000:]}")
        for process in stages:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(timeout=30) for process in stages] == [0, 0, 0], node.log[-3000:]
        with database.begin(shared=True) as c:
            assert faults(c) == []
            actors = {e.actor for e in ledger.events(c)}
            stopped = [e.actor for e in ledger.events(c) if e.kind == "stage_stopped"]
    assert actors == {*STAGES}
    assert sorted(stopped) == sorted(STAGES)
    assert "Traceback" not in node.log
    assert not list(node.data_dir.glob("*.sqlite*"))
