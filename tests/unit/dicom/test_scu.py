"""What the sender says of a peer that will not have it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pynetdicom import AE
from pynetdicom.acse import ACSE

from cxrnode.dicom.dimse import C_STORE_RQ, Command, encode_response, fragments
from cxrnode.dicom.negotiation import VERIFICATION
from cxrnode.dicom.probe import probe
from cxrnode.dicom.requestor import SendError
from cxrnode.dicom.scu import StoreScu
from cxrnode.dicom.tls import client_context
from cxrnode.types import Destination
from tests.support.certificates import Authority
from tests.support.orthanc import free_port
from tests.support.receiving import running_node


@pytest.mark.parametrize("late_s", [0.0, 0.5], ids=["at-once", "on-a-busy-machine"])
def test_a_rejection_is_told_however_late_this_thread_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late_s: float
) -> None:
    """The peer rejects and closes at once: pynetdicom's caller may wake up only when the connection is gone."""
    request = ACSE.send_request

    def request_and_dawdle(acse: ACSE) -> None:
        request(acse)
        time.sleep(late_s)

    monkeypatch.setattr(ACSE, "send_request", request_and_dawdle)
    with running_node(tmp_path / "var") as node:
        nobody = Destination(ae_title="NOBODY", host="127.0.0.1", port=node.port)
        with pytest.raises(SendError, match="association rejected"):
            StoreScu(nobody).open()
        with (
            pytest.raises(SendError, match="Called AE title not recognised"),
            probe(nobody, calling_ae_title="CXRNODE"),
        ):
            pass


def test_why_there_is_no_connection(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(SendError, match=f"no connection: refused by 127.0.0.1:{port}"):
        StoreScu(Destination(ae_title="PACS", host="127.0.0.1", port=port)).open()
    authority = Authority(tmp_path)
    with running_node(tmp_path / "var") as plain:
        tls = client_context(ca=authority.ca)
        secure = Destination(ae_title="CXRNODE", host="127.0.0.1", port=plain.port, tls=lambda: tls)
        with pytest.raises(SendError, match=f"127.0.0.1:{plain.port} does not speak TLS|TLS handshake"):
            StoreScu(secure).open()


def test_a_destination_that_takes_no_data_at_all_is_said() -> None:
    ae = AE(ae_title="TINY")
    ae.maximum_pdu_size = 7  # a fragment of one byte, and fragments are of even length
    ae.add_supported_context(VERIFICATION)
    port = free_port()
    server = ae.start_server(("127.0.0.1", port), block=False)
    assert server is not None
    try:
        with pytest.raises(SendError, match="a maximum PDU length of 6 bytes, which holds no data"):
            StoreScu(Destination(ae_title="TINY", host="127.0.0.1", port=port)).open()
    finally:
        server.shutdown()


@pytest.mark.parametrize("max_length", [0, 7, 8, 15, 16, 17, 127, 16383, 16384])
def test_our_own_answers_are_cut_into_even_fragments(max_length: int) -> None:
    """PS3.8 section E.1."""
    command = Command(
        field=C_STORE_RQ, message_id=7, has_data_set=True, sop_class_uid="1.2.3", sop_instance_uid="1.2.3.4", type_id=0
    )  # fmt: skip
    whole = b"".join(bytes(part) for _, _, part in cut(encode_response(command, 0xA900, 1, 0)))
    parts = list(cut(encode_response(command, 0xA900, 1, max_length)))
    assert b"".join(bytes(part) for _, _, part in parts) == whole
    assert all(len(part) % 2 == 0 for _, _, part in parts)
    assert [control for _, control, _ in parts] == [1] * (len(parts) - 1) + [3]
    assert not max_length or all(len(part) + 6 <= max(max_length, 8) for _, _, part in parts)


def cut(raw: bytes) -> Iterator[tuple[int, int, memoryview]]:
    """The fragments of P-DATA-TF PDUs."""
    while raw:
        length = int.from_bytes(raw[2:6], "big")
        yield from fragments(memoryview(raw[6 : 6 + length]))
        raw = raw[6 + length :]
