"""Clocks that jump, under load: by an hour either way, to 1970, and at a start."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from tests.trouble.account import Account, seconds_to_ready
from tests.trouble.scene import NotHereError, scene

_LIBRARY = "faketime/libfaketimeMT.so.1"  # below /usr/lib/ARCHITECTURE
_EVERY_S = 15.0


def forward(folder: Path) -> Account:
    return _jumped(folder, "clock +1 h, twice", ["+0", "+3600", "+7200"])


def back(folder: Path) -> Account:
    return _jumped(folder, "clock -1 h, twice", ["+0", "-3600", "-7200"])


def to_1970(folder: Path) -> Account:
    """As after a flat battery: 1970 while studies come, and then right again."""
    since = f"-{int(time.time())}"
    return _jumped(folder, "clock in 1970, and right again", ["+0", since, "+0"])


def from_1970(folder: Path) -> Account:
    """The node starts in 1970, studies come, and then the time is set."""
    since = f"-{int(time.time())}"
    return _jumped(folder, "started in 1970", [since, "+0"])


def years_ahead(folder: Path) -> Account:
    return _jumped(folder, "clock thirty years ahead, and right again", ["+0", "+946080000", "+0"])


def daylight_saving(folder: Path) -> Account:
    """Local time goes back and forth; the clock does not."""
    os.environ["TZ"] = "Europe/Berlin"
    try:
        autumn = time.mktime((2026, 10, 25, 2, 59, 30, 0, 0, 1)) - time.time()
        return _jumped(folder, "end of daylight saving time", [f"{autumn:+.0f}"] * 3)
    finally:
        del os.environ["TZ"]


def _jumped(folder: Path, name: str, offsets: Sequence[str]) -> Account:
    """The clock of the node's processes is off by each of these, one after the other, and right for everybody else."""
    library = next(Path("/usr/lib").glob(f"*/{_LIBRARY}"), None)
    if library is None:
        raise NotHereError("it wants libfaketime (apt-get install faketime)")
    said = folder / "offset"
    said.write_text(offsets[0])
    fake = {
        "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(said), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    with scene(folder, started=False) as play:
        os.environ.update(fake)
        try:
            play.node.start(ready=False)
        finally:
            for key in fake:
                del os.environ[key]
        seconds_to_ready(play.node)
        with play.load.going_on():
            for offset in offsets:
                said.write_text(offset)
                time.sleep(_EVERY_S)
        return play.judged(name)


SCENES = (forward, back, to_1970, from_1970, years_ahead, daylight_saving)
