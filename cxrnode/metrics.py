"""What the stages count and time, for Prometheus: in mapped files that the node reads when it answers /metrics.

    with shared_folder(stages) as folder:      # in the node's process
        ...                                    # it starts the stages
        collect(folder)
    begin("intake")                            # in each stage; from there on the functions below count

This is prometheus_client's multiprocess mode. A file belongs to a stage, not to a process: a stage that is started
again goes on counting, and there are never more files. Where nobody would read them (run-batch) nothing is counted.
No label may hold patient data, and none may take values without bound.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it takes a sixth of a second to import, which run-batch can do without
    from prometheus_client import Histogram, Metric

_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own
_KINDS = ("counter", "histogram", "gauge_max")  # a file each
_FILE_BYTES = 1 << 20  # 32 devices with three labels take a quarter of it
_MOST_DEVICES = 32  # that have a distribution of their own
_DEVICE_LETTERS = 64
OTHER = "other"
# of a thread, in monotonic seconds, which all processes of a machine share: nobody's but `threads`'
_BEAT, _DUE = "cxrnode_thread_beat", "cxrnode_thread_due"
_THREAD_FAILURES = "cxrnode_thread_failures"
_NOT_WRITTEN = "cxrnode_not_written_since"  # by a stage, in the same seconds; 0: it can write
_UNANSWERED = "cxrnode_receive_unanswered_since_seconds"
_INTERNAL = {_BEAT, _DUE, _NOT_WRITTEN, _UNANSWERED}
_FAILURES = "cxrnode_destination_failures"
_EXPIRY = "cxrnode_certificate_expiry_timestamp_seconds"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TENTHS = tuple(n / 10 for n in range(1, 11))

log = logging.getLogger(__name__)


# --- the node's process ---------------------------------------------------------------------------------------------


@contextmanager
def shared_folder(stages: Sequence[str]) -> Iterator[Path | None]:
    """A new folder for what the stages count, which the processes started meanwhile find by themselves.

    None, and a word in the log, where there is no room for it: the node works without.
    """
    with ExitStack() as stack:
        try:
            name = stack.enter_context(TemporaryDirectory(prefix="cxrnode-metrics-", ignore_cleanup_errors=True))
            _reserve(Path(name), stages)
        except OSError as e:
            log.warning("no room for the stages' figures, which /metrics will lack: %s", e.strerror)
            yield None
            return
        os.environ[_VARIABLE] = name
        stack.callback(os.environ.pop, _VARIABLE)
        yield Path(name)


def _reserve(folder: Path, stages: Sequence[str]) -> None:
    """Take the files' room now: to write to a mapped file on a disk that is full would kill the stage (SIGBUS)."""
    for stage in stages:
        for kind in _KINDS:
            with (folder / f"{kind}_{stage}.db").open("wb") as f:
                os.posix_fallocate(f.fileno(), 0, _FILE_BYTES)


def collect(folder: Path, kind: str = "*") -> Iterable[Metric]:
    """What all stages have counted so far; kind: one of _KINDS alone."""
    return [metric for metric in _collect(folder, kind) if metric.name not in _INTERNAL]


def _collect(folder: Path, kind: str) -> Iterable[Metric]:
    from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

    files = [str(path) for path in folder.glob(f"{kind}_*.db")]
    found: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
    return found


