"""Composition root of the node: builds each stage of `cxrnode serve` from the configuration and runs it."""

from __future__ import annotations

import logging
import os
import signal
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
from cxrnode.clock import Clock
from cxrnode.commit import CommitmentAnswers
from cxrnode.committer import CommitmentReports
from cxrnode.config import Config, StatRule, load_config
from cxrnode.config_here import listening, why_no_listener
from cxrnode.deliver import Deliverer
from cxrnode.dicom.needed import tags
from cxrnode.dicom.scp import Handlers, IncomingInstance, Listener, ListenerOptions, start_listener
from cxrnode.dicom.status import OUT_OF_RESOURCES, SUCCESS
from cxrnode.errors import ConfigError
from cxrnode.health import HealthServer
from cxrnode.intake import Intake
from cxrnode.intake_ledger import Seen, tell_refused
from cxrnode.live_tls import LiveTls
from cxrnode.logs import configure, set_level
from cxrnode.loops import Loop, running
from cxrnode.monitor import Monitor
from cxrnode.mounted import check_mounted, waiting_page
from cxrnode.opening import await_database, open_database
from cxrnode.repeats import SparseLog
from cxrnode.retention import Retention
from cxrnode.set_aside import set_aside
from cxrnode.store import ledger, unclaimed
from cxrnode.store.commitments import Commitments
from cxrnode.store.data_dir import DataDir, establish, wait_until
from cxrnode.store.database import Database
from cxrnode.store.outbox import Outbox
from cxrnode.store.queue import ENGINE, GPU_STARTS, Queue
from cxrnode.store.spool import keep_private, locked, sweep_partial
from cxrnode.store.studies import Studies
from cxrnode.supervisor import Alone, Supervisor, is_supervised, tell_stacks_on_request, tell_started
from cxrnode.types import Destination, Peer, Receipt, ReceivedInstance
from cxrnode.words import counted
from cxrnode.writable import FILES, Writable

if TYPE_CHECKING:  # it brings OpenCV and the engines, which two of the three stages do without
    from cxrnode.analyse import Analyser

_TLS = {
    "intake": {"receive.tls", "send.tls"},
    "analyse": set[str](),
    "deliver": {"send.tls", "audit.syslog"},
}  # a stage's tables
_RELOAD_POLL_S = 0.5
_ANALYSE_NICE = 5  # nice(2): it takes what is left; of the others each needs milliseconds, for which a peer waits
_ORPHANS_S = 30.0  # for the stages of a node that was killed to end
log = logging.getLogger(__name__)


def run_stage(config: Config, stage: str, stopping: threading.Event, *, file: Path) -> None:
    """Run one stage until `stopping` is set; what is in hand is brought to its end. Without a supervisor it has its own
    pages, about itself.

    `file`: where SIGHUP, which the caller must have blocked, reads the configuration anew.
    """
    supervised = is_supervised()  # then the node's process has the pages
    tell_stacks_on_request()
    with ExitStack() as stack:
        folder = None if supervised else stack.enter_context(metrics.shared_folder([stage]))
        metrics.begin(stage)
        tls = LiveTls({name: table for name, table in config.tls_tables.items() if name in _TLS[stage]})
        make = stage == "intake" and not supervised  # else the node has made it
        page = None if supervised else partial(waiting_page, config)
        wait_until(partial(check_mounted, config, make=make), stopping, page=page)
        if stopping.is_set():
            return
        keep_private(config.node.data_dir)
        database = stack.enter_context(await_database(config, stopping))
        if database is None:
            return
        data_dir = wait_until(partial(establish, database, config.node.data_dir, make=make), stopping, page=page)
        if data_dir is None:
            return
        with database.begin() as c:
            ledger.append(
                c, "stage_started", actor=stage, software=__version__, host=socket.gethostname(), user=os_user(),
                configuration=config.digest,
            )  # fmt: skip
        monitor = None
        if not supervised:
            own = stack.enter_context(open_database(config))
            monitor = stack.enter_context(_pages(config, own, Alone(stage=stage), folder, data_dir))
        _run_stage(config, stage, database, data_dir, stopping, tls=tls, reload=_reload(file, tls, monitor))
        with database.begin() as c:
            ledger.append(c, "stage_stopped", actor=stage)


