"""Storage commitment in both roles, negotiation, closing; what hostile peers do is in tests/faults."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom import uid as uids
from pynetdicom import build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    ComprehensiveSRStorage,
    StorageCommitmentPushModel,
    Verification,
)

from cxrnode.dicom.scp import CommitmentReport, CommitmentRequest, IncomingInstance
from cxrnode.types import Peer
from tests.support.make_dicom import SOP_CLASSES, chest
from tests.support.receiving import HOST, PACS, Node, associated, echo, running_node, send

PUSH = StorageCommitmentPushModel
WELL_KNOWN = "1.2.840.10008.1.20.1.1"
ARCHIVE = "ARCHIVE"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with running_node(tmp_path / "var", commitment_peers=((ARCHIVE, HOST),)) as node:
        yield node


def asked(*instances: str, transaction: str = "1.2.840.1") -> Dataset:
    ds = Dataset()
    ds.TransactionUID = transaction
    ds.ReferencedSOPSequence = [reference(uid) for uid in instances]
    return ds


def reference(uid: str) -> Dataset:
    ds = Dataset()
    ds.ReferencedSOPClassUID, ds.ReferencedSOPInstanceUID = SOP_CLASSES["CR"], uid
    return ds


def request(node: Node, ds: Dataset | None, *, calling: str = PACS, action: int = 1, uid: str = WELL_KNOWN) -> int:
    with associated(node.port, PUSH, calling=calling) as assoc:
        return int(assoc.send_n_action(ds, action, PUSH, uid)[0].get("Status", -1))


def report(node: Node, ds: Dataset, *, calling: str = ARCHIVE, event: int = 1, roles: bool = True) -> int:
    items = [build_role(PUSH, scu_role=False, scp_role=True)] if roles else []
    with associated(node.port, PUSH, calling=calling, ext_neg=items) as assoc:
        return int(assoc.send_n_event_report(ds, event, PUSH, WELL_KNOWN)[0].get("Status", -1))


def test_a_commitment_request_is_handed_over(node: Node) -> None:
    assert request(node, asked("1.2.3", "1.2.4")) == 0
    cr = str(SOP_CLASSES["CR"])
    assert node.commit_requests == [
        CommitmentRequest(
            peer=Peer(calling_aet=PACS, called_aet="CXRNODE", host=HOST), transaction_uid="1.2.840.1",
            instances=((cr, "1.2.3"), (cr, "1.2.4")),
        )
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # pydicom's, where the test makes them
def test_a_bad_commitment_request_is_refused(node: Node) -> None:
    no_transaction = asked("1.2.3")
    del no_transaction.TransactionUID
    assert request(node, no_transaction) == 0x0115
    assert request(node, asked("1.2.3", transaction="../x")) == 0x0115
    assert request(node, asked("../etc")) == 0x0115
    assert request(node, asked()) == 0x0115
    assert request(node, None) == 0x0115
    assert request(node, asked("1.2.3"), action=2) == 0x0123
    assert request(node, asked("1.2.3"), uid="1.2.3") == 0x0117
    assert request(node, asked("1.2.3"), calling=ARCHIVE) == 0x0124
    assert not node.commit_requests
    assert echo(node.port) == 0


@pytest.mark.parametrize("roles", [True, False])
def test_a_commitment_report_is_handed_over(node: Node, *, roles: bool) -> None:
    ds = asked("1.2.3")
    lost = reference("1.2.4")
    lost.FailureReason = 0x0112
    ds.FailedSOPSequence = [lost]
    assert report(node, ds, event=2, roles=roles) == 0
    cr = str(SOP_CLASSES["CR"])
    assert node.commit_reports == [
        CommitmentReport(
            peer=Peer(calling_aet=ARCHIVE, called_aet="CXRNODE", host=HOST), transaction_uid="1.2.840.1",
            committed=((cr, "1.2.3"),), failed=(((cr, "1.2.4"), 0x0112),),
        )
    ]  # fmt: skip


def test_a_bad_commitment_report_is_refused(node: Node) -> None:
    ds = asked("1.2.3")
    assert report(node, ds, event=3) == 0x0113
    ds.FailedSOPSequence = [reference("1.2.4")]  # without its reason
    assert report(node, ds, event=2) == 0x0115
    assert not node.commit_reports


def test_who_reports_commitments_may_not_store(node: Node) -> None:
    with associated(node.port, PUSH, SOP_CLASSES["CR"], calling=ARCHIVE) as assoc:
        assert [cx.abstract_syntax for cx in assoc.accepted_contexts] == [PUSH]


def test_what_is_not_offered_is_not_accepted(node: Node) -> None:
    with associated(node.port, Verification, ComprehensiveSRStorage) as assoc:
        assert [cx.abstract_syntax for cx in assoc.accepted_contexts] == [Verification]
    with associated(node.port, ComprehensiveSRStorage) as assoc:
        assert assoc.is_rejected


def test_uncompressed_goes_before_compressed(node: Node) -> None:
    from pynetdicom import AE

    ae = AE(ae_title=PACS)
    ae.add_requested_context(SOP_CLASSES["DX"], [uids.JPEG2000, uids.JPEGLosslessSV1, uids.ImplicitVRLittleEndian])
    assoc = ae.associate(HOST, node.port, ae_title="CXRNODE")
    assert assoc.accepted_contexts[0].transfer_syntax == [uids.ImplicitVRLittleEndian]
    assoc.release()


def test_the_tiniest_pdus_of_a_peer_are_respected(node: Node) -> None:
    ds = chest(64, 64)
    with associated(node.port, ds, max_pdu=16) as assoc:
        assert assoc.send_c_store(ds).Status == 0


def test_associations_and_refusals_are_told(node: Node, tmp_path: Path) -> None:
    send(node.port, chest(64, 64))
    for calling, called, why in (
        ("STRANGER", "CXRNODE", "calling AE title not recognised"),
        (PACS, "WHO", "called AE title not recognised"),
        (PACS, "CXRNODE", "nothing that it asks for is offered to it"),
    ):
        with associated(node.port, ComprehensiveSRStorage, calling=calling, called=called) as assoc:
            assert assoc.is_rejected
        assert node.associations[-1] == (Peer(calling_aet=calling, called_aet=called, host=HOST), why)
    assert (node.associations[0][0].calling_aet, node.associations[0][1], len(node.associations)) == (PACS, "", 4)
    ds = chest(64, 64)
    del ds.StudyInstanceUID
    assert send(node.port, ds) == [0xC003]
    ((peer, uid, status, why),) = node.refused
    assert (peer.calling_aet, uid, status, why) == (
        PACS, ds.SOPInstanceUID, 0xC003, "a mandatory UID is missing or invalid: StudyInstanceUID"
    )  # fmt: skip
    with running_node(tmp_path / "full", watermark_bytes=1 << 62) as full:
        assert send(full.port, chest(64, 64)) == [0xA700]
        assert [(status, why) for _, _, status, why in full.refused] == [
            (0xA700, "no room, or the node is not well: send again later")
        ]


def test_an_error_of_ours_is_a_status_and_no_patient_data_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def store(_incoming: IncomingInstance) -> int:
        raise RuntimeError("Phantom^Chest")

    with running_node(tmp_path / "var", store=store) as node:
        assert send(node.port, chest(64, 64)) == [0xA700]
        assert [status for _, _, status, _ in node.refused] == [0xA700]
        assert not node.files()
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("cxrnode")]
    assert any("RuntimeError" in message for message in ours)
    assert not any("Phantom" in message for message in ours)


def test_closing_lets_a_message_under_way_be_answered_and_ends_the_idle(tmp_path: Path) -> None:
    storing, go_on = threading.Event(), threading.Event()

    def store(_incoming: IncomingInstance) -> int:
        storing.set()
        assert go_on.wait(10)
        return 0

    ds = chest(64, 64)
    with running_node(tmp_path / "var", store=store) as node, associated(node.port) as idle:
        statuses: list[int] = []

        def send_and_go() -> None:
            with associated(node.port, ds) as assoc:
                statuses.append(int(assoc.send_c_store(ds).Status))
                assoc.abort()  # a release may cross the node's own abort, and pynetdicom wait for an answer

        sender = threading.Thread(target=send_and_go)
        sender.start()
        assert storing.wait(10)
        closer = threading.Thread(target=node.listener.close)
        closer.start()
        while not node.listener.closing:
            pass
        go_on.set()
        closer.join(10)
        sender.join(10)
        assert statuses == [0]
        idle.join(5)
        assert not idle.is_established
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, node.port))
