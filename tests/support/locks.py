"""What the lock files pin."""

import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def pins(lock: str) -> dict[str, Requirement]:
    """Name to pin, of every platform."""
    entries = re.split(r"(?m)^(?=[a-z])", (ROOT / lock).read_text())
    found = [Requirement(entry.split(" \\\n")[0]) for entry in entries if not entry.startswith("#")]
    return {canonicalize_name(r.name): r for r in found}


def version(pin: Requirement) -> str:
    [only] = pin.specifier
    assert only.operator == "=="
    return only.version
