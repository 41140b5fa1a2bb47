"""Storage commitment, SCP side: the N-EVENT-REPORT that answers a request, on an association of our own.

PS3.4 section J.3.3; the role selection (PS3.7 section D.3.3.4) says that the one who opens the association is the SCP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from pydicom import Dataset
from pynetdicom import build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from cxrnode.dicom.commitment import references
from cxrnode.dicom.requestor import CONNECT_TIMEOUT_S, NoAssociationError, SendError, TidyAE, bounded, end
from cxrnode.dicom.status import SUCCESS
from cxrnode.types import Destination, Reference

_TIMEOUT_S = 30.0
_ALL_KEPT, _SOME_MISSING = 1, 2  # event types, PS3.4 table J.3-2


def report_commitment(
    peer: Destination,
    transaction_uid: str,
    kept: Sequence[Reference],
    missing: Sequence[tuple[Reference, int]],
    *,
    calling_ae_title: str,
) -> None:
    """Tell `peer` what we keep, and what not with the Failure Reason. Raises SendError: worth another try."""
    ae = TidyAE(ae_title=calling_ae_title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = _TIMEOUT_S
    ae.connection_timeout = CONNECT_TIMEOUT_S
    ae.add_requested_context(StorageCommitmentPushModel)
    role = build_role(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    try:
        assoc = ae.associate(
            peer.host, peer.port, ae_title=peer.ae_title, ext_neg=[role],
            tls_args=peer.tls_args,
        )  # fmt: skip
    except OSError as e:  # the host has no address
        raise NoAssociationError(f"no connection: {e.strerror}") from e
    if not assoc.is_established:
        raise NoAssociationError("association rejected" if assoc.is_rejected else "no connection")
    try:
        with bounded(assoc, _TIMEOUT_S):
            answer, _ = assoc.send_n_event_report(
                _information(transaction_uid, kept, missing), _SOME_MISSING if missing else _ALL_KEPT,
                StorageCommitmentPushModel, StorageCommitmentPushModelInstance,
            )  # fmt: skip
    except RuntimeError as e:  # it was ended meanwhile
        raise SendError("the association is gone") from e
    finally:
        end(assoc)
    if "Status" not in answer:
        raise SendError("no answer to N-EVENT-REPORT")
    if (status := int(cast(int, answer.Status))) != SUCCESS:
        raise SendError(f"N-EVENT-REPORT was answered with 0x{status:04X}")


def _information(transaction_uid: str, kept: Sequence[Reference], missing: Sequence[tuple[Reference, int]]) -> Dataset:
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    if kept:
        ds.ReferencedSOPSequence = references(kept)
    if missing:
        ds.FailedSOPSequence = references(reference for reference, _ in missing)
        for item, (_, reason) in zip(ds.FailedSOPSequence, missing, strict=True):
            item.FailureReason = reason
    return ds
