"""When the analyse stage claims, batches, reports and beats, to the image and to the second; and what it passes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from cxrnode.analyse import Analyser
from cxrnode.dicom.header import header_to_bytes, report_header
from cxrnode.duplicates import compare_with_seen
from cxrnode.errors import ResultError, StorageFullError, StoreError
from cxrnode.in_hand import Arrivals, Committing, Decoding, Inferring, JobStep, Making, Ready, Waiting, seen_as
from cxrnode.inference import Said
from cxrnode.pool import Task, WorkerCrashedError
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.queue import Finding, Job, Lease, Queue, SeenImage
from cxrnode.store.schema import delivery, job
from cxrnode.store.studies import Studies
from cxrnode.types import FloatArray, PreparedImage, Reason, Rejection
from cxrnode.workers import Decoded, decode
from tests.support.make_dicom import chest
from tests.support.scripted import Engine, Script, Told, World, analyser, report
from tests.support.store import NOW, analysed, item, prediction, received, study_uid

PLAIN = Rejection(reason=Reason.LATERAL)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "store.sqlite")
    yield opened
    opened.close()


def stage(database: Database, world: World | None = None, told: Told | None = None, **options: Any) -> Analyser:
    return analyser(database, world or World(Script()), told or Told(), **options)


def a_job(number: int = 1, *, stat: bool = False, header: bytes = b"", study: str = "1.2") -> Job:
    return Job(
        id=number, path=f"p{number}", location={}, study_instance_uid=study, sop_instance_uid="1.2.3", header=header,
        received_at=None, study_since=None, priority=0 if stat else 1, attempts=1,
    )  # fmt: skip


def an_image() -> Decoded:
    grey = PreparedImage(
        pixels=np.zeros((2, 2), np.float32), preview=np.zeros((2, 2), np.uint8), rows=2, columns=2,
        photometric_interpretation="MONOCHROME2",
    )  # fmt: skip
    return Decoded(pixel_digest="d" * 64, image=grey)


def ready(number: int, *, stat: bool = False, since: float = 0.0) -> Ready:
    return Ready(job=a_job(number, stat=stat), decoded=an_image(), note=None, since=since)


def decoding(number: int, *, stat: bool = False) -> Decoding:
    return Decoding(job=a_job(number, stat=stat), task=Task(future=Future(), call=(decode, ()), first=stat))


def holding(held: Analyser, *steps: JobStep) -> Analyser:
    for step in steps:
        held._jobs.take(step)
    return held


# -- batches


class Watched(Engine):
    """Remembers what it was asked for; takes `image_s` for an image."""

    def __init__(self, world: World, image_s: float = 0.0) -> None:
        super().__init__(world)
        self.batches: list[int] = []
        self.image_s = image_s

    def submit(self, images: Sequence[FloatArray]) -> Future[list[Said]]:
        self.batches.append(len(images))
        return super().submit(images)

    def within(self, seconds: float) -> float:
        return seconds / self.image_s if self.image_s else float("inf")


def test_an_archive_is_analysed_in_full_batches(database: Database) -> None:
    with database.begin() as c:
        Queue("test").add(c, [item(1, n) for n in range(7)], now=1.0)
    world = World(Script())
    run = stage(database, world, batch_size=3, window=8)
    watched = Watched(world)
    run.inference = watched  # type: ignore[assignment]
    run.run()
    assert watched.batches == [3, 3, 1]


@pytest.mark.parametrize(
    ("held", "options", "due"),
    [
        ([], {}, False),
        ([ready(1)], {}, True),  # nothing else is under way
        ([ready(1), decoding(2)], {}, False),
        ([ready(1), ready(2), decoding(3)], {}, True),  # full
        ([ready(1, stat=True), decoding(2)], {}, True),
        ([ready(1), ready(2), Inferring(job=a_job(3), decoded=an_image(), note=None)], {}, False),
        ([ready(1, since=90.0), decoding(2)], {"until_dry": False, "max_wait_s": 10.0}, True),
        ([ready(1, since=90.001), decoding(2)], {"until_dry": False, "max_wait_s": 10.0}, False),
        ([ready(1, since=0.0), decoding(2)], {"until_dry": True, "max_wait_s": 10.0}, False),
    ],
)
def test_when_a_batch_is_due(
    database: Database, monkeypatch: pytest.MonkeyPatch, held: list[JobStep], options: dict[str, Any], due: bool
) -> None:
    """A full batch, or one that waits for no more: nothing is being decoded, it waited long enough, or STAT."""
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    assert holding(stage(database, **options), *held)._batch_is_due() is due


@pytest.mark.parametrize(
    ("options", "image_s", "most"),
    [
        ({"batch_size": 64}, 1.0, 64),  # an archive: nobody waits
        ({"batch_size": 64, "until_dry": False}, 0.005, 20),  # a tenth of a second
        ({"batch_size": 64, "until_dry": False}, 1.0, 4),
        ({"batch_size": 3, "until_dry": False}, 1.0, 3),
        ({"batch_size": 64, "until_dry": False}, 0.0, 64),
    ],
)
def test_a_node_s_batch_takes_a_tenth_of_a_second_and_is_never_below_four(
    database: Database, options: dict[str, Any], image_s: float, most: int
) -> None:
    run = stage(database, **options)
    run.inference = Watched(World(Script()), image_s)  # type: ignore[assignment]
    assert run._most_in_batch == most


def taken_by_the_engine(run: Analyser) -> list[int]:
    run._infer()
    return [step.job.id for step in run._jobs.of(Inferring)]


def test_stat_images_go_with_one_routine_image(database: Database) -> None:
    images = [ready(1), ready(2), ready(3, stat=True), ready(4, stat=True), ready(5, stat=True), ready(6, stat=True)]
    assert taken_by_the_engine(holding(stage(database, batch_size=4), *images)) == [1, 3, 4, 5]
    assert taken_by_the_engine(holding(stage(database, batch_size=1), *images)) == [1, 3]  # neither starves the other
    assert taken_by_the_engine(holding(stage(database, batch_size=4), *images[:2])) == [1, 2]
    assert taken_by_the_engine(holding(stage(database, batch_size=1), *images[:2])) == [1]


def test_what_comes_next_is_stat_then_the_first_of_the_archive(database: Database) -> None:
    first, second, urgent = decoding(1), decoding(2), decoding(3, stat=True)
    assert stage(database)._next() is None
    assert holding(stage(database), first, second)._next() is first
    assert holding(stage(database), first, second, urgent)._next() is urgent


def test_two_batches_are_decoded_ahead_and_a_stat_image_always(database: Database) -> None:
    full = holding(stage(database, batch_size=2), ready(1), ready(2))
    assert not full._has_room_for(a_job(3))
    assert full._has_room_for(a_job(3, stat=True))
    assert holding(stage(database, batch_size=3), ready(1), ready(2))._has_room_for(a_job(3))


# -- claims


@pytest.mark.parametrize(
    ("ahead", "window", "until_dry", "claimed"),
    [(0, 8, True, 8), (4, 8, True, 4), (5, 8, True, 0), (0, 2, True, 2), (1, 2, True, 0), (5, 8, False, 0)],
)
def test_a_claim_is_made_for_four_images_or_more(
    database: Database, ahead: int, window: int, until_dry: bool, claimed: int
) -> None:
    with database.begin() as c:
        Queue("test").receive(c, [received(1, n) for n in range(9)])
    run = holding(stage(database, window=window, until_dry=until_dry), *(decoding(100 + n) for n in range(ahead)))
    assert run._claim() == claimed
    with database.begin() as c:
        assert [e.kind for e in ledger.events(c)].count("claimed") == claimed


@pytest.mark.parametrize(("urgent_in_hand", "claimed"), [(0, 4), (1, 3), (4, 0)])
def test_a_node_with_its_hands_full_takes_four_stat_images(
    database: Database, urgent_in_hand: int, claimed: int
) -> None:
    with database.begin() as c:
        Queue("test").receive(c, [received(1, n, stat=n > 4) for n in range(10)])
    held = [decoding(100 + n, stat=n < urgent_in_hand) for n in range(8)]
    run = holding(stage(database, window=8, until_dry=False), *held)
    assert run._claim() == claimed
    assert all(step.job.stat for step in run._jobs.steps if step.job.id < 100)
    assert run._stat_in_hand is bool(urgent_in_hand or claimed)


def test_nothing_is_claimed_beside_a_suspect_or_while_it_stops(database: Database) -> None:
    with database.begin() as c:
        Queue("test").receive(c, [received(1, 1)])
    run = stage(database)
    run._alone = True
    assert run._claim() == 0
    run._alone = False
    run.stopping.set()
    assert run._claim() == run._claim_studies() == 0
    run.stopping = threading.Event()
    assert run._claim() == 1


def test_a_claim_that_finds_nothing_makes_no_suspect(database: Database) -> None:
    run = holding(stage(database), decoding(100))
    assert run._claim() == 0
    with database.begin() as c:
        Queue("test").receive(c, [received(1, 1)])
    assert run._claim() == 1


@pytest.mark.parametrize(("until_dry", "claimed"), [(True, 6), (False, 4)])
def test_a_node_makes_four_reports_at_a_time(database: Database, until_dry: bool, claimed: int) -> None:
    with database.begin() as c:
        queue = Queue("test")
        queue.receive(c, [received(n, 1, at=1.0) for n in range(6)])
        for waiting in queue.claim(c, Lease(owner="a", now=NOW, seconds=9), limit=9, idle=True):
            queue.finish(c, analysed(waiting), owner="a")
    run = stage(database, until_dry=until_dry, window=8)
    assert run._claim_studies() == claimed
    assert len(run._reports) == claimed
    assert run._claim_studies() == 0
    assert stage(database, until_dry=until_dry, window=3)._claim_studies() == min(3, 6 - claimed)


def test_a_study_is_reported_once_it_was_quiet_long_enough(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with database.begin() as c:
        queue = Queue("test")
        queue.receive(c, [received(1, 1)])
        (waiting,) = queue.claim(c, Lease(owner="a", now=NOW, seconds=9), limit=9, idle=True)
        queue.finish(c, analysed(waiting), owner="a")
    run = stage(database, quiet_s=20.0)
    assert run._claim_studies() == 0
    clock[0] += 19.0
    assert run._claim_studies() == 0
    clock[0] += 1.0
    assert run._claim_studies() == 1


# -- leases


def test_a_lease_is_for_ten_seconds_and_beats_four_times_in_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[float] = []
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(Queue, "heartbeat", lambda _self, _c, lease: beats.append(lease.seconds))
    monkeypatch.setattr(Analyser, "_has_claims", lambda *_: True)  # without any there is nothing to keep
    run = stage(database)
    for seconds, so_far in ((0.0, 1), (2.5, 1), (0.01, 2), (2.5, 2), (0.01, 3)):
        clock[0] += seconds
        run._beat()
        assert len(beats) == so_far
    assert beats == [10.0] * 3


def test_a_beat_keeps_jobs_and_studies_and_gives_up_what_is_dead(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    for owner, name in ((Queue, "heartbeat"), (Studies, "heartbeat"), (Queue, "give_up")):
        key = f"{owner.__name__}.{name}"
        monkeypatch.setattr(owner, name, lambda *_, key=key: called.append(key))
    holding(stage(database), decoding(1))._beat()
    assert called == ["Queue.heartbeat", "Studies.heartbeat", "Queue.give_up"]


def test_what_another_process_took_is_no_more_in_hand(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    run = holding(stage(database), decoding(1))
    assert run._holds_what_it_claimed()
    assert not run._busy
    assert "lost the lease of 1 image and 0 studies" in caplog.text


# -- what is passed on


def test_an_archive_s_file_lies_where_its_user_said_and_a_received_one_in_the_data_folder(database: Database) -> None:
    run = stage(database)
    run.output = type(run.output)(root=Path("/data"))
    location = {"container": "spool/1.dcm", "kind": "file"}
    of_archive = Job(**{**_fields(a_job()), "location": location})
    of_spool = Job(**{**_fields(a_job()), "location": location, "received_at": NOW})
    assert run._where(of_archive) == location
    assert run._where(of_spool) == {"container": "/data/spool/1.dcm", "kind": "file"}


def _fields(of: Job) -> dict[str, Any]:
    return {name: getattr(of, name) for name in of.__slots__}


def results_of(database: Database, does: dict[str, Any], **options: Any) -> dict[int, tuple[str, str, str]]:
    """Outcome, reason and detail of two images, the second of which a worker fails on."""
    with database.begin() as c:
        Queue("test").add(c, [item(1, 1), item(1, 2)], now=1.0)
    stage(database, World(Script(), does=does), **options).run()
    with database.begin() as c:
        rows = c.execute(select(job.c.id, job.c.outcome, job.c.reason, job.c.detail))
        return {row[0]: tuple(row[1:]) for row in rows}


def raising(error: Exception) -> Any:
    def do(*_: Any) -> Any:
        raise error

    return do


@pytest.mark.parametrize(
    ("does", "expected"),
    [
        ({"decode": raising(WorkerCrashedError("too much memory"))}, ("failed", "decoder_crashed", "too much memory")),
        ({"decode": lambda *_: Decoded(rejection=PLAIN)}, ("not_analysed", "lateral", "")),
        ({"make_capture": raising(ResultError("no Modality"))}, ("failed", "result_invalid", "no Modality")),
        (
            {"make_capture": raising(WorkerCrashedError("x"))},
            ("failed", "result_invalid", "the worker that made it crashed"),
        ),
        (
            {"infer": lambda images: [Said(error="not finite")] * len(images)},
            ("failed", "inference_failed", "not finite"),
        ),
    ],
)  # fmt: skip
def test_what_fails_has_its_reason(database: Database, does: dict[str, Any], expected: tuple[str, str, str]) -> None:
    assert results_of(database, does) == {1: expected, 2: expected}


def test_results_bear_the_time_of_receipt(database: Database) -> None:
    at: dict[str, datetime] = {}

    def capture(_output: Any, context: Any, *_: Any) -> Any:
        at["capture"] = context.analysed_at
        raise ResultError("enough")

    def sr(output: Any, context: Any, study: Any) -> Any:
        at["sr"] = context.analysed_at
        return report(output, context, study)

    with database.begin() as c:
        Queue("test").receive(c, [received(1, 1, at=1_700_000_000.25)])
    run = stage(database, World(Script(), does={"make_capture": capture, "make_sr": sr}))
    run.run()
    assert {key: value.timestamp() for key, value in at.items()} == dict.fromkeys(("capture", "sr"), 1_700_000_000.25)
    assert all(value.tzinfo for value in at.values())


@pytest.mark.parametrize(("wanted", "kinds"), [(True, ["sr"]), (False, [])])
def test_a_study_without_an_analysed_image_gets_its_report_where_it_is_wanted(
    database: Database, wanted: bool, kinds: list[str]
) -> None:
    told = Told()
    with database.begin() as c:
        Queue("test").add(c, [item(1, 1)], now=1.0)
    world = World(Script(), does={"decode": lambda *_: Decoded(pixel_digest="d" * 64, rejection=PLAIN)})
    stage(database, world, told, report_not_analysed=wanted).run()
    with database.begin() as c:
        made = [e.detail["object"] for e in ledger.events(c) if e.kind == "report_made"]
        assert c.execute(select(job.c.state)).scalar_one() == "reported"
    assert made == kinds
    assert told.reported == [study_uid(1)]


def test_what_is_reported_is_queued_for_every_destination_with_its_study(database: Database) -> None:
    with database.begin() as c:
        Queue("test").add(c, [item(1, 1)], now=1.0)
    stage(database, destinations=("near", "far")).run()
    with database.begin() as c:
        queued = sorted(c.execute(select(delivery.c.destination)).scalars())
        said_of = [e.study_instance_uid for e in ledger.events(c) if e.kind == "delivery_queued"]
    assert queued == ["far", "far", "near", "near"]  # an SR and a capture each
    assert said_of == [study_uid(1)] * 2


def test_only_what_was_committed_is_counted(database: Database) -> None:
    told = Told()
    with database.begin() as c:
        Queue("test").add(c, [item(1, 1), item(1, 2)], now=1.0)
    run = stage(database, told=told)
    run._claim()
    first, second = (step.job for step in run._jobs.steps)
    run._jobs.drop([first.id, second.id])
    for of in (first, second):
        run._jobs.take(Committing(finding=Finding(job=of, rejection=PLAIN)))
    with database.begin() as c:
        Queue("test").release_all(c)
        Queue("test").claim(c, run._lease(), limit=1, idle=True)
    run._commit()
    assert told.done == 1
    assert not run._busy
    run._commit()
    assert told.done == 1


@pytest.mark.parametrize("error", [StoreError("locked"), StorageFullError("no room")], ids=lambda e: type(e).__name__)
def test_the_store_s_trouble_is_no_image_s(
    database: Database, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It is raised at once: no image is tried alone, none is marked as failed."""
    tried: list[int] = []

    def finish(_self: Queue, _c: Any, finding: Finding, *, owner: str) -> bool:
        tried.append(finding.job.id)
        raise error

    monkeypatch.setattr(Queue, "finish", finish)
    outcomes = stage(database)._outcomes
    with pytest.raises(type(error)):
        outcomes.finish([Finding(job=a_job(n), rejection=PLAIN) for n in (1, 2)])
    assert tried == [1]


