"""Which files go, and when; and what is said of them afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, select, update

from cxrnode.commit import CommitmentAnswers
from cxrnode.errors import StorageFullError, StoreAwayError
from cxrnode.retention import Retention
from cxrnode.store import ledger
from cxrnode.store.commitments import Commitments
from cxrnode.store.database import Database
from cxrnode.store.objects import add_result
from cxrnode.store.outbox import COMMITTED, PENDING, REFUSED, SENT, Outbox
from cxrnode.store.queue import Finding, Queue
from cxrnode.store.schema import delivery, result
from cxrnode.store.studies import Studies
from cxrnode.types import AuditEvent, Destination, Kind, Reason, Rejection
from cxrnode.workers import decode
from engines.bundle import InputShape
from tests.support.postgres import Postgres
from tests.support.receiving import running_node
from tests.support.store import CR, NOW, analysed, claim, header, kinds, lease, made, received, reports, study_uid

DAY = 86_400.0
LATER = NOW + 8 * DAY
PACS = {"pacs": True}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "ledger.sqlite")
    yield database
    database.close()


def spooled(study: int, image: int, sha256: str = "a") -> Path:
    return Path("spool", study_uid(study), f"{header(study, image).sop_instance_uid}-{sha256}.dcm")


def take_in(database: Database, root: Path, study: int, *images: int) -> None:
    """Instances as intake leaves them: rows, and files in the spool."""
    with database.begin() as c:
        Queue("intake").receive(c, [replace(received(study, n), path=spooled(study, n)) for n in images])
    for n in images:
        put(root, spooled(study, n))


def put(root: Path, path: Path) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(b"pixels")


def report(database: Database, root: Path, study: int, destinations: tuple[str, ...] = ("pacs",)) -> None:
    """Analyse and report all that waits, as the analyse stage does, and put the results in the outbox."""
    sr = made(f"2.25.{study}00", study, Kind.SR)
    with database.begin() as c:
        for waiting in claim(c):
            Queue("analyse").finish(c, analysed(waiting), owner="a")
        (ready,) = Studies("analyse").claim(c, lease(now=NOW + 60), quiet_s=5, limit=9)
        uids = Studies("analyse").reported(c, ready, reports(ready, sr), owner="a")
        assert uids is not None
        Outbox("analyse").enqueue(c, uids, destinations, now=NOW)
    for uid in uids:
        put(root, Path("dicom", f"{uid}.dcm"))


def set_deliveries(database: Database, state: str, at: float = NOW, destination: str = "pacs") -> None:
    with database.begin() as c:
        c.execute(
            update(delivery).where(delivery.c.destination == destination).values(state=state, updated_at=at)
        )  # fmt: skip


def finished(database: Database, root: Path, study: int = 1, *images: int) -> None:
    take_in(database, root, study, *(images or (1,)))
    report(database, root, study)
    set_deliveries(database, COMMITTED)


def retention(database: Database, root: Path, days: int = 7, destinations: dict[str, bool] | None = None) -> Retention:
    where = PACS if destinations is None else destinations
    return Retention(database=database, data_dir=root, days=days, destinations=where)


def files(root: Path) -> set[str]:
    return {p.relative_to(root).as_posix() for top in ("spool", "dicom") for p in (root / top).rglob("*.dcm")}


def records(database: Database, kind: str) -> list[AuditEvent]:
    with database.begin() as c:
        return [e for e in ledger.events(c) if e.kind == kind]


def test_what_is_committed_goes_after_its_days_and_not_before(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path, 1, 1, 2)
    before = files(tmp_path)
    assert retention(database, tmp_path).sweep(now=NOW + 7 * DAY - 1) == 0
    assert files(tmp_path) == before
    assert retention(database, tmp_path).sweep(now=NOW + 7 * DAY) == 5  # two images, two captures, one SR
    assert not files(tmp_path)
    assert not (tmp_path / "spool" / study_uid(1)).exists()
    (first, second) = records(database, "spool_deleted")
    assert (first.study_instance_uid, first.actor) == (study_uid(1), "retention")
    assert first.sop_instance_uid == f"{study_uid(1)}.1.1"
    assert first.detail == {"sha256": "a" * 64, "path": spooled(1, 1).as_posix()}
    assert second.sop_instance_uid == f"{study_uid(1)}.1.2"
    with database.begin() as c:  # the rows stay
        assert Queue("test").known_paths(c, [spooled(1, 1).as_posix()])
        assert ledger.first_broken(c) is None


def test_the_newest_step_counts_and_zero_days_are_at_once(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path)
    set_deliveries(database, COMMITTED, at=NOW + 3 * DAY)
    assert retention(database, tmp_path).sweep(now=NOW + 8 * DAY) == 0
    assert retention(database, tmp_path, days=0).sweep(now=NOW + 2 * DAY) == 0  # committed in its future: a clock error
    assert retention(database, tmp_path, days=0).sweep(now=NOW + 3 * DAY) == 3


@pytest.mark.parametrize("state", [PENDING, SENT, REFUSED])
def test_one_delivery_that_is_not_committed_keeps_the_whole_study(
    database: Database, tmp_path: Path, state: str
) -> None:
    finished(database, tmp_path, 1, 1, 2)
    with database.begin() as c:
        c.execute(update(delivery).where(delivery.c.result_uid == "2.25.1").values(state=state))
    assert retention(database, tmp_path).sweep(now=LATER) == 0
    assert len(files(tmp_path)) == 5


def test_sent_is_the_end_where_a_destination_does_no_commitment(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path)
    set_deliveries(database, SENT)
    assert retention(database, tmp_path, destinations={"other": False}).sweep(now=LATER) == 0  # pacs is named no more
    assert retention(database, tmp_path, destinations={"pacs": False}).sweep(now=LATER) == 3


def test_a_missing_delivery_keeps_it_and_so_does_no_destination_at_all(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path)
    assert retention(database, tmp_path, destinations={"pacs": True, "second": True}).sweep(now=LATER) == 0
    assert retention(database, tmp_path, days=0, destinations={}).sweep(now=LATER) == 0
    assert len(files(tmp_path)) == 3


def test_a_study_with_an_image_that_waits_is_kept(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path, 1, 1)
    take_in(database, tmp_path, 1, 2)
    assert retention(database, tmp_path).sweep(now=LATER) == 0
    with database.begin() as c:
        Queue("operator").bury(c, [2])
    assert retention(database, tmp_path).sweep(now=LATER) == 0  # its study's report does not say so yet


@pytest.mark.parametrize(("reason", "deleted"), [(Reason.LATERAL, 1), (Reason.UNDECODABLE, 0)])
def test_of_a_study_without_a_report_only_what_did_not_fail_goes(
    database: Database, tmp_path: Path, reason: Reason, deleted: int
) -> None:
    take_in(database, tmp_path, 1, 1)
    with database.begin() as c:
        (waiting,) = claim(c)
        rejected = Finding(job=waiting, pixel_digest="d" * 64, rejection=Rejection(reason=reason))
        Queue("analyse").finish(c, rejected, owner="a")
        (ready,) = Studies("analyse").claim(c, lease(now=NOW + 60), quiet_s=5, limit=9)
        assert Studies("analyse").reported(c, ready, (), owner="a") == []
    assert retention(database, tmp_path).sweep(now=LATER) == deleted


def test_of_a_study_without_a_report_one_image_that_failed_keeps_all(database: Database, tmp_path: Path) -> None:
    take_in(database, tmp_path, 1, 1, 2)
    with database.begin() as c:
        for waiting, reason in zip(claim(c), (Reason.LATERAL, Reason.UNDECODABLE), strict=True):
            rejected = Finding(job=waiting, pixel_digest="d" * 64, rejection=Rejection(reason=reason))
            Queue("analyse").finish(c, rejected, owner="a")
        (ready,) = Studies("analyse").claim(c, lease(now=NOW + 60), quiet_s=5, limit=9)
        Studies("analyse").reported(c, ready, (), owner="a")
    assert retention(database, tmp_path).sweep(now=LATER) == 0


def test_each_study_goes_by_its_own_deliveries(database: Database, tmp_path: Path) -> None:
    for study in (1, 2):
        take_in(database, tmp_path, study, 1)
        report(database, tmp_path, study)
    with database.begin() as c:
        of_first = select(result.c.sop_instance_uid).where(result.c.study_instance_uid == study_uid(1))
        arrived = update(delivery).where(delivery.c.result_uid.in_(of_first))
        c.execute(arrived.values(state=COMMITTED, updated_at=NOW))
    before = files(tmp_path)
    assert retention(database, tmp_path).sweep(now=LATER) == 3
    assert files(tmp_path) == {spooled(2, 1).as_posix(), "dicom/2.25.2.dcm", "dicom/2.25.200.dcm"} & before
    assert len(files(tmp_path)) == 3


@pytest.mark.parametrize(("days", "asked_at", "is_old"), [(7, -0.001, False), (7, 0.0, True), (0, 0.0, True)])
def test_a_pass_looks_only_at_studies_that_are_old_enough_and_have_files(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, asked_at: float, is_old: bool
) -> None:
    """So that its cost is that of what may go, and no study's rows are locked in vain."""
    looked_at: list[str] = []

    def look(_self: Retention, uid: str, _now: float) -> int:
        looked_at.append(uid)
        return 0

    monkeypatch.setattr(Retention, "_delete", look)
    for study in (1, 2):
        take_in(database, tmp_path, study, 1)
    (tmp_path / spooled(2, 1)).unlink()
    (tmp_path / "spool" / study_uid(2)).rmdir()
    retention(database, tmp_path, days=days).sweep(now=NOW + days * DAY + asked_at)
    assert looked_at == [study_uid(1)] * is_old


