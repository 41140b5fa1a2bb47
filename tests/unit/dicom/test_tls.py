"""TLS contexts: what they negotiate, whom they refuse, and what they say of files that are of no use."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from cxrnode.dicom.tls import certificate_expiry, client_context, server_context
from cxrnode.errors import ConfigError
from tests.interop.conftest import require
from tests.support.certificates import Authority, Identity
from tests.support.orthanc import free_port

ECHOSCU = Path("/usr/bin/echoscu")
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def node(authority: Authority) -> Identity:
    return authority.issue("node")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


def listening(node: Identity, authority: Authority, *, required: bool = True) -> ssl.SSLContext:
    return server_context(
        certificate=node.certificate, key=node.key, ca=authority.ca, require_client_certificate=required
    )


def calling(authority: Authority, identity: Identity | None, *, verify_host: bool = True) -> ssl.SSLContext:
    if identity is None:
        return client_context(ca=authority.ca, verify_host=verify_host)
    return client_context(ca=authority.ca, certificate=identity.certificate, key=identity.key, verify_host=verify_host)


def talk(server: ssl.SSLContext, client: ssl.SSLContext, host: str = "127.0.0.1") -> tuple[str, str]:
    """One exchange over a real socket: (TLS version, cipher suite). Raises what the client saw, or the server."""
    ours, theirs = socket.socketpair()
    failed: list[Exception] = []

    def answer() -> None:
        try:
            with server.wrap_socket(ours, server_side=True) as s:
                s.sendall(s.recv(4))
        except (ssl.SSLError, OSError) as e:
            failed.append(e)
            ours.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with client.wrap_socket(theirs, server_hostname=host) as c:
            c.sendall(b"ping")
            answered = c.recv(4)
            version, cipher = c.version(), c.cipher()
    finally:
        theirs.close()
        thread.join()
    if answered != b"ping":
        raise failed[0]
    assert version
    assert cipher
    return version, cipher[0]


def test_tls_1_3_where_both_have_it(authority: Authority, node: Identity) -> None:
    assert talk(listening(node, authority), calling(authority, node))[0] == "TLSv1.3"


@pytest.mark.parametrize(
    ("suite", "rsa"),
    [
        ("ECDHE-ECDSA-AES128-GCM-SHA256", False),
        ("ECDHE-ECDSA-AES256-GCM-SHA384", False),
        ("ECDHE-RSA-AES128-GCM-SHA256", True),
        ("ECDHE-RSA-AES256-GCM-SHA384", True),
    ],
)
def test_tls_1_2_with_the_suites_of_the_profile(authority: Authority, suite: str, rsa: bool) -> None:
    identity = authority.issue(f"suite-{rsa}", rsa=rsa)
    client = calling(authority, identity)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(suite)
    assert talk(listening(identity, authority), client) == ("TLSv1.2", suite)


def test_no_other_suite_is_offered(authority: Authority, node: Identity) -> None:
    for context in (listening(node, authority), calling(authority, node)):
        old = {c["name"] for c in context.get_ciphers() if c["protocol"] != "TLSv1.3"}
        assert old == {f"ECDHE-{k}-AES{n}" for k in ("RSA", "ECDSA") for n in ("128-GCM-SHA256", "256-GCM-SHA384")}


@pytest.mark.parametrize("weak", ["AES128-SHA", "ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"])
def test_a_peer_with_other_suites_is_refused(authority: Authority, node: Identity, weak: str) -> None:
    client = calling(authority, node)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(weak)
    with pytest.raises(ssl.SSLError):
        talk(listening(node, authority), client)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_no_way_down_to_tls_1_1(authority: Authority, node: Identity) -> None:
    client = calling(authority, node)
    client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    client.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        talk(listening(node, authority), client)


def test_a_client_without_a_certificate_is_refused_where_one_is_required(authority: Authority, node: Identity) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        talk(listening(node, authority), calling(authority, None))
    assert talk(listening(node, authority, required=False), calling(authority, None))


@pytest.mark.parametrize("required", [True, False])
def test_a_client_that_a_stranger_signed_is_refused(
    authority: Authority, node: Identity, stranger: Authority, required: bool
) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        talk(listening(node, authority, required=required), calling(authority, stranger.issue("intruder")))


def test_a_server_that_a_stranger_signed_is_refused(authority: Authority, node: Identity, stranger: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        talk(listening(stranger.issue("impostor"), authority), calling(authority, node, verify_host=False))


def test_the_server_must_be_who_was_called_unless_told_otherwise(authority: Authority, node: Identity) -> None:
    server = listening(authority.issue("elsewhere", "pacs.example"), authority)
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        talk(server, calling(authority, node))
    assert talk(server, calling(authority, node, verify_host=False))
    assert talk(server, calling(authority, node), host="pacs.example")


def test_expiry_is_the_first_in_the_file(authority: Authority, tmp_path: Path) -> None:
    sooner, later = datetime(2031, 2, 3, tzinfo=UTC), datetime(2041, 2, 3, tzinfo=UTC)
    chain = tmp_path / "chain.pem"
    issued = [authority.issue(f"until-{at.year}", not_after=at) for at in (later, sooner)]
    chain.write_bytes(b"".join(i.certificate.read_bytes() for i in issued))
    assert certificate_expiry(chain) == sooner


def _expired(a: Authority, node: Identity, _folder: Path) -> Identity:
    now = datetime.now(UTC)
    return a.issue("expired", not_before=now - 9 * DAY, not_after=now - DAY)


def _future(a: Authority, node: Identity, _folder: Path) -> Identity:
    now = datetime.now(UTC)
    return a.issue("future", not_before=now + DAY, not_after=now + 9 * DAY)


def _encrypted(_a: Authority, node: Identity, folder: Path) -> Identity:
    key = load_pem_private_key(node.key.read_bytes(), None)
    locked = folder / "locked.key"
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"geheim")))
    return replace(node, key=locked)


def _key_is_a_certificate(_a: Authority, node: Identity, _folder: Path) -> Identity:
    return replace(node, key=node.certificate)


def _der(_a: Authority, node: Identity, folder: Path) -> Identity:
    der = folder / "node.der"
    der.write_bytes(
        ssl.PEM_cert_to_DER_cert(node.certificate.read_text().split("-----END")[0] + "-----END CERTIFICATE-----\n")
    )
    return replace(node, certificate=der)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda a, n, f: replace(n, certificate=f / "none.pem"), "cannot read .*none.pem for TLS: No such file"),
        (lambda a, n, f: replace(n, key=f / "none.key"), "cannot read .*none.key for TLS: No such file"),
        (lambda a, n, f: replace(n, key=f), "Is a directory"),
        (lambda a, n, f: replace(n, key=a.issue("other").key), "ca-other.key does not belong to .*ca-node.pem"),
        (_key_is_a_certificate, "cannot be used"),
        (_der, "no certificate in PEM.*openssl x509 -inform der"),
        (_encrypted, "is encrypted.*openssl pkey"),
        (_expired, r"has expired on \d{4}-\d\d-\d\d: renew it"),
        (_future, "is valid from .* clock"),
    ],
)
def test_files_of_no_use_are_named(
    authority: Authority, node: Identity, tmp_path: Path, spoil: Callable[..., Identity], said: str
) -> None:
    spoilt = spoil(authority, node, tmp_path)
    with pytest.raises(ConfigError, match=said):
        listening(spoilt, authority)
    with pytest.raises(ConfigError, match=said):
        calling(authority, spoilt)


def test_a_ca_of_no_use_is_named(node: Identity, authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no ca says who signs them"):
        server_context(certificate=node.certificate, key=node.key)
    with pytest.raises(ConfigError, match=r"none\.pem"):
        client_context(ca=tmp_path / "none.pem")
    now = datetime.now(UTC)
    old = authority.issue("old", not_before=now - 9 * DAY, not_after=now - DAY)
    with pytest.raises(ConfigError, match=r"every certificate in .* has expired"):
        client_context(ca=old.certificate)
    with pytest.raises(ConfigError, match="go together"):
        client_context(ca=authority.ca, key=node.key)


@pytest.mark.interop
def test_dcmtk_echoes_with_a_certificate_and_not_without(authority: Authority, node: Identity) -> None:
    require([str(p) for p in (ECHOSCU,) if not p.exists()])
    ae = AE(ae_title="CXRNODE")
    ae.add_supported_context(Verification)
    port = free_port()
    ae.start_server(
        ("127.0.0.1", port),
        block=False,
        ssl_context=listening(node, authority),
        evt_handlers=[(evt.EVT_C_ECHO, lambda _: 0)],
    )
    command = [
        str(ECHOSCU),
        "-to",
        "5",
        "-ta",
        "5",
        "+cf",
        str(authority.ca),
        "127.0.0.1",
        str(port),
    ]
    try:
        known = subprocess.run(
            [*command, "+tls", str(node.key), str(node.certificate)], capture_output=True, check=False
        )
        unknown = subprocess.run([*command, "+tla"], capture_output=True, check=False)
    finally:
        ae.shutdown()
    assert known.returncode == 0, known.stderr
    assert unknown.returncode != 0
