"""What more than one folder of tests asks for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from cxrnode.store.database import Database
from tests.interop.conftest import require
from tests.support.postgres import Postgres, missing_postgres, running_postgres


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests share one process of `make test` (--dist loadgroup), and with it their fixtures: those of a file, and
    those that want the exported systems, each of which takes up to a minute to export."""
    for item in items:
        shares = "exported" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("exported" if shares else item.path.name))


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """A command that runs in the tests' own process sets it for good: the next test finds it as it was."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine's time zone, for the test."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for the session; each test has a database of its own."""
    require(missing_postgres())
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where an empty database lies, for Database(): the test runs on each kind."""
    if request.param == "sqlite":
        return tmp_path / "store.sqlite"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def database(where: Path | str) -> Iterator[Database]:
    """An empty store, on each kind of database."""
    opened = Database(where)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The ONNX of a system with random weights, by its recipe's name or "ensemble" (two members).

    Exporting checks it against torch, and takes up to a minute: each is exported once a session.
    """
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def export(name: str) -> Path:
        from tests.unit.training.test_network import SHAPE, random_network
        from training.calibrate import Calibration
        from training.export import export_onnx
        from training.models.network import Ensemble

        members = [random_network("resnet50-snapshot", seed) for seed in (1, 2)] if name == "ensemble" else []
        path = folder / f"{name}.onnx"
        model = Ensemble(members).eval() if members else random_network(name)
        export_onnx(model, SHAPE, Calibration(temperature=1.3, offsets=(0.2, 0.1, -0.3)), path)
        return path

    return export
