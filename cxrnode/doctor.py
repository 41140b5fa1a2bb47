"""`cxrnode doctor`: is this node fit to work? Checks one after the other, each with what to do where it failed.

What concerns one destination is in `doctor_destination`. Nothing here holds patient data.
"""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import select, text

from cxrnode.audit.syslog import SyslogError
from cxrnode.config import EXPIRY_NOTICE, Config
from cxrnode.config_here import listens, open_to_others, unreachable
from cxrnode.dicom.negotiation import FROM_ANOTHER_ADDRESS
from cxrnode.dicom.probe import probe
from cxrnode.dicom.requestor import SendError
from cxrnode.dicom.status import SUCCESS
from cxrnode.dicom.tls import authority_expiry, certificate_expiry
from cxrnode.doctor_destination import Check, DestinationDoctor, failed, fine, warned
from cxrnode.errors import ConfigError, CxrnodeError
from cxrnode.live_tls import LiveTls
from cxrnode.monitor import reachable
from cxrnode.opening import open_database
from cxrnode.serve import destinations, syslog_server
from cxrnode.store.data_dir import recorded
from cxrnode.store.database import Database
from cxrnode.store.schema import alembic_version, instance, ledger
from cxrnode.store.spool import storage_errors, write_atomic
from cxrnode.types import Destination
from cxrnode.words import counted
from engines.base import EngineError
from engines.bundle import Bundle, load_bundle
from engines.load import make_engine

_CLOCK_S = 5.0  # half of the analyse stage's lease: above it machines take each other's work
_RENEW = "renew the file in place: the node takes it within seconds, without a restart"
_NOT_TAKEN = "the node takes a new file within seconds, or at once with SIGHUP: where it does not, its log says why"
_HANDSHAKE_S = 10.0
_LOOK_BACK = timedelta(days=1)


def diagnose(config: Config, *, file: Path, store: bool) -> Iterator[Check]:
    """Every check, as soon as it is done. file: where `config` was read; store: also store, commit and read back a
    synthetic study."""
    yield fine("configuration", f"{config.node.ae_title}, {counted(len(config.destination), 'destination')}")
    with ExitStack() as stack:
        database = None
        try:
            database = stack.enter_context(open_database(config))
            yield _revision(database)
        except (CxrnodeError, OSError) as e:
            yield failed("database", str(e), "the message says how; then run this again")
        yield _disk(config, database)
        if database:
            yield _clock(database)
            yield from _senders(database)
        bundle = _load(config)
        yield bundle if isinstance(bundle, Check) else _golden(config, bundle)
        yield from _certificates(config)
        for found in open_to_others(config, file):
            yield warned("permissions", found, "keys, passwords and patients' data are the node's user's alone")
        for found in unreachable(config):
            yield warned("node.bind", found, "then restart the node")
        if config.receive.plain:
            yield _listener(config)
        if config.receive.tls:
            yield _handshake(config)
        if config.audit.syslog:
            yield _syslog(config)
        yield from _destinations(config, database, bundle if isinstance(bundle, Bundle) else None, store=store)


# --- this machine ---------------------------------------------------------------------------------------------------


def _revision(database: Database) -> Check:
    with database.read() as c:
        revision = c.execute(select(alembic_version.c.version_num)).scalar_one()
    return fine("database", f"{database.name} opens, schema revision {revision}")


def _disk(config: Config, database: Database | None) -> Check:
    folder, wanted = config.node.data_dir, config.receive.disk_watermark_mb
    trial = folder / f"doctor-{uuid.uuid4().hex}"
    try:
        known = None
        if database:
            with database.read() as c:
                known = recorded(c, folder)
        if known:
            known.check()
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomic(trial, bytes(4096))
        trial.unlink()
    except (CxrnodeError, OSError) as e:
        return failed("disk", str(e), f"node.data_dir = {folder} must be a folder that this user may write to")
    free = shutil.disk_usage(folder).free // 2**20
    if free < wanted:
        return failed(
            "disk", f"{free} MB free, below receive.disk_watermark_mb = {wanted}: the node takes nothing (0xA700)",
            f"free some space at {folder}, lower node.retention_days, or move node.data_dir to a larger disk",
        )  # fmt: skip
    return fine("disk", f"{folder} is writable, {free} MB free (watermark {wanted} MB)")


