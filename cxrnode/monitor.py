"""What the node says of itself over HTTP: whether it is ready, and its figures. No patient data.

What is a state (what waits, and for how long) is asked of the database; what is a history (outcomes, deliveries) is
counted from the ledger, and the rest the stages count (see `metrics`). None of it costs more with all that was ever
done.
"""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from threading import Lock
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from cxrnode import __version__, metrics, set_aside
from cxrnode.audit.anchors import unanchored_since
from cxrnode.audit.forward import unconfirmed_since
from cxrnode.checks import Asked
from cxrnode.clock import Clock
from cxrnode.config import EXPIRY_NOTICE, Config, TlsTable
from cxrnode.errors import ConfigError, DataDirAwayError, StorageFullError, StoreError
from cxrnode.metrics import ThreadState
from cxrnode.store.data_dir import DataDir
from cxrnode.store.database import Database
from cxrnode.store.overview import (
    Tally,
    failing_deliveries,
    oldest_undelivered,
    oldest_waiting,
    open_deliveries,
    open_jobs,
    uncommitted,
)
from cxrnode.store.queue import ENGINE, FALLBACK, ROUTINE, STAT, Queue
from cxrnode.supervisor import Alone, Supervisor
from cxrnode.types import NOTES, Outcome, Reason
from cxrnode.words import counted
from cxrnode.writable import failing, prove_file

_CONNECT_S = 2.0
_UNANSWERED_S = 10.0  # that a stored instance may wait: senders give up after some tens of seconds
_ANCHOR_LATE_H = 1.0
_RESTART_S = 600.0  # that a thread has hung, beyond what its longest step may take, before its stage is started again
_UNCOMMITTED_H = 6.0  # most archives commit within minutes; retention keeps what waits
_PROOF = "proof"  # setting: written to see whether it can be
_PRIORITIES = {STAT: "stat", ROUTINE: "routine"}
_OUTCOMES = [(Outcome.ANALYSED.value, "")] + [
    ((Outcome.ANALYSED if reason in NOTES else reason.outcome).value, reason.value) for reason in Reason
]
_BECAME = ("delivered", "postponed", "refused", "committed", "not_committed")


