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
from cxrnode.store.schema import study as study_table
from cxrnode.store.studies import Studies
from cxrnode.types import AuditEvent, Destination, Kind, Reason, Rejection
from cxrnode.workers import decode
from engines.bundle import InputShape
from tests.support.clock import DAY_S, Machine, swept, work
from tests.support.postgres import Postgres
from tests.support.receiving import running_node
from tests.support.store import CR, NOW, analysed, claim, header, kinds, lease, made, received, reports, study_uid

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
        (ready,) = Studies("analyse").claim(c, lease(), quiet_s=0, limit=9)
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


def retention(
    database: Database, root: Path, days: int = 7, destinations: dict[str, bool] | None = None,
    machine: Machine | None = None,
) -> Retention:  # fmt: skip
    where = PACS if destinations is None else destinations
    clock = (machine or Machine()).clock()
    return Retention(database=database, data_dir=root, days=days, destinations=where, clock=clock)


def files(root: Path) -> set[str]:
    return {p.relative_to(root).as_posix() for top in ("spool", "dicom") for p in (root / top).rglob("*.dcm")}


def records(database: Database, kind: str) -> list[AuditEvent]:
    with database.begin() as c:
        return [e for e in ledger.events(c) if e.kind == kind]


def test_what_is_committed_goes_after_its_days_and_not_before(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path, 1, 1, 2)
    before, machine = files(tmp_path), Machine()
    keeper = retention(database, tmp_path, machine=machine)
    for _ in range(7 * 24):
        assert keeper.sweep() == 0
        machine.live(3600)
    assert files(tmp_path) == before
    assert keeper.sweep() == 5  # two images, two captures, one SR
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


@pytest.mark.parametrize("at", [NOW, NOW - 10 * 365 * DAY_S, NOW + 10 * 365 * DAY_S], ids=["", "past", "future"])
def test_zero_days_are_at_once_whatever_the_clock_said_then(database: Database, tmp_path: Path, at: float) -> None:
    finished(database, tmp_path)
    set_deliveries(database, COMMITTED, at=at)
    assert retention(database, tmp_path, days=0).sweep() == 3


@pytest.mark.parametrize("change", ["image", "delivery"])
def test_a_new_step_begins_the_days_anew(database: Database, tmp_path: Path, change: str) -> None:
    """Also one that came and was over between two passes, and whichever way the clock went meanwhile."""
    finished(database, tmp_path)
    keeper = retention(database, tmp_path)
    assert swept(keeper, days=6.9) == 0
    if change == "image":
        take_in(database, tmp_path, 1, 2)
        with database.begin() as c:
            Queue("operator").bury(c, [2])
            (ready,) = Studies("analyse").claim(c, lease(), quiet_s=0, limit=9)
            sr = made("2.25.101", 1, Kind.SR)
            assert Studies("analyse").reported(c, ready, reports(ready, sr), owner="a")
            Outbox("analyse").enqueue(c, ["2.25.101"], ["pacs"], now=NOW - 3600)
    else:
        with database.begin() as c:
            ledger.append(c, "committed", actor="deliver", study_instance_uid=study_uid(1))
    set_deliveries(database, COMMITTED, at=NOW - 3600)
    assert swept(keeper, days=6.9) == 0
    assert swept(keeper, days=0.2) >= 3


def test_work_that_goes_on_again_keeps_the_study(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path)
    keeper = retention(database, tmp_path)
    keeper.sweep()
    set_deliveries(database, PENDING)
    assert swept(keeper) == 0
    set_deliveries(database, COMMITTED)  # as it was: and yet its days begin here
    assert swept(keeper, days=6.9) == 0
    assert swept(keeper, days=0.2) == 3


