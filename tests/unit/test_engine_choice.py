"""What goes on record of an engine."""

from __future__ import annotations

import pytest

from cxrnode.audit.query import Filters, find
from cxrnode.engine_choice import chosen_engine
from cxrnode.store.database import Database
from engines.base import EngineError
from engines.bundle import load_bundle
from engines.probe import driver_installed


@pytest.mark.skipif(driver_installed(), reason="this machine has an NVIDIA driver")
def test_an_engine_that_does_not_come_up_is_on_record(database: Database) -> None:
    bundle = load_bundle("default")
    with (
        pytest.raises(EngineError, match="driver"),
        chosen_engine("tensorrt", bundle, threads=1, database=database, actor="test") as active,
    ):
        active.wait()
    with database.begin() as c:
        (event,) = find(c, Filters(kind="engine_failed")).events
    assert event.detail["engine"] == "tensorrt"
    assert "libcuda" in str(event.detail["reason"])
    assert event.detail["bundle"] == bundle.digest
