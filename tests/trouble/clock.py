"""Clocks that jump, under load: by an hour either way, to 1970, and at a start."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.shifted_clock import ShiftedClock
from tests.trouble.account import Account, seconds_to_ready
from tests.trouble.scene import scene

_EVERY_S = 15.0


def forward(folder: Path) -> Account:
    return _jumped(folder, "clock +1 h, twice", [0, 3600, 7200])


def back(folder: Path) -> Account:
    return _jumped(folder, "clock -1 h, twice", [0, -3600, -7200])


def to_1970(folder: Path) -> Account:
    """As after a flat battery: 1970 while studies come, and then right again."""
    return _jumped(folder, "clock in 1970, and right again", [0, -time.time(), 0])


def from_1970(folder: Path) -> Account:
    """The node starts in 1970, studies come, and then the time is set."""
    return _jumped(folder, "started in 1970", [-time.time(), 0])


def years_ahead(folder: Path) -> Account:
    return _jumped(folder, "clock thirty years ahead, and right again", [0, 946_080_000, 0])


def daylight_saving(folder: Path) -> Account:
    """Local time goes back and forth; the clock does not."""
    os.environ["TZ"] = "Europe/Berlin"
    try:
        autumn = time.mktime((2026, 10, 25, 2, 59, 30, 0, 0, 1)) - time.time()
        return _jumped(folder, "end of daylight saving time", [autumn] * 3)
    finally:
        del os.environ["TZ"]


def _jumped(folder: Path, name: str, offsets: Sequence[float]) -> Account:
    """The clock of the node's processes is off by each of these, one after the other, and right for everybody else."""
    with scene(folder, started=False) as play, pytest.MonkeyPatch.context() as environment:
        clock = ShiftedClock(folder)
        clock.off(offsets[0])
        clock.put_on(environment)
        play.node.start(ready=False)
        environment.undo()
        seconds_to_ready(play.node)
        with play.load.going_on():
            for offset in offsets:
                clock.off(offset)
                time.sleep(_EVERY_S)
        return play.judged(name)


SCENES = (forward, back, to_1970, from_1970, years_ahead, daylight_saving)