# --- clocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reboots", [False, True])
@pytest.mark.parametrize("jump_s", [8 * DAY_S, 30 * 365 * DAY_S, -3600.0, 6 * 3600.0])
def test_no_jump_of_the_clock_deletes_what_is_minutes_old(
    database: Database, tmp_path: Path, jump_s: float, reboots: bool
) -> None:
    finished(database, tmp_path)
    machine = Machine()
    keeper = retention(database, tmp_path, machine=machine)
    assert keeper.sweep() == 0
    if reboots:
        machine.reboot()
        keeper = retention(database, tmp_path, machine=machine)
    machine.at += jump_s
    for _ in range(12):
        assert keeper.sweep() == 0
        machine.live(3600)
    machine.at -= jump_s
    assert keeper.sweep() == 0
    machine.live(61)
    work(database, 7)
    assert keeper.sweep() == 3


def test_what_came_while_the_clock_said_1970_is_kept_for_its_days(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path)
    machine = Machine(at=100.0)
    with database.begin() as c:
        c.execute(update(study_table).values(last_received_at=50.0))
    set_deliveries(database, COMMITTED, at=60.0)
    keeper = retention(database, tmp_path, machine=machine)
    assert keeper.sweep() == 0
    machine.at = Machine().at
    assert swept(keeper, days=6.9) == 0
    assert swept(keeper, days=0.2) == 3


def test_a_node_that_is_restarted_every_night_deletes_after_its_days(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path)
    machine = Machine()
    deleted = []
    for _ in range(9):
        keeper = retention(database, tmp_path, machine=machine)
        for _ in range(23):
            deleted.append(keeper.sweep())
            machine.live(3600)
        machine.reboot(off_s=1800)
    days = (deleted.index(3)) / 23
    assert 7 <= days <= 7.5


@pytest.mark.parametrize("days", [0, 7])
def test_while_the_clock_is_not_believed_nothing_is_deleted(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture, days: int
) -> None:
    machine = Machine()
    keeper = retention(database, tmp_path, days=days, machine=machine)
    keeper.sweep()
    finished(database, tmp_path)
    machine.at -= 3600
    assert swept(keeper) == 0
    assert "retention waits, and deletes nothing: the clock says" in caplog.text
    machine.at += 3600
    assert swept(keeper) == 3


@pytest.mark.parametrize("state", [PENDING, SENT, REFUSED])
def test_one_delivery_that_is_not_committed_keeps_the_whole_study(
    database: Database, tmp_path: Path, state: str
) -> None:
    finished(database, tmp_path, 1, 1, 2)
    with database.begin() as c:
        c.execute(update(delivery).where(delivery.c.result_uid == "2.25.1").values(state=state))
    assert swept(retention(database, tmp_path)) == 0
    assert len(files(tmp_path)) == 5


def test_sent_is_the_end_where_a_destination_does_no_commitment(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path)
    set_deliveries(database, SENT)
    assert swept(retention(database, tmp_path, destinations={"other": False})) == 0  # pacs is named no more
    assert swept(retention(database, tmp_path, destinations={"pacs": False})) == 3


def test_a_missing_delivery_keeps_it_and_so_does_no_destination_at_all(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path)
    assert swept(retention(database, tmp_path, destinations={"pacs": True, "second": True})) == 0
    assert swept(retention(database, tmp_path, days=0, destinations={})) == 0
    assert len(files(tmp_path)) == 3


def test_a_study_with_an_image_that_waits_is_kept(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path, 1, 1)
    take_in(database, tmp_path, 1, 2)
    assert swept(retention(database, tmp_path)) == 0
    with database.begin() as c:
        Queue("operator").bury(c, [2])
    assert swept(retention(database, tmp_path)) == 0  # its study's report does not say so yet


@pytest.mark.parametrize(("reason", "deleted"), [(Reason.LATERAL, 1), (Reason.UNDECODABLE, 0)])
def test_of_a_study_without_a_report_only_what_did_not_fail_goes(
    database: Database, tmp_path: Path, reason: Reason, deleted: int
) -> None:
    take_in(database, tmp_path, 1, 1)
    with database.begin() as c:
        (waiting,) = claim(c)
        rejected = Finding(job=waiting, pixel_digest="d" * 64, rejection=Rejection(reason=reason))
        Queue("analyse").finish(c, rejected, owner="a")
        (ready,) = Studies("analyse").claim(c, lease(), quiet_s=0, limit=9)
        assert Studies("analyse").reported(c, ready, (), owner="a") == []
    assert swept(retention(database, tmp_path)) == deleted


