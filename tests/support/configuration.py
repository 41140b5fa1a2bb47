"""Configurations for tests: the shipped example with all that it leaves commented out, and files to try."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cxrnode.config import Config, load_config
from cxrnode.config_faults import EXAMPLE
from cxrnode.errors import ConfigError
from tests.support.certificates import Authority

WHOLE = re.sub(r"^#(?=[\w\[{])", "", EXAMPLE, flags=re.MULTILINE)


def with_tls_files(folder: Path) -> Path:
    """`folder`, holding the TLS files that WHOLE names."""
    (folder / "tls").mkdir()
    node = Authority(folder / "tls").issue("node")
    node.certificate.rename(folder / "tls" / "node.pem")
    node.key.rename(folder / "tls" / "node.key")
    return folder


def load(folder: Path, text: str) -> Config:
    path = folder / "cxrnode.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def fault(folder: Path, text: str) -> str:
    """What is said of a configuration that is wrong."""
    with pytest.raises(ConfigError) as e:
        load(folder, text)
    assert e.value.exit_code == 2
    assert str(folder / "cxrnode.toml") in str(e.value)
    return str(e.value)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k, ensure_ascii=False)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def document(data: dict[str, Any]) -> str:
    """`data` as a TOML document."""
    return "\n".join(f"{json.dumps(key, ensure_ascii=False)} = {toml(value)}" for key, value in data.items())
