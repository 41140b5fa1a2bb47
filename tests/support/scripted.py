"""The analyse stage over the real store, with workers and an engine whose tasks end in the order that a script says.

`orders` runs a case once for every order there is: at each point where the stage waits, every open task is tried as the
one that ends next (depth first, each run replays the choices of the one before up to where they part).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxrnode import analyse
from cxrnode.analyse import AnalyseOptions, Analyser
from cxrnode.in_hand import Arrivals
from cxrnode.inference import Said
from cxrnode.pool import Task
from cxrnode.report.context import ReportContext
from cxrnode.store.database import Database
from cxrnode.store.outbox import Outbox
from cxrnode.store.queue import Queue
from cxrnode.store.studies import Studies
from cxrnode.types import FloatArray, Kind, PreparedImage, Report, ResultObject, StoredImage, Study
from cxrnode.workers import Decoded, Output
from engines.bundle import load_bundle
from tests.support.store import prediction

BUNDLE = load_bundle("default")


@dataclass(slots=True)
class Script:
    """Choices to replay, and from there on always the first; `rooms` remembers how many there were to choose from."""

    choices: list[int] = field(default_factory=list)
    rooms: list[int] = field(default_factory=list)

    def choose(self, room: int) -> int:
        at = len(self.rooms)
        self.rooms.append(room)
        if at == len(self.choices):
            self.choices.append(0)
        return self.choices[at]

    def following(self) -> Script | None:
        """The script of the next run; None after the last."""
        for at in reversed(range(len(self.rooms))):
            if self.choices[at] + 1 < self.rooms[at]:
                return Script([*self.choices[:at], self.choices[at] + 1])
        return None


class RandomScript(Script):
    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance

    def choose(self, room: int) -> int:
        return self._chance.randrange(room)


def orders(case: Callable[[Script], None], *, most: int) -> int:
    """Run `case` for every order, at most `most` times; how often it ran."""
    script: Script | None = Script()
    for n in range(most):
        if script is None:
            return n
        case(script)
        script = script.following()
    return most


@dataclass(slots=True)
class World:
    """Pool, engine and clockwork in one: it holds what the stage handed out, and ends it by the script."""

    script: Script
    does: dict[str, Callable[..., Any]] = field(default_factory=dict)  # by the name of what a worker would run
    between: Callable[[], None] = lambda: None  # called whenever the stage waits
    open: list[tuple[Callable[[], Any], Future[Any]]] = field(default_factory=list)

    # -- as a Pool

    def submit(self, call: Callable[..., Any], *args: Any, first: bool = False, cpu_s: float = 1.0) -> Task[Any]:
        task: Task[Any] = Task(future=Future(), call=(call, args), first=first, cpu_s=cpu_s)
        does = self.does.get(call.__name__, DOES[call.__name__])
        self.open.append((partial(does, *args), task.future))
        return task

    def result(self, task: Task[Any]) -> Any:
        return task.future.result()

    def hurry(self, yes: bool) -> None:
        pass

    # -- as the clockwork

    def end_one(self) -> None:
        """Or several: what ends while another one's end is being told is the case that once lost images."""
        for _ in range(1 + self.script.choose(2)):
            if not self.open:
                return
            call, future = self.open.pop(self.script.choose(len(self.open)))
            try:
                answer = call()
            except Exception as e:  # noqa: BLE001 (as an executor does)
                future.set_exception(e)
            else:
                future.set_result(answer)


@dataclass(slots=True)
class Engine:
    """In Inference's place."""

    world: World

    def submit(self, images: Sequence[FloatArray]) -> Future[list[Said]]:
        answers: Future[list[Said]] = Future()
        infer = self.world.does.get("infer", said)
        self.world.open.append((partial(infer, images), answers))
        return answers

    def within(self, seconds: float) -> float:
        return float("inf")


class ScriptedArrivals(Arrivals):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def take(self, *, wait_s: float, together_s: float) -> None:
        self._world.between()
        self._world.end_one()
        super().take(wait_s=0.0, together_s=0.0)


def decoded(location: dict[str, Any], _shape: Any, _kept_header: bytes = b"") -> Decoded:
    pixels = np.full((2, 2), 0.5, np.float32)
    name = location["container"]
    image = PreparedImage(
        pixels=pixels, preview=np.zeros((2, 2), np.uint8), rows=2, columns=2, photometric_interpretation="MONOCHROME2"
    )
    return Decoded(pixel_digest=f"{abs(hash(name)):064x}"[:64], image=image)


def said(images: Sequence[FloatArray]) -> list[Said]:
    return [Said(prediction=prediction(), cam=np.ones((2, 2), np.float32)) for _ in images]


def capture(_output: Output, _context: ReportContext, image: StoredImage, *_: Any) -> ResultObject:
    return _object(Kind.CAPTURE, f"2.25.{int(image.pixel_digest, 16)}", "1.2.826.0.001")


def report(_output: Output, _context: ReportContext, study: Study) -> tuple[Report, ...]:
    sr = _object(Kind.SR, f"{study.study_instance_uid}.77", study.study_instance_uid)
    return (Report(images=tuple(range(len(study.images))), sr=sr),)


def _object(kind: Kind, uid: str, study: str) -> ResultObject:
    return ResultObject(
        kind=kind, sop_class_uid="1.2.3", sop_instance_uid=uid[:64], study_instance_uid=study,
        series_instance_uid=f"{study}.9", path=Path("dicom") / f"{uid}.dcm", sha256="c" * 64,
    )  # fmt: skip


# what a worker would run, by its name
DOES: dict[str, Callable[..., Any]] = {"decode": decoded, "make_capture": capture, "make_sr": report}


@dataclass(slots=True)
class Told:
    """What the stage told its caller."""

    done: int = 0
    reported: list[str] = field(default_factory=list)

    def on_done(self, n: int) -> None:
        self.done += n

    def on_reported(self, uids: Sequence[str]) -> None:
        self.reported += uids


def analyser(database: Database, world: World, told: Told, **options: Any) -> Analyser:
    return Analyser(
        database=database, queue=Queue("test"), studies=Studies("test"), outbox=Outbox("test"),
        pool=world, inference=Engine(world), output=Output(root=Path()),  # type: ignore[arg-type]
        context=ReportContext(bundle=BUNDLE, analysed_at=datetime(2026, 1, 1, tzinfo=UTC), software_version="0"),
        options=AnalyseOptions(**{"batch_size": 2, "window": 8, **options}), on_done=told.on_done,
        on_reported=told.on_reported, _arrivals=ScriptedArrivals(world),
    )  # fmt: skip


@pytest.fixture
def each_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat, and with it the look at what is in hand, in every round."""
    monkeypatch.setattr(analyse, "_BEAT_S", -1.0)
