"""The stage on which all troubles play: a node under load, and a PACS that takes its results and commits to them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.faulty_pacs import AET, FaultyPacs, faulty_pacs
from tests.support.node import Node
from tests.support.postgres import Postgres, running_postgres
from tests.trouble.account import Account, account, seconds_to_ready, settle
from tests.trouble.load import Load

_BEFORE_S = _AFTER_S = 5.0


@dataclass(kw_only=True)
class Scene:
    node: Node
    load: Load
    pacs: FaultyPacs

    def through(self, name: str, trouble: AbstractContextManager[object], seconds: float) -> Account:
        """Load before the trouble, while it lasts and after it; and what came of it."""
        with self.load.going_on():
            time.sleep(_BEFORE_S)
            with trouble:
                time.sleep(seconds)
            time.sleep(_AFTER_S)
        return self.judged(name)

    def judged(self, name: str) -> Account:
        """The trouble is over and the load has ended: wait until the node is ready and done, and judge."""
        ready_s = seconds_to_ready(self.node)
        return account(name, self.node, self.load, ready_s=ready_s, settled=settle(self.node))


@contextmanager
def scene(
    folder: Path, *, database: str = "sqlite", destinations: Sequence[tuple[str, str, int]] = (), extra: str = "",
    watermark_mb: int = 1, started: bool = True,
) -> Iterator[Scene]:  # fmt: skip
    """destinations: (name, AE title, port) beside the PACS."""
    with faulty_pacs(commitment="same") as pacs:
        pacs.keeps = False
        node = Node(
            folder=folder / "node", destinations=[("pacs", AET, pacs.port), *destinations], database=database,
            extra=extra, watermark_mb=watermark_mb,
        )  # fmt: skip
        try:
            if started:
                node.start(ready=False)
                seconds_to_ready(node)  # whatever else this machine does
            yield Scene(node=node, load=Load(node=node, folder=folder / "films"), pacs=pacs)
        finally:
            node.kill()


@contextmanager
def on_postgresql(folder: Path, *, tablespace: Path | None = None) -> Iterator[tuple[Scene, Postgres]]:
    """tablespace: where the database lies; its owner is the server's."""
    with running_postgres() as server, ExitStack() as stack:
        url = server.new_database(tablespace=tablespace)
        yield stack.enter_context(scene(folder, database=url)), server
