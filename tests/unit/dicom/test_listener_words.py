"""What the log says of peers that the listener does not serve: enough to mend it on either side."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from cxrnode.dicom.scp import Handlers, Listener, ListenerOptions, start_listener
from cxrnode.dicom.tls import client_context, server_context
from tests.support.awaiting import await_true
from tests.support.certificates import Authority
from tests.support.receiving import associate_rq, associated

HANDLERS = Handlers(store=lambda _: 0, has_room=lambda: True, commit_requested=lambda _: 0, commit_reported=lambda _: 0)


def options(folder: Path, context: ssl.SSLContext | None = None) -> ListenerOptions:
    return ListenerOptions(
        ae_title="CXRNODE", bind="127.0.0.1", port=0, incoming=folder,
        tls=(lambda: context) if context else None,
        allow=(("CT1", "127.0.0.1"), ("PACS", "192.0.2.7")),
    )  # fmt: skip


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with start_listener(options(tmp_path), HANDLERS) as running:
        yield running


def logged(caplog: pytest.LogCaptureFixture) -> str:
    await_true(lambda: any(r.levelname == "WARNING" and r.name.startswith("cxrnode") for r in caplog.records))
    return " ".join(r.getMessage() for r in caplog.records if r.levelname == "WARNING" and r.name.startswith("cxrnode"))


@pytest.mark.parametrize(
    ("calling", "called", "words"),
    [
        ("STRANGER", "CXRNODE", ["'STRANGER'", "not in [receive] allow", 'host = "127.0.0.1"']),
        ("PACS", "CXRNODE", ["[receive] allow has it from 192.0.2.7", "this is 127.0.0.1"]),
        ("CT1", "WHO", ["called AE title not recognised", "this node is CXRNODE"]),
        ("CT1", "CXRNODE", ["CT Image Storage", "Implicit VR Little Endian"]),
    ],
)
def test_a_rejection_names_what_does_not_fit(
    listener: Listener, caplog: pytest.LogCaptureFixture, calling: str, called: str, words: list[str]
) -> None:
    with associated(listener.port, CTImageStorage, calling=calling, called=called) as assoc:
        assert assoc.is_rejected
    said = logged(caplog)
    assert [word for word in words if word not in said] == []


@pytest.mark.parametrize(("calling", "words"), [("CT1", "CT Image Storage"), ("STRANGER", "not in [receive] allow")])
def test_a_peer_that_gets_no_more_than_an_echo_is_told_of(
    listener: Listener, caplog: pytest.LogCaptureFixture, calling: str, words: str
) -> None:
    with associated(listener.port, Verification, CTImageStorage, calling=calling) as assoc:
        assert assoc.is_established
    assert words in logged(caplog)


def test_tls_into_the_plain_port(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", listener.port), 5) as raw,
        pytest.raises(OSError),  # noqa: PT011 (whichever OpenSSL makes of it)
    ):
        context.wrap_socket(raw).close()
    assert "it speaks TLS, and this port does not: send to the TLS port" in logged(caplog)


def test_plain_into_the_tls_port_and_a_client_without_certificate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    node = authority.issue("node")
    context = server_context(certificate=node.certificate, key=node.key, ca=authority.ca)
    with start_listener(options(tmp_path, context), HANDLERS) as listener:
        with socket.create_connection(("127.0.0.1", listener.port), 5) as raw:
            raw.sendall(associate_rq())
        assert "it does not speak TLS, and this port does" in logged(caplog)
        caplog.clear()
        anonymous = client_context(ca=authority.ca, verify_host=False)
        with (
            socket.create_connection(("127.0.0.1", listener.port), 5) as raw,
            suppress(OSError),
            anonymous.wrap_socket(raw, server_hostname="node") as wrapped,
        ):
            wrapped.recv(1)  # in TLS 1.3 the client hears of it only now
        assert "no client certificate" in logged(caplog)
