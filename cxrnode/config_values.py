"""What stands behind a key of the configuration: values that are checked, and tables that know their keys."""

from __future__ import annotations

import ipaddress
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo
from pydicom.datadict import dictionary_VR, keyword_dict

from cxrnode.dicom.client_certificate import identity
from cxrnode.dicom.identity import is_ae_title
from engines.base import EngineError
from engines.bundle import find_bundle

_DATABASE = "postgresql+psycopg"
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")  # RFC 1123, and the _ that sites do use


def _ae_title(value: str) -> str:
    title = value.strip(" ")  # not significant: PS3.5 section 6.2
    if not is_ae_title(title):
        raise ValueError("an AE title is 1 to 16 printable ASCII characters, no backslash, not only spaces")
    return title


def _host(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))  # in the one form that a socket's peer address has
    except ValueError:
        labels = value.removesuffix(".").split(".")
    named = len(value) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdecimal()
    if not named:
        raise ValueError("is neither an IP address (IPv6 without brackets) nor a host name")
    return value


def _not_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("should be a number")  # noqa: TRY004 (as pydantic wants it; it would take true for 1)
    return value


def _path(value: object, info: ValidationInfo) -> object:
    if value == "":
        raise ValueError("is empty: give a path")
    folder = (info.context or {}).get("folder", Path())
    return folder / value if isinstance(value, str | Path) else value


def _readable(path: Path) -> Path:
    try:
        path.open("rb").close()
    except (OSError, ValueError) as e:
        raise ValueError(f"cannot read this file: {getattr(e, 'strerror', None) or e}") from e
    return path


def _folder(path: Path) -> Path:
    try:
        if path.exists() and not path.is_dir():
            raise ValueError("is not a folder")
    except OSError as e:
        raise ValueError(f"is not a usable folder: {e.strerror}") from e
    return path


def _database(secret: SecretStr) -> SecretStr:
    from sqlalchemy.engine import make_url  # noqa: PLC0415 (the workers read a configuration and no database)

    if secret.get_secret_value() == "sqlite":
        return secret
    try:
        url = make_url(secret.get_secret_value())
        good = url.drivername == _DATABASE and bool(url.database)
    except Exception:  # noqa: BLE001 (whatever it is, its words may hold the password)
        good = False
    if not good:
        raise ValueError(
            f'should be "sqlite" or "{_DATABASE}://USER:PASSWORD@HOST:PORT/DATABASE" (as a URL has it: an @ in the '
            "password is %40)"
        )
    return secret


def _bundle(name: str, info: ValidationInfo) -> str:
    found = str(_path(name, info)) if "/" in name else name
    try:
        find_bundle(found)
    except (EngineError, OSError, RuntimeError, ValueError) as e:
        raise ValueError(str(e)) from e
    return found


def _keyword(value: str) -> str:
    tag = keyword_dict.get(value)
    if not value or tag is None:
        close = get_close_matches(value, keyword_dict, n=1)
        raise ValueError("is no DICOM keyword" + (f"; did you mean {close[0]}?" if close else ""))
    if dictionary_VR(tag).startswith(("SQ", "O", "UN")):
        raise ValueError("has no value to compare with (it is a sequence or binary)")
    return value


AETitle = Annotated[str, AfterValidator(_ae_title)]
Host = Annotated[str, AfterValidator(_host)]
CertificateIdentity = Annotated[str, AfterValidator(identity)]
Integer = Annotated[int, BeforeValidator(_not_bool)]
Seconds = Annotated[float, BeforeValidator(_not_bool)]
Port = Annotated[Integer, Field(ge=1, le=65535)]
File = Annotated[Path, BeforeValidator(_path), AfterValidator(_readable)]
Folder = Annotated[Path, BeforeValidator(_path), AfterValidator(_folder)]
Somewhere = Annotated[Path, BeforeValidator(_path)]  # a file that need not be there
DatabaseURL = Annotated[SecretStr, AfterValidator(_database)]
BundleName = Annotated[str, AfterValidator(_bundle)]
Keyword = Annotated[str, AfterValidator(_keyword)]
Associations = Annotated[Integer, Field(ge=1, le=10_000)]


class Table(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, hide_input_in_errors=True
    )


class Reporter(Table):
    """Who also reports on storage commitment for a destination; host: of the destination, where it is not given."""

    ae_title: AETitle
    host: Host | None = None


def _reporters(value: object) -> object:
    """An AE title alone stands for a table."""
    values = [value] if isinstance(value, str) else value
    return [{"ae_title": v} if isinstance(v, str) else v for v in values] if isinstance(values, list) else values


Reporters = Annotated[tuple[Reporter, ...], BeforeValidator(_reporters)]
