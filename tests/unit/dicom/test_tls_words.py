"""What is said of a handshake that failed, and when certificates are too old or too young."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cxrnode.dicom import tls
from cxrnode.dicom.tls import authority_expiry, client_context, handshake_fault, server_context
from cxrnode.errors import ConfigError
from tests.support.certificates import Authority

DAY = timedelta(days=1)


def failed(reason: str | None, kind: type[ssl.SSLError] = ssl.SSLError) -> ssl.SSLError:
    error = kind(1, f"[SSL: {reason}] ... (_ssl.c:1006)")
    error.reason = reason  # type: ignore[assignment]
    return error


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("HTTP_REQUEST", "it speaks HTTP, and this is a DICOM port"),
        ("WRONG_VERSION_NUMBER", "it does not speak TLS, and this port does: switch TLS on at the sender, or send to "
         "the plain port (node.port) where receive.plain allows it"),
        ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "it shows no client certificate: give it one that receive.tls.ca signed"),
        ("CERTIFICATE_VERIFY_FAILED", "its client certificate is not one that receive.tls.ca signed, or has expired"),
        ("NO_SHARED_CIPHER", "it offers none of our cipher suites (BCP 195, PS3.15 section B.12)"),
        ("UNSUPPORTED_PROTOCOL", "it offers no TLS 1.2 or 1.3"),
        ("TLSV1_ALERT_UNKNOWN_CA",
         "it does not know who signed our certificate: give it the CA of receive.tls.certificate"),
        ("TLSV1_ALERT_PROTOCOL_VERSION", "it wants another version of TLS than 1.2 and 1.3"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "it ended the handshake: certificate expired; its log says why"),
        ("TLSV1_ALERT_INTERNAL_ERROR", "it ended the handshake: internal error; its log says why"),
        ("BAD_RECORD_TYPE", "the handshake failed: bad record type"),
        (None, "the handshake failed: unknown"),
    ],
)  # fmt: skip
def test_a_handshake_that_fails_is_said_with_what_mends_it(reason: str | None, said: str) -> None:
    assert handshake_fault(failed(reason)) == said


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError(104, "reset"), TimeoutError("timed out"),
     failed("UNEXPECTED_EOF_WHILE_READING", ssl.SSLEOFError), failed(None, ssl.SSLZeroReturnError)],
    ids=["reset", "timeout", "eof", "closed"],
)  # fmt: skip
def test_who_only_goes_away_is_not_worth_a_word(error: OSError) -> None:
    assert handshake_fault(error) == ""


def test_authorities_are_good_as_long_as_the_first_of_the_good_ones(tmp_path: Path) -> None:
    """What has expired harms none of the others; where none is good, the last that was counts."""
    authority, now = Authority(tmp_path), datetime.now(UTC).replace(microsecond=0)
    ends = [now - 9 * DAY, now - DAY, now + 5 * DAY, now + 9 * DAY]
    made = [
        authority.issue(f"ca{n}", not_before=now - 30 * DAY, not_after=end).certificate.read_bytes()
        for n, end in enumerate(ends)
    ]
    bundle = tmp_path / "bundle.pem"
    for chosen, expected in (([3, 0, 2, 1], 2), ([3, 1], 3), ([1, 0], 1), ([0], 0)):
        bundle.write_bytes(b"".join(made[n] for n in chosen))
        assert authority_expiry(bundle) == ends[expected]


class Today(datetime):
    at = datetime(2026, 1, 1, tzinfo=UTC)

    @classmethod
    def now(cls, _tz: object = None) -> datetime:  # type: ignore[override]
        return cls.at


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "is valid from 2031-02-03 04:05 UTC only"), (0, ""), (86400, ""), (86401, "has expired on 2031-02-04:")],
)  # fmt: skip
def test_a_certificate_is_good_from_its_first_second_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, said: str
) -> None:
    begin = datetime(2031, 2, 3, 4, 5, tzinfo=UTC)
    made = Authority(tmp_path).issue("node", not_before=begin, not_after=begin + DAY)
    monkeypatch.setattr(tls, "datetime", Today)
    monkeypatch.setattr(Today, "at", begin + timedelta(seconds=seconds))
    if said:
        with pytest.raises(ConfigError, match=said):
            server_context(certificate=made.certificate, key=made.key, require_client_certificate=False)
    else:
        assert server_context(certificate=made.certificate, key=made.key, require_client_certificate=False)


@pytest.mark.parametrize(("seconds", "good"), [(0, True), (1, False)])
def test_authorities_are_good_to_the_last_second_of_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, good: bool
) -> None:
    end, authority = datetime(2031, 2, 3, tzinfo=UTC), Authority(tmp_path)
    both = tmp_path / "both.pem"
    made = [authority.issue(f"ca{n}", not_after=end - n * DAY, not_before=end - 9 * DAY) for n in (0, 1)]
    both.write_bytes(b"".join(m.certificate.read_bytes() for m in made))
    monkeypatch.setattr(tls, "datetime", Today)
    monkeypatch.setattr(Today, "at", end + timedelta(seconds=seconds))
    if good:
        client_context(ca=both)
    else:
        with pytest.raises(ConfigError, match=r"every certificate in .* has expired, the last on 2031-02-03"):
            client_context(ca=both)


def test_a_context_is_as_the_profile_wants_it(tmp_path: Path) -> None:
    """PS3.15 section B.12, RFC 9325."""
    authority = Authority(tmp_path)
    made = authority.issue("node")
    server = server_context(certificate=made.certificate, key=made.key, ca=authority.ca)
    client = client_context(ca=authority.ca)
    for context in (server, client):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.security_level == 2
    assert server.options & ssl.OP_NO_RENEGOTIATION
    assert (server.verify_mode, client.verify_mode) == (ssl.CERT_REQUIRED, ssl.CERT_REQUIRED)
    assert client.check_hostname
    assert not client_context(ca=authority.ca, verify_host=False).check_hostname
    optional = server_context(
        certificate=made.certificate, key=made.key, ca=authority.ca, require_client_certificate=False
    )
    assert optional.verify_mode == ssl.CERT_OPTIONAL
