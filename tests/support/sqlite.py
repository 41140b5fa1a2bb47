"""A SQLite file that another process has for itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN EXCLUSIVE'); \
print('locked', flush=True); sys.stdin.read()"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process has the file for itself."""
    other = subprocess.Popen([sys.executable, "-c", LOCK, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin
    assert other.stdout
    assert other.stdout.readline() == b"locked\n"
    try:
        yield
    finally:
        other.stdin.close()
        other.wait(timeout=10)
        other.stdout.close()
