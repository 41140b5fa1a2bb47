"""A disposable Orthanc: a real PACS on free ports of the loopback, in a temporary folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

ORTHANC = Path("/usr/sbin/Orthanc")
_PLUGINS = Path("/usr/share/orthanc/plugins")
AET = "ORTHANC"
START_SECONDS = 20.0
_PORTS = 3000  # of each process of pytest-xdist
_FIRST_PORT = 10_000 + _PORTS * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_ports = cycle(range(_FIRST_PORT, _FIRST_PORT + _PORTS))


def missing_orthanc() -> list[str]:
    plugin = _PLUGINS / "libOrthancDicomWeb.so"
    return [str(p) for p in (ORTHANC, plugin) if not p.exists()]


@dataclass(frozen=True, kw_only=True)
class Orthanc:
    """AE title ORTHANC at 127.0.0.1:`dicom_port`; REST and DICOMweb under `url`."""

    folder: Path
    dicom_port: int
    http_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def get(self, path: str, accept: str | None = None) -> bytes:
        return self._ask(path, None, {} if accept is None else {"Accept": accept})

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path, f"application/{'dicom+' if path.startswith('/dicom-web') else ''}json"))

    def upload(self, data: bytes) -> dict[str, Any]:
        """Store one DICOM file; returns Orthanc's answer (ID, ParentStudy, Status). Raises HTTPError if refused."""
        answer: dict[str, Any] = json.loads(self._ask("/instances", data, {"Content-Type": "application/dicom"}))
        return answer

    def post_json(self, path: str, body: Any) -> Any:
        return json.loads(self._ask(path, json.dumps(body).encode(), {"Content-Type": "application/json"}))

    def store(self, resource: str, modality: str) -> None:
        """C-STORE a study, series or instance (Orthanc's identifier) to one of its modalities."""
        self.post_json(f"/modalities/{modality}/store", {"Resources": [resource], "Synchronous": True})

    def find(self, level: str, **query: str) -> list[str]:
        """Orthanc's identifiers of what matches, for example `find("Study", StudyInstanceUID=uid)`."""
        body = json.dumps({"Level": level, "Query": query}).encode()
        found: list[str] = json.loads(self._ask("/tools/find", body, {"Content-Type": "application/json"}))
        return found

    def _ask(self, path: str, body: bytes | None, headers: dict[str, str]) -> bytes:
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            data: bytes = answer.read()
            return data


@contextmanager
def running_orthanc(
    folder: Path,
    modalities: dict[str, Any] | None = None,
    dicom_port: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Orthanc]:
    """Start Orthanc, wait until it answers, and stop it at the end. `modalities` is its DicomModalities option.

    options: more of its configuration.

    TCP_NODELAY: Orthanc's DCMTK leaves Nagle's algorithm on, which would make every transfer wait.
    """
    peer = Orthanc(folder=folder, dicom_port=dicom_port or free_port(), http_port=free_port())
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "orthanc.json"
    configuration.write_text(json.dumps({**_configuration(peer, modalities or {}), **(options or {})}, indent=1))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(ORTHANC), str(configuration)], stdout=log, stderr=log, env={**os.environ, "TCP_NODELAY": "1"}
        )
    try:
        _await(peer, process)
        yield peer
    finally:
        process.kill()  # its data is thrown away, and a gentle stop takes three seconds
        process.wait()


def free_port() -> int:
    """A port that nobody listens on, each time another one. Below those that outgoing connections take, and of this
    process of pytest-xdist alone: nobody else takes it before the test does."""
    for port in islice(_ports, _PORTS):
        with socket.socket() as s, suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def _configuration(peer: Orthanc, modalities: dict[str, Any]) -> dict[str, Any]:
    storage = str(peer.folder / "db")
    return {
        "Name": "PEER",
        "StorageDirectory": storage,
        "IndexDirectory": storage,
        "HttpPort": peer.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAet": AET,
        "DicomPort": peer.dicom_port,
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "DicomModalities": modalities,
        "Plugins": [str(p) for name in ("DicomWeb", "Gdcm") for p in _PLUGINS.glob(f"libOrthanc{name}.so")],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "OverwriteInstances": True,
        "StableAge": 3,
        "DicomScuTimeout": 10,
        "DicomScpTimeout": 30,
        "SaveJobs": False,
        "StorageCompression": False,
        "KeepAlive": True,
    }


def _await(peer: Orthanc, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            peer.get("/system")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"Orthanc did not start: {(peer.folder / 'log').read_text(errors='replace')[-2000:]}")
