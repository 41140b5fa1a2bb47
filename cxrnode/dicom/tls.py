"""TLS as DICOM wants it: PS3.15 section B.12, the BCP 195 (RFC 8996, RFC 9325) secure transport connection profile.

TLS 1.2 at least, 1.3 where both sides have it, no way down. A file that cannot serve is an error at the start, not at
the first handshake.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from cryptography import x509

from cxrnode.errors import ConfigError

# RFC 9325 section 4.2; TLS 1.3 has its own, which OpenSSL's defaults are. Level 2: keys of 112 bits of security (4.5)
_TLS_1_2_SUITES = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "@SECLEVEL=2",
)


def server_context(
    *, certificate: Path, key: Path, ca: Path | None = None, require_client_certificate: bool = True
) -> ssl.SSLContext:
    """What a listener uses. `certificate`: PEM, its own and the intermediates; `ca`: PEM, who signs the clients'.

    A client that shows one which `ca` did not sign is refused even where none is required. Raises ConfigError.
    """
    if require_client_certificate and ca is None:
        raise ConfigError("client certificates are required, but no ca says who signs them: name its PEM file")
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION  # RFC 9325 section 3.5
    _load_identity(context, certificate, key)
    if ca is not None:
        _load_ca(context, ca)
        context.verify_mode = ssl.CERT_REQUIRED if require_client_certificate else ssl.CERT_OPTIONAL
    return context


def client_context(
    *, ca: Path, certificate: Path | None = None, key: Path | None = None, verify_host: bool = True
) -> ssl.SSLContext:
    """What an association request uses. `ca`: PEM, who signs the servers' certificates.

    verify_host: the server's certificate must name the host that was called; without it, any that `ca` signed will
    do. Raises ConfigError.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = verify_host
    _load_ca(context, ca)
    if certificate is not None and key is not None:
        _load_identity(context, certificate, key)
    elif certificate is not None or key is not None:
        raise ConfigError("certificate and key go together: name both PEM files, or neither")
    return context


def certificate_expiry(path: Path) -> datetime:
    """When the first certificate in the PEM file `path` expires (UTC). Raises ConfigError."""
    return min(c.not_valid_after_utc for c in _certificates(path))


def authority_expiry(path: Path) -> datetime:
    """The same of a file of authorities: the first of those that are still good, for what has expired harms none of
    the others; where none is, the last.
    """
    ends = sorted(c.not_valid_after_utc for c in _certificates(path))
    return next((end for end in ends if end > datetime.now(UTC)), ends[-1])


_HANDSHAKE = {
    "HTTP_REQUEST": "it speaks HTTP, and this is a DICOM port",
    "WRONG_VERSION_NUMBER": "it does not speak TLS, and this port does: switch TLS on at the sender, or send to the "
    "plain port (node.port) where receive.plain allows it",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no client certificate: give it one that receive.tls.ca signed",
    "CERTIFICATE_VERIFY_FAILED": "its client certificate is not one that receive.tls.ca signed, or has expired",
    "NO_SHARED_CIPHER": "it offers none of our cipher suites (BCP 195, PS3.15 section B.12)",
    "UNSUPPORTED_PROTOCOL": "it offers no TLS 1.2 or 1.3",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know who signed our certificate: give it the CA of receive.tls.certificate",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it wants another version of TLS than 1.2 and 1.3",
}


def handshake_fault(error: OSError) -> str:
    """Why a peer and our TLS port did not come to terms, in words; empty where it only went away."""
    if not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return ""
    reason = error.reason or "UNKNOWN"
    if reason.startswith("SSLV3_ALERT") or reason.startswith("TLSV1_ALERT"):
        alert = reason.partition("_ALERT_")[2].replace("_", " ").lower()
        return _HANDSHAKE.get(reason, f"it ended the handshake: {alert}; its log says why")
    return _HANDSHAKE.get(reason, f"the handshake failed: {reason.replace('_', ' ').lower()}")


def _context(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join(_TLS_1_2_SUITES))
    return context


def _load_identity(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    now = datetime.now(UTC)
    for c in _certificates(certificate):
        if now > c.not_valid_after_utc:
            raise ConfigError(
                f"the certificate {certificate} has expired on {c.not_valid_after_utc:%Y-%m-%d}: renew it"
            )
        if now < c.not_valid_before_utc:
            raise ConfigError(
                f"the certificate {certificate} is valid from {c.not_valid_before_utc:%Y-%m-%d %H:%M} UTC only: is "
                "this machine's clock right?"
            )
    _read(key)

    def refuse_passphrase() -> NoReturn:  # OpenSSL would ask on the terminal
        raise ConfigError(
            f"the key {key} is encrypted, and nobody is there to type its passphrase: openssl pkey -in {key} "
            "-out plain.key, readable by the node alone"
        )

    try:
        context.load_cert_chain(certificate, key, password=refuse_passphrase)
    except ssl.SSLError as e:
        if e.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"the key {key} does not belong to the certificate {certificate} (the first in the file counts): name "
                "the key it was made with"
            ) from e
        raise ConfigError(
            f"the certificate {certificate} or its key {key} cannot be used ({e.reason or e}): both are PEM files, the "
            "key 'BEGIN PRIVATE KEY', RSA of 2048 bits or more or an elliptic curve"
        ) from e


def _load_ca(context: ssl.SSLContext, ca: Path) -> None:
    latest = max(c.not_valid_after_utc for c in _certificates(ca))
    if datetime.now(UTC) > latest:
        raise ConfigError(f"every certificate in {ca} has expired, the last on {latest:%Y-%m-%d}: get the new ones")
    try:
        context.load_verify_locations(ca)
    except OSError as e:
        raise ConfigError(f"the certificates in {ca} cannot be used ({e}): name a PEM file of authorities") from e


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError as e:
        raise ConfigError(
            f"{path} holds no certificate in PEM ('BEGIN CERTIFICATE'); from DER: openssl x509 -inform der -in {path}"
        ) from e


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError(f"cannot read {path} for TLS: {e.strerror}. Name a PEM file that the node may read") from e
