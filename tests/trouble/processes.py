"""The node itself: its power is cut, one of two analysers stands still, and two hours of load."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from tests.support.node import Node
from tests.trouble.account import Account
from tests.trouble.scene import on_postgresql, scene

_CUTS = 5
_FROZEN_S = 100.0  # longer than a lease
_GROWTH_MB = 60.0  # of a process between the middle of the soak and its end
SOAK_S = float(os.environ.get("CXRNODE_SOAK_S", "7200"))


def power_cut(folder: Path) -> Account:
    """Every process at once, five times under load."""
    with scene(folder) as play:
        with play.load.going_on():
            for _ in range(_CUTS):
                time.sleep(8.0)
                play.node.kill()
                play.node.start(ready=False)
        return play.judged(f"power cut {_CUTS} times")


def frozen_analyser(folder: Path) -> Account:
    """Two analysers work on one store; one stands still for longer than its leases, and then goes on."""
    with on_postgresql(folder) as (play, _):
        second = play.node.start_alone("analyse")
        try:
            with play.load.going_on():
                time.sleep(20.0)
                first = play.node.stages()["analyse"]
                family = [first, *first.children(recursive=True)]
                for process in family:
                    process.suspend()
                time.sleep(_FROZEN_S)
                for process in family:
                    process.resume()
                time.sleep(10.0)
            return play.judged("two analysers, one frozen")
        finally:
            second.terminate()
            second.wait(timeout=60)


def soak(folder: Path) -> Account:
    """Steady load; the memory of every process at the start, in the middle and at the end."""
    with scene(folder) as play:
        play.load.pause_s = 0.5
        sizes = []
        with play.load.going_on():
            time.sleep(min(60.0, SOAK_S / 10))
            sizes.append(_memory(play.node))
            for _ in range(2):
                time.sleep(SOAK_S / 2)
                sizes.append(_memory(play.node))
        found = play.judged(f"soak of {SOAK_S / 60:.0f} minutes")
        print("MB (proportional set size) at start, middle, end:")
        for name in sizes[0]:
            start, middle, end = (size.get(name, 0.0) for size in sizes)
            print(f"  {name}: {start:.0f}, {middle:.0f}, {end:.0f}")
            if end - middle > _GROWTH_MB:
                found.wrong.append(f"{name} grows: {middle:.0f} to {end:.0f} MB")
        return found


def _memory(node: Node) -> dict[str, float]:
    assert node.process
    family = {"node": psutil.Process(node.process.pid)}
    for stage, process in node.stages().items():
        family[stage] = process
        family |= {f"{stage} {n}": child for n, child in enumerate(process.children(recursive=True), 1)}
    return {name: process.memory_full_info().pss / 1e6 for name, process in family.items()}


SCENES = (power_cut, frozen_analyser, soak)