@dataclass(slots=True, kw_only=True)
class Monitor:
    """measured: where the stages count, see `metrics.shared_folder`."""

    config: Config
    database: Database
    supervisor: Supervisor | Alone
    measured: Path | None = None
    data_dir: DataDir | None = None
    clock: Clock = field(default_factory=Clock)
    tls_tables: Mapping[str, TlsTable] = field(init=False)  # as they were read last
    asked: Asked = field(init=False)  # `checks` and `warnings`, in time whatever hangs
    _tally: Tally = field(init=False)  # since the node's start
    _one_counts: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.tls_tables = self.config.tls_tables
        self.asked = Asked({"reasons": self.checks, "warnings": self.warnings})
        with self.database.read() as c:
            self._tally = Tally.begin(c)

    @property
    def checks(self) -> dict[str, Callable[[], str | None]]:
        """Name -> a call that gives None where all is well, else the reason why the node cannot do its work."""
        checks = {"stages": self._stages, "threads": self._threads, "writes": self._writes}
        if "intake" in self.supervisor.stages:
            checks |= {"listener": self._listener, "answers": self._answers}
        checks |= {"disk": self._disk, "database": self._database}  # what may hang comes last: the others are told
        if "analyse" in self.supervisor.stages:
            checks["engine"] = self._engine
        return checks

    @property
    def warnings(self) -> dict[str, Callable[[], str | None]]:
        """The same, of what an operator should look at while the node goes on taking studies.

        A destination is not a condition for readiness: what is for it waits, and the others get theirs.
        """
        found: dict[str, Callable[[], str | None]] = {"fallback": self._fallback, "threads": self._failing_threads}
        if self.config.tls_tables:
            found["certificates"] = self._certificates
        found["clock"] = self._clock
        if self.config.audit.anchor_file:
            found["anchor"] = self._anchor
        if "intake" in self.supervisor.stages:
            found["set aside"] = self._set_aside
        for entry in self.config.destination:
            found[f"destination {entry.name}"] = lambda name=entry.name: self._destination(name)  # type: ignore[misc]
        for name in self._committing:
            found[f"commitment {name}"] = lambda name=name: self._uncommitted(name)  # type: ignore[misc]
        return found

    def metrics(self) -> Iterator[Metric]:
        yield _gauge("cxrnode_build_info", "Which cxrnode this is", {(__version__,): 1}, "version")
        wrong = self.asked()["reasons"]
        yield from self._machine_metrics(wrong)
        if self.measured:
            yield from metrics.collect(self.measured)
            now = time.monotonic()
            silent = {(t.stage, t.name): max(0.0, now - t.beat) for t in self._living()}
            since = metrics.not_written_since(self.measured)
            ages = {key: now - at if at else 0.0 for key, at in since.items()}
            yield _gauge(
                "cxrnode_not_written_seconds", "Since a stage could not write files or rows; 0 while it can", ages,
                "stage", "what",
            )  # fmt: skip
            yield _gauge(
                "cxrnode_thread_silent_seconds", "Since a thread's last sign of life", silent, "stage", "thread"
            )  # fmt: skip
            whole = metrics.unanswered_since(self.measured)
            yield _gauge(
                "cxrnode_receive_unanswered_seconds", "Since the oldest instance that waits for its answer was there",
                {(): now - whole if whole else 0},
            )  # fmt: skip
        if "database" not in wrong:  # it might hang
            with suppress(StoreError, StorageFullError):  # the next cxrnode_check_ok says so
                yield from self._queue_metrics()
                yield from self._history_metrics()

    def _queue_metrics(self) -> Iterator[Metric]:
        names = [entry.name for entry in self.config.destination]
        with self.database.read() as c:
            jobs, deliveries, oldest = open_jobs(c), open_deliveries(c, names), oldest_waiting(c)
            late, failing, queued = (
                uncommitted(c, self._committing), failing_deliveries(c, names), oldest_undelivered(c, names),
            )  # fmt: skip
            engine, fallback = (Queue("monitor").get_setting(c, key) for key in (ENGINE, FALLBACK))
        clock = self.clock.look(self.database)
        yield _gauge("cxrnode_clock_doubted", "1 while this machine's clock is not believed", {(): bool(clock.why)})
        yield _gauge("cxrnode_clock_offset_seconds", "How far the clock is ahead of the time", {(): clock.offset_s})
        states = {(state,): n for state, n in jobs.items()}
        yield _gauge("cxrnode_images", "Images that are not reported yet, by state (up to 10000)", states, "state")
        now = time.time()
        ages = {(name,): max(0.0, now - oldest.get(p, now)) for p, name in _PRIORITIES.items()}
        yield _gauge("cxrnode_queue_age_seconds", "Since the oldest image that waits came", ages, "priority")
        yield _gauge(
            "cxrnode_undelivered", "Results that wait to be sent, or were refused (up to 10000)", deliveries,
            "destination", "state",
        )  # fmt: skip
        ages = {(name,): max(0.0, now - queued.get(name, now)) for name in names}
        yield _gauge(
            "cxrnode_undelivered_age_seconds", "Since the oldest result was queued that was not tried yet", ages,
            "destination",
        )  # fmt: skip
        yield _gauge(
            "cxrnode_undelivered_failing", "Results that were tried many times in vain, and are again (up to 10000)",
            {(name,): n for name, n in failing.items()}, "destination",
        )  # fmt: skip
        numbers = {(name,): late.get(name, (0, 0.0))[0] for name in names}  # 0 of who is never asked
        yield _gauge(
            "cxrnode_uncommitted", "Results that a destination took and did not commit to yet (up to 10000)", numbers,
            "destination",
        )  # fmt: skip
        since = {name: at for name, (number, at) in late.items() if number}
        ages = {(name,): max(0.0, now - since.get(name, now)) for name in names}
        yield _gauge(
            "cxrnode_uncommitted_age_seconds", "Since a destination took the oldest result that it did not commit to",
            ages, "destination",
        )  # fmt: skip
        info = {(engine["engine"], engine["bundle"], engine["digest"]): 1} if engine else {}
        yield _gauge("cxrnode_engine_info", "The engine in use", info, "engine", "bundle", "digest")
        yield _gauge("cxrnode_engine_fallback", "1 while the CPU does the GPU's work", {(): bool(fallback)})

    def _history_metrics(self) -> Iterator[Metric]:
        with self._one_counts:  # its caller may have given up waiting, and another have come
            tally, more = self._tally, True
            while more:
                with self.database.read() as c:
                    more = tally.go_on(c)
        became = {(entry.name, what): 0 for entry in self.config.destination for what in _BECAME}
        yield _counter(
            "cxrnode_outcomes_total", "Images by what came of them", dict.fromkeys(_OUTCOMES, 0) | tally.outcomes,
            "outcome", "reason",
        )  # fmt: skip
        yield _counter(
            "cxrnode_deliveries_total", "Results by what a destination said to them", became | tally.deliveries,
            "destination", "result",
        )  # fmt: skip
        events = {(kind,): n for kind, n in tally.events.items()}
        yield _counter("cxrnode_events_total", "Records of the audit ledger since the start", events, "kind")
        yield _gauge("cxrnode_ledger_records", "Records of the audit ledger", {(): tally.seq})
        with self.database.read() as c:
            since = unconfirmed_since(c) if self.config.audit.syslog else None
        lag = max(0.0, time.time() - since.timestamp()) if since else 0
        yield _gauge("cxrnode_syslog_lag_seconds", "Age of the oldest record that syslog did not confirm", {(): lag})

    def _machine_metrics(self, wrong: Mapping[str, str]) -> Iterator[Metric]:
        down = self.supervisor.down
        yield _gauge("cxrnode_ready", "1 where /readyz says so", {(): not wrong})
        ok = {(name,): name not in wrong for name in self.checks}
        yield _gauge("cxrnode_check_ok", "1 where this check of /readyz found nothing", ok, "check")
        up = {(stage,): stage not in down for stage in self.supervisor.stages}
        yield _gauge("cxrnode_stage_up", "1 while the stage's process works", up, "stage")
        deaths = {(stage,): n for stage, n in self.supervisor.deaths.items()}
        yield _counter("cxrnode_stage_deaths_total", "How often a stage ended by itself", deaths, "stage")
        quarantined = sum(1 for _ in (self.config.node.data_dir / "quarantine").glob("*.dcm"))
        aside = sum(1 for _ in set_aside.files(self.config.node.data_dir))
        yield _gauge(
            "cxrnode_set_aside", "Files that lay in the spool without a row, see cxrnode queue take-in", {(): aside}
        )
        yield _gauge("cxrnode_quarantined", "Results that failed the node's own checks", {(): quarantined})
        with suppress(OSError):  # not mounted: the check says so
            disk = shutil.disk_usage(self.config.node.data_dir)
            yield _gauge("cxrnode_disk_free_bytes", "Free space of the data folder", {(): disk.free})
            yield _gauge("cxrnode_disk_size_bytes", "Size of the data folder's disk", {(): disk.total})
        watermark = self.config.receive.disk_watermark_mb * 2**20
        yield _gauge("cxrnode_disk_watermark_bytes", "With less free space nothing is taken in", {(): watermark})

    def _stages(self) -> str | None:
        down = self.supervisor.down
        return f"not running, or not up yet: {', '.join(down)} (the log says why)" if down else None

    def _threads(self) -> str | None:
        """One that gave no sign of life for longer than any step of it may take."""
        now = time.monotonic()
        hang = [f"{t.stage}: {t.name}, silent for {now - t.beat:.0f} s" for t in self._living() if now > t.due]
        return f"no sign of life: {'; '.join(hang)}" if hang else None

    def hung(self) -> dict[str, str]:
        """The stages that are started again for it -> the threads that hang, for a log."""
        now, found = time.monotonic(), dict[str, str]()
        for t in self._living():
            if now > t.due + _RESTART_S:
                before = f"{found[t.stage]}; " if t.stage in found else ""
                found[t.stage] = f"{before}{t.name} gave no sign of life for {(now - t.beat) / 60:.0f} minutes"
        return found

    def _writes(self) -> str | None:
        """What a stage could not write last, and has not written since."""
        return failing(metrics.not_written_since(self.measured), time.monotonic()) if self.measured else None

    def _failing_threads(self) -> str | None:
        failing = [f"{t.stage}: {t.name}, {t.failures} failures in a row" for t in self._living() if t.failures]
        return f"{'; '.join(failing)} (tried again; the log says why)" if failing else None

    def _living(self) -> list[ThreadState]:
        """Those of the processes that are up: of the stages that are not the check of the stages tells."""
        down, since = self.supervisor.down, self.supervisor.since
        threads = metrics.threads(self.measured) if self.measured else []
        return [t for t in threads if t.stage not in down and t.beat >= since(t.stage)]

    def _database(self) -> str | None:
        """A row can be written: it is."""
        with self.database.begin() as c:
            Queue("monitor").set_setting(c, _PROOF, time.time())
        return None

    def _disk(self) -> str | None:
        try:
            if self.data_dir:
                self.data_dir.check()
        except DataDirAwayError as e:
            return str(e)
        free = shutil.disk_usage(self.config.node.data_dir).free // 2**20
        wanted = self.config.receive.disk_watermark_mb
        if free < wanted:
            return f"{free} MB free, below receive.disk_watermark_mb = {wanted}"
        try:
            prove_file(self.config.node.data_dir, ".proof", 1)  # there may be room, and no inode
        except StorageFullError as e:
            why = e.__cause__.strerror if isinstance(e.__cause__, OSError) else "full"
            return f"no file can be written to the data folder: {why}"
        return None

    def _listener(self) -> str | None:
        bind = self.config.node.bind
        for port in self.config.dicom_ports.values():
            try:
                socket.create_connection((reachable(bind), port), timeout=_CONNECT_S).close()
            except OSError as e:
                return f"nothing listens on {bind}:{port}: {e.strerror}"
        return None

    def _answers(self) -> str | None:
        since = metrics.unanswered_since(self.measured) if self.measured else 0
        waited = time.monotonic() - since if since else 0
        return f"a stored instance has waited {waited:.0f} s for its answer" if waited > _UNANSWERED_S else None

    def _engine(self) -> str | None:
        with self.database.read() as c:
            verified = Queue("monitor").get_setting(c, ENGINE)
        return None if verified else "the engine has not passed its golden check yet"

    def _fallback(self) -> str | None:
        with self.database.read() as c:
            reason = Queue("monitor").get_setting(c, FALLBACK)
        return f"the CPU does the GPU's work: {reason}" if reason else None

    def _clock(self) -> str | None:
        why = self.clock.look(self.database).why
        return f"{why}. Until then retention deletes nothing" if why else None

    def _certificates(self) -> str | None:
        """Files of which the stages cannot take what they hold now, and what is in force and expires soon."""
        said = []
        for name, table in self.tls_tables.items():
            try:
                table.context()
            except ConfigError:
                said.append(f"{name}: its files cannot be used, and the next start would fail (the log says why)")
        for role, until in sorted(metrics.certificate_expiries(self.measured).items() if self.measured else ()):
            left = until - time.time()
            if left < EXPIRY_NOTICE.total_seconds():
                ends = "expires" if left > 0 else "has expired"
                said.append(f"{role} {ends} on {date.fromtimestamp(until)}: renew it in place")
        return "; ".join(said) or None

    def _anchor(self) -> str | None:
        """What the anchors' loop fails at is said of its thread; this also sees that it was not tried for long."""
        with self.database.read() as c:
            at = unanchored_since(c)
        hours = (time.time() - at.timestamp()) / 3600 if at else 0.0
        late = hours > self.config.audit.anchor_every_hours + _ANCHOR_LATE_H
        return f"the newest anchor of the ledger is {hours:.0f} hours old (the log says why)" if late else None

    @property
    def _committing(self) -> list[str]:
        """The destinations that are asked to commit."""
        return [entry.name for entry in self.config.destination if entry.storage_commitment]

    def _uncommitted(self, name: str) -> str | None:
        with self.database.read() as c:
            number, since = uncommitted(c, [name])[name]
        hours = (time.time() - since) / 3600 if number else 0.0
        if hours <= _UNCOMMITTED_H:
            return None
        return (
            f"{counted(number, 'result')} not committed, the oldest taken {hours:.0f} hours ago, and kept here until "
            "then: does it report (to node.port, from an AE title in commitment_ae_titles)? See cxrnode doctor"
        )

    def _set_aside(self) -> str | None:
        aside = sum(1 for _ in set_aside.files(self.config.node.data_dir))
        mend = "cxrnode queue take-in takes them in; what it refuses is yours to look at and remove"
        return f"{counted(aside, 'file')} lay in the spool without a row in the database: {mend}" if aside else None

    def _destination(self, name: str) -> str | None:
        with self.database.read() as c:
            waiting = sum(n for (_, state), n in open_deliveries(c, [name]).items() if state == "pending")
        failures = metrics.failures_in_a_row(self.measured, name) if self.measured else 0
        return (
            f"{counted(failures, 'failure')} in a row, {counted(waiting, 'result')} waiting (the log says why)"
            if failures
            else None
        )


def _gauge(name: str, text: str, values: Mapping[Any, float], *labels: str) -> Metric:
    """values: the labels' values (a tuple, in their order) -> the figure."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family


def _counter(name: str, text: str, values: Mapping[Any, int], *labels: str) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def reachable(bind: str) -> str:
    """Where this machine reaches a listener: one bound to every address is reached over the loopback."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)  # noqa: S104 (compared, not bound)
