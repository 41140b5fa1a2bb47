"""Storage Commitment Push Model (PS3.4 annex J): requests made to us, and reports on requests of ours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO

from pydicom import Dataset
from pydicom import uid as uids

from cxrnode.dicom import budget
from cxrnode.dicom.dimse import N_ACTION_RQ, Command
from cxrnode.dicom.flat import FlatReader, Stream
from cxrnode.dicom.negotiation import Context
from cxrnode.dicom.references import References, read_references
from cxrnode.dicom.status import (
    INVALID_ARGUMENT,
    INVALID_SOP_INSTANCE,
    NO_SUCH_ACTION,
    NO_SUCH_EVENT_TYPE,
    RESOURCE_LIMITATION,
)
from cxrnode.errors import Rejected, StorageFullError, StoreAwayError
from cxrnode.types import Peer, Reason, Reference

PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"  # the well-known SOP Instance (PS3.6 annex A)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentRequest:
    """N-ACTION: the peer asks whether we keep these instances (PS3.4 table J.3-1)."""

    peer: Peer
    transaction_uid: str
    instances: tuple[Reference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentReport:
    """N-EVENT-REPORT: the peer's answer to a request of ours (PS3.4 table J.3-2)."""

    peer: Peer
    transaction_uid: str
    committed: tuple[Reference, ...]
    failed: tuple[tuple[Reference, int], ...]  # with the Failure Reason (PS3.3 section C.14.1.1)


class CommitmentOperation:
    """Receives the data set of an N-ACTION or N-EVENT-REPORT, checks it, hands it over."""

    def __init__(
        self, peer: Peer, context: Context, command: Command, *,
        requested: Callable[[CommitmentRequest], int], reported: Callable[[CommitmentReport], int],
    ) -> None:  # fmt: skip
        self._peer = peer
        self._syntax = context.transfer_syntax
        self._command = command
        self._requested = requested
        self._reported = reported
        self._raw = bytearray()

    def write(self, fragment: memoryview) -> None:
        if len(self._raw) <= budget.COMMITMENT.kept_bytes:  # one byte more says that there is too much
            self._raw += fragment

    def finish(self) -> int:
        action = self._command.field == N_ACTION_RQ
        if self._command.sop_instance_uid != PUSH_MODEL_INSTANCE:
            return INVALID_SOP_INSTANCE
        if self._command.type_id not in ((1,) if action else (1, 2)):
            return NO_SUCH_ACTION if action else NO_SUCH_EVENT_TYPE
        try:
            asked = self._request() if action else self._report()
        except Rejected:  # no data set, or one that does not hold what it must
            return INVALID_ARGUMENT
        try:
            return self._requested(asked) if isinstance(asked, CommitmentRequest) else self._reported(asked)
        except (StoreAwayError, StorageFullError) as error:
            log.error("storage commitment with %s: %s", self._peer.calling_aet, error)  # noqa: TRY400 (in words)
            return RESOURCE_LIMITATION

    def discard(self) -> None:
        self._raw.clear()

    def _request(self) -> CommitmentRequest:
        found = self._parse()
        if not found.referenced:
            raise Rejected(Reason.UNREADABLE_FILE, "nothing to commit to")
        return CommitmentRequest(
            peer=self._peer, transaction_uid=found.transaction_uid, instances=tuple(found.referenced)
        )

    def _report(self) -> CommitmentReport:
        found = self._parse()
        if not found.referenced and not found.failed:
            raise Rejected(Reason.UNREADABLE_FILE, "nothing is reported")
        return CommitmentReport(
            peer=self._peer, transaction_uid=found.transaction_uid, committed=tuple(found.referenced),
            failed=tuple(found.failed),
        )  # fmt: skip

    def _parse(self) -> References:
        if len(self._raw) > budget.COMMITMENT.kept_bytes:
            raise Rejected(Reason.TOO_LARGE, "more references than are taken in one request")
        implicit = self._syntax == uids.ImplicitVRLittleEndian
        stream = Stream(BytesIO(self._raw))
        return read_references(FlatReader(stream, implicit=implicit, little=True, most=budget.COMMITMENT))


def references(instances: Iterable[Reference]) -> list[Dataset]:
    """Items of a Referenced or Failed SOP Sequence (PS3.4 tables J.3-1, J.3-2)."""
    items = []
    for sop_class, uid in instances:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        items.append(item)
    return items
