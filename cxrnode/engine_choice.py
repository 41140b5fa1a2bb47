"""The engine of this start, and what goes on record of it.

Another process cannot be asked whether the driver took it down, but a start that was never ended by its own code speaks
for itself: after two such starts with the GPU the CPU does the work, so that a GPU that kills the process again and
again does not use up the attempts of the images that were in hand.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from cxrnode.inference import Inference, inference
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.queue import ENGINE, FALLBACK, GPU_STARTS, Queue
from engines.base import EngineError
from engines.bundle import Bundle
from engines.load import make_engine, may_use_gpu
from engines.shadow import Shadowed

_DEATHS = 2  # in a row, fewer than make an image suspect
_ROW_S = 3600.0  # starts that lie further apart are none: a power cut now and then is not the GPU's doing

log = logging.getLogger(__name__)


@contextmanager
def chosen_engine(kind: str, bundle: Bundle, *, threads: int, database: Database, actor: str) -> Iterator[Inference]:
    """Bring that engine up while the caller does other things, and let it go in the end; see make_engine.

    What the CPU has to take over, and what shadowing a new plan found, go into the log and the ledger. Raises
    EngineError where a GPU that took this process down is asked for and nothing else.
    """
    record = _Record(bundle=bundle, database=database, actor=actor, queue=Queue(actor))
    crashed = record.begin(gpu=may_use_gpu(kind))
    if crashed and kind == "tensorrt":
        refusal = EngineError(f'{crashed}; mend it and start the node again, or let engine = "auto" use the CPU')
        record.failed(kind, refusal)
        raise refusal
    engine = make_engine(
        "cpu" if crashed else kind, bundle, threads=threads,
        on_fallback=lambda reason: record.fell_back(engine.name, reason), on_shadowed=record.shadowed,
    )  # fmt: skip
    try:
        with inference(engine) as active:
            if crashed:
                record.tell_fallback(active.wait(), f"{crashed}; stop it and start it again to try once more")
            yield active
    except EngineError as e:
        record.failed(kind, e)
        raise
    finally:
        record.forget_starts()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    bundle: Bundle
    database: Database
    actor: str
    queue: Queue

    def begin(self, *, gpu: bool) -> str:
        """Note this start, if it is one with the GPU; why the GPU is to be left alone, or ""."""
        with self.database.begin() as c:
            self.queue.set_setting(c, FALLBACK, None)
            if not gpu:
                return ""
            found = self.queue.get_setting(c, GPU_STARTS) or {"starts": 0, "at": 0.0}
            starts, now = int(found["starts"]), time.time()
            if starts >= _DEATHS:
                return (
                    f"the last {starts} starts with the GPU of {socket.gethostname()} ended without a stop, as when "
                    "its driver takes the process down (see dmesg for Xid)"
                )
            in_a_row = abs(now - found["at"]) < _ROW_S
            self.queue.set_setting(c, GPU_STARTS, {"starts": starts + 1 if in_a_row else 1, "at": now})
        return ""

    def forget_starts(self) -> None:
        with self.database.begin() as c:
            self.queue.set_setting(c, GPU_STARTS, None)

    def fell_back(self, engine: str, reason: str) -> None:
        """From here on the process's end says nothing of the GPU."""
        self.tell_fallback(engine, reason)
        self.forget_starts()

    def tell_fallback(self, engine: str, reason: str) -> None:
        log.warning("the CPU does the GPU's work: %s", reason)
        with self.database.begin() as c:
            self.queue.set_setting(c, FALLBACK, reason)
            self.queue.set_setting(c, ENGINE, self.named(engine))
            ledger.append(
                c, "engine_fallback", actor=self.actor, reason=reason, bundle=self.bundle.digest, engine=engine
            )

    def failed(self, engine: str, error: EngineError) -> None:
        """It did not come up, or nothing is left that works."""
        with self.database.begin() as c:
            ledger.append(
                c, "engine_failed", actor=self.actor, engine=engine, reason=str(error), bundle=self.bundle.digest
            )

    def shadowed(self, found: Shadowed) -> None:
        fault = {"fault": found.fault} if found.fault else {}
        with self.database.begin() as c:
            ledger.append(
                c, "engine_shadowed", actor=self.actor, engine=found.engine, bundle=self.bundle.digest,
                images=found.images, **asdict(found.difference), tolerance=found.tolerance.model_dump(), **fault,
            )  # fmt: skip

    def named(self, engine: str) -> dict[str, str]:
        return {"engine": engine, "bundle": self.bundle.name, "digest": self.bundle.digest}