def test_of_a_study_without_a_report_one_image_that_failed_keeps_all(database: Database, tmp_path: Path) -> None:
    take_in(database, tmp_path, 1, 1, 2)
    with database.begin() as c:
        for waiting, reason in zip(claim(c), (Reason.LATERAL, Reason.UNDECODABLE), strict=True):
            rejected = Finding(job=waiting, pixel_digest="d" * 64, rejection=Rejection(reason=reason))
            Queue("analyse").finish(c, rejected, owner="a")
        (ready,) = Studies("analyse").claim(c, lease(), quiet_s=0, limit=9)
        Studies("analyse").reported(c, ready, (), owner="a")
    assert swept(retention(database, tmp_path)) == 0


def test_each_study_goes_by_its_own_deliveries(database: Database, tmp_path: Path) -> None:
    for study in (1, 2):
        take_in(database, tmp_path, study, 1)
        report(database, tmp_path, study)
    with database.begin() as c:
        of_first = select(result.c.sop_instance_uid).where(result.c.study_instance_uid == study_uid(1))
        arrived = update(delivery).where(delivery.c.result_uid.in_(of_first))
        c.execute(arrived.values(state=COMMITTED, updated_at=NOW))
    before = files(tmp_path)
    assert swept(retention(database, tmp_path)) == 3
    assert files(tmp_path) == {spooled(2, 1).as_posix(), "dicom/2.25.2.dcm", "dicom/2.25.200.dcm"} & before
    assert len(files(tmp_path)) == 3


