"""A real node: `cxrnode serve` on free ports of the loopback, in a temporary folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from pynetdicom.presentation import build_context

from cxrnode.dicom.requestor import TidyAE
from cxrnode.store.database import Database
from tests.support.orthanc import free_port

START_SECONDS = 90.0
SENDER = "PACS"


@dataclass(kw_only=True)
class Node:
    """`start()` it; `folder` holds its configuration, data and log."""

    folder: Path
    destinations: Sequence[tuple[str, str, int]] = ()  # (name, AE title, port), all on the loopback
    commitment: bool = True
    quiet_s: float = 0.5
    watermark_mb: int = 1
    database: str = "sqlite"
    extra: str = ""  # more TOML
    receive: str = ""  # more keys of [receive]
    allow: Sequence[str] = ()  # more entries of [receive] allow
    answers: str = ""  # keys of Orthanc's entry there: where its storage commitment answers go, and how
    port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    pages: dict[str, int] = field(default_factory=dict)  # of the stages that were started alone
    process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        return self.folder / "cxrnode.toml"

    @property
    def data_dir(self) -> Path:
        return self.folder / "var"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def write_config(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        sent = "\n".join(
            f'[[destination]]\nname = "{name}"\nae_title = "{ae}"\nhost = "127.0.0.1"\nport = {port}\n'
            f"storage_commitment = {str(self.commitment).lower()}"
            for name, ae, port in self.destinations
        )
        answers = self.answers or f"port = {self.destinations[0][2] if self.destinations else 104}"
        self.config.write_text(
            f'[node]\nport = {self.port}\ndata_dir = "var"\ndatabase = "{self.database}"\n'
            f'[receive]\nallow = [{{ ae_title = "{SENDER}", host = "127.0.0.1" }}, '
            f'{{ ae_title = "ORTHANC", host = "127.0.0.1", {answers} }}, '
            f'{{ ae_title = "ER", host = "127.0.0.1" }}{"".join(f", {entry}" for entry in self.allow)}]\n'
            f"disk_watermark_mb = {self.watermark_mb}\n{self.receive}\n"
            f'[analyse]\nstat = [{{ calling_ae = "ER" }}]\n'
            f"[report]\nstudy_quiet_s = {self.quiet_s}\n{sent}\n[http]\nport = {self.http_port}\n{self.extra}\n"
        )

    def start(self, *arguments: str, ready: bool = True) -> None:
        self.write_config()
        command = [sys.executable, "-m", "cxrnode", "serve", "--config", str(self.config), *arguments]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        if ready:
            self.await_ready()

    def start_alone(self, stage: str, *, page: int = 0) -> subprocess.Popen[bytes]:
        """One stage in a process of its own, as on another machine; its pages are at a port of their own, `pages`."""
        command = [sys.executable, "-m", "cxrnode", "serve", "--config", str(self.config), "--only", stage]
        self.pages[stage] = page or free_port()
        environment = os.environ | {"CXRNODE_HTTP__PORT": str(self.pages[stage])}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def await_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            if self.readiness().get("ready"):
                return
            time.sleep(0.1)
        raise RuntimeError(f"the node did not start: {self.readiness()}\n{self.log[-3000:]}")

    def readiness(self, port: int | None = None) -> dict[str, Any]:
        try:
            answer = self.http("/readyz", port)
        except urllib.error.HTTPError as e:
            answer = e.read()
        except (urllib.error.URLError, ConnectionError, TimeoutError) as e:
            return {"ready": False, "reasons": {"http": str(e)}}
        found: dict[str, Any] = json.loads(answer)
        return found

    def http(self, path: str, port: int | None = None) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port or self.http_port}{path}", timeout=10) as answer:
            data: bytes = answer.read()
            return data

    def stages(self) -> dict[str, psutil.Process]:
        """The stage processes that live, by name."""
        assert self.process is not None
        found = {}
        for child in psutil.Process(self.process.pid).children():
            try:
                line = child.cmdline()
            except psutil.Error:
                continue
            if "--only" in line:
                found[line[-1]] = child
        return found

    def stop(self) -> int:
        """SIGTERM, and wait for the drain; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        """Everything at once, as when the machine's power goes (but for the page cache)."""
        if self.process is None:
            return
        try:
            family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        except psutil.Error:
            return
        for process in family:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(timeout=10)

    def send(self, *paths: Path, ae_title: str = SENDER) -> list[int]:
        """C-STORE files over one association; the statuses."""
        return send(self.port, *paths, ae_title=ae_title)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        database = Database(self.data_dir / "ledger.sqlite")
        try:
            with database.begin(shared=True) as c:
                return [tuple(row) for row in c.exec_driver_sql(query)]
        finally:
            database.close()


def send(port: int, *paths: Path, ae_title: str = SENDER, called: str = "CXRNODE") -> list[int]:
    from pydicom import dcmread

    ae = TidyAE(ae_title=ae_title)  # pynetdicom leaves the socket of a refused connection open
    files = [dcmread(p) for p in paths]
    pairs = {(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID) for ds in files}
    contexts = [build_context(sop_class, syntax) for sop_class, syntax in sorted(pairs)]
    assoc = ae.associate("127.0.0.1", port, ae_title=called, contexts=contexts, max_pdu=131072)
    if not assoc.is_established:
        raise ConnectionError("the node did not accept the association")
    try:
        return [int(getattr(assoc.send_c_store(ds), "Status", -1)) for ds in files]
    finally:
        assoc.release()


@contextmanager
def running_node(node: Node) -> Iterator[Node]:
    try:
        node.start()
        yield node
    finally:
        node.kill()
