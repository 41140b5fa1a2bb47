"""A certificate authority of the tests' own, and what it signs, as PEM files.

authority = Authority(tmp_path)
node = authority.issue("node", "127.0.0.1", "localhost")
server_context(certificate=node.certificate, key=node.key, ca=authority.ca)
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import trustme


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    certificate: Path
    key: Path


class Authority:
    """Writes into `folder`; `name` tells the files of several authorities apart."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder, self._name, self._ca = folder, name, trustme.CA()
        self.ca = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.ca))

    def issue(
        self,
        name: str,
        *hosts: str,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        rsa: bool = False,
        common_name: str | None = None,
    ) -> Identity:
        """A certificate for `hosts` (loopback where none is named), good for server and client; an EC key, or RSA."""
        issued = self._ca.issue_cert(
            *(hosts or ("127.0.0.1", "localhost")),
            not_before=not_before,
            not_after=not_after,
            common_name=common_name,
            key_type=trustme.KeyType.RSA if rsa else trustme.KeyType.ECDSA,
        )
        stem = f"{self._name}-{name}"
        made = Identity(certificate=self._folder / f"{stem}.pem", key=self._folder / f"{stem}.key")
        made.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        made.key.touch(mode=0o600)
        made.key.write_bytes(issued.private_key_pem.bytes())
        return made


def replace(identity: Identity, by: Identity) -> None:
    """Renewed in place: the files are written anew, one after the other."""
    identity.certificate.write_bytes(by.certificate.read_bytes())
    identity.key.write_bytes(by.key.read_bytes())
