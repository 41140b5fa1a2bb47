"""What the node says of itself over HTTP: whether it is ready, and its counts. No patient data."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sqlalchemy import text

from cxrnode.config import Config
from cxrnode.health import Measure
from cxrnode.store.database import Database
from cxrnode.store.overview import totals
from cxrnode.store.queue import ENGINE, FALLBACK, Queue
from cxrnode.supervisor import Supervisor

_CONNECT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    config: Config
    database: Database
    supervisor: Supervisor

    @property
    def checks(self) -> dict[str, Callable[[], str | None]]:
        """Name -> a call that gives None where all is well, else the reason."""
        checks = {"stages": self._stages, "database": self._database, "disk": self._disk}
        if "intake" in self.supervisor.stages:
            checks["listener"] = self._listener
        if "analyse" in self.supervisor.stages:
            checks["engine"] = self._engine
        return checks

    def measures(self) -> Iterator[Measure]:
        with self.database.begin(shared=True) as c:
            found = totals(c)
            fallback = Queue("monitor").get_setting(c, FALLBACK)
        jobs = [({"state": k[1]}, float(n)) for k, n in found.items() if k[0] == "job"]
        yield Measure("cxrnode_images", "Images by state", "gauge", jobs)
        deliveries = [({"destination": k[1], "state": k[2]}, float(n)) for k, n in found.items() if k[0] == "delivery"]
        yield Measure("cxrnode_deliveries", "Results by destination and state", "gauge", deliveries)
        yield Measure("cxrnode_engine_fallback", "The CPU does the GPU's work", "gauge", [({}, float(bool(fallback)))])
        deaths = [({"stage": stage}, float(n)) for stage, n in self.supervisor.deaths.items()]
        yield Measure("cxrnode_stage_deaths_total", "How often a stage ended by itself", "counter", deaths)
        quarantined = sum(1 for _ in (self.config.node.data_dir / "quarantine").glob("*.dcm"))
        yield Measure("cxrnode_quarantined", "Results that failed the node's own checks", "gauge", [({}, quarantined)])
        free = shutil.disk_usage(self.config.node.data_dir).free
        yield Measure("cxrnode_disk_free_bytes", "Free space of the data folder", "gauge", [({}, float(free))])

    def _stages(self) -> str | None:
        down = self.supervisor.down
        return f"not running, or just started again: {', '.join(down)} (the log says why)" if down else None

    def _database(self) -> str | None:
        with self.database.begin(shared=True) as c:
            c.execute(text("SELECT 1"))
        return None

    def _disk(self) -> str | None:
        free = shutil.disk_usage(self.config.node.data_dir).free // 2**20
        wanted = self.config.receive.disk_watermark_mb
        return f"{free} MB free, below receive.disk_watermark_mb = {wanted}" if free < wanted else None

    def _listener(self) -> str | None:
        node = self.config.node
        try:
            socket.create_connection((reachable(node.bind), node.port), timeout=_CONNECT_S).close()
        except OSError as e:
            return f"nothing listens on {node.bind}:{node.port}: {e.strerror}"
        return None

    def _engine(self) -> str | None:
        with self.database.begin(shared=True) as c:
            verified = Queue("monitor").get_setting(c, ENGINE)
        return None if verified else "the engine has not passed its golden check yet"


def reachable(bind: str) -> str:
    """Where this machine reaches a listener: one bound to every address is reached over the loopback."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)  # noqa: S104 (compared, not bound)