def _run_stage(
    config: Config, stage: str, database: Database, data_dir: DataDir, stopping: threading.Event, *, tls: LiveTls,
    reload: Loop,
) -> None:  # fmt: skip
    if stage == "analyse":
        os.nice(_ANALYSE_NICE)  # and so its workers and the engine
    watermark = config.receive.disk_watermark_mb * 2**20 if stage == "intake" else 0
    writable = Writable(stage=stage, database=database, data_dir=data_dir.path, watermark_bytes=watermark)
    run: Mapping[str, Callable[[Config, Database, DataDir, threading.Event], None]] = {
        "intake": partial(run_intake, tls=tls, writable=writable),
        "analyse": partial(run_analyse, writable=writable),
        "deliver": partial(run_deliver, tls=tls),
    }
    with running([reload, writable.loop()], stopping):
        try:
            run[stage](config, database, data_dir, stopping)
        finally:
            stopping.set()  # for the loops, whatever ended the stage


@contextmanager
def _pages(
    config: Config, database: Database, supervisor: Supervisor | Alone, measured: Path | None, data_dir: DataDir | None
) -> Iterator[Monitor]:
    """/healthz, /readyz and /metrics. database: no stage's, whose own writes `Writable` watches."""
    monitor = Monitor(config=config, database=database, supervisor=supervisor, measured=measured, data_dir=data_dir)
    with HealthServer(config.http.bind, config.http.port, asked=monitor.asked, metrics=monitor.metrics):
        yield monitor


def _reload(file: Path, tls: LiveTls, monitor: Monitor | None) -> Loop:
    """What a stage reads anew: of all that a configuration says, the log level and the TLS files."""

    def step() -> float:
        if signal.sigtimedwait([signal.SIGHUP], _RELOAD_POLL_S):
            if fresh := _read_anew(file):
                tls.reload(fresh.tls_tables)
                if monitor:
                    monitor.tls_tables = fresh.tls_tables
        else:
            tls.look()
        return 0.0

    return Loop(name="reload", step=step)


def _read_anew(file: Path) -> Config | None:
    """The configuration, its log level in force. A file with faults changes nothing."""
    try:
        fresh = load_config(file)
    except ConfigError as e:
        log.error("SIGHUP: %s", e)  # noqa: TRY400 (its text says all)
        return None
    set_level(fresh.log.level)
    log.info("the log level is %s", fresh.log.level)
    return fresh


# --- intake ---------------------------------------------------------------------------------------------------------


