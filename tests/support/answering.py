"""Peers that answer as they are told, and note what they were asked: by pynetdicom, and of bytes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt

from cxrnode.dicom.negotiation import Request, accept, parse_request, supported
from cxrnode.report.encode import encode
from cxrnode.types import Destination
from tests.support.orthanc import free_port
from tests.support.receiving import HOST

SR, SC = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.7"
VERIFICATION, PUSH = "1.2.840.10008.1.1", "1.2.840.10008.1.20.1"
BOTH = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


def film(folder: Path, *, filler: int = 0, sop_class: str = SC) -> Path:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = UID(sop_class), UID("1.2.3.4")
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.PatientID = UID("1.2"), UID("1.2.3"), "P1"
    if filler:
        ds.EncapsulatedDocument = bytes(filler)
    path = folder / "film.dcm"
    path.write_bytes(encode(ds))
    return path


@contextmanager
def pacs(
    *, takes: Sequence[str] = (VERIFICATION, PUSH, SR, SC), syntaxes: Sequence[str] = BOTH, max_pdu: int = 16382,
    store: Callable[[Any], Any] = lambda _: 0, echo: Callable[[Any], Any] = lambda _: 0,
    action: Callable[[Any], Any] = lambda _: 0, commitment: bool = False,
) -> Iterator[tuple[Destination, list[Any]]]:  # fmt: skip
    """Where it is, and what happened there."""
    seen: list[Any] = []
    ae = AE(ae_title="PACS")
    ae.maximum_pdu_size = max_pdu
    for sop_class in takes:
        ae.add_supported_context(sop_class, [UID(syntax) for syntax in syntaxes])

    def told(answer: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def handler(event: Any) -> Any:
            seen.append(event)
            return answer(event)

        return handler

    server = ae.start_server(
        (HOST, port := free_port()), block=False,
        evt_handlers=[
            (evt.EVT_C_ECHO, told(echo)), (evt.EVT_C_STORE, told(store)), (evt.EVT_ACCEPTED, seen.append),
            (evt.EVT_N_ACTION, told(lambda event: (action(event), None))), (evt.EVT_RELEASED, seen.append),
        ],
    )  # fmt: skip
    assert server is not None
    try:
        yield Destination(ae_title="PACS", host=HOST, port=port, storage_commitment=commitment), seen
    finally:
        server.shutdown()


@contextmanager
def accepting(
    then: Callable[[socket.socket], object], answer: Callable[[bytes], bytes] = bytes, *, commitment: bool = False
) -> Iterator[Destination]:
    """A peer of bytes that accepts an association, or answers the request otherwise, and does `then`."""
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer, suppress(OSError):
                request = parse_request(peer.recv(1 << 18)[6:])
                assert isinstance(request, Request)
                peer.sendall(answer(accept(request, supported(storage=True, commitment=True))[1]))
                then(peer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Destination(ae_title="PACS", host=HOST, port=server.getsockname()[1], storage_commitment=commitment)
        thread.join()


class Listening:
    """Hears all until the connection is over, and answers each thing with the next of `answers`."""

    def __init__(self, *answers: bytes) -> None:
        self.heard = b""
        self._answers = list(answers)

    def __call__(self, raw: socket.socket) -> None:
        raw.settimeout(60)
        while part := raw.recv(1 << 16):
            self.heard += part
            if self._answers:
                raw.sendall(self._answers.pop(0))
