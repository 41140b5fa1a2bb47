"""The stage on which all troubles play: a node under load, and a PACS that takes its results and commits to them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.faulty_pacs import AET, FaultyPacs, faulty_pacs
from tests.support.node import Node
from tests.support.postgres import Postgres, running_postgres
from tests.trouble.account import Account, account, seconds_to_ready, settle
from tests.trouble.load import Load


class NotHereError(Exception):
    """This trouble cannot be made on this machine; the text says what it wants."""


@dataclass(kw_only=True)
class Scene:
    node: Node
    load: Load
    pacs: FaultyPacs

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


@contextmanager
def small_disk(at: Path, options: str) -> Iterator[None]:
    """A file system of its own, of tmpfs."""
    if os.geteuid():
        raise NotHereError("a file system of its own wants root")
    at.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(at)]
    if (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
        raise NotHereError(f"cannot mount a small file system: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=False)
