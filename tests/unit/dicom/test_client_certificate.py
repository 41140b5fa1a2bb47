"""Who a client certificate says its owner is, and what the listener makes of an AE title that is bound to one."""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from cxrnode.dicom.client_certificate import identities, identity
from cxrnode.dicom.negotiation import COMMITMENT
from cxrnode.dicom.scp import Listener
from cxrnode.dicom.tls import client_context, server_context
from tests.support.certificates import Authority, Identity
from tests.support.make_dicom import chest
from tests.support.receiving import HOST, PACS, Node, associated, echo, running_node, send

CR = "1.2.840.10008.5.1.4.1.1.1"


def der(made: Identity) -> bytes:
    return subprocess.check_output(["openssl", "x509", "-in", made.certificate, "-outform", "der"])


def fingerprint(made: Identity) -> str:
    """As openssl prints it, and as somebody would paste it."""
    said = subprocess.check_output(["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", made.certificate])
    return said.decode().strip().partition("=")[2]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_fingerprint_alternative_names_and_common_name(authority: Authority) -> None:
    made = authority.issue("ct", "ct1.Hospital.example", "10.0.0.7", "fe80::1", common_name="Siemens CT 1")
    found = identities(der(made))
    assert found == [
        identity(fingerprint(made)), "ct1.hospital.example", "10.0.0.7", "fe80::1", "siemens ct 1",
    ]  # fmt: skip


def test_a_certificate_with_a_common_name_alone(tmp_path: Path) -> None:
    made = Identity(certificate=tmp_path / "old.pem", key=tmp_path / "old.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
         "/O=Maker/CN=CR-7", "-keyout", made.key, "-out", made.certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    assert identities(der(made)) == [identity(fingerprint(made)), "cr-7"]


def test_what_cannot_be_read_has_its_fingerprint() -> None:
    assert len(identities(b"no certificate")) == 1


# --- the listener ---------------------------------------------------------------------------------------------------


@contextmanager
def both_ports(
    folder: Path, authority: Authority, bound: Mapping[tuple[str, str], Collection[str]]
) -> Iterator[tuple[Node, Listener]]:
    """A node with TLS, and another port of it without."""
    mine = authority.issue("node")
    context = server_context(certificate=mine.certificate, key=mine.key, ca=authority.ca)
    allow = ((PACS, HOST), ("OPEN", HOST), ("FAR", "192.0.2.1"))
    with (
        running_node(folder / "tls", ssl_context=context, bound=bound, allow=allow) as node,
        running_node(folder / "plain", bound=bound, allow=allow) as plain,
    ):
        yield node, plain.listener


def shown(authority: Authority, made: Identity) -> dict[str, Any]:
    context = client_context(ca=authority.ca, certificate=made.certificate, key=made.key)
    return {"tls_args": (context, HOST)}


def rejected(assoc: Association) -> bool:
    """In the normal way: A-ASSOCIATE-RJ, permanent, by the user, calling AE title not recognised."""
    said = assoc.acceptor.primitive
    return bool(assoc.is_rejected and said and (said.result, said.result_source, said.diagnostic) == (1, 1, 3))


def test_who_shows_the_certificate_of_its_ae_title_stores(tmp_path: Path, authority: Authority) -> None:
    ct, mr = authority.issue("ct", "ct1.example"), authority.issue("mr", common_name="MR 1")
    for wanted, made in (("ct1.example", ct), ("mr 1", mr), (identity(fingerprint(ct)), ct)):
        folder = tmp_path / made.key.stem / wanted
        folder.mkdir(parents=True)
        with both_ports(folder, authority, {(PACS, HOST): [wanted]}) as (node, _):
            assert send(node.port, chest(64, 64), **shown(authority, made)) == [0]
            other = mr if made is ct else ct
            with associated(node.port, CR, COMMITMENT, **shown(authority, other)) as assoc:
                assert rejected(assoc)
            (why,) = {why for _, why in node.associations if why}
            assert why == f"calling AE title without its client certificate: SHA-256 {identity(fingerprint(other))}"
            assert send(node.port, chest(64, 64, seed=2), calling="OPEN", **shown(authority, other)) == [0]


def test_over_the_plain_port_it_is_rejected_even_for_an_echo(tmp_path: Path, authority: Authority) -> None:
    with both_ports(tmp_path, authority, {(PACS, HOST): ["ct1.example"]}) as (_, plain):
        for wants in (CR, Verification):
            with associated(plain.port, wants) as assoc:
                assert rejected(assoc)
        assert echo(plain.port, calling="OPEN") == echo(plain.port, calling="STRANGER") == 0


def test_the_right_certificate_from_another_address_is_not_enough(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    far = authority.issue("far", "far.example")
    with (
        both_ports(tmp_path, authority, {("FAR", "192.0.2.1"): ["far.example"]}) as (node, _),
        associated(node.port, Verification, calling="FAR", **shown(authority, far)) as assoc,
    ):
        assert rejected(assoc)
    assert "has it from 192.0.2.1, and this is 127.0.0.1" in caplog.text