def failures_in_a_row(folder: Path, destination: str) -> int:
    """Of sending results there; 0 where the deliver stage runs elsewhere."""
    samples = (s for m in collect(folder, _KINDS[-1]) for s in m.samples if s.name == _FAILURES)
    mine = {"destination": destination, "service": "storage"}
    return int(max((s.value for s in samples if s.labels == mine), default=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadState:
    """How a thread of a stage is. Times in monotonic seconds."""

    stage: str
    name: str
    beat: float  # its last sign of life
    due: float  # later than this, without another, it hangs; infinite: it ended
    failures: int  # in a row


def threads(folder: Path) -> list[ThreadState]:
    """Every thread that said so far that it lives."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    for metric in _collect(folder, _KINDS[-1]):
        if metric.name in (_BEAT, _DUE, _THREAD_FAILURES):
            for s in metric.samples:
                values.setdefault((s.labels["stage"], s.labels["thread"]), {})[metric.name] = s.value
    return [
        ThreadState(stage=stage, name=name, beat=v[_BEAT], due=v[_DUE], failures=int(v.get(_THREAD_FAILURES, 0)))
        for (stage, name), v in sorted(values.items())
        if v.keys() >= {_BEAT, _DUE}
    ]


def not_written_since(folder: Path) -> dict[tuple[str, str], float]:
    """(stage, "files" or "rows") -> since when it cannot write those, in monotonic seconds; 0 where it can."""
    samples = (s for m in _collect(folder, _KINDS[-1]) for s in m.samples if s.name == _NOT_WRITTEN)
    return {(s.labels["stage"], s.labels["what"]): s.value for s in samples}


def certificate_expiries(folder: Path) -> dict[str, float]:
    """Of the certificates that the stages have loaded: role -> when the first of them expires, seconds since 1970."""
    return {s.labels["role"]: s.value for m in collect(folder, _KINDS[-1]) for s in m.samples if s.name == _EXPIRY}


def unanswered_since(folder: Path) -> float:
    """When the oldest C-STORE request that has no answer yet was whole, monotonic seconds; 0 where all have one.

    A time and not an age: a stage that hangs says nothing more.
    """
    return max((s.value for m in _collect(folder, _KINDS[-1]) for s in m.samples if s.name == _UNANSWERED), default=0)


# --- a stage --------------------------------------------------------------------------------------------------------


class _Meters:
    """The metrics of this process."""

    def __init__(self, stage: str) -> None:
        from prometheus_client import Counter, Gauge, Histogram  # noqa: PLC0415

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=_SECONDS, registry=None)

        self.received = Counter(
            "cxrnode_receive_instances", "C-STORE requests by the status of the answer", ["status"], registry=None
        )
        self.received_bytes = Counter("cxrnode_receive_bytes", "Bytes of the instances taken in", registry=None)
        self.receive = seconds("cxrnode_receive_seconds", "From a C-STORE request to its answer")
        self.unanswered = Gauge(
            _UNANSWERED, "When the oldest instance that waits for its answer was there, monotonic; else 0",
            registry=None, multiprocess_mode="max",
        )  # fmt: skip
        self.rejected = Counter(
            "cxrnode_receive_associations_rejected", "Associations rejected, by reason", ["reason"], registry=None
        )
        self.aborted = Counter(
            "cxrnode_receive_connections_aborted", "Connections that brought no DICOM, or no TLS, by reason",
            ["reason"], registry=None,
        )  # fmt: skip
        self.wrong_address = Counter(
            "cxrnode_receive_wrong_address", "Associations of a known AE title from an address that is not its own",
            registry=None,
        )  # fmt: skip
        self.decode = seconds("cxrnode_decode_seconds", "Reading, gating and decoding one image, in a worker")
        self.batch = Histogram("cxrnode_batch_images", "Images in a batch", buckets=_IMAGES, registry=None)
        self.infer = seconds("cxrnode_infer_seconds", "The engine's time for one batch")
        self.report = seconds("cxrnode_report_seconds", "Making and checking one result, in a worker", "kind")
        self.score = Histogram(
            "cxrnode_score_ratio", "Probabilities that the model gave, by the device that made the image",
            ["device", "label"], buckets=_TENTHS, registry=None,
        )  # fmt: skip
        self.deliver = seconds("cxrnode_deliver_seconds", "From C-STORE of a result to the answer", "destination")
        self.reports_refused = Counter(
            "cxrnode_commitment_reports_refused", "Storage commitment reports from others than the destination asked",
            ["destination"], registry=None,
        )  # fmt: skip
        self.failures = Gauge(
            _FAILURES, "Failures in a row", ["destination", "service"], registry=None,
            multiprocess_mode="max",
        )  # fmt: skip
        self.breaker = Gauge(
            "cxrnode_destination_breaker_open", "1 while a destination that fails is only tried now and then",
            ["destination", "service"], registry=None, multiprocess_mode="max",
        )  # fmt: skip
        self.expiry = Gauge(
            _EXPIRY, "When a certificate in use expires (of several in one file, the first)", ["role"], registry=None,
            multiprocess_mode="max",
        )  # fmt: skip
        thread = ["stage", "thread"]
        self.beat, self.due, self.thread_failures = (
            Gauge(name, text, thread, registry=None, multiprocess_mode="max")
            for name, text in (
                (_BEAT, "-"), (_DUE, "-"), (_THREAD_FAILURES, "Failures in a row of a thread that tries again"),
            )
        )  # fmt: skip
        self.not_written = Gauge(
            _NOT_WRITTEN, "-", ["stage", "what"], registry=None, multiprocess_mode="max"
        )  # fmt: skip
        self.thread_errors = Counter("cxrnode_thread_errors", "Errors that a thread survived", thread, registry=None)
        self.stage = stage
        self.devices: set[str] = set()
        self.lock = Lock()
        self.waiting: dict[object, float] = {}  # since when


_meters: _Meters | None = None


def begin(stage: str) -> None:
    """Count from now on, as this stage, where the node that started this process reads it."""
    global _meters  # noqa: PLW0603 (one a process, as the files are)
    folder = Path(os.environ.get(_VARIABLE, ""))
    if not (folder / f"{_KINDS[0]}_{stage}.db").is_file():
        return
    from prometheus_client import values  # noqa: PLC0415

    values.ValueClass = values.MultiProcessValue(lambda: stage)  # type: ignore[no-untyped-call]
    _meters = _Meters(stage)
    _meters.devices = _devices(collect(folder))
    if stage == "intake":
        _meters.unanswered.set(0)  # those of a process that died have no sender any more


def _devices(metrics: Iterable[Metric]) -> set[str]:
    """Those that were told apart before this process was started again."""
    return {s.labels["device"] for m in metrics if m.name == "cxrnode_score_ratio" for s in m.samples} - {OTHER}


def received(status: int, size_bytes: int, seconds: float) -> None:
    """One C-STORE request was answered."""
    if _meters:
        _meters.received.labels(f"0x{status:04X}").inc()
        _meters.receive.observe(seconds)
        if status == 0:
            _meters.received_bytes.inc(size_bytes)


@contextmanager
def answering() -> Iterator[None]:
    """A C-STORE request is whole, and waits for its answer."""
    since, key = time.monotonic(), object()
    _waiting(key, since)
    try:
        yield
    finally:
        _waiting(key, None)


def _waiting(key: object, since: float | None) -> None:
    if _meters is None:
        return
    with _meters.lock:
        if since is None:
            _meters.waiting.pop(key, None)
        else:
            _meters.waiting[key] = since
        _meters.unanswered.set(min(_meters.waiting.values(), default=0))


def association_rejected(reason: str) -> None:
    """reason: one of negotiation's own texts."""
    if _meters:
        _meters.rejected.labels(reason).inc()


def wrong_address() -> None:
    """A known AE title came from an address that is not its own."""
    if _meters:
        _meters.wrong_address.inc()


def certificate_loaded(role: str, until: float) -> None:
    """role: the key that names its file, such as receive.tls.certificate; until: seconds since 1970."""
    if _meters:
        _meters.expiry.labels(role).set(until)


def connection_aborted(reason: str) -> None:
    """reason: of `sockets.ABORT_REASONS`, or "no TLS"."""
    if _meters:
        _meters.aborted.labels(reason).inc()


def thread_lives(name: str, now: float, due: float) -> None:
    """See ThreadState."""
    if _meters:
        _meters.beat.labels(_meters.stage, name).set(now)
        _meters.due.labels(_meters.stage, name).set(due)


def thread_ended(name: str) -> None:
    if _meters:
        _meters.due.labels(_meters.stage, name).set(math.inf)


def thread_failed(name: str, failures: int) -> None:
    """failures: in a row; 0: it works again."""
    if _meters:
        _meters.thread_failures.labels(_meters.stage, name).set(failures)
        if failures:
            thread_survived(name)


def thread_survived(name: str) -> None:
    """An error, once."""
    if _meters:
        _meters.thread_errors.labels(_meters.stage, name).inc()


def not_written(what: str, since: float) -> None:
    """See `not_written_since`."""
    if _meters:
        _meters.not_written.labels(_meters.stage, what).set(since)


def decoded(seconds: float) -> None:
    if _meters:
        _meters.decode.observe(seconds)


def inferred(images: int, seconds: float) -> None:
    if _meters:
        _meters.batch.observe(images)
        _meters.infer.observe(seconds)


def made(kind: str, seconds: float) -> None:
    """A capture or an SR was made, or failed its checks."""
    if _meters:
        _meters.report.labels(kind).observe(seconds)


def scored(device: str, labels: Iterable[str], probabilities: Iterable[float]) -> None:
    """What the model said of one image of this device."""
    if _meters is None:
        return
    if device not in _meters.devices:
        if len(_meters.devices) >= _MOST_DEVICES:
            device = OTHER
        else:
            _meters.devices.add(device)
    for label, probability in zip(labels, probabilities, strict=True):
        _meters.score.labels(device, label).observe(probability)


def reports_expected(destinations: Iterable[str]) -> None:
    """None was refused yet: a counter that begins with its first event has no increase."""
    if _meters:
        for destination in (*destinations, ""):
            _meters.reports_refused.labels(destination)


def report_refused(destination: str) -> None:
    """A storage commitment report of who was not asked; destination: who was, or "" where nobody was."""
    if _meters:
        _meters.reports_refused.labels(destination).inc()


def delivered(destination: str, seconds: float) -> None:
    """A destination answered, whatever it said."""
    if _meters:
        _meters.deliver.labels(destination).observe(seconds)


def tried(destination: str, service: str, failures: int, is_open: bool) -> None:
    """service: "storage" or "commitment"; failures: in a row."""
    if _meters:
        _meters.failures.labels(destination, service).set(failures)
        _meters.breaker.labels(destination, service).set(is_open)


def device_name(manufacturer: str, model: str) -> str:
    """The label of the device that made an image: printable ASCII, of bounded length.

    Manufacturer and model say which kind of device it is (PS3.3 section C.7.5.1), and nothing of a person or a room,
    as Station Name and serial number may.
    """
    text = " ".join(f"{manufacturer} {model}".split())
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)[:_DEVICE_LETTERS] or "unknown"
