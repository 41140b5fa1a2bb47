"""The configuration: one frozen model from a TOML file and CXRNODE_* variables; an unknown key is an error.

`example.toml` says what each key means.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import tomllib
from abc import abstractmethod
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydicom.datadict import dictionary_VR

from cxrnode.config_faults import Location, fault, spell
from cxrnode.config_values import (
    AETitle,
    Associations,
    BundleName,
    CertificateIdentity,
    DatabaseURL,
    File,
    Folder,
    Host,
    Integer,
    Keyword,
    Port,
    Reporters,
    Seconds,
    Somewhere,
    Table,
)
from cxrnode.dicom.tls import authority_expiry, certificate_expiry, client_context, server_context
from cxrnode.dicom.uids import is_valid_uid
from cxrnode.errors import ConfigError
from engines.base import EngineKind

EXPIRY_NOTICE = timedelta(days=30)  # before a certificate expires
_PREFIX = "CXRNODE_"


# --- the model ------------------------------------------------------------------------------------------------------


class Node(Table):
    ae_title: AETitle = "CXRNODE"
    bind: Host = "127.0.0.1"
    port: Port = 11112
    data_dir: Folder = Path("var")
    database: DatabaseURL = SecretStr("sqlite")
    retention_days: Annotated[Integer, Field(ge=0, le=36_500)] = 7

    @property
    def database_place(self) -> str:
        """Where the database is, without user and password."""
        from sqlalchemy.engine import make_url  # noqa: PLC0415 (as above)

        if (text := self.database.get_secret_value()) == "sqlite":
            return text
        url = make_url(text)
        return f"{url.drivername}://{url.host or ''}{f':{url.port}' if url.port else ''}/{url.database}"

    @property
    def has_password(self) -> bool:
        from sqlalchemy.engine import make_url  # noqa: PLC0415 (as above)

        text = self.database.get_secret_value()
        return text != "sqlite" and bool(make_url(text).password)


class Allowed(Table):
    """A peer that may store.

    port: where it takes the answers to its storage commitment requests; tls: over TLS, by [send.tls]. certificate: it
    must show a client certificate with one of these identities.
    """

    ae_title: AETitle
    host: Host
    port: Port | None = None
    tls: bool = False
    certificate: tuple[CertificateIdentity, ...] = ()

    @field_validator("certificate", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class TlsTable(Table):
    """A table that names PEM files: `certificate`, `key` and `ca`."""

    @abstractmethod
    def context(self) -> ssl.SSLContext:
        """Of what the files hold now. Raises ConfigError where they cannot serve."""

    @property
    def files(self) -> dict[str, Path]:
        """Key -> file, of those that are named."""
        named = {key: getattr(self, key) for key in ("certificate", "key", "ca")}
        return {key: path for key, path in named.items() if path}

    @property
    def expiries(self) -> dict[str, datetime]:
        """Key -> when the first of its certificates expires. Raises ConfigError."""
        find = {"certificate": certificate_expiry, "ca": authority_expiry}
        return {key: find[key](path) for key, path in self.files.items() if key in find}


class ReceiveTls(TlsTable):
    port: Port = 2762
    certificate: File
    key: File
    ca: File | None = None
    require_client_certificate: bool = True

    def context(self) -> ssl.SSLContext:
        return server_context(
            certificate=self.certificate, key=self.key, ca=self.ca,
            require_client_certificate=self.require_client_certificate,
        )  # fmt: skip

    @field_validator("require_client_certificate")
    @classmethod
    def _needs_ca(cls, required: bool, info: ValidationInfo) -> bool:
        if required and info.data.get("ca", ...) is None:
            raise ValueError("needs ca, the certificates of who signs the clients' certificates")
        return required


class Receive(Table):
    allow: tuple[Allowed, ...] = ()
    max_associations: Associations = 50
    max_associations_per_host: Associations = 20
    idle_timeout_s: Annotated[Seconds, Field(gt=0, le=3600)] = 30
    disk_watermark_mb: Annotated[Integer, Field(ge=0, le=10**9)] = 2048
    tls: ReceiveTls | None = None
    plain: bool = True  # listen at node.port

    @field_validator("allow")
    @classmethod
    def _no_twins(cls, allow: tuple[Allowed, ...]) -> tuple[Allowed, ...]:
        _refuse_twins([f"{a.ae_title} at {a.host}" for a in allow])
        return allow

    @field_validator("tls")
    @classmethod
    def _who_signs(cls, tls: ReceiveTls | None, info: ValidationInfo) -> ReceiveTls | None:
        bound = sorted({a.ae_title for a in info.data.get("allow", ()) if a.certificate})
        if bound and (tls is None or tls.ca is None):
            raise ValueError(f"allow names the certificate of {', '.join(bound)}: that needs this table with its ca")
        return tls

    @field_validator("plain")
    @classmethod
    def _needs_tls(cls, plain: bool, info: ValidationInfo) -> bool:
        if not plain and info.data.get("tls", ...) is None:
            raise ValueError("needs the table [receive.tls]: without it the node would listen nowhere")
        return plain


class SendTls(TlsTable):
    """`certificate` and `key` are shown to destinations that ask who sends."""

    certificate: File | None = None
    key: File | None = None
    ca: File
    verify_host: bool = True

    def context(self) -> ssl.SSLContext:
        return client_context(ca=self.ca, certificate=self.certificate, key=self.key, verify_host=self.verify_host)

    @field_validator("key")
    @classmethod
    def _with_certificate(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if (key is None) != (info.data.get("certificate", key) is None):
            raise ValueError("certificate and key go together: give both or neither")
        return key


class Send(Table):
    tls: SendTls | None = None


class StatRule(Table):
    """What goes before the rest: an attribute with a value, or a calling AE title."""

    attribute: Keyword | None = None
    value: Annotated[str, Field(min_length=1)] | None = None
    calling_ae: AETitle | None = None

    @model_validator(mode="after")
    def _one_form(self) -> StatRule:
        attribute, value, ae = (x is not None for x in (self.attribute, self.value, self.calling_ae))
        if (attribute, value, ae) not in {(True, True, False), (False, False, True)}:
            raise ValueError("should hold either attribute and value, or calling_ae")
        if self.attribute and dictionary_VR(self.attribute) == "UI" and not is_valid_uid(self.value):
            raise ValueError(f"{self.attribute} is compared with a UID, and value is none")
        return self


class Analyse(Table):
    bundle: BundleName = "default"
    engine: EngineKind = EngineKind.AUTO
    batch_size: Annotated[Integer, Field(ge=1, le=1024)] = 16
    max_wait_ms: Annotated[Integer, Field(ge=0, le=60_000)] = 50
    stat: tuple[StatRule, ...] = ()


class CodedConcept(Table):
    """DICOM's triple (PS3.3 section 8.8), in what every character set holds."""

    value: Annotated[str, Field(pattern=r"^[!-\[\]-}]([ -\[\]-}]{0,14}[!-\[\]-}])?$")]
    scheme: Annotated[str, Field(pattern=r"^[!-\[\]-}]([ -\[\]-}]{0,14}[!-\[\]-}])?$")]
    meaning: Annotated[str, Field(pattern=r"^[!-\[\]-}]([ -\[\]-}]{0,62}[!-\[\]-}])?$")]


