"""A configuration that this machine, or this user, cannot serve is said by every command, with the mend."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.orthanc import free_port
from tests.support.receiving import running_node

NOBODY = 65534
# root without root's powers: who may do what is as for any other user, and Python can still be found
POWERLESS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner,-net_bind_service"]
as_root = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can give files away")


def config(folder: Path, data_dir: Path, *, port: int = 0, node: str = "", more: str = "") -> Path:
    path = folder / "cxrnode.toml"
    path.write_text(
        f'[node]\ndata_dir = "{data_dir}"\nport = {port or free_port()}\n{node}\n{more}\n'
        f"[http]\nport = {free_port()}\n", encoding="utf-8",
    )  # fmt: skip
    return path


def cxrnode(*arguments: str, powerless: bool = False) -> subprocess.CompletedProcess[str]:
    command = [*(POWERLESS if powerless else []), sys.executable, "-m", "cxrnode", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@as_root
@pytest.mark.parametrize("command", [["config", "check"], ["doctor", "--config"], ["serve", "--config"]])
@pytest.mark.parametrize("there", ["absent", "another's", "with another's file"])
def test_a_data_folder_that_is_not_ours(tmp_path: Path, command: list[str], there: str) -> None:
    data_dir = tmp_path / "srv" / "data"
    data_dir.mkdir(parents=True)
    theirs = {"absent": data_dir.parent, "another's": data_dir, "with another's file": data_dir / "ledger.sqlite"}[
        there
    ]
    if there == "absent":
        data_dir.rmdir()
    elif there == "with another's file":
        theirs.touch(mode=0o600)
    os.chown(theirs, NOBODY, NOBODY)
    said = cxrnode(*command, str(config(tmp_path, data_dir)), powerless=True)
    assert said.returncode == 2
    assert said.stdout == ""
    (line,) = said.stderr.splitlines()
    assert f"node.data_dir = {data_dir}: user root may not" in line
    assert f"chown -R root {data_dir}" in line
    assert ("mkdir" in line) == (there == "absent")


@as_root
def test_a_port_below_1024(tmp_path: Path) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 104:
        pytest.skip("here every user may use these ports")
    path = config(tmp_path, tmp_path / "data", port=104, node="bind = '127.0.0.1'")
    said = cxrnode("serve", "--config", str(path), "--only", "intake", powerless=True)
    assert said.returncode == 2
    assert "cannot listen on 127.0.0.1:104: Permission denied" in said.stderr
    assert "CAP_NET_BIND_SERVICE" in said.stderr
    assert "choose another node.port, such as 11112" in said.stderr


@pytest.mark.parametrize("bind", ["127.0.0.1", "::1", "localhost"])
def test_a_loopback_that_others_should_reach(tmp_path: Path, bind: str) -> None:
    allow = '[receive]\nallow = [{ ae_title = "PACS", host = "192.0.2.7" }, { ae_title = "ME", host = "127.0.0.1" }]'
    path = config(tmp_path, tmp_path / "data", node=f'bind = "{bind}"', more=allow)
    words = [f"node.bind = {bind}: only this machine can connect, not PACS at 192.0.2.7", "set node.bind to"]
    checked = cxrnode("config", "check", str(path))
    assert checked.returncode == 0
    assert [w for w in words if w not in checked.stderr] == []
    doctored = cxrnode("doctor", "--config", str(path))
    assert [w for w in words if w not in doctored.stdout] == []
    assert "warn node.bind" in doctored.stdout


def test_another_node_at_our_port_is_told_apart(tmp_path: Path) -> None:

    with running_node(tmp_path / "theirs") as other:
        path = config(tmp_path, tmp_path / "ours", port=other.port)
        said = cxrnode("doctor", "--config", str(path)).stdout
        assert "FAIL listener" in said
        assert f"it is no node that works on {tmp_path / 'ours'}" in said
        path.write_text(path.read_text().replace("[node]", '[node]\nae_title = "NEWNAME"'))
        said = cxrnode("doctor", "--config", str(path)).stdout
        assert "answers to another name than NEWNAME: if it is this node, restart it" in said


def test_a_destination_that_hangs_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = "import socket, sys\ns = socket.socket(fileno=int(sys.argv[1]))\nwhile True: s.accept()[0].close()"
        peer = subprocess.Popen([sys.executable, "-c", code, str(server.fileno())], pass_fds=[server.fileno()])
        try:
            destination = f'[[destination]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {port}'
            said = cxrnode("doctor", "--config", str(config(tmp_path, tmp_path / "data", more=destination))).stdout
        finally:
            peer.kill()
            peer.wait()
    assert f"127.0.0.1:{port} ended the connection" in said
    assert "many PACS do this to an AE title that they do not know" in said


def test_a_folder_for_temporary_files_whose_path_is_too_long_for_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("t" * 100)
    folder.mkdir()
    (tmp_path / "in").mkdir()
    command = [sys.executable, "-m", "cxrnode", "run-batch", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "TMPDIR": str(folder)}
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert said.returncode == 2
    assert "no socket can be made in" in said.stderr
    assert "Set TMPDIR to a folder" in said.stderr


COMMANDS = [["config", "check"], ["doctor", "--no-store", "--config"], ["serve", "--config"]]
as_mounter = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0,
    reason="only root may mount",
)


def within_mounts(mounts: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command that sees other mounts than we do, in a folder where nobody may write."""
    script = f'{mounts}\ncd /proc\nexec "$@"'
    command = ["unshare", "-m", "sh", "-ec", script, "sh", sys.executable, "-m", "cxrnode", *arguments]
    environment = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


