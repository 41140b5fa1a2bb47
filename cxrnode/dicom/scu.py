"""Storage SCU: sends result objects and says what the peer answered (PS3.4 annex B)."""

from __future__ import annotations

from pathlib import Path

from pydicom import dcmread
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE
from pynetdicom.association import Association

from cxrnode.types import Destination

CALLING_AE_TITLE = "CXRNODE"
_TIMEOUT_S = 30


class SendError(Exception):
    """The destination cannot be reached, refused the association, or broke it: worth another try."""


class StoreScu:
    """One association to one destination, used as a context manager. Raises SendError."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._assoc: Association | None = None

    def __enter__(self) -> StoreScu:
        ae = AE(ae_title=CALLING_AE_TITLE)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = _TIMEOUT_S
        for sop_class in (Comprehensive3DSRStorage, SecondaryCaptureImageStorage):
            ae.add_requested_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        d = self._destination
        assoc = ae.associate(d.host, d.port, ae_title=d.ae_title, max_pdu=131072)
        if not assoc.is_established:
            raise SendError("association rejected" if assoc.is_rejected else "no connection")
        self._assoc = assoc
        return self

    def __exit__(self, *exc: object) -> None:
        if self._assoc and self._assoc.is_established:
            self._assoc.release()

    def send(self, path: Path) -> tuple[bool, str]:
        """C-STORE one file: (accepted, status in words). A warning (0xBxxx) is an acceptance."""
        if self._assoc is None or not self._assoc.is_established:
            raise SendError("the association is gone")
        try:
            answer = self._assoc.send_c_store(dcmread(path))
        except ValueError as e:  # no presentation context for it was accepted
            return False, f"not accepted: {e}"
        if "Status" not in answer:  # pynetdicom's sign of a broken association or a time-out
            raise SendError("no answer to C-STORE")
        status = int(answer.Status)
        comment = str(answer.get("ErrorComment", ""))
        accepted = status == 0x0000 or status & 0xF000 == 0xB000
        return accepted, f"0x{status:04X} {comment}".strip()