def run_intake(
    config: Config,
    database: Database,
    data_dir: DataDir,
    stopping: threading.Event,
    *,
    tls: LiveTls,
    writable: Writable,
) -> None:
    queue, outbox = Queue("intake"), Outbox("intake", ae_titles=_ae_titles(config))
    seen = Seen(database, actor="intake")

    def record(batch: Sequence[ReceivedInstance]) -> list[Receipt]:
        with seen.transaction() as c:
            return queue.receive(c, batch)

    told = SparseLog()

    def refused(peer: Peer, sop_instance_uid: str, status: int, why: str) -> None:
        if status == OUT_OF_RESOURCES:
            writable.failed(FILES)
        tell_refused(told, peer, sop_instance_uid, status, why)
        seen.refused(peer, sop_instance_uid, status, why)

    with ExitStack() as stack:
        stack.enter_context(_alone(config.node.data_dir, "intake"))
        set_aside(data_dir.path, database, queue, actor="intake")
        intake = Intake(
            data_dir.path, record=record, check=data_dir.check,
            is_stat=is_stat(config.analyse.stat), stat_tags=stat_tags(config.analyse.stat),
            watermark_bytes=config.receive.disk_watermark_mb * 2**20, on_refused=refused,
        )  # fmt: skip
        answers = CommitmentAnswers(
            database=database, commitments=Commitments("intake"), root=data_dir.path, check=data_dir.check,
            calling_ae_title=config.node.ae_title, peers=_commitment_peers(config, tls),
        )  # fmt: skip
        metrics.reports_expected(d.name for d in config.destination)
        reports = CommitmentReports(
            database=database, outbox=outbox, reporters={d.name: d.reporters for d in config.destination},
            refused=partial(seen.report_refused, told),
        )  # fmt: skip

        def store(incoming: IncomingInstance) -> int:
            status = intake.store(incoming)
            if status == SUCCESS:
                writable.succeeded(FILES)
            elif status == OUT_OF_RESOURCES:
                writable.failed(FILES, size_bytes=incoming.size_bytes)
            return status

        handlers = Handlers(
            store=store, has_room=intake.has_room, commit_requested=answers.requested,
            commit_reported=reports.take, association=seen.association,
            refused=refused, echo_only=seen.echo_only, aborted=seen.aborted, log=told,
        )  # fmt: skip
        stack.callback(partial(seen.flush, everything=True))  # when the listeners are closed
        stack.callback(partial(told.flush, everything=True))
        ports = []
        for options in _listeners(config, intake.incoming, tls):
            listener = stack.enter_context(_listen(options, handlers))
            ports.append(listener.port)
            log.info("listening on %s:%d%s", options.bind, listener.port, " (TLS)" if options.tls else "")
        stack.enter_context(listening(config.node.data_dir, ports))
        stack.enter_context(running([answers.loop(), seen.loop(told)], stopping))
        tell_started()
        stopping.wait()  # for a signal: this thread does nothing else


def _listen(options: ListenerOptions, handlers: Handlers) -> Listener:
    try:
        return start_listener(options, handlers)
    except OSError as e:
        key = "receive.tls.port" if options.tls else "node.port"
        raise why_no_listener(key, options.bind, options.port, e) from e


def _listeners(config: Config, incoming: Path, tls: LiveTls) -> list[ListenerOptions]:
    """The plain port unless it is switched off, and the TLS port where there is one."""
    node, receive = config.node, config.receive
    plain = ListenerOptions(
        ae_title=node.ae_title, bind=node.bind, port=node.port, incoming=incoming,
        allow=tuple((a.ae_title, a.host) for a in receive.allow),
        bound={(a.ae_title, a.host): a.certificate for a in receive.allow if a.certificate},
        commitment_peers=tuple(peer for d in config.destination for peer in d.reporters),
        max_associations=receive.max_associations, max_associations_per_host=receive.max_associations_per_host,
        idle_timeout_s=receive.idle_timeout_s,
    )  # fmt: skip
    listeners = [plain] if receive.plain else []
    if receive.tls:
        listeners.append(replace(plain, port=receive.tls.port, tls=tls.get("receive.tls")))
    return listeners


def _commitment_peers(config: Config, tls: LiveTls) -> Mapping[tuple[str, str], Destination]:
    """Where the answers to their requests go."""
    secure = tls.get("send.tls")
    return {
        (a.ae_title, a.host): Destination(ae_title=a.ae_title, host=a.host, port=a.port, tls=secure if a.tls else None)
        for a in config.receive.allow
        if a.port
    }


def is_stat(rules: Sequence[StatRule]) -> Callable[[Dataset, Peer], bool]:
    def matches(ds: Dataset, peer: Peer) -> bool:
        return any(_matches(rule, ds, peer) for rule in rules)

    return matches


def stat_tags(rules: Sequence[StatRule]) -> frozenset[int]:
    """The elements that the rules look at."""
    return tags(*(rule.attribute for rule in rules if rule.attribute))