@as_mounter
@pytest.mark.parametrize("command", COMMANDS)
def test_no_folder_for_temporary_files(tmp_path: Path, command: list[str]) -> None:
    """A container with a read-only root and no tmpfs."""
    places = "/tmp /var/tmp /usr/tmp"
    read_only = f"for d in {places}; do [ ! -d $d ] || mount --bind $d $d; done\nmount --bind {tmp_path} /mnt\n"
    read_only += f"for d in {places}; do [ ! -d $d ] || mount -o remount,ro,bind $d; done"
    said = within_mounts(
        read_only, *command, str(config(tmp_path, Path("/mnt/data"))), TMPDIR="/nonexistent",
        PYTHONPATH=os.environ.get("PYTHONPATH", ""),
    )  # fmt: skip
    assert said.returncode == 2, said.stderr
    assert said.stdout == ""
    (line,) = said.stderr.splitlines()
    assert "no folder for temporary files that user root may use (TMPDIR = /nonexistent" in line
    assert "set TMPDIR to one" in line
    assert "--tmpfs /tmp" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_temporary_folder_whose_path_is_too_long_is_said_at_once(tmp_path: Path, command: list[str]) -> None:
    folder = tmp_path / ("t" * 100)
    folder.mkdir()
    line = [sys.executable, "-m", "cxrnode", *command, str(config(tmp_path, tmp_path / "data"))]
    environment = {**os.environ, "TMPDIR": str(folder)}
    said = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert said.returncode == 2, said.stderr
    assert f"({folder}: AF_UNIX path too long): set TMPDIR to one, with a path of less than 70" in said.stderr


@as_mounter
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("there", [True, False])
def test_a_data_folder_on_a_read_only_file_system(tmp_path: Path, command: list[str], there: bool) -> None:
    """Nobody's chown helps there."""
    data_dir = Path("/mnt/data")
    prepare = f"mount -t tmpfs none /mnt\n{'mkdir /mnt/data' if there else ''}\nmount -o remount,ro /mnt"
    said = within_mounts(prepare, *command, str(config(tmp_path, data_dir)))
    assert said.returncode == 2, said.stderr
    (line,) = said.stderr.splitlines()
    assert "(a read-only file system): mount it read-write" in line
    assert "a container wants a volume at /mnt/data" in line
    assert "chown" not in line


@as_mounter
def test_a_user_without_an_account_and_without_a_home_needs_none(tmp_path: Path) -> None:
    """A container's user: `config check` and the golden check of the bundle go well."""
    path = Path("/mnt/cxrnode.toml")
    user = "setpriv --reuid=12345 --regid=12345 --clear-groups --inh-caps=+dac_read_search"  # Python may be root's
    clean = f"env -i PATH=/usr/bin:/bin TMPDIR=/mnt PYTHONPATH={os.environ.get('PYTHONPATH', '')}"
    mounts = (
        f"mount -t tmpfs -o mode=1777 none /mnt\ninstall -m 644 {config(tmp_path, Path('/mnt/data'))} {path}\ncd /\n"
        f'exec {user} --ambient-caps=+dac_read_search {clean} "$@"'
    )
    said = within_mounts(mounts, "config", "check", str(path))
    assert said.returncode == 0, said.stderr
    said = within_mounts(mounts, "doctor", "--no-store", "--config", str(path))
    assert "Traceback" not in said.stderr
    assert "passes its golden check with cpu" in said.stdout
    said = within_mounts(mounts, "models", "verify", "~/bundle")
    assert said.returncode == 2
    assert (
        "no model bundle '~/bundle' (Could not determine home directory.): give its folder's whole path" in said.stderr
    )
