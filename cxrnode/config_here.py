"""What a configuration comes to on this machine, in words: may this user use its folder and ports, who can reach it?"""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import pwd
import socket
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cxrnode.config import Config
from cxrnode.errors import ConfigError
from engines.files import PRIVATE_UMASK

_PRIVILEGED = 1024  # below it a port is root's (ip(7))
_LIKE_A_SOCKET = "cxrnode-trial-", "listener-12345678"  # as long as multiprocessing's own names, or longer
_LISTENS = ".intake.json"  # in the data folder, while an intake listens


def check_data_dir(folder: Path) -> None:
    """Raises ConfigError where this user may not make it, or write what is in it. Nothing is made or changed."""
    said = f"node.data_dir = {folder}: user {_user()}"
    above = next(path for path in (folder, *folder.parents) if _exists(path))
    if above != folder:
        if not above.is_dir():
            raise ConfigError(f"node.data_dir = {folder}: {above} is a file, not a folder")
        if not _writable(above):
            mend = _mend(above, folder)
            mend = mend if _is_read_only(above) else f"mkdir -p {folder}, {mend}"
            raise ConfigError(f"{said} may not create it in {above}{_why(above)}: {mend}")
        return
    for path in (folder, *_entries(folder)):
        there = _identity(path)
        if not _writable(path) and there and _identity(path) == there:  # one that goes meanwhile is a running node's
            what = "it" if path == folder else path.name + " in it"
            raise ConfigError(f"{said} may not write to {what}{_why(path)}: {_mend(path, folder)}")


def make_data_dir(folder: Path) -> None:
    """Raises ConfigError where this user cannot."""
    check_data_dir(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"node.data_dir = {folder}: user {_user()} cannot create it: {e.strerror}") from e


def check_temporary() -> None:
    """Raises ConfigError where there is no folder for temporary files, or none that can hold a socket.

    The analyse stage's processes have their socket there, and the stages' figures for /metrics their files.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=_LIKE_A_SOCKET[0]) as folder, socket.socket(socket.AF_UNIX) as trial:
            trial.bind(str(Path(folder, _LIKE_A_SOCKET[1])))
    except OSError as e:
        where = tempfile.tempdir or f"TMPDIR = {os.environ.get('TMPDIR', '')}, /tmp, /var/tmp and the current folder"
        raise ConfigError(
            f"no folder for temporary files that user {_user()} may use ({where}: {e.strerror or e}): set TMPDIR to "
            "one, with a path of less than 70 characters; a container with a read-only root wants --tmpfs /tmp (an "
            "emptyDir at /tmp), a systemd unit PrivateTmp=yes"
        ) from e


def why_no_listener(key: str, bind: str, port: int, error: OSError) -> ConfigError:
    """`key`: what sets the port."""
    why = str(error.strerror).partition(" (while")[0]  # socket.create_server repeats the address
    said = f"cannot listen on {bind}:{port}: {why}. "
    if error.errno == errno.EACCES and port < _PRIVILEGED:
        return ConfigError(
            f"{said}Ports below {_PRIVILEGED} want the capability CAP_NET_BIND_SERVICE (systemd: "
            f"AmbientCapabilities=CAP_NET_BIND_SERVICE); or choose another {key}, such as 11112"
        )
    return ConfigError(f"{said}Is another process there? Choose another {key}, or a bind address that this machine has")


def unreachable(config: Config) -> Iterator[str]:
    """What cannot come in because node.bind is this machine's own loopback."""
    node = config.node
    if not is_loopback(node.bind):
        return
    mend = "set node.bind to an address of this machine, or to 0.0.0.0 for all of them"
    if far := [f"{a.ae_title} at {a.host}" for a in config.receive.allow if not is_loopback(a.host)]:
        yield f"node.bind = {node.bind}: only this machine can connect, not {', '.join(far)} of receive.allow; {mend}"
    if late := [d.name for d in config.destination if not all(is_loopback(host) for _, host in d.reporters)]:
        yield (
            f"node.bind = {node.bind}: storage commitment reports that {', '.join(late)} sends on an association of "
            f"its own cannot come in; {mend}"
        )


def open_to_others(config: Config, file: Path) -> Iterator[str]:
    """What this machine's other users may read or write and should not: keys, passwords, the data folder."""
    private = {
        "the data folder": config.node.data_dir,
        **{f"{name}.key": table.files.get("key") for name, table in config.tls_tables.items()},
        "audit.anchor_file": config.audit.anchor_file,
        "the configuration, which holds a password,": file if config.node.has_password else None,
    }
    for what, path in private.items():
        if path and _exists(path) and (mode := path.stat().st_mode) & PRIVATE_UMASK:
            yield f"{what} {path} is open to others ({stat.filemode(mode)}): chmod go= {path}"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in {"localhost", socket.gethostname()}


# --- which process listens --------------------------------------------------------------------------------------------


@contextmanager
def listening(data_dir: Path, ports: Sequence[int]) -> Iterator[None]:
    """In an intake: so that `cxrnode doctor` tells this node from another one at the same port. Raises OSError."""
    path = data_dir / _LISTENS
    path.write_text(json.dumps({"pid": os.getpid(), "ports": list(ports)}), encoding="utf-8")
    try:
        yield
    finally:
        with suppress(OSError):  # the folder is not there just now: who looks finds that the process is gone
            path.unlink(missing_ok=True)


def listens(data_dir: Path, port: int) -> bool:
    """Whether an intake that lives, of this data folder, told that it listens there."""
    try:
        told = json.loads((data_dir / _LISTENS).read_text(encoding="utf-8"))
        pid, ports = int(told["pid"]), told["ports"]
        os.kill(pid, 0)
    except PermissionError:  # another user's
        return port in ports
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return port in ports


# ----------------------------------------------------------------------------------------------------------------------


def _user() -> str:
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a container has no account for it
        return str(uid)


def _why(path: Path) -> str:
    """Whose it is; or that nobody may."""
    if _is_read_only(path):
        return " (a read-only file system)"
    try:
        return f" ({path.owner()}'s)"
    except (OSError, KeyError):
        return ""


def _mend(path: Path, folder: Path) -> str:
    if _is_read_only(path):
        return f"mount it read-write; a container wants a volume at {folder}, a systemd unit StateDirectory="
    return f"chown -R {_user()} {folder}"


def _is_read_only(path: Path) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder on the way that this user may not enter
        return False


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if os.access(folder, os.R_OK | os.X_OK, effective_ids=True) else []


def _identity(path: Path) -> tuple[int, int] | None:
    """The same as long as it is the same file."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _writable(path: Path) -> bool:
    wanted = os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)
    return os.access(path, wanted, effective_ids=True)
