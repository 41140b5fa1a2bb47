"""A command as a user starts it on a fresh account, and every place of the network that it asked for, as strace saw."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STRACE = shutil.which("strace")
_INET = re.compile(
    r"\b(?:connect|sendto|sendmsg|sendmmsg)\(.*?sin6?_port=htons\((\d+)\).*?"
    r'(?:inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)")'
)
_HIDES = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_DISABLE_TELEMETRY", "HF_HUB_OFFLINE", "PYTHONDONTWRITEBYTECODE")


@dataclass(frozen=True, kw_only=True)
class Account:
    """A home and a folder for temporary files, both empty."""

    folder: Path

    def __post_init__(self) -> None:
        for made in (self.home, self.temporary):
            made.mkdir(parents=True)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    @property
    def environment(self) -> dict[str, str]:
        """Ours, without what tells a library that nobody should be asked or told."""
        kept = {k: v for k, v in os.environ.items() if k not in _HIDES and not k.startswith(("XDG_", "PYTEST_"))}
        return kept | {"HOME": str(self.home), "TMPDIR": str(self.temporary)}

    def left(self) -> list[str]:
        """The files that lie there now."""
        both = (self.home, self.temporary)
        return [str(p.relative_to(self.folder)) for folder in both for p in folder.rglob("*") if not p.is_dir()]

    def traced(self, command: Sequence[str]) -> list[str]:
        """The command line that writes what it asks of the network into `trace`."""
        calls = "connect,sendto,sendmsg,sendmmsg"
        return [
            str(STRACE),
            "-f",
            "-qq",
            "-s",
            "64",
            "-e",
            f"trace={calls}",
            "-o",
            str(self.folder / "trace"),
            *command,
        ]

    def run(self, command: Sequence[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.traced(command), env=self.environment, cwd=cwd, capture_output=True, text=True, check=False
        )

    def asked(self) -> set[tuple[str, int]]:
        """(address, port) of every connection and datagram over IPv4 and IPv6.

        Port 0 is nobody's: so the C library asks the kernel for a way to an address, and sends nothing.
        """
        text = (self.folder / "trace").read_text(errors="replace")
        return {(v4 or v6, int(port)) for port, v4, v6 in _INET.findall(text) if port != "0"}
