"""What this machine's clock says, and whether it is believed.

A clock is wrong at the start of a machine without a battery (1970), steps by hours when somebody or NTP sets it, and
jumps by years. Nothing here mends it. It is held against three things:

- the time that passed since it was last believed, by the kernel's clock that nobody sets (CLOCK_BOOTTIME); kept in the
  store, so that a restart on the same boot of the machine does not forget it,
- the last time at which it was believed, and the newest record of the ledger: neither lies in the future,
- this software's release: no time is before it.

A clock that is off is believed again as soon as it is where it should be, or when it has gone evenly for a day: then it
is the world that differs (a machine that was switched off for months, a clock that had been wrong and was set right).

`elapsed` counts the seconds that this store was worked on: of what two clocks say, the smaller, and of one step no more
than two hours, so that no jump of the clock adds days to it. Time in which nothing of cxrnode runs is not counted.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from sqlalchemy import Connection, select

from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.queue import Queue
from cxrnode.store.schema import ledger as ledger_table

RELEASED = datetime(2026, 11, 21, tzinfo=UTC).timestamp()  # of this version; to be moved with each
JUMP_S = 5.0  # against the kernel's other clock; NTP mends less than this by going faster or slower
BEHIND_S = 300.0  # several machines write to one store, and none of their clocks is exact
AWAY_S = 30 * 86_400.0  # between two looks: hardly any node stands still for longer
SETTLED_S = 86_400.0
_STEP_S = 7200.0  # that one look may add to `elapsed`
_WRITE_S = 60.0
_SETTING = "clock"
_MOST_HOSTS = 16  # a container may have another name at each start
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MEND = "set this machine's clock by NTP (timedatectl)"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """offset_s: how far the clock is ahead of the time, negative: behind; why: empty where it is believed."""

    elapsed: float  # seconds, see above
    offset_s: float = 0.0
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Host:
    """One machine. line: wall time at uptime 0 when its clock was believed last; it moves when the clock jumps."""

    boot: str = ""
    line: float = 0.0
    doubted: float | None = None  # `elapsed` since which its clock is not believed


@dataclass(slots=True, kw_only=True)
class _Kept:
    """What the store holds of the clock. Wall times are seconds since 1970."""

    believed: float  # the last wall time that was, on any host
    seen: float  # at the newest look, believed or not
    elapsed: float = 0.0
    hosts: dict[str, _Host] = field(default_factory=dict)  # the newest last

    @classmethod
    def read(cls, c: Connection) -> _Kept | None:
        if not (found := Queue("clock").get_setting(c, _SETTING)):
            return None
        return cls(**{**found, "hosts": {name: _Host(**host) for name, host in found["hosts"].items()}})

    def write(self, c: Connection, name: str, host: _Host) -> None:
        """With what is now known of a host."""
        self.hosts = dict([*((k, v) for k, v in self.hosts.items() if k != name), (name, host)][-_MOST_HOSTS:])
        Queue("clock").set_setting(c, _SETTING, asdict(self))


def uptime() -> float:
    """Seconds since this machine's boot, also those that it slept: nobody sets this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Of this boot of this machine; empty where the kernel does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


@dataclass(slots=True, kw_only=True)
class Clock:
    """One for a process; any of its threads may look."""

    wall: Callable[[], float] = time.time
    uptime: Callable[[], float] = uptime
    boot: str = field(default_factory=boot_id)
    host: str = field(default_factory=socket.gethostname)
    _line: float | None = None  # as of this process's newest look
    _counted: float | None = None  # uptime up to which `elapsed` has this process's time
    _lock: Lock = field(default_factory=Lock)

    def look(self, database: Database) -> Verdict:
        """What is to be held of the clock now. Raises what the database raises."""
        with self._lock:
            with database.read() as c:
                kept, newest = _Kept.read(c), _newest(c)
            now, up = self.wall(), self.uptime()
            jumped = self._line is not None and abs(now - up - self._line) > JUMP_S
            self._line = now - up
            offset, why = self._offset(kept, now, up) if kept else (0.0, "")
            known = kept is not None and bool(why) == (self._mine(kept).doubted is not None)
            if jumped or not known or self._counted is None or up - self._counted >= _WRITE_S:
                with database.begin() as c:
                    kept, offset, why = self._note(c, now, up, jumped=jumped)
            assert kept is not None  # noqa: S101 (what is not known was noted)
            if not why and newest - now > BEHIND_S:
                offset, why = now - newest, f"{_long(newest - now)} before the newest record of the ledger"
            said = f"the clock says {_iso(now)}, {why}: {_MEND}" if why else ""
            return Verdict(elapsed=kept.elapsed, offset_s=offset, why=said)

    def _mine(self, kept: _Kept) -> _Host:
        return kept.hosts.get(self.host, _Host())

    def _offset(self, kept: _Kept, now: float, up: float) -> tuple[float, str]:
        """How far the clock is off, and that in words; 0 and nothing where it is believed."""
        mine = self._mine(kept)
        if now < RELEASED:
            return now - RELEASED, f"{_long(RELEASED - now)} before this version of cxrnode was made"
        same_boot = bool(mine.boot) and mine.boot == self.boot
        jump = now - up - mine.line if same_boot else 0.0
        if abs(jump) > JUMP_S:
            return jump, f"{_long(abs(jump))} {'ahead of' if jump > 0 else 'behind'} the time that really passed"
        since = now - kept.believed
        if since < -BEHIND_S:
            return since, f"{_long(-since)} before a time at which it was believed"
        if since > AWAY_S and not same_boot:  # nobody knows how long it was off
            return since, f"{_long(since)} after it was last believed"
        return 0.0, ""

    def _note(self, c: Connection, now: float, up: float, *, jumped: bool) -> tuple[_Kept, float, str]:
        """Write down how time went on, and what came of the clock; a change goes on record."""
        kept = _Kept.read(c) or _Kept(believed=_newest(c) or max(now, RELEASED), seen=now)
        passed = now - kept.seen if self._counted is None else min(now - kept.seen, up - self._counted)
        kept.elapsed += min(max(passed, 0.0), _STEP_S)
        kept.seen, self._counted = now, up
        mine = self._mine(kept)
        offset, why = self._offset(kept, now, up)
        since = kept.elapsed if jumped or mine.doubted is None else mine.doubted
        if why and now >= RELEASED and kept.elapsed - since >= SETTLED_S:  # it went evenly for so long
            offset, why = 0.0, ""
        if not why:
            kept.believed = now
        kept.write(
            c, self.host, replace(mine, doubted=since) if why else _Host(boot=self.boot, line=now - up)
        )  # fmt: skip
        if bool(why) != (mine.doubted is not None):
            self._record(c, offset, why)
        return kept, offset, why

    def _record(self, c: Connection, offset: float, why: str) -> None:
        if why:
            ledger.append(c, "clock_doubted", actor="node", host=self.host, offset_s=round(offset, 1), why=why)
            log.error("the clock is %s: nothing is deleted meanwhile; %s", why, _MEND)
        else:
            ledger.append(c, "clock_believed", actor="node", host=self.host)
            log.warning("the clock is believed again")


def _newest(c: Connection) -> float:
    """The time of the ledger's newest record, seconds since 1970; 0 where there is none."""
    at = c.execute(select(ledger_table.c.at).order_by(ledger_table.c.seq.desc()).limit(1)).scalar()
    return datetime.fromisoformat(at).timestamp() if at else 0.0


def _iso(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")


def _long(seconds: float) -> str:
    """In words, roughly."""
    for unit, length in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