class Report(Table):
    study_quiet_s: Annotated[Seconds, Field(ge=0, le=86_400)] = 5
    not_analysed: Literal["report", "audit"] = "report"
    equipment_purpose: CodedConcept = CodedConcept(value="109102", scheme="DCM", meaning="Processing Equipment")


class DestinationEntry(Table):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    ae_title: AETitle
    host: Host
    port: Port
    storage_commitment: bool = True
    commitment_ae_titles: Reporters = ()
    tls: bool = False

    @property
    def reporters(self) -> tuple[tuple[str, str], ...]:
        """(AE title, host) of who may report on storage commitment for it; nobody where it is not asked."""
        others = [(r.ae_title, r.host or self.host) for r in self.commitment_ae_titles]
        return ((self.ae_title, self.host), *others) if self.storage_commitment else ()

    @field_validator("commitment_ae_titles")
    @classmethod
    def _is_asked(cls, value: Reporters, info: ValidationInfo) -> Reporters:
        if value and info.data.get("storage_commitment") is False:
            raise ValueError("is for a destination with storage_commitment = true: this one is never asked")
        return value


class Http(Table):
    bind: Host = "127.0.0.1"
    port: Port = 8080


class Syslog(SendTls):
    host: Host
    port: Port = 6514


class Audit(Table):
    anchor_file: Somewhere | None = None
    anchor_every_records: Annotated[Integer, Field(ge=1, le=10**9)] = 10_000
    anchor_every_hours: Annotated[Seconds, Field(gt=0, le=8760)] = 24
    syslog: Syslog | None = None