def _clock(database: Database) -> Check:
    """Against the clocks that can be had: the database server's, and the times that the store holds."""
    compared, off = [], 0.0
    with database.read() as c:
        last = c.execute(select(ledger.c.at).order_by(ledger.c.seq.desc()).limit(1)).scalar()
        received = c.execute(select(instance.c.received_at).order_by(instance.c.id.desc()).limit(1)).scalar()
        newest = max(datetime.fromisoformat(last).timestamp() if last else 0.0, received or 0.0)
        if c.dialect.name == "postgresql":
            before = time.time()
            server = float(c.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
            off = server - (before + time.time()) / 2
            compared.append(f"{abs(off):.1f} s from the database server's")
    ahead = newest - time.time()
    compared.append("behind the newest time in the store" if ahead > 0 else "not behind any time in the store")
    if ahead > _CLOCK_S:
        compared[-1] += f" by {ahead:.0f} s"
    said = f"this machine's is {', '.join(compared)}; no other clock was asked"
    if abs(off) > _CLOCK_S or ahead > _CLOCK_S:
        return failed("clock", said, "set this machine's clock by NTP (timedatectl), and the database server's")
    return fine("clock", said)


def _senders(database: Database) -> Iterator[Check]:
    """Known AE titles that came from an address that is not their own: a NAT shows nowhere else."""
    yesterday = (datetime.now(UTC) - _LOOK_BACK).isoformat(timespec="milliseconds")
    wanted = ledger.c.detail.contains(FROM_ANOTHER_ADDRESS.text) & (ledger.c.at >= yesterday)
    query = select(ledger.c.ae_title, ledger.c.detail).where(wanted).order_by(ledger.c.seq)
    with database.read() as c:
        found = {title: json.loads(detail)["why"] for title, detail in c.execute(query)}
    for title, why in found.items():
        yield warned(
            "senders", f"{title}, in the last day: {why}",
            "a NAT, or another network card? If it is the same system, add that address to [receive] allow",
        )  # fmt: skip


def _load(config: Config) -> Bundle | Check:
    try:
        return load_bundle(config.analyse.bundle)
    except EngineError as e:
        return failed("bundle", str(e), "copy the bundle again, or name another in analyse.bundle")


def _golden(config: Config, bundle: Bundle) -> Check:
    fallen: list[str] = []
    try:
        engine = make_engine(config.analyse.engine, bundle, on_fallback=fallen.append)
        engine.activate()  # runs the golden check
    except EngineError as e:
        return failed("bundle", str(e), 'try analyse.engine = "cpu"; a bundle that fails there too is damaged')
    name = engine.name
    engine.deactivate()
    passes = f"{bundle.name} {bundle.manifest.version} passes its golden check with {name}"
    if fallen:
        return warned("bundle", f"{passes}, not on the GPU: {fallen[0]}", "see cxrnode engine probe")
    return fine("bundle", passes)


# --- TLS and our own listener -----------------------------------------------------------------------------------------


def _certificates(config: Config) -> Iterator[Check]:
    for name, table in config.tls_tables.items():
        for key, path in table.files.items():
            if key != "key":
                yield _certificate(f"{name}.{key}", path)
    if not config.tls_tables:
        yield fine("certificates", "none is configured: everything goes in the clear")
    try:
        LiveTls(config.tls_tables)
    except ConfigError as e:
        yield failed("TLS", str(e), "the message says how; the node does not start with it")


def _certificate(key: str, path: Path) -> Check:
    try:
        until = (authority_expiry if key.endswith(".ca") else certificate_expiry)(path)
    except ConfigError as e:
        return failed(key, str(e), "name a PEM file that the node may read")
    left = until - datetime.now(UTC)
    if left <= timedelta(0) and not key.endswith(".ca"):
        return failed(key, f"{path} has expired on {until:%Y-%m-%d}", _RENEW)
    if left < EXPIRY_NOTICE:
        return warned(key, f"{path}: the first to expire does on {until:%Y-%m-%d}", _RENEW)
    return fine(key, f"{path}: until {until:%Y-%m-%d}, {counted(left.days, 'day')} left")


def _listener(config: Config) -> Check:
    node = config.node
    ourselves = Destination(ae_title=node.ae_title, host=reachable(node.bind), port=node.port)
    mend = "is `cxrnode serve` running? Its log says why its intake does not"
    try:
        with probe(ourselves, calling_ae_title=node.ae_title) as open_:
            status = open_.echo()
    except SendError as e:
        if "Called AE" in str(e):
            mend = f"what listens there answers to another name than {node.ae_title}: if it is this node, restart it"
        return failed("listener", f"{ourselves}: {e}", mend)
    if not listens(node.data_dir, node.port):
        return _another_node("listener", str(ourselves), config, "node.port")
    if status != SUCCESS:
        return failed("listener", f"{ourselves} answers C-ECHO with 0x{status:04X}", mend)
    return fine("listener", f"{ourselves} answers C-ECHO")


def _another_node(name: str, where: str, config: Config, key: str) -> Check:
    return failed(
        name, f"{where} answers, but it is no node that works on {config.node.data_dir}",
        f"another node holds the port: stop it, or choose another {key}; then start this one",
    )  # fmt: skip


def _handshake(config: Config) -> Check:
    """Which certificate the TLS port shows; whose client certificates it takes shows only with one of those."""
    tls = config.receive.tls
    assert tls is not None  # noqa: S101
    where = (reachable(config.node.bind), tls.port)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # compared below, byte by byte
    try:
        with socket.create_connection(where, _HANDSHAKE_S) as raw, context.wrap_socket(raw) as wrapped:
            version, shown = wrapped.version(), wrapped.getpeercert(binary_form=True)
        configured = x509.load_pem_x509_certificates(tls.certificate.read_bytes())[0].public_bytes(Encoding.DER)
    except (OSError, ValueError) as e:
        return failed(
            "TLS listener", f"{where[0]}:{where[1]}: {e}", "is `cxrnode serve` running with this configuration?"
        )  # fmt: skip
    if not listens(config.node.data_dir, tls.port):
        return _another_node("TLS listener", f"{where[0]}:{where[1]}", config, "receive.tls.port")
    if shown != configured:
        return warned("TLS listener", f"it shows another certificate than {tls.certificate}", _NOT_TAKEN)
    return fine("TLS listener", f"{where[0]}:{where[1]} shows {tls.certificate} over {version}")


def _syslog(config: Config) -> Check:
    """A connection that says nothing: a server that takes client certificates, and ours, ends it in order."""
    try:
        server = syslog_server(config, LiveTls(config.tls_tables))
        assert server is not None  # noqa: S101
        server.connect().confirm()
    except (ConfigError, SyslogError) as e:
        return failed("audit messages", str(e), "until it is mended they wait in the ledger; nothing is lost")
    return fine("audit messages", f"the syslog server {server} takes a TLS connection")


# --- destinations ---------------------------------------------------------------------------------------------------


def _destinations(config: Config, database: Database | None, bundle: Bundle | None, *, store: bool) -> Iterator[Check]:
    if not config.destination:
        yield warned("destinations", "none: results stay on this node", "add a [[destination]]")
    try:
        peers = destinations(config, LiveTls(config.tls_tables))
    except ConfigError:  # said above
        yield failed("destinations", "not tried: the TLS material cannot be used", "mend it first")
        return
    for peer in peers:
        yield from DestinationDoctor(
            peer=peer, calling_ae_title=config.node.ae_title, port=next(iter(config.dicom_ports.values())),
            database=database, bundle=bundle,
        ).diagnose(store=store)  # fmt: skip