def test_a_pass_looks_only_at_studies_that_may_go_and_have_files(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that its cost is that of what may go: of what waits for its days it asks nothing."""
    looked_at: list[str] = []
    over = Retention._over

    def look(self: Retention, c: Connection, uid: str) -> int | None:
        looked_at.append(uid)
        return over(self, c, uid)

    monkeypatch.setattr(Retention, "_over", look)
    finished(database, tmp_path, 1)
    take_in(database, tmp_path, 2, 1)
    (tmp_path / spooled(2, 1)).unlink()
    (tmp_path / "spool" / study_uid(2)).rmdir()
    keeper = retention(database, tmp_path)
    keeper.sweep()
    assert looked_at == [study_uid(1)]
    keeper.sweep()
    assert looked_at == [study_uid(1)]
    work(database, 7)
    keeper.sweep()
    assert looked_at == [study_uid(1)] * 3  # and once more in the transaction that records it


def test_studies_are_asked_for_two_hundred_at_a_time(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[int] = []

    def due(_self: Retention, uids: list[str], _elapsed: float) -> list[str]:
        pages.append(len(uids))
        return []

    monkeypatch.setattr(Retention, "_due", due)
    for n in range(401):
        (tmp_path / "spool" / study_uid(n)).mkdir(parents=True)
    retention(database, tmp_path).sweep()
    assert pages == [200, 200, 1]


def test_a_result_that_was_made_again_after_it_was_deleted_is_deleted_again_and_recorded_again(
    database: Database, tmp_path: Path
) -> None:
    finished(database, tmp_path)
    swept(retention(database, tmp_path))
    sr = replace(made("2.25.100", 1, Kind.SR), path=Path("dicom", study_uid(1), "sr.dcm"))
    with database.begin() as c:
        add_result(c, sr, actor="analyse")
    put(tmp_path, sr.path)
    assert swept(retention(database, tmp_path)) == 1
    again = [e.sop_instance_uid for e in records(database, "result_deleted")]
    assert again.count("2.25.100") == 2


def test_it_stops_between_two_studies(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path)
    stopping = threading.Event()
    stopping.set()
    assert retention(database, tmp_path).sweep(stopping) == 0
    assert len(files(tmp_path)) == 3


def test_a_study_at_which_something_is_wrong_keeps_its_files_and_the_next_ones_go(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for study in (1, 2):
        take_in(database, tmp_path, study, 1)
        report(database, tmp_path, study)
    set_deliveries(database, COMMITTED)
    over, survived = Retention._over, list[str]()

    def fails(self: Retention, c: Connection, uid: str) -> int | None:
        if uid == study_uid(1):
            raise KeyError("x")
        return over(self, c, uid)

    monkeypatch.setattr(Retention, "_over", fails)
    monkeypatch.setattr("cxrnode.metrics.thread_survived", survived.append)
    assert retention(database, tmp_path, days=0).sweep() == 3
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

    monkeypatch.setattr(Retention, "_over", fails)
    with pytest.raises(type(error)):
        swept(retention(database, tmp_path))


def test_on_postgresql_a_pass_that_finds_nothing_old_waits_for_no_writer(postgres: Postgres, tmp_path: Path) -> None:
    database = Database(postgres.new_database())
    finished(database, tmp_path)
    keeper = retention(database, tmp_path)
    keeper.clock.look(database)
    with database.begin(), ThreadPoolExecutor(1) as pool:  # the ledger is somebody else's
        sweep = pool.submit(keeper.sweep)
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
            swept(retention(database, tmp_path))
    assert len(files(tmp_path)) == 3
    assert swept(retention(database, tmp_path)) == 3
    assert len(records(database, "spool_deleted")) == 1
    assert len(records(database, "result_deleted")) == 2
    assert swept(retention(database, tmp_path)) == 0


def test_what_is_sent_again_after_it_was_deleted_is_deleted_again_and_recorded_again(
    database: Database, tmp_path: Path
) -> None:
    finished(database, tmp_path)
    swept(retention(database, tmp_path))
    take_in(database, tmp_path, 1, 1)  # the same bytes: a duplicate
    assert swept(retention(database, tmp_path)) == 1
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
        assert swept(retention(database, tmp_path)) == 2
    assert "Permission denied" in caplog.text


def test_a_study_at_which_something_is_wrong_keeps_no_other(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finished(database, tmp_path, study=1)
    mine = files(tmp_path)
    finished(database, tmp_path, study=2)
    real = Retention._over

    def over(self: Retention, c: Connection, uid: str) -> int | None:
        if uid == study_uid(1):
            raise RuntimeError("Phantom^Chest")
        return real(self, c, uid)

    monkeypatch.setattr(Retention, "_over", over)
    assert swept(retention(database, tmp_path)) > 0
    assert files(tmp_path) == mine
    assert "retention leaves a study alone" in caplog.text


def test_what_no_row_names_is_not_touched(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path)
    put(tmp_path, Path("spool", study_uid(1), "stranger.dcm"))
    put(tmp_path, Path("spool", "not a study", "stranger.dcm"))
    with database.begin() as c:  # a row that points elsewhere than where its kind lies
        c.execute(update(result).where(result.c.kind == "sr").values(path="dicom/../precious.dcm"))
    put(tmp_path, Path("precious.dcm"))
    swept(retention(database, tmp_path))
    assert {"spool/not a study/stranger.dcm", f"spool/{study_uid(1)}/stranger.dcm"} <= files(tmp_path)
    assert (tmp_path / "precious.dcm").exists()


def test_it_runs_until_it_is_stopped(database: Database, tmp_path: Path) -> None:
    finished(database, tmp_path)
    stopping = threading.Event()
    thread = threading.Thread(target=retention(database, tmp_path, days=0).loop(stopping).run, args=(stopping,))
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
    swept(retention(database, tmp_path))
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
    swept(retention(database, tmp_path))
    with database.begin() as c:
        Queue("operator").retry(c, [1])
        (again,) = claim(c)
    location = {**again.location, "container": str(tmp_path / again.location["container"])}
    decoded = decode(location, InputShape(channels=3, rows=100, columns=100))
    assert decoded.rejection is not None
    assert decoded.rejection.reason is Reason.UNREADABLE_FILE
    assert "No such file" in decoded.rejection.text
