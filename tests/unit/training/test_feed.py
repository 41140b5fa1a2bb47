"""Batches do not depend on who makes them: the loop, one process or several, in one fit or shared among fits."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from training import feed as feeding
from training.datasets import Part, Sample
from training.devices import Device
from training.feed import epoch_order, feed, shares
from training.recipe import load_recipe

RECIPE = load_recipe("cxr3-lite2-base", ["model.weights=none", "fit.batch_size=8", "input.rows=32", "input.columns=32"])
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 32, 32), np.uint8)
TARGETS = np.arange(30) % 3
SAMPLES = [
    Sample(image=f"{k}.png", label=RECIPE.label_names[k % 3], source="here", group=str(k), part=Part.TRAIN, age=None)
    for k in range(30)
]


def begun(device: Device, epochs: range) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return feed(RECIPE, IMAGES, TARGETS, shares(RECIPE, SAMPLES, device, epochs), device)


def made(device: Device | None = None, epochs: range = range(2)) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(begun(device or Device(), epochs))


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many make the batches."""
    wanted = [0]
    monkeypatch.setattr(feeding, "_processes", lambda *_: wanted[0])
    yield wanted
    assert not multiprocessing.active_children()


def test_however_many_make_them(processes: list[int]) -> None:
    alone = made()
    assert len(alone) == 2 * (30 // 8)
    for processes[0] in (1, 2):
        for (x, y), (x2, y2) in zip(alone, made(), strict=True):
            assert torch.equal(x, x2)
            assert torch.equal(y, y2)


def test_a_fit_that_goes_on_sees_what_it_would_have_seen(processes: list[int]) -> None:
    processes[0] = 2
    for (x, _), (x2, _) in zip(made(epochs=range(1, 2)), made()[3:], strict=True):
        assert torch.equal(x, x2)


def test_each_epoch_and_step_is_another(processes: list[int]) -> None:
    batches = [x for x, _ in made()]
    assert not any(torch.equal(x, y) for k, x in enumerate(batches) for y in batches[:k])


def test_processes_that_share_a_fit_share_each_batch(processes: list[int]) -> None:
    both = [made(Device(rank=rank, world=2), range(1)) for rank in range(2)]
    for step, chosen in enumerate(epoch_order(RECIPE, SAMPLES, 0)):
        for rank in range(2):
            assert both[rank][step][1].tolist() == TARGETS[chosen[rank::2]].tolist()


def test_who_leaves_early_leaves_no_process(processes: list[int]) -> None:
    processes[0] = 2
    batches = begun(Device(), range(1000))
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()  # type: ignore[attr-defined]


def test_a_small_shared_memory_is_not_overrun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(feeding, "_SHARED_MEMORY", tmp_path / "none")
    assert feeding._processes(Device(), 1) == 0
    monkeypatch.setattr(feeding, "_SHARED_MEMORY", tmp_path)
    free = shutil.disk_usage(tmp_path).free
    assert feeding._processes(Device(), free // 8) == 1
    assert feeding._processes(Device(), free) == 0
