"""`cxrnode config check FILE | example`."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxrnode.cli.output import say
from cxrnode.config_faults import EXAMPLE
from cxrnode.words import counted

if TYPE_CHECKING:
    from cxrnode.config import Config, DestinationEntry, StatRule

app = typer.Typer(
    help="The node's configuration: a file to begin with, and whether yours is right.", no_args_is_help=True
)


@app.command()
def example() -> None:
    """Print a configuration to begin with: every key, its default, and what it means."""
    for line in EXAMPLE.splitlines():
        say(line)


@app.command()
def check(file: Annotated[Path, typer.Argument(metavar="FILE", help="The configuration, a TOML file.")]) -> None:
    """Say what a configuration (with the CXRNODE_* variables) means, and warn of what is legal but dangerous.

    Exit codes: 0 usable, warnings or not; 2 not usable, with every fault named.
    """
    from cxrnode.config import load_config  # noqa: PLC0415 (no other command should wait for it)
    from cxrnode.config_here import check_data_dir, check_temporary, unreachable  # noqa: PLC0415

    config = load_config(file)
    check_data_dir(config.node.data_dir)
    check_temporary()
    if config.analyse.engine == "tensorrt":
        from engines.load import plans_folder  # noqa: PLC0415

        plans_folder()  # it says what it wants, such as a home
    expiries = _check_tls(config)
    for line in _understood(config, expiries):
        say(line)
    for line in (*unreachable(config), *_dangers(config), *_tls_dangers(config, expiries)):
        say(f"warning: {line}", err=True)


def _check_tls(config: Config) -> dict[Path, datetime]:
    """When each certificate of the node's own expires. Raises ConfigError where a file is there but of no use."""
    found: dict[Path, datetime] = {}
    for tls in config.tls_tables.values():
        tls.context()
        found |= {tls.files[key]: until for key, until in tls.expiries.items() if key == "certificate"}
    return found


def _understood(config: Config, expiries: dict[Path, datetime]) -> Iterator[str]:
    node, receive, analyse, report, http = config.node, config.receive, config.analyse, config.report, config.http
    where = f"on {_at(node.bind, node.port)}" if receive.plain else "with TLS alone"
    yield f"node: {node.ae_title} {where}, data in {node.data_dir}"
    yield f"database: {node.database_place}"
    allowed = ", ".join(f"{a.ae_title} from {a.host}{_shown(a.certificate)}" for a in receive.allow)
    yield f"receive: {allowed or 'nobody'}; at least {receive.disk_watermark_mb} MB stay free"
    if t := receive.tls:
        clients = "required" if t.require_client_certificate else "not required"
        yield (
            f"receive with TLS: {_at(node.bind, t.port)}, client certificates {clients}, own certificate until "
            f"{expiries[t.certificate]:%Y-%m-%d}"
        )
    first = ", ".join(map(_rule, analyse.stat))
    yield (
        f"analyse: bundle {analyse.bundle}, engine {analyse.engine}, up to {counted(analyse.batch_size, 'image')} a "
        f"batch; before the rest: {first or 'nothing'}"
    )
    yield f"report: after {report.study_quiet_s:g} s without a new image; what is not analysed: {report.not_analysed}"
    for d in config.destination:
        yield (f"destination {d.name}: {d.ae_title} at {_at(d.host, d.port)}{_commitment(d)}{', TLS' if d.tls else ''}")
    yield f"http: http://{_at(http.bind, http.port)}/healthz /readyz /metrics"
    if file := config.audit.anchor_file:
        every = (
            f"every {counted(config.audit.anchor_every_records, 'record')} or {config.audit.anchor_every_hours:g} hours"
        )
        yield f"audit: the ledger is anchored in {file}, {every}"
    yield f"retention: received files go {counted(node.retention_days, 'day')} after their results are committed"


def _dangers(config: Config) -> Iterator[str]:
    from cxrnode.config_here import is_loopback  # noqa: PLC0415 (as above)

    if (file := config.audit.anchor_file) and config.node.data_dir in file.parents:
        yield f"audit.anchor_file = {file} lies beside the ledger: who can change the one can change the other"
    node, receive, send = config.node, config.receive, config.send
    if not receive.allow:
        yield "receive.allow is empty: nobody can store; add { ae_title = ..., host = ... } of your PACS"
    if not config.destination:
        yield "there is no [[destination]]: results stay on this node"
    if receive.plain and not is_loopback(node.bind):
        mend = "receive.plain = false closes it" if receive.tls else "[receive.tls] adds a port with TLS"
        yield f"node.bind = {node.bind}: patient data crosses the network in the clear to port {node.port}; {mend}"
    for d in config.destination:
        if not d.tls and not is_loopback(d.host):
            yield f"destination {d.name} without tls = true: patient data crosses the network in the clear"
    if not is_loopback(config.http.bind):
        yield f"http.bind = {config.http.bind}: /metrics tells whoever asks how much the node has to do"
    if receive.disk_watermark_mb == 0:
        yield "receive.disk_watermark_mb = 0: the node fills the disk to the last byte, and its database with it"
    if receive.tls and not receive.tls.require_client_certificate:
        yield "receive.tls.require_client_certificate = false: an AE title and an address are all that a sender shows"
    if send.tls and not send.tls.verify_host:
        yield "send.tls.verify_host = false: whoever has a certificate of that ca can pass for a destination"


def _tls_dangers(config: Config, expiries: dict[Path, datetime]) -> Iterator[str]:
    from cxrnode.config import EXPIRY_NOTICE  # noqa: PLC0415 (as above)

    for certificate, until in expiries.items():
        if until - datetime.now(UTC) < EXPIRY_NOTICE:
            yield f"the certificate {certificate} expires on {until:%Y-%m-%d}: renew it in time"
    keys = {tls.files["key"] for tls in config.tls_tables.values() if "key" in tls.files}
    for key in sorted(keys):
        if key.stat().st_mode & stat.S_IROTH:
            yield f"every user of this machine can read the key {key}: chmod 600 {key}"


def _shown(certificate: Sequence[str]) -> str:
    return f" (TLS, certificate {' or '.join(certificate)})" if certificate else ""


def _commitment(d: DestinationEntry) -> str:
    if not d.storage_commitment:
        return ""
    others = ", ".join(f"{ae_title} from {host}" for ae_title, host in d.reporters[1:])
    return f", storage commitment{others and f' (reports also of {others})'}"


def _at(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _rule(rule: StatRule) -> str:
    return f"what {rule.calling_ae} sends" if rule.calling_ae else f"{rule.attribute} = {rule.value}"
