"""The TLS contexts of a process, made anew when their files change, while connections go on.

    tls = LiveTls(config.tls_tables)
    context = tls.get("send.tls")           # to be called for each connection: what is in force then
    tls.reload(); tls.look()                # when told to; now and then

It is a new context each time, and not new files in the old one: an authority that was taken out is trusted no more, and
no session goes on that was begun under it. Connections that are open keep theirs.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Mapping
from functools import partial

from cxrnode import metrics
from cxrnode.config import TlsTable
from cxrnode.errors import ConfigError

_LOOK_S = 5.0

log = logging.getLogger(__name__)

_Stamps = list[tuple[int, int, int] | None]


class LiveTls:
    """tables: by their name in the configuration. Raises ConfigError where their files cannot serve."""

    def __init__(self, tables: Mapping[str, TlsTable]) -> None:
        self._tables = dict(tables)
        self._loaded = self._seen = self._stamps()
        self._contexts = {name: _made(name, table) for name, table in tables.items()}
        self._next_look = time.monotonic() + _LOOK_S

    def get(self, name: str) -> Callable[[], ssl.SSLContext] | None:
        """None where the configuration has no such table."""
        return partial(self._contexts.__getitem__, name) if name in self._contexts else None

    def reload(self, tables: Mapping[str, TlsTable] | None = None) -> None:
        """Take the files as they are now, at the places that `tables` says; where they cannot serve, what was in
        force stays, and the log says so. Tables that were not there at the start are left to the next one.
        """
        self._tables |= {name: table for name, table in (tables or {}).items() if name in self._tables}
        self._loaded = self._seen = self._stamps()
        for name, table in self._tables.items():
            try:
                self._contexts[name] = _made(name, table)
            except ConfigError as e:
                log.error("%s: %s; until then the certificate that was loaded before is shown", name, e)  # noqa: TRY400
            else:
                log.info("%s: certificates are loaded anew", name)

    def look(self) -> None:
        """Take files that were renewed in place, once they have not changed between two looks: a certificate and its
        key are not written at the same moment.
        """
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        before, self._seen = self._seen, self._stamps()
        if self._seen != self._loaded and self._seen == before:
            self.reload()

    def _stamps(self) -> _Stamps:
        found: _Stamps = []
        for path in (path for table in self._tables.values() for path in table.files.values()):
            try:
                stat = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return found


def _made(name: str, table: TlsTable) -> ssl.SSLContext:
    context, expiries = table.context(), table.expiries
    for key, until in expiries.items():
        metrics.certificate_loaded(f"{name}.{key}", until.timestamp())
    return context