def _matches(rule: StatRule, ds: Dataset, peer: Peer) -> bool:
    if rule.calling_ae is not None:
        return peer.calling_aet == rule.calling_ae
    return str(ds.get(rule.attribute or "", "")).strip().upper() == str(rule.value).strip().upper()


# --- analyse --------------------------------------------------------------------------------------------------------


def run_analyse(
    config: Config, database: Database, data_dir: DataDir, stopping: threading.Event, *, writable: Writable
) -> None:
    from cxrnode.analyse import AnalyseOptions, Analyser  # noqa: PLC0415
    from cxrnode.engine_choice import chosen_engine  # noqa: PLC0415
    from cxrnode.outlast import Outlast  # noqa: PLC0415
    from cxrnode.pool import Pool, default_workers, inference_threads  # noqa: PLC0415
    from cxrnode.report.context import ReportContext  # noqa: PLC0415
    from cxrnode.workers import Output  # noqa: PLC0415
    from engines.bundle import Code, load_bundle  # noqa: PLC0415

    analyse, workers = config.analyse, default_workers()
    begin = partial(configure, form=config.log.format, level=config.log.level, stage="analyse")  # in each worker
    bundle, queue, studies = load_bundle(analyse.bundle), Queue("analyse"), Studies("analyse")
    outbox = Outbox("analyse", ae_titles=_ae_titles(config))
    with database.begin() as c:
        record_model(c, bundle, actor="analyse")
    sweep_partial(data_dir.path / "dicom")

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
        purpose = Code(**config.report.equipment_purpose.model_dump())
        context = ReportContext(bundle=bundle, analysed_at=now, software_version=__version__, purpose=purpose)
        options = AnalyseOptions(
            batch_size=analyse.batch_size, max_wait_s=analyse.max_wait_ms / 1000,
            window=analyse.batch_size + 2 * workers, quiet_s=config.report.study_quiet_s,
            report_not_analysed=config.report.not_analysed == "report",
            destinations=tuple(d.name for d in config.destination), until_dry=False,
        )  # fmt: skip

        def done(n: int) -> None:
            outlast.worked()
            log.info("%s analysed", counted(n, "image"))

        def reported(uids: Sequence[str]) -> None:
            outlast.worked()
            log.info("%s reported", counted(len(uids), "study"), extra={"studies": list(uids)})

        output = Output(root=data_dir.path, data_dir=data_dir)

        def analyser() -> Analyser:
            data_dir.wait(stopping)
            return Analyser(
                database=database, queue=queue, studies=studies, outbox=outbox, pool=pool, inference=active,
                context=context, output=output, options=options, on_done=done,
                on_reported=reported, stopping=stopping,
            )  # fmt: skip

        unclaimed.take_back(config.node.data_dir, database, queue, studies)
        full = partial(writable.failed, FILES)
        outlast = Outlast(make=analyser, stopping=stopping, notes=config.node.data_dir, on_full=full)
        outlast.run()


# --- deliver --------------------------------------------------------------------------------------------------------


