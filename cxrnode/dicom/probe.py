"""What a peer says of itself on one association: why it refuses, what it accepts, whether it finds a study.

Verification (PS3.4 annex A) and Study Root C-FIND (PS3.4 annex C), as `cxrnode doctor` asks them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

from pydicom import Dataset
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from cxrnode.dicom.negotiation import COMMITMENT, VERIFICATION
from cxrnode.dicom.requestor import SendError, TidyAE, bounded, end, why_not
from cxrnode.dicom.status import SUCCESS
from cxrnode.types import Destination

RESULTS = {
    str(Comprehensive3DSRStorage): "Comprehensive 3D SR",
    str(SecondaryCaptureImageStorage): "Secondary Capture",
}
FIND = str(StudyRootQueryRetrieveInformationModelFind)
_PENDING = {0xFF00, 0xFF01}  # PS3.4 table C.4-1
_TIMEOUT_S = 10.0


class Probe:
    """An open association."""

    def __init__(self, assoc: Association) -> None:
        self._assoc = assoc

    @property
    def accepted(self) -> Mapping[str, list[str]]:
        """Abstract syntax -> the names of the transfer syntaxes that were accepted for it."""
        found: dict[str, list[str]] = {}
        for context in self._assoc.accepted_contexts:
            found.setdefault(str(context.abstract_syntax), []).append(UID(context.transfer_syntax[0]).name)
        return found

    def echo(self) -> int:
        """C-ECHO; the status. Raises SendError."""
        try:
            with bounded(self._assoc, _TIMEOUT_S):
                answer = self._assoc.send_c_echo()
        except ValueError as e:
            raise SendError("Verification is not accepted") from e
        return _status(answer, "C-ECHO")

    def find_study(self, study_instance_uid: str) -> list[Dataset]:
        """What the peer holds of this study: PatientID and StudyInstanceUID. Raises SendError."""
        query = Dataset()
        query.QueryRetrieveLevel = "STUDY"
        query.StudyInstanceUID, query.PatientID = study_instance_uid, ""
        found = []
        with bounded(self._assoc, _TIMEOUT_S):
            for answer, identifier in self._assoc.send_c_find(query, FIND):
                status = _status(answer, "C-FIND")
                if status in _PENDING and identifier is not None:
                    found.append(identifier)
                elif status != SUCCESS:
                    raise SendError(f"C-FIND was answered with 0x{status:04X} {answer.get('ErrorComment', '')}".strip())
        return found


@contextmanager
def probe(peer: Destination, *, calling_ae_title: str) -> Iterator[Probe]:
    """Open an association with all that the node asks of a destination. Raises SendError that says why not."""
    ae = TidyAE(ae_title=calling_ae_title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = _TIMEOUT_S
    contexts = [
        build_context(sop_class, syntax)
        for sop_class in RESULTS
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    ]
    contexts += [build_context(VERIFICATION), build_context(COMMITMENT), build_context(FIND)]
    try:
        assoc = ae.associate(
            peer.host, peer.port, contexts=contexts, ae_title=peer.ae_title,
            tls_args=peer.tls_args,
        )  # fmt: skip
    except OSError as e:
        raise SendError(f"no connection: {peer.host}: {e.strerror}") from e
    if not assoc.is_established:
        raise SendError(why_not(assoc, peer))
    try:
        yield Probe(assoc)
    finally:
        end(assoc)


def _status(answer: Dataset, to: str) -> int:
    if "Status" not in answer:  # pynetdicom's sign of a broken association or a time-out
        raise SendError(f"no answer to {to}")
    return int(cast(int, answer.Status))
