"""Composition root of `run-batch`: builds the concrete parts and puts them together."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from cxrnode import __version__
from cxrnode.analyse import AnalyseOptions, Analyser
from cxrnode.archive import check_archive
from cxrnode.audit.record import os_user, record_model
from cxrnode.deliver import deliver_all
from cxrnode.earlier_run import RUN, check_folder, check_same, run_of
from cxrnode.engine_choice import chosen_engine
from cxrnode.errors import StoreAwayError, StoreError
from cxrnode.inference import Inference
from cxrnode.intake_archive import take_in
from cxrnode.item import path_text
from cxrnode.logs import begin_command
from cxrnode.outlast import Outlast
from cxrnode.pool import NoWorkerError, Pool, default_workers, inference_threads
from cxrnode.report.context import ReportContext
from cxrnode.results import Results, counts, write_run
from cxrnode.store import ledger
from cxrnode.store.database import LEDGER_NAME, Database
from cxrnode.store.outbox import Outbox
from cxrnode.store.queue import Queue
from cxrnode.store.spool import keep_private, locked, storage_errors, sweep_partial
from cxrnode.store.studies import Studies
from cxrnode.types import Destination
from cxrnode.workers import Output
from engines.bundle import Bundle, load_bundle

_LOCK_NAME = ".lock"
_OURS = (
    "dicom",
    "quarantine",
    "spool",
    "results.csv",
    "run.json",
    *(LEDGER_NAME + s for s in ("", "-wal", "-shm")),
)
_ACTOR = "run-batch"
_AWAY_S = 60.0  # for who has the database locked: a copy of it, a look into it
_LIBRARIES = (
    "highdicom",
    "imagecodecs",
    "numpy",
    "onnxruntime",
    "opencv-python-headless",
    "pydicom",
    "pynetdicom",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    archives: tuple[Path, ...]
    out: Path
    bundle: str = "default"
    engine: str = "auto"
    batch_size: int = 16
    workers: int = field(default_factory=default_workers)
    restart: bool = False
    send: Destination | None = None


class Progress(Protocol):
    """What a run tells whoever watches it."""

    def phase(self, name: str, total: int | None) -> None: ...

    def total(self, n: int) -> None:
        """How many there are in this phase, where its beginning did not know."""

    def advance(self, n: int) -> None: ...


@contextmanager
def open_batch(options: BatchOptions, progress: Progress) -> Iterator[BatchRun]:
    """Check everything that can be checked before any work, then open (or go on with) the run in `options.out`.

    Raises CxrnodeError or EngineError.
    """
    for archive in options.archives:
        check_archive(archive)
    bundle = load_bundle(options.bundle)
    if not options.restart:
        check_folder(options.out, run_of(bundle, options.archives))
    with _exclusive(options.out):
        if options.restart:
            _wipe(options.out)
        database = Database(options.out / LEDGER_NAME)
        try:
            sweep_partial(options.out)
            yield BatchRun(options=options, bundle=bundle, database=database, progress=progress)
        finally:
            database.close()


@dataclass(slots=True, kw_only=True)
class BatchRun:
    """One run over archives into one folder; what an earlier, interrupted call committed is gone on with."""

    options: BatchOptions
    bundle: Bundle
    database: Database
    progress: Progress
    queue: Queue = field(default_factory=lambda: Queue(_ACTOR))
    engine_name: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)  # what the user should know, and no row says
    missing: list[str] = field(default_factory=list)  # what a run that came to its end owes all the same: our fault
    _scanned: int = 0  # rows that there must be

    @property
    def results(self) -> Results:
        sent = str(self.options.send) if self.options.send else None
        labels = [label.name for label in self.bundle.labels]
        return Results(self.options.out, labels=labels, bundle=self.bundle.name, destination=sent)

    def run(self) -> dict[str, Any]:
        """Run to the end and return what run.json says. However it ends, what is done is kept and told."""
        started_at = self._start()
        state = "failed"
        try:
            self._stages(started_at)
            with self.database.read() as c:
                self.missing = list(self.results.missing(c, scanned=self._scanned))
            state = "incomplete" if self.missing else "complete"
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            summary = self._finish(state, started_at)
        return summary

    def _stages(self, started_at: datetime) -> None:
        workers = self.options.workers
        engine = chosen_engine(
            self.options.engine, self.bundle, threads=inference_threads(workers), database=self.database, actor=_ACTOR
        )
        with engine as active, closing(Pool(workers, preload="cxrnode.workers", begin=begin_command)) as pool:
            with self._timed("scan"):
                self._take_in(pool, active, started_at)  # while the engine comes up
            self.engine_name = active.wait()
            with self.database.begin() as c:
                ledger.append(c, "engine_verified", actor=_ACTOR, engine=self.engine_name, bundle=self.bundle.digest)
            self.results.write_csv(self.database)
            with self._timed("analyse"):
                self._analyse(active, pool, started_at)
        shutil.rmtree(self.options.out / "spool", ignore_errors=True)
        if self.options.send:
            with self._timed("send"):
                self._send(self.options.send)

    def _take_in(self, pool: Pool, active: Inference, started_at: datetime) -> None:
        def on_scanned(n: int) -> None:
            active.check()
            self.progress.advance(n)

        self.progress.phase("scanning", None)
        out = self.options.out
        self._scanned = take_in(
            self.options.archives, out=out, spool=out / "spool", database=self.database, queue=self.queue, pool=pool,
            now=started_at.timestamp(), on_scanned=on_scanned, on_total=self.progress.total,
            on_empty=lambda path: self.warnings.append(f"{path_text(path)} holds no files"),
        )  # fmt: skip

    def _analyse(self, active: Inference, pool: Pool, started_at: datetime) -> None:
        studies = Studies(_ACTOR)
        with self.database.begin() as c:
            self.queue.release_all(c)  # the folder's lock says that nobody else works here
            studies.release_all(c)
            self.progress.phase("analysing", self.queue.count_waiting(c))
        context = ReportContext(bundle=self.bundle, analysed_at=started_at, software_version=__version__)
        options = AnalyseOptions(
            batch_size=self.options.batch_size, window=self.options.batch_size + 4 * self.options.workers
        )

        def analyser() -> Analyser:
            return Analyser(
                database=self.database, queue=self.queue, studies=studies, outbox=Outbox(_ACTOR), pool=pool,
                inference=active, context=context, output=Output(root=self.options.out), options=options,
                on_done=self.progress.advance,
                on_reported=lambda studies: self.results.append_studies(self.database, studies),
            )  # fmt: skip

        Outlast(make=analyser, outlasts=(StoreAwayError, NoWorkerError), most_s=_AWAY_S).run()

    def _send(self, destination: Destination) -> None:
        self.progress.phase(f"sending to {destination}", None)
        deliver_all(
            destination, root=self.options.out, database=self.database, outbox=Outbox(_ACTOR),
            on_done=self.progress.advance,
        )  # fmt: skip

    def _start(self) -> datetime:
        """Begin, or go on: the moment of the first start is part of every result."""
        wanted = run_of(self.bundle, self.options.archives)
        with self.database.begin() as c:
            found = self.queue.get_setting(c, RUN)
            check_same(self.options.out, found, wanted)  # it may have come since the folder was looked at
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            run = wanted | {"started_at": found["started_at"] if found else now}
            self.queue.set_setting(c, RUN, run)
            ledger.append(
                c, "run_resumed" if found else "run_started", actor=_ACTOR, software=__version__,
                bundle=self.bundle.name, bundle_digest=self.bundle.digest, archives=wanted["archives"], user=os_user(),
                started_at=run["started_at"],
            )  # fmt: skip
            record_model(c, self.bundle, actor=_ACTOR)
        return datetime.fromisoformat(str(run["started_at"]))

    def _finish(self, state: str, started_at: datetime) -> dict[str, Any]:
        self.results.write_csv(self.database)
        with self.database.begin() as c:
            totals = counts(c)
            ledger.append(c, f"run_{state}", actor=_ACTOR, outcomes=totals["outcomes"], reasons=totals["reasons"])
        summary = {
            "state": state,
            "missing": self.missing,
            "warnings": self.warnings,
            **totals,
            "started_at": started_at.isoformat(),
            "ended_at": datetime.now().astimezone().isoformat(timespec="seconds"),
            "seconds": self.seconds,
            "options": {
                "archives": [str(a) for a in self.options.archives],
                "engine": self.options.engine,
                "batch_size": self.options.batch_size,
                "workers": self.options.workers,
                "send": str(self.options.send) if self.options.send else None,
            },
            "bundle": {
                "name": self.bundle.name,
                "version": self.bundle.manifest.version,
                "digest": self.bundle.digest,
            },
            "engine": self.engine_name,
            "versions": {"cxrnode": __version__, "python": platform.python_version()}
            | {name: version(name) for name in _LIBRARIES},
        }
        write_run(self.options.out, summary)
        return summary

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = round(time.monotonic() - start, 3)


@contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    """The output folder, ours alone while we run. Raises StoreError where it is not to be had."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        foreign = {p.name for p in out.iterdir()} - {_LOCK_NAME}
        if foreign and not (out / LEDGER_NAME).exists():
            raise StoreError(f"--out {out} is not empty and holds no cxrnode run: choose a new or empty folder")
        keep_private(out)
        (out / _LOCK_NAME).touch()
    except OSError as e:
        raise StoreError(f"cannot use --out {out}: {e.strerror}. Choose a folder that you may write to") from e
    with locked(out / _LOCK_NAME, f"another cxrnode is writing to {out}: wait for it, or choose another --out"):
        yield


def _wipe(out: Path) -> None:
    """--restart: delete what a run makes, and nothing else."""
    for name in _OURS:
        path = out / name
        with storage_errors(path):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