class Log(Table):
    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(Table):
    """cxrnode.toml, table by table and key by key."""

    node: Node = Field(default_factory=Node)
    receive: Receive = Field(default_factory=Receive)
    send: Send = Field(default_factory=Send)
    analyse: Analyse = Field(default_factory=Analyse)
    report: Report = Field(default_factory=Report)
    destination: tuple[DestinationEntry, ...] = ()
    http: Http = Field(default_factory=Http)
    log: Log = Field(default_factory=Log)
    audit: Audit = Field(default_factory=Audit)

    @property
    def digest(self) -> str:
        """sha256 of what is in force, the environment's part included, without secrets."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def tls_tables(self) -> dict[str, TlsTable]:
        """Those that are there, by name."""
        tables = {"receive.tls": self.receive.tls, "send.tls": self.send.tls, "audit.syslog": self.audit.syslog}
        return {name: table for name, table in tables.items() if table}

    @property
    def dicom_ports(self) -> dict[str, int]:
        """Where the node listens: the key that sets a port -> the port."""
        return _dicom_ports(self.node, self.receive)

    @field_validator("send")
    @classmethod
    def _serves_answers(cls, send: Send, info: ValidationInfo) -> Send:
        receive: Receive | None = info.data.get("receive")
        _needs_send_tls(send, [a.ae_title for a in receive.allow if a.tls] if receive else [])
        return send

    @field_validator("destination")
    @classmethod
    def _tell_apart(cls, entries: tuple[DestinationEntry, ...], info: ValidationInfo) -> tuple[DestinationEntry, ...]:
        _refuse_twins([d.name for d in entries])
        _needs_send_tls(info.data.get("send"), [d.name for d in entries if d.tls])
        return entries

    @field_validator("http")
    @classmethod
    def _ports_apart(cls, http: Http, info: ValidationInfo) -> Http:
        taken = {"http.port": http.port} | _dicom_ports(info.data.get("node"), info.data.get("receive"))
        if len(set(taken.values())) < len(taken):
            raise ValueError(f"{', '.join(f'{key} = {port}' for key, port in taken.items())}: each needs its own port")
        return http


def _dicom_ports(node: Node | None, receive: Receive | None) -> dict[str, int]:
    """None: a table at fault."""
    ports = {"node.port": node.port} if node and (receive is None or receive.plain) else {}
    return ports | ({"receive.tls.port": receive.tls.port} if receive and receive.tls else {})


def _needs_send_tls(send: Send | None, named: list[str]) -> None:
    if send and send.tls is None and named:
        raise ValueError(f"{', '.join(named)}: tls = true needs the table [send.tls] with at least its ca")


def _refuse_twins(names: list[str]) -> None:
    if twins := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twins)}: is there twice, name each once")


# --- reading --------------------------------------------------------------------------------------------------------


def load_config(path: Path) -> Config:
    """The configuration of `path` and the environment. Raises ConfigError that names every fault."""
    data = _read(path)
    origins = _overlay_environment(data)
    data.setdefault("node", {})  # its default paths, too, start at the file's folder
    try:
        return Config.model_validate(data, context={"folder": path.absolute().parent})
    except ValidationError as e:
        faults = [fault(error, origins) for error in e.errors(include_url=False)]
    raise ConfigError(f"{path} is not a valid configuration:", *faults)  # not `from`: e has the values


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise ConfigError(
            f"cannot read the configuration {path}: {e.strerror}. To begin with: cxrnode config example > {path}"
        ) from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is not UTF-8 text (byte {e.start}): save it as UTF-8") from None
    except ValueError as e:
        raise ConfigError(f"{path} is not valid TOML: {e}. For how it should look: cxrnode config example") from None


def _overlay_environment(data: dict[str, Any]) -> dict[Location, str]:
    """Put CXRNODE_TABLE__KEY over `data`; returns which variable set which key.

    A variable without __ is none of ours, unless it names a table.
    """
    origins: dict[Location, str] = {}
    for name in sorted(os.environ):
        keys = tuple(name.removeprefix(_PREFIX).lower().split("__"))
        if not name.startswith(_PREFIX) or (len(keys) == 1 and keys[0] not in Config.model_fields):
            continue
        table: Any = data
        for key in keys[:-1]:
            table = table.setdefault(key, {}) if isinstance(table, dict) else None
        if not isinstance(table, dict):
            raise ConfigError(f"{name}: {spell(keys[:-1])} is no table, so that no key in it can be set alone")
        table[keys[-1]] = _environment_value(os.environ[name])
        origins[keys] = name
    return origins


def _environment_value(text: str) -> Any:
    """Lists and tables are written as TOML; what is neither is left to pydantic, which reads numbers and booleans."""
    if not text.startswith(("[", "{")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text