def test_studies_are_asked_for_two_hundred_at_a_time(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[int] = []

    def old(_self: Retention, uids: list[str], _now: float) -> list[str]:
        pages.append(len(uids))
        return []

    monkeypatch.setattr(Retention, "_old", old)
    for n in range(401):
        (tmp_path / "spool" / study_uid(n)).mkdir(parents=True)
    retention(database, tmp_path).sweep(now=LATER)
    assert pages == [200, 200, 1]


def test_a_result_that_was_made_again_after_it_was_deleted_is_deleted_again_and_recorded_again(
    database: Database, tmp_path: Path
) -> None:
    finished(database, tmp_path)
    retention(database, tmp_path).sweep(now=LATER)
    sr = replace(made("2.25.100", 1, Kind.SR), path=Path("dicom", study_uid(1), "sr.dcm"))
    with database.begin() as c:
        add_result(c, sr, actor="analyse")
    put(tmp_path, sr.path)
    assert retention(database, tmp_path).sweep(now=LATER) == 1
    again = [e.sop_instance_uid for e in records(database, "result_deleted")]
    assert again.count("2.25.100") == 2


def test_it_stops_between_two_studies(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path)
    stopping = threading.Event()
    stopping.set()
    assert retention(database, tmp_path).sweep(stopping, now=LATER) == 0
    assert len(files(tmp_path)) == 3


def test_a_study_at_which_something_is_wrong_keeps_its_files_and_the_next_ones_go(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for study in (1, 2):
        take_in(database, tmp_path, study, 1)
        report(database, tmp_path, study)
    set_deliveries(database, COMMITTED)
    is_over, survived = Retention._is_over, list[str]()

    def fails(self: Retention, c: Connection, uid: str, now: float) -> bool:
        if uid == study_uid(1):
            raise KeyError("x")
        return is_over(self, c, uid, now)

    monkeypatch.setattr(Retention, "_is_over", fails)
    monkeypatch.setattr("cxrnode.metrics.thread_survived", survived.append)
    assert retention(database, tmp_path).sweep(now=LATER) == 3
    assert len(files(tmp_path)) == 3
    assert survived == ["retention"]
    assert [r.__dict__["study_instance_uid"] for r in caplog.records if r.levelname == "ERROR"] == [study_uid(1)]


@pytest.mark.parametrize("error", [StoreAwayError("gone"), StorageFullError("full")], ids=lambda e: type(e).__name__)
def test_a_database_that_is_away_ends_the_pass(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    finished(database, tmp_path)

    def fails(*_: object) -> bool:
        raise error

    monkeypatch.setattr(Retention, "_is_over", fails)
    with pytest.raises(type(error)):
        retention(database, tmp_path).sweep(now=LATER)


def test_on_postgresql_a_pass_that_finds_nothing_old_waits_for_no_writer(postgres: Postgres, tmp_path: Path) -> None:
    database = Database(postgres.new_database())
    take_in(database, tmp_path, 1, 1)
    with database.begin(), ThreadPoolExecutor(1) as pool:  # the ledger is somebody else's
        sweep = pool.submit(retention(database, tmp_path).sweep, now=NOW)
        assert sweep.result(20) == 0
    database.close()


def test_a_pass_is_due_every_hour(database: Database, tmp_path: Path) -> None:
    loop = retention(database, tmp_path).loop(threading.Event())
    assert (loop.name, loop.step()) == ("retention", 3600.0)


def test_a_crash_before_the_unlink_leaves_a_file_that_the_next_pass_deletes_with_one_record(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(database, tmp_path)
    with monkeypatch.context() as m:
        m.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            retention(database, tmp_path).sweep(now=LATER)
    assert len(files(tmp_path)) == 3
    assert retention(database, tmp_path).sweep(now=LATER) == 3
    assert len(records(database, "spool_deleted")) == 1
    assert len(records(database, "result_deleted")) == 2
    assert retention(database, tmp_path).sweep(now=LATER) == 0


def test_what_is_sent_again_after_it_was_deleted_is_deleted_again_and_recorded_again(
    database: Database, tmp_path: Path
) -> None:
    finished(database, tmp_path)
    retention(database, tmp_path).sweep(now=LATER)
    take_in(database, tmp_path, 1, 1)  # the same bytes: a duplicate
    assert retention(database, tmp_path).sweep(now=LATER) == 1
    with database.begin() as c:
        said = [k for k in kinds(c) if k in {"received", "spool_deleted"}]
    assert said == ["received", "spool_deleted"] * 2


def test_a_file_that_cannot_be_deleted_keeps_no_other(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finished(database, tmp_path)
    with pytest.MonkeyPatch.context() as m:
        unlink = Path.unlink

        def refuse(path: Path, missing_ok: bool = False) -> None:
            if "spool" in path.parts:
                raise PermissionError(13, "Permission denied")
            unlink(path, missing_ok)

        m.setattr(Path, "unlink", refuse)
        assert retention(database, tmp_path).sweep(now=LATER) == 2
    assert "Permission denied" in caplog.text


def test_a_study_at_which_something_is_wrong_keeps_no_other(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finished(database, tmp_path, study=1)
    mine = files(tmp_path)
    finished(database, tmp_path, study=2)
    real = Retention._is_over

    def is_over(self: Retention, c: Connection, uid: str, now: float) -> bool:
        if uid == study_uid(1):
            raise RuntimeError("Phantom^Chest")
        return real(self, c, uid, now)

    monkeypatch.setattr(Retention, "_is_over", is_over)
    assert retention(database, tmp_path).sweep(now=LATER) > 0
    assert files(tmp_path) == mine
    assert "retention leaves a study alone" in caplog.text


def test_what_no_row_names_is_not_touched(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path)
    put(tmp_path, Path("spool", study_uid(1), "stranger.dcm"))
    put(tmp_path, Path("spool", "not a study", "stranger.dcm"))
    with database.begin() as c:  # a row that points elsewhere than where its kind lies
        c.execute(update(result).where(result.c.kind == "sr").values(path="dicom/../precious.dcm"))
    put(tmp_path, Path("precious.dcm"))
    retention(database, tmp_path).sweep(now=LATER)
    assert {"spool/not a study/stranger.dcm", f"spool/{study_uid(1)}/stranger.dcm"} <= files(tmp_path)
    assert (tmp_path / "precious.dcm").exists()


def test_it_runs_until_it_is_stopped(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path)
    with database.begin() as c:  # NOW lies in the future of this machine
        c.exec_driver_sql("UPDATE study SET last_received_at = 0")
        c.exec_driver_sql("UPDATE delivery SET updated_at = 0")
    stopping = threading.Event()
    thread = threading.Thread(target=retention(database, tmp_path).loop(stopping).run, args=(stopping,))
    thread.start()
    deadline = time.monotonic() + 10
    while files(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    stopping.set()
    thread.join(10)
    assert not thread.is_alive()
    assert not files(tmp_path)


# --- what is said of a file that is gone ----------------------------------------------------------------------------


def test_a_commitment_request_for_a_deleted_instance_is_answered_with_no_such_object(
    database: Database, tmp_path: Path
) -> None:
    finished(database, tmp_path, 101, 1)
    take_in(database, tmp_path, 102, 1)
    retention(database, tmp_path).sweep(now=LATER)
    gone, kept = header(101, 1).sop_instance_uid, header(102, 1).sop_instance_uid
    with running_node(tmp_path / "peer", commitment_peers=(("CXRNODE", "127.0.0.1"),)) as peer:
        answers = CommitmentAnswers(
            database=database, commitments=Commitments("intake"), root=tmp_path, calling_ae_title="CXRNODE",
            peers={("PACS", "127.0.0.1"): Destination(ae_title="CXRNODE", host="127.0.0.1", port=peer.port)},
        )  # fmt: skip
        with database.begin() as c:
            answers.commitments.ask(c, "2.25.4711", "PACS", "127.0.0.1", [(CR, gone), (CR, kept)])
        stopping = threading.Event()
        thread = threading.Thread(target=answers.loop().run, args=(stopping,))
        thread.start()
        deadline = time.monotonic() + 10
        while not peer.commit_reports and time.monotonic() < deadline:
            time.sleep(0.02)
        stopping.set()
        thread.join(10)
    (answer,) = peer.commit_reports
    assert answer.committed == ((CR, kept),)
    assert answer.failed == (((CR, gone), 0x0112),)


def test_the_analysis_of_a_deleted_file_is_rejected_with_a_reason(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path)
    retention(database, tmp_path).sweep(now=LATER)
    with database.begin() as c:
        Queue("operator").retry(c, [1])
        (again,) = claim(c, now=LATER)
    location = {**again.location, "container": str(tmp_path / again.location["container"])}
    decoded = decode(location, InputShape(channels=3, rows=100, columns=100))
    assert decoded.rejection is not None
    assert decoded.rejection.reason is Reason.UNREADABLE_FILE
    assert "No such file" in decoded.rejection.text