def run_deliver(
    config: Config, database: Database, data_dir: DataDir, stopping: threading.Event, *, tls: LiveTls
) -> None:
    metrics.reports_expected(d.name for d in config.destination)
    seen, told = Seen(database, actor="deliver"), SparseLog()
    deliverer = Deliverer(
        destinations=destinations(config, tls), root=data_dir.path, check=data_dir.check, database=database,
        outbox=Outbox("deliver", ae_titles=_ae_titles(config)), calling_ae_title=config.node.ae_title,
        report_refused=partial(seen.report_refused, told),
    )  # fmt: skip
    retention = Retention(
        database=database, data_dir=data_dir.path, check=data_dir.check, days=config.node.retention_days,
        destinations={d.name: d.storage_commitment for d in config.destination},
    )  # fmt: skip
    loops = [retention.loop(stopping), seen.loop(told, "refused reports")]
    with ExitStack() as readers:
        if server := syslog_server(config, tls):
            forwarder = Forwarder(
                database=database, reader=readers.enter_context(open_database(config, read_only=True)), server=server,
                source=Source(ae_title=config.node.ae_title, host=socket.gethostname()),
            )  # fmt: skip
            loops.append(forwarder.loop())
        if config.audit.anchor_file:
            anchors = Anchors(
                database=database, file=config.audit.anchor_file, every_records=config.audit.anchor_every_records,
                every_s=config.audit.anchor_every_hours * 3600,
            )  # fmt: skip
            loops.append(anchors.loop())
        deliverer.start()
        with running(loops, stopping):
            tell_started()
            stopping.wait()  # for a signal: this thread does nothing else
            deliverer.stop()
        seen.flush(everything=True)
        told.flush(everything=True)


def syslog_server(config: Config, tls: LiveTls) -> SyslogServer | None:
    """Where audit messages go."""
    to, context = config.audit.syslog, tls.get("audit.syslog")
    return SyslogServer(host=to.host, port=to.port, tls=context) if to and context else None


def _ae_titles(config: Config) -> dict[str, str]:
    return {d.name: d.ae_title for d in config.destination}


def destinations(config: Config, tls: LiveTls) -> list[Destination]:
    return [
        Destination(
            name=d.name, ae_title=d.ae_title, host=d.host, port=d.port, storage_commitment=d.storage_commitment,
            tls=tls.get("send.tls") if d.tls else None,
        )
        for d in config.destination
    ]  # fmt: skip


@contextmanager
def _alone(folder: Path, stage: str) -> Iterator[None]:
    """One process of this stage on this folder. Raises StoreError where another one is at work."""
    busy = f"another cxrnode {stage} works on {folder}: stop it, or give this one its own"
    with locked(folder / f".{stage}.lock", busy):
        yield


# --- the node -------------------------------------------------------------------------------------------------------


def run_node(config: Config, supervisor: Supervisor) -> int:
    """Every stage in its own process, and the HTTP pages that say how they are. Returns the exit code.

    Raises CxrnodeError where another node works on the same data folder, before anything there is touched.
    """
    data_dir, never = config.node.data_dir, threading.Event()
    make, page = "intake" in supervisor.stages, partial(waiting_page, config)
    wait_until(partial(check_mounted, config, make=make), never, page=page)
    with (
        locked(data_dir / ".node.lock", f"another cxrnode node works on {data_dir}: stop it, or give this one its own "
               "node.data_dir, database and ports"),
        locked(data_dir / ".stages.lock", f"stages of a node that was killed still work on {data_dir}: end them "
               "(cxrnode serve ... --only)", wait_s=_ORPHANS_S) as shared,
        await_database(config, never) as database,
    ):  # fmt: skip
        assert database  # noqa: S101 (nobody stops that wait but by a signal, which ends the process)
        there = wait_until(partial(establish, database, data_dir, make=make), never, page=page)
        Clock().look(database)  # before a record is stamped with it, which would seem to prove it right
        with database.begin() as c:
            for setting in (ENGINE, GPU_STARTS):  # what was verified before this start counts no more, nor what crashed
                Queue("node").set_setting(c, setting, None)
            ledger.append(
                c, "configuration_loaded", actor="node", software=__version__, host=socket.gethostname(),
                user=os_user(), configuration=config.digest,
            )  # fmt: skip
        with (
            metrics.shared_folder(supervisor.stages) as folder,
            _pages(config, database, supervisor, folder, there) as monitor,
        ):

            def hang_up() -> None:
                if fresh := _read_anew(supervisor.config):
                    monitor.tls_tables = fresh.tls_tables

            supervisor.on_hangup, supervisor.hung = hang_up, monitor.hung
            return supervisor.run(shared=[shared])
