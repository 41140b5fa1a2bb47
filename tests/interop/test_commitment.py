"""Storage commitment with a real PACS: Orthanc answers on a new association, to our listener."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cxrnode.committer import record_report
from cxrnode.deliver import Deliverer
from cxrnode.dicom.scp import Handlers, ListenerOptions, start_listener
from cxrnode.dicom.scu import CALLING_AE_TITLE
from cxrnode.dicom.status import NOT_AUTHORISED
from cxrnode.patience import Patience
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.store.outbox import COMMITTED, SENT, Outbox
from cxrnode.types import Destination
from tests.interop.conftest import require
from tests.support.audit import faults
from tests.support.faulty_pacs import wait_for
from tests.support.orthanc import AET, Orthanc, missing_orthanc, running_orthanc
from tests.support.outbox import queue_up, states

pytestmark = pytest.mark.interop


@dataclass(frozen=True, kw_only=True)
class Site:
    """A node's store and listener, and the PACS that knows the node."""

    pacs: Orthanc
    database: Database
    folder: Path

    @property
    def destination(self) -> Destination:
        port = self.pacs.dicom_port
        return Destination(ae_title=AET, host="127.0.0.1", port=port, name="pacs", storage_commitment=True)

    def all_are(self, state: str) -> bool:
        return {s for s, _ in states(self.database, "pacs").values()} == {state}

    @contextmanager
    def delivering(self, destination: Destination) -> Iterator[None]:
        deliverer = Deliverer(
            destinations=[destination], root=self.folder, database=self.database, outbox=outbox(),
            patience=Patience(first_wait_s=0.1, longest_wait_s=1.0),
        )  # fmt: skip
        deliverer.start()
        try:
            yield
        finally:
            assert deliverer.stop()


def outbox() -> Outbox:
    return Outbox("test", resend_wait_s=0.05)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    require(missing_orthanc())
    database = Database(tmp_path / "store.sqlite")
    (tmp_path / "incoming").mkdir()
    options = ListenerOptions(
        ae_title=CALLING_AE_TITLE, bind="127.0.0.1", port=0, incoming=tmp_path / "incoming", allow=(),
        commitment_peers=((AET, "127.0.0.1"),),
    )  # fmt: skip
    handlers = Handlers(
        store=lambda _: NOT_AUTHORISED, has_room=lambda: False, commit_requested=lambda _: NOT_AUTHORISED,
        commit_reported=lambda report: record_report(database, outbox(), report, of={"pacs"}),
    )  # fmt: skip
    with start_listener(options, handlers) as listener:
        node = {"AET": CALLING_AE_TITLE, "Host": "127.0.0.1", "Port": listener.port, "AllowStorageCommitment": True}
        with running_orthanc(tmp_path / "peer", modalities={"cxrnode": node}) as pacs:
            yield Site(pacs=pacs, database=database, folder=tmp_path)
    database.close()


def test_orthanc_commits_to_what_it_was_sent(site: Site) -> None:
    uids = queue_up(site.database, site.folder, site.destination, studies=range(1, 4))
    with site.delivering(site.destination):
        wait_for(lambda: site.all_are(COMMITTED))
    assert len(site.pacs.get_json("/instances")) == len(uids) == 6
    with site.database.begin() as c:
        assert faults(c, but=("instance", "job")) == []
        kinds = [e.kind for e in ledger.events(c)]
    assert [kinds.count(k) for k in ("delivered", "committed", "commitment_failed")] == [6, 6, 0]


def test_what_orthanc_lost_is_sent_again_and_then_committed(site: Site) -> None:
    _, lost = queue_up(site.database, site.folder, site.destination)
    with site.delivering(replace(site.destination, storage_commitment=False)):
        wait_for(lambda: site.all_are(SENT))
    (found,) = site.pacs.find("Instance", SOPInstanceUID=lost)
    request = urllib.request.Request(f"{site.pacs.url}/instances/{found}", method="DELETE")
    urllib.request.urlopen(request, timeout=10).close()
    with site.delivering(site.destination):
        wait_for(lambda: site.all_are(COMMITTED))
    assert len(site.pacs.find("Instance", SOPInstanceUID=lost)) == 1
    with site.database.begin() as c:
        failed = [(e.sop_instance_uid, e.detail["status"]) for e in ledger.events(c) if e.kind == "commitment_failed"]
    assert failed == [(lost, "not committed: 0x0112")]
