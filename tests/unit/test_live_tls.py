"""TLS files that change while the process runs: taken when they can serve, said when they cannot."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cxrnode import live_tls
from cxrnode.config import EXPIRY_NOTICE, ReceiveTls, SendTls
from cxrnode.errors import ConfigError
from cxrnode.live_tls import LiveTls
from tests.support.certificates import Authority, Identity, replace


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def node(authority: Authority) -> Identity:
    return authority.issue("node")


@pytest.fixture
def tables(authority: Authority, node: Identity) -> dict[str, ReceiveTls | SendTls]:
    return {
        "receive.tls": ReceiveTls(certificate=node.certificate, key=node.key, ca=authority.ca),
        "send.tls": SendTls(ca=authority.ca),
    }


def context(tls: LiveTls, name: str = "receive.tls") -> ssl.SSLContext:
    found = tls.get(name)
    assert found
    return found()


def test_what_is_not_configured_is_not_there(tables: dict[str, ReceiveTls | SendTls]) -> None:
    assert LiveTls(tables).get("audit.syslog") is None


def test_a_new_context_for_new_connections_and_the_old_is_as_it_was(
    authority: Authority, node: Identity, tables: dict[str, ReceiveTls | SendTls]
) -> None:
    tls = LiveTls(tables)
    get = tls.get("receive.tls")
    assert get
    before, sending = get(), context(tls, "send.tls")
    replace(node, authority.issue("renewed"))
    other = Authority(authority.ca.parent, "other")
    authority.ca.write_bytes(other.ca.read_bytes())
    tls.reload()
    assert get() is not before
    assert context(tls, "send.tls") is not sending
    assert before.get_ca_certs() == sending.get_ca_certs() != get().get_ca_certs()
    assert len(get().get_ca_certs()) == 1  # the authority that was taken out is trusted no more


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda a, n: n.key.write_bytes(a.issue("other").key.read_bytes()), "does not belong to"),
        (lambda a, n: n.certificate.write_bytes(b"nonsense"), "no certificate in PEM"),
        (lambda a, n: n.key.unlink(), "cannot read"),
        (lambda a, n: replace(n, a.issue("late", not_after=datetime.now(UTC) - timedelta(days=1))), "has expired"),
        (lambda a, n: a.ca.write_bytes(b""), "no certificate in PEM"),
    ],
)
def test_files_that_cannot_serve_are_said_and_the_old_ones_stay(
    authority: Authority, node: Identity, tables: dict[str, ReceiveTls | SendTls], caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Authority, Identity], object], said: str,
) -> None:  # fmt: skip
    tls = LiveTls(tables)
    before = context(tls)
    spoil(authority, node)
    tls.reload()
    assert context(tls) is before
    (line, *_) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert line.startswith("receive.tls: ")
    assert said in line
    with pytest.raises(ConfigError):
        LiveTls(tables)


def test_files_that_were_renewed_in_place_are_taken_once_they_stay_as_they_are(
    authority: Authority, node: Identity, tables: dict[str, ReceiveTls | SendTls], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(live_tls, "_LOOK_S", 0.0)
    tls, renewed = LiveTls(tables), authority.issue("renewed")
    before = context(tls)
    tls.look()
    node.certificate.write_bytes(renewed.certificate.read_bytes())
    tls.look()
    node.key.write_bytes(renewed.key.read_bytes())  # a moment later
    tls.look()
    assert context(tls) is before
    tls.look()
    taken = context(tls)
    assert taken is not before
    tls.look()
    assert context(tls) is taken  # and not again and again
    assert not [r for r in caplog.records if r.levelno > logging.INFO]
    link, there = node.key.with_name("link.key"), authority.issue("moved")  # as where a link is set to another folder
    os.symlink(there.key, link)
    os.replace(link, node.key)
    os.replace(there.certificate, node.certificate)
    tls.look()
    tls.look()
    assert context(tls) is not taken


def test_other_files_that_the_configuration_names_now(
    authority: Authority, tables: dict[str, ReceiveTls | SendTls]
) -> None:
    tls, moved = LiveTls({"receive.tls": tables["receive.tls"]}), authority.issue("moved")
    before = context(tls)
    named = ReceiveTls(certificate=moved.certificate, key=moved.key, ca=authority.ca)
    tls.reload({"receive.tls": named, "send.tls": tables["send.tls"]})
    assert context(tls) is not before
    assert tls.get("send.tls") is None
    before = context(tls)
    tls.reload({})  # a table that was taken out stays until the next start
    assert context(tls) is not before


def test_when_its_certificates_expire(authority: Authority, tmp_path: Path) -> None:
    past, soon, late = (datetime.now(UTC).replace(microsecond=0) + timedelta(days=d) for d in (-1, 9, 900))
    made = authority.issue("soon", not_after=soon)
    ca = tmp_path / "several.pem"
    ends = [
        authority.issue(f"ca{n}", not_after=end).certificate.read_bytes() for n, end in enumerate((past, late, soon))
    ]
    ca.write_bytes(b"".join(ends))
    table = ReceiveTls(certificate=made.certificate, key=made.key, ca=ca)
    assert table.expiries == {"certificate": soon, "ca": soon}  # what has expired already harms nobody else
    ca.write_bytes(ends[0])
    assert table.expiries["ca"] == past
    assert timedelta(days=30) == EXPIRY_NOTICE
