"""Composition root of the node: builds each stage of `cxrnode serve` from the configuration and runs it."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom import Dataset

from cxrnode import __version__, metrics
from cxrnode.audit.anchors import Anchors
from cxrnode.audit.atna import Source
from cxrnode.audit.forward import Forwarder
from cxrnode.audit.record import os_user, record_model
from cxrnode.audit.syslog import SyslogServer
from cxrnode.commit import CommitmentAnswers
from cxrnode.config import Config, StatRule, load_config
from cxrnode.deliver import Deliverer, record_report
from cxrnode.dicom.scp import Handlers, Listener, ListenerOptions, start_listener
from cxrnode.errors import ConfigError, StorageFullError
from cxrnode.health import HealthServer
from cxrnode.intake import Intake
from cxrnode.intake_ledger import Seen
from cxrnode.logs import configure
from cxrnode.monitor import Monitor
from cxrnode.retention import Retention
from cxrnode.store import ledger
from cxrnode.store.commitments import Commitments
from cxrnode.store.database import LEDGER_NAME, Database
from cxrnode.store.outbox import Outbox
from cxrnode.store.queue import ENGINE, GPU_STARTS, Queue
from cxrnode.store.spool import locked, sweep_partial
from cxrnode.store.studies import Studies
from cxrnode.supervisor import Supervisor, tell_started
from cxrnode.types import Destination, Peer, Receipt, ReceivedInstance

if TYPE_CHECKING:  # it brings OpenCV and the engines, which two of the three stages do without
    from cxrnode.analyse import Analyser

_FULL_DISK_S = 2.0  # between attempts of the analyse stage to write
log = logging.getLogger(__name__)


@contextmanager
def open_database(config: Path | Config, *, read_only: bool = False) -> Iterator[Database]:
    """The store that the configuration names. Raises ConfigError, StoreError."""
    loaded = load_config(config) if isinstance(config, Path) else config
    where: Path | str = loaded.node.database.get_secret_value()
    if where == "sqlite":
        loaded.node.data_dir.mkdir(parents=True, exist_ok=True)
        where = loaded.node.data_dir / LEDGER_NAME
    database = Database(where, read_only=read_only)
    try:
        yield database
    finally:
        database.close()


def run_stage(config: Config, stage: str, stopping: threading.Event) -> None:
    """Run one stage until `stopping` is set; what is in hand is brought to its end."""
    run = {"intake": run_intake, "analyse": run_analyse, "deliver": run_deliver}[stage]
    metrics.begin(stage)
    with open_database(config) as database:
        with database.begin() as c:
            ledger.append(
                c, "stage_started", actor=stage, software=__version__, host=socket.gethostname(), user=os_user(),
                configuration=config.digest,
            )  # fmt: skip
        run(config, database, stopping)
        with database.begin() as c:
            ledger.append(c, "stage_stopped", actor=stage)


# --- intake ---------------------------------------------------------------------------------------------------------


def run_intake(config: Config, database: Database, stopping: threading.Event) -> None:
    queue, outbox = Queue("intake"), Outbox("intake", ae_titles=_ae_titles(config))
    seen = Seen(database, actor="intake")

    def record(batch: Sequence[ReceivedInstance]) -> list[Receipt]:
        with seen.transaction() as c:
            return queue.receive(c, batch)

    def known(paths: Sequence[Path]) -> set[Path]:
        with database.begin(shared=True) as c:
            return {Path(p) for p in queue.known_paths(c, [p.as_posix() for p in paths])}

    with ExitStack() as stack:
        stack.enter_context(_alone(config.node.data_dir, "intake"))
        intake = Intake(
            config.node.data_dir, record=record, known=known, is_stat=is_stat(config.analyse.stat),
            watermark_bytes=config.receive.disk_watermark_mb * 2**20, on_refused=seen.refused,
        )  # fmt: skip
        answers = CommitmentAnswers(
            database=database, commitments=Commitments("intake"), root=config.node.data_dir,
            calling_ae_title=config.node.ae_title, peers=_commitment_peers(config),
        )  # fmt: skip
        handlers = Handlers(
            store=intake.store, has_room=intake.has_room, commit_requested=answers.requested,
            commit_reported=partial(record_report, database, outbox), association=seen.association,
            refused=seen.refused,
        )  # fmt: skip
        stack.callback(seen.flush)  # when the listeners are closed
        for options in _listeners(config, intake.incoming):
            listener = stack.enter_context(_listen(options, handlers))
            log.info("listening on %s:%d%s", options.bind, listener.port, " (TLS)" if options.ssl_context else "")
        for run, name in ((answers.run, "commitment answers"), (seen.run, "associations")):
            thread = threading.Thread(target=run, args=(stopping,), name=name)
            thread.start()
            stack.callback(thread.join)
        tell_started()
        stopping.wait()


def _listen(options: ListenerOptions, handlers: Handlers) -> Listener:
    try:
        return start_listener(options, handlers)
    except OSError as e:
        why = str(e.strerror).partition(" (while")[0]  # socket.create_server repeats the address
        raise ConfigError(
            f"cannot listen on {options.bind}:{options.port}: {why}. Is another process there? Choose another "
            f"{'receive.tls.port' if options.ssl_context else 'node.port'}, or a bind address that this machine has"
        ) from e


def _listeners(config: Config, incoming: Path) -> list[ListenerOptions]:
    """The plain port, and the TLS port where there is one."""

    node, receive = config.node, config.receive
    plain = ListenerOptions(
        ae_title=node.ae_title, bind=node.bind, port=node.port, incoming=incoming,
        allow=tuple((a.ae_title, a.host) for a in receive.allow),
        commitment_peers=tuple((d.ae_title, d.host) for d in config.destination if d.storage_commitment),
        max_associations=receive.max_associations, max_associations_per_host=receive.max_associations_per_host,
        idle_timeout_s=receive.idle_timeout_s,
    )  # fmt: skip
    if receive.tls is None:
        return [plain]
    return [plain, replace(plain, port=receive.tls.port, ssl_context=receive.tls.context())]


def _commitment_peers(config: Config) -> Mapping[tuple[str, str], Destination]:
    return {
        (a.ae_title, a.host): Destination(ae_title=a.ae_title, host=a.host, port=a.port)
        for a in config.receive.allow
        if a.port
    }


def is_stat(rules: Sequence[StatRule]) -> Callable[[Dataset, Peer], bool]:
    def matches(ds: Dataset, peer: Peer) -> bool:
        return any(_matches(rule, ds, peer) for rule in rules)

    return matches


def _matches(rule: StatRule, ds: Dataset, peer: Peer) -> bool:
    if rule.calling_ae is not None:
        return peer.calling_aet == rule.calling_ae
    return str(ds.get(rule.attribute or "", "")).strip().upper() == str(rule.value).strip().upper()


# --- analyse --------------------------------------------------------------------------------------------------------


def run_analyse(config: Config, database: Database, stopping: threading.Event) -> None:
    from cxrnode.analyse import AnalyseOptions, Analyser  # noqa: PLC0415
    from cxrnode.engine_choice import chosen_engine  # noqa: PLC0415
    from cxrnode.pool import Pool, default_workers, inference_threads  # noqa: PLC0415
    from cxrnode.report.context import ReportContext  # noqa: PLC0415
    from cxrnode.workers import Output  # noqa: PLC0415
    from engines.bundle import load_bundle  # noqa: PLC0415

    analyse, workers = config.analyse, default_workers()
    begin = partial(configure, form=config.log.format, level=config.log.level, stage="analyse")  # in each worker
    bundle, queue = load_bundle(analyse.bundle), Queue("analyse")
    outbox = Outbox("analyse", ae_titles=_ae_titles(config))
    with database.begin() as c:
        record_model(c, bundle, actor="analyse")
    sweep_partial(config.node.data_dir / "dicom")

    with (
        chosen_engine(
            analyse.engine, bundle, threads=inference_threads(workers), database=database, actor="analyse"
        ) as active,
        closing(Pool(workers, preload="cxrnode.workers", begin=begin)) as pool,
    ):
        engine = active.wait()
        with database.begin() as c:
            queue.set_setting(c, ENGINE, {"engine": engine, "bundle": bundle.name, "digest": bundle.digest})
            ledger.append(c, "engine_verified", actor="analyse", engine=engine, bundle=bundle.digest)
        log.info("%s verified with %s %s", engine, bundle.name, bundle.manifest.version)
        tell_started()
        now = datetime.now().astimezone()
        context = ReportContext(bundle=bundle, analysed_at=now, software_version=__version__)
        options = AnalyseOptions(
            batch_size=analyse.batch_size, max_wait_s=analyse.max_wait_ms / 1000,
            window=analyse.batch_size + 2 * workers, quiet_s=config.report.study_quiet_s,
            report_not_analysed=config.report.not_analysed == "report",
            destinations=tuple(d.name for d in config.destination), until_dry=False,
        )  # fmt: skip

        def analyser() -> Analyser:
            return Analyser(
                database=database, queue=queue, studies=Studies("analyse"), outbox=outbox, pool=pool,
                inference=active, context=context, output=Output(root=config.node.data_dir), options=options,
                on_done=lambda n: log.info("%d images analysed", n),
                on_reported=lambda uids: log.info("%d studies reported", len(uids), extra={"studies": list(uids)}),
                stopping=stopping,
            )  # fmt: skip

        _outlast_full_disk(analyser, stopping)


def _outlast_full_disk(analyser: Callable[[], Analyser], stopping: threading.Event) -> None:
    """Run an Analyser; while the disk is full, hand back what it had in hand and wait for room."""
    held: Analyser | None = None
    while True:
        try:
            if held:
                held.hand_back()
            held = analyser()
            held.run()
            return
        except StorageFullError as e:
            log.error("analyse waits for room, and then goes on by itself: %s", e)  # noqa: TRY400 (its text says all)
        if stopping.wait(_FULL_DISK_S):
            return


# --- deliver --------------------------------------------------------------------------------------------------------


def run_deliver(config: Config, database: Database, stopping: threading.Event) -> None:
    deliverer = Deliverer(
        destinations=destinations(config), root=config.node.data_dir, database=database,
        outbox=Outbox("deliver", ae_titles=_ae_titles(config)), calling_ae_title=config.node.ae_title,
    )  # fmt: skip
    retention = Retention(
        database=database, data_dir=config.node.data_dir, days=config.node.retention_days,
        destinations={d.name: d.storage_commitment for d in config.destination},
    )  # fmt: skip
    threads = [threading.Thread(target=retention.run, args=(stopping,), name="retention")]
    with ExitStack() as readers:
        if server := syslog_server(config):
            forwarder = Forwarder(
                database=database, reader=readers.enter_context(open_database(config, read_only=True)), server=server,
                source=Source(ae_title=config.node.ae_title, host=socket.gethostname()),
            )  # fmt: skip
            threads.append(threading.Thread(target=forwarder.run, args=(stopping,), name="audit messages"))
        if config.audit.anchor_file:
            anchors = Anchors(
                database=database, file=config.audit.anchor_file, every_records=config.audit.anchor_every_records,
                every_s=config.audit.anchor_every_hours * 3600,
            )  # fmt: skip
            threads.append(threading.Thread(target=anchors.run, args=(stopping,), name="anchors"))
        deliverer.start()
        for thread in threads:
            thread.start()
        tell_started()
        stopping.wait()
        deliverer.stop()
        for thread in threads:
            thread.join()


def syslog_server(config: Config) -> SyslogServer | None:
    """Where audit messages go. Raises ConfigError where the TLS material cannot be used."""
    to = config.audit.syslog
    return SyslogServer(host=to.host, port=to.port, tls=to.context()) if to else None


def _ae_titles(config: Config) -> dict[str, str]:
    return {d.name: d.ae_title for d in config.destination}


def destinations(config: Config) -> list[Destination]:
    """Raises StoreError, ConfigError where the TLS material cannot be used."""
    context = config.send.tls.context() if config.send.tls else None
    return [
        Destination(
            name=d.name, ae_title=d.ae_title, host=d.host, port=d.port, storage_commitment=d.storage_commitment,
            tls=context if d.tls else None,
        )
        for d in config.destination
    ]  # fmt: skip


@contextmanager
def _alone(folder: Path, stage: str) -> Iterator[None]:
    """One process of this stage on this folder. Raises StoreError where another one is at work."""
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"another cxrnode {stage} works on {folder}: stop it, or give this one its own"
    with locked(folder / f".{stage}.lock", busy):
        yield


# --- the node -------------------------------------------------------------------------------------------------------


def run_node(config: Config, supervisor: Supervisor) -> None:
    """Every stage in its own process, and the HTTP pages that say how they are."""
    with open_database(config) as database:
        with database.begin() as c:
            for setting in (ENGINE, GPU_STARTS):  # what was verified before this start counts no more, nor what crashed
                Queue("node").set_setting(c, setting, None)
            ledger.append(
                c, "configuration_loaded", actor="node", software=__version__, host=socket.gethostname(),
                user=os_user(), configuration=config.digest,
            )  # fmt: skip
        with metrics.shared_folder(supervisor.stages) as folder:
            monitor = Monitor(config=config, database=database, supervisor=supervisor, measured=folder)
            with HealthServer(
                config.http.bind, config.http.port, checks=monitor.checks, warnings=monitor.warnings,
                metrics=monitor.metrics,
            ):  # fmt: skip
                supervisor.run()
