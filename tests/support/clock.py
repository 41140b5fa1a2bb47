"""A machine whose clocks are moved by hand, and a node's days without living through them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from cxrnode.clock import Clock
from cxrnode.retention import Retention
from cxrnode.store.database import Database
from cxrnode.store.queue import Queue

DAY_S = 86_400.0


@dataclass(slots=True, kw_only=True)
class Machine:
    """at: what its clock says; up: seconds since its boot."""

    at: float = field(default_factory=time.time)
    up: float = 1000.0
    boot: str = "first boot"

    def clock(self, host: str = "here") -> Clock:
        """A process's that starts now."""
        return Clock(wall=lambda: self.at, uptime=lambda: self.up, boot=self.boot, host=host)

    def live(self, seconds: float) -> None:
        self.at += seconds
        self.up += seconds

    def reboot(self, off_s: float = 60.0) -> None:
        self.at += off_s
        self.up, self.boot = 10.0, f"after {self.boot}"


def work(database: Database, days: float) -> None:
    """As if the node had worked for so many days."""
    with database.begin() as c:
        kept = Queue("test").get_setting(c, "clock")
        Queue("test").set_setting(c, "clock", kept | {"elapsed": kept["elapsed"] + days * DAY_S})


def swept(retention: Retention, days: float = 8) -> int:
    """How many files go in a pass, or in one after so many days of work."""
    deleted = retention.sweep()
    work(retention.database, days)
    return deleted + retention.sweep()
