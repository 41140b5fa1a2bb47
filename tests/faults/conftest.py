"""What the drills on a simulated GPU ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engines.bundle import Bundle

if TYPE_CHECKING:
    from tests.support.planned_gpu import PlannedGpu


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlannedGpu]:
    """A GPU for which plans are built and run, as far as that goes without one."""
    from tests.support.planned_gpu import planned_gpu  # for the process alone that has the simulated driver

    with planned_gpu(tmp_path, monkeypatch) as gpu:
        yield gpu


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    from tests.contract.tiny import tiny_bundle  # brings onnx

    return tiny_bundle(tmp_path)