def test_of_a_commit_that_nobody_expects_to_fail_the_others_are_counted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is tried alone, the poisoned one without its result."""
    with database.begin() as c:
        queue = Queue("test")
        queue.receive(c, [received(1, n) for n in range(3)])
        jobs = queue.claim(c, Lease(owner="me", now=NOW, seconds=1e9), limit=3, idle=True)
    whole = Queue.finish

    def finish(self: Queue, c: Any, finding: Finding, *, owner: str) -> bool:
        if finding.job.id == jobs[1].id and finding.rejection is PLAIN:
            raise ZeroDivisionError
        return whole(self, c, finding, owner=owner)

    monkeypatch.setattr(Queue, "finish", finish)
    outcomes = replace(stage(database)._outcomes, owner="me")
    assert outcomes.finish([Finding(job=of, rejection=PLAIN) for of in jobs]) == 3
    with database.begin() as c:
        reasons = list(c.execute(select(job.c.reason).order_by(job.c.id)).scalars())
    assert reasons == ["lateral", "unexpected_error", "lateral"]


# -- duplicates


def kept(patient: str = "P1", study: str = "1.2") -> bytes:
    ds = chest(64, 64, overrides={"PatientID": patient, "StudyInstanceUID": study})
    return header_to_bytes(report_header(ds))


def seen(
    number: int = 7, *, digest: str = "d" * 64, patient: str = "P1", study: str = "1.2", rejected: Reason | None = None
) -> SeenImage:
    return SeenImage(
        job_id=number, path=f"seen{number}", pixel_digest=digest, study_instance_uid=study,
        header=kept(patient), rejected=rejected,
    )  # fmt: skip


def duplicate(number: int) -> tuple[Rejection, None]:
    return Rejection(reason=Reason.DUPLICATE, detail=f"of seen{number}"), None


def conflict(*numbers: int) -> tuple[None, Rejection]:
    return None, Rejection(reason=Reason.UID_CONFLICT, detail="with " + ", ".join(f"seen{n}" for n in numbers))


@pytest.mark.parametrize(
    ("rejection", "others", "expected"),
    [
        (None, [], (None, None)),
        (None, [seen(7), seen(8)], duplicate(7)),
        (None, [seen(7, digest="e" * 64)], conflict(7)),
        (None, [seen(7, patient="P2")], conflict(7)),
        (None, [seen(7, study="1.3")], conflict(7)),
        (None, [seen(9, study="1.3"), seen(8, patient="P2")], conflict(8, 9)),
        (None, [seen(7, study="1.3"), seen(8)], duplicate(8)),
        (None, [seen(7, rejected=Reason.LATERAL)], (None, None)),  # its header was put right since
        (PLAIN, [seen(7)], duplicate(7)),
        (PLAIN, [seen(7, rejected=Reason.LATERAL)], duplicate(7)),
        (PLAIN, [seen(7, rejected=Reason.UNDECODABLE)], (PLAIN, None)),
        (PLAIN, [seen(7, study="1.3")], (PLAIN, None)),
        (None, [seen(7, rejected=Reason.LATERAL), seen(8)], duplicate(8)),
    ],
)  # fmt: skip
def test_a_duplicate_is_the_same_in_all_that_matters(
    rejection: Rejection | None, others: list[SeenImage], expected: tuple[Rejection | None, Rejection | None]
) -> None:
    decoded = Decoded(pixel_digest="d" * 64, rejection=rejection)
    assert compare_with_seen(a_job(header=kept()), decoded, others) == expected


def test_what_is_in_hand_counts_as_seen_from_its_decoding_on() -> None:
    of, task = a_job(), Task[Any](future=Future(), call=(decode, ()), first=False)
    image = an_image()

    def committing(digest: str | None, why: Reason | None) -> Committing:
        rejection = Rejection(reason=why) if why else None
        return Committing(finding=Finding(job=of, pixel_digest=digest, rejection=rejection))

    def let_in(rejected: Reason | None = None) -> SeenImage:
        return SeenImage(
            job_id=1, path="p1", pixel_digest="d" * 64, study_instance_uid="1.2", header=b"", rejected=rejected
        )

    assert seen_as(Decoding(job=of, task=task)) is None
    assert seen_as(Waiting(job=of, decoded=image)) is None
    assert seen_as(Ready(job=of, decoded=image, note=None, since=0.0)) == let_in()
    assert seen_as(Inferring(job=of, decoded=image, note=None)) == let_in()
    assert seen_as(Making(job=of, digest="d" * 64, note=None, prediction=prediction(), task=task)) == let_in()
    assert seen_as(committing("d" * 64, None)) == let_in()
    assert seen_as(committing("d" * 64, Reason.LATERAL)) == let_in(Reason.LATERAL)
    assert seen_as(committing("d" * 64, Reason.DUPLICATE)) is None
    assert seen_as(committing(None, Reason.UNDECODABLE)) is None


# -- what the futures tell


def test_ends_are_told_once_each_and_those_within_the_time_together() -> None:
    arrivals, told = Arrivals(), []
    assert not arrivals
    futures: list[Future[None]] = [Future() for _ in range(3)]
    for n, future in enumerate(futures):
        arrivals.expect(future, lambda n=n: told.append(n))  # type: ignore[misc]
    assert arrivals
    arrivals.take(wait_s=0.0, together_s=0.0)
    assert told == []
    futures[1].set_result(None)
    futures[0].set_exception(ValueError())
    arrivals.take(wait_s=0.0, together_s=0.0)
    arrivals.take(wait_s=0.0, together_s=0.0)
    assert told == [1, 0]
    futures[2].set_result(None)
    arrivals.take(wait_s=60.0, together_s=60.0)  # nothing else is expected: it waits no longer
    assert told == [1, 0, 2]
    assert not arrivals


class Ends:
    """In the place of the queue: an end comes at each of these times, by a clock that only waiting moves."""

    def __init__(self, *at: float) -> None:
        self.now = 100.0
        self.coming = [100.0 + t for t in at]

    def get(self, timeout: float) -> Any:
        if self.coming and self.coming[0] <= self.now + timeout:
            self.now = max(self.now, self.coming[0])
            self.coming.pop(0)
            return lambda: None
        self.now += timeout
        raise Empty


@pytest.mark.parametrize(
    ("ends", "left", "took"),
    [((61.0,), 3, 60.0), ((60.0, 61.0), 1, 61.0), ((5.0, 5.5, 6.25), 1, 6.0), ((5.0, 5.5, 6.0), 0, 6.0), ((), 3, 60.0)],
)
def test_it_waits_a_minute_for_the_first_and_then_a_second_for_others(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[float, ...], left: int, took: float
) -> None:
    arrivals, clock = Arrivals(), Ends(*ends)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(arrivals, "_ended", clock)
    for _ in range(3):
        arrivals.expect(Future(), lambda: None)
    arrivals.take(wait_s=60.0, together_s=1.0)
    assert (arrivals._expected, clock.now - 100.0) == (left, took)
