"""Whose report on storage commitment counts: from a second PACS that calls our listener, or on our own association."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from cxrnode.committer import CommitmentReports, Committer
from cxrnode.dicom.scp import Handlers, ListenerOptions, start_listener
from cxrnode.dicom.status import NOT_AUTHORISED, PROCESSING_FAILURE
from cxrnode.intake_ledger import Seen
from cxrnode.repeats import SparseLog
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.outbox import COMMITTED, SENT, Outbox
from cxrnode.store.queue import Lease
from cxrnode.types import Destination
from tests.support.faulty_pacs import AET, FaultyPacs, faulty_pacs, wait_for
from tests.support.outbox import queue_up, states
from tests.support.receiving import HOST, NODE

NOW = 1_800_000_000.0


@dataclass(kw_only=True)
class Site:
    """A node's store and listener."""

    database: Database
    folder: Path
    seen: Seen
    told: SparseLog = field(default_factory=SparseLog)
    port: int = 0

    def take(self, pacs: FaultyPacs, name: str = "pacs") -> Destination:
        """Results that this PACS has, and is to be asked for."""
        destination = replace(pacs.destination, name=name, storage_commitment=True)
        uids = queue_up(self.database, self.folder, destination)
        outbox = Outbox("test")
        with self.database.begin() as c:
            for d in outbox.claim(c, name, Lease(owner="me", now=NOW, seconds=30.0), now=NOW, limit=10):
                outbox.sent(c, d, owner="me", now=NOW, status="0x0000")
        pacs.stored.update(uids)
        return destination

    def ask(self, destination: Destination, wait_s: float = 0.0) -> None:
        from tests.faults.test_bad_commitment import QUICK

        Committer(
            destination=destination, database=self.database, outbox=Outbox("test"), patience=QUICK,
            report_wait_s=wait_s, refused=partial(self.seen.report_refused, self.told),
        ).step()  # fmt: skip

    def state(self, name: str = "pacs") -> set[str]:
        return {state for state, _ in states(self.database, name).values()}

    def refusals(self) -> list[tuple[object, object]]:
        """(AE title, reason) of what the ledger has."""
        self.seen.flush()
        with self.database.begin() as c:
            kind = "commitment_report_refused"
            return [(e.ae_title, e.detail["why"]) for e in ledger.events(c) if e.kind == kind]


@contextmanager
def site(folder: Path, *reporters: tuple[str, str], **others: tuple[tuple[str, str], ...]) -> Iterator[Site]:
    """A node that takes reports for `pacs` from these, and for other destinations from theirs."""
    database = Database(folder / "store.sqlite")
    node = Site(database=database, folder=folder, seen=Seen(database, actor="intake"))
    reports = CommitmentReports(
        database=database, outbox=Outbox("intake"), reporters={"pacs": reporters, **others},
        refused=partial(node.seen.report_refused, node.told),
    )  # fmt: skip
    options = ListenerOptions(
        ae_title=NODE, bind=HOST, port=0, incoming=folder, allow=(("MODALITY", HOST),),
        commitment_peers=(*reporters, *(peer for peers in others.values() for peer in peers)),
    )  # fmt: skip
    handlers = Handlers(
        store=lambda _: NOT_AUTHORISED, has_room=lambda: False, commit_requested=lambda _: NOT_AUTHORISED,
        commit_reported=reports.take,
    )  # fmt: skip
    with start_listener(options, handlers) as listener:
        node.port = listener.port
        yield node
    database.close()


@pytest.mark.parametrize(
    ("reporters", "calls_itself"),
    [([(AET, HOST)], AET), ([(AET, HOST), ("ARCHIVE", HOST)], "ARCHIVE"), ([("ARCHIVE", HOST)], "ARCHIVE")],
)
def test_a_report_counts_from_who_was_asked_and_from_who_reports_for_it(
    tmp_path: Path, reporters: list[tuple[str, str]], calls_itself: str
) -> None:
    with site(tmp_path, *reporters) as node, faulty_pacs(
        commitment="new", report_to=(HOST, node.port), report_as=calls_itself
    ) as pacs:  # fmt: skip
        node.ask(node.take(pacs))
        wait_for(lambda: pacs.reports)
        assert pacs.reports == [0x0000]
        assert node.state() == {COMMITTED}
        assert node.refusals() == []


@pytest.mark.parametrize("calls_itself", ["OTHER", "MODALITY"])
def test_a_report_from_another_destination_or_a_sender_of_images_does_not_count(
    tmp_path: Path, calls_itself: str, caplog: pytest.LogCaptureFixture
) -> None:
    with site(tmp_path, (AET, HOST), other=(("OTHER", HOST),)) as node, faulty_pacs(
        commitment="new", report_to=(HOST, node.port), report_as=calls_itself
    ) as pacs:  # fmt: skip
        destination = node.take(pacs)
        for n in range(3):
            node.ask(destination)
            with node.database.begin() as c:
                c.exec_driver_sql("UPDATE delivery SET not_before = 0")
            wait_for(lambda n=n: len(pacs.reports) > n)
        assert pacs.reports == [PROCESSING_FAILURE] * 3
        assert node.state() == {SENT}
        why = "pacs was asked; if this peer reports for it, name it in commitment_ae_titles of pacs"
        assert node.refusals() == [(calls_itself, why)]  # the other two are summed up
        node.seen.flush(everything=True)
        assert len(node.refusals()) == 2
        said = [r.getMessage() for r in caplog.records if "does not count" in r.getMessage()]
        assert said == [f"a storage commitment report of {calls_itself} at {HOST} does not count: {why}"]


def test_a_report_of_a_destination_that_nobody_knows_is_not_taken_at_all(tmp_path: Path) -> None:
    with site(tmp_path, (AET, HOST)) as node, faulty_pacs(
        commitment="new", report_to=(HOST, node.port), report_as="STRANGER"
    ) as pacs:  # fmt: skip
        node.ask(node.take(pacs))
        wait_for(lambda: pacs.reports)
        assert pacs.reports == [None]
        assert node.state() == {SENT}


def test_the_right_name_at_another_address_is_not_it(tmp_path: Path) -> None:
    with site(tmp_path, (AET, "192.0.2.7"), other=(("OTHER", HOST), (AET, HOST))) as node, faulty_pacs(
        commitment="new", report_to=(HOST, node.port)
    ) as pacs:  # fmt: skip
        node.ask(node.take(pacs))
        wait_for(lambda: pacs.reports)
        assert pacs.reports == [PROCESSING_FAILURE]
        assert node.state() == {SENT}


def test_on_our_own_association_a_destination_has_no_say_for_another(tmp_path: Path) -> None:
    """One PACS reports on the transaction that another was asked for."""
    with site(tmp_path, (AET, HOST)) as node, faulty_pacs(commitment="never") as asked:
        destination = node.take(asked)
        node.ask(destination)
        with faulty_pacs(commitment="same") as liar:
            liar.claims = asked.transactions[0]
            other = replace(liar.destination, name="other", storage_commitment=True)
            with node.database.begin() as c:
                c.exec_driver_sql("INSERT INTO delivery (result_uid, destination, state, attempts, not_before, status, "
                                  "updated_at) SELECT result_uid, 'other', state, attempts, 0, status, updated_at "
                                  "FROM delivery")  # fmt: skip
            liar.stored.update(asked.stored)
            node.ask(other, wait_s=0.5)
            wait_for(lambda: liar.reports)
        assert liar.reports == [PROCESSING_FAILURE]
        assert node.state() == {SENT}
        assert [who for who, _ in node.refusals()] == [AET]
