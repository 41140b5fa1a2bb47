"""Who a client certificate says its owner is: what an AE title may be bound to.

A fingerprint is one certificate and no other (IHE ATNA: direct comparison), and is new with each renewal. A name stays:
a DNS name or an IP address of the subject alternative names, as a hospital's own authority issues, or the subject's
common name, which is all that many a device's certificate has. The one who signed vouches for each of them. Names are
compared whole, without regard to case; a wildcard in a certificate stands for itself.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re

from cryptography import x509
from cryptography.x509.oid import NameOID

_SHA256, _SHA1 = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{40}")


def identity(text: str) -> str:
    """`text`, as someone wrote it, in the form that `identities` gives. Raises ValueError."""
    name = text.strip().lower()
    digits = name.replace(":", "")
    if _SHA256.fullmatch(digits):
        return digits
    if _SHA1.fullmatch(digits):
        raise ValueError("is a SHA-1 fingerprint: give that of SHA-256 (openssl x509 -noout -fingerprint -sha256)")
    if not name or not name.isprintable():
        raise ValueError(
            "should be the SHA-256 fingerprint of a client certificate, or its common name, or a DNS name or IP "
            "address that it has"
        )
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def identities(der: bytes) -> list[str]:
    """The certificate's fingerprint, its alternative names and its common names."""
    found = [hashlib.sha256(der).hexdigest()]
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found += names.get_values_for_type(x509.DNSName)
        found += map(str, names.get_values_for_type(x509.IPAddress))
    except x509.ExtensionNotFound:  # an older one, with a common name alone
        pass
    except (ValueError, x509.DuplicateExtension):  # OpenSSL took what cannot be read here: its fingerprint counts
        return found
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return [name.lower() for name in (*found, *(str(c.value) for c in common))]
