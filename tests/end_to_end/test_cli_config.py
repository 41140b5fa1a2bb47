"""`cxrnode config example` and `cxrnode config check`: what they print, where, and with which exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cxrnode.cli.main import app
from cxrnode.config_faults import EXAMPLE
from tests.support.certificates import Authority
from tests.support.configuration import WHOLE, with_tls_files


def cxrnode(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cxrnode", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})


def check(folder: Path, text: str) -> tuple[list[str], list[str]]:
    """What it understood, and of what it warns."""
    path = folder / "cxrnode.toml"
    path.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(app, ["config", "check", str(path)], catch_exceptions=False)
    assert result.exit_code == 0
    warnings = result.stderr.splitlines()
    assert all(line.startswith("warning: ") for line in warnings)
    return result.stdout.splitlines(), warnings


def test_the_example_is_a_file_to_begin_with(tmp_path: Path) -> None:
    example = cxrnode("config", "example")
    assert (example.returncode, example.stdout) == (0, EXAMPLE)
    (tmp_path / "cxrnode.toml").write_text(example.stdout)
    checked = cxrnode("config", "check", str(tmp_path / "cxrnode.toml"))
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "node: CXRNODE on 127.0.0.1:11112" in checked.stdout


def test_a_wrong_one_ends_with_2_and_says_all(tmp_path: Path) -> None:
    (tmp_path / "cxrnode.toml").write_text('[node]\nprot = 104\n[receive]\nallow = "PACS"\n')
    checked = cxrnode("config", "check", str(tmp_path / "cxrnode.toml"), CXRNODE_HTTP__PORT="x")
    assert (checked.returncode, checked.stdout) == (2, "")
    assert checked.stderr.startswith(f"error: {tmp_path / 'cxrnode.toml'} is not a valid configuration:\n")
    for said in ("node.prot: unknown key; did you mean port?", "receive.allow = ", "(from CXRNODE_HTTP__PORT)"):
        assert said in checked.stderr
    assert "Traceback" not in checked.stderr


def test_a_missing_one_ends_with_2(tmp_path: Path) -> None:
    checked = cxrnode("config", "check", str(tmp_path / "none.toml"))
    assert checked.returncode == 2
    assert "No such file" in checked.stderr


def test_what_was_understood(tmp_path: Path) -> None:
    until = datetime(2041, 2, 3, tzinfo=UTC)
    with_tls_files(tmp_path)
    renewed = Authority(tmp_path).issue("renewed", not_after=until)
    text = WHOLE.replace("tls/node.pem", renewed.certificate.name).replace("tls/node.key", renewed.key.name)
    text = text.replace('"sqlite"', '"postgresql+psycopg://cxr:geheim@db.example/cxrnode"').replace(
        "tls = false", "tls = true"
    )
    understood, warnings = check(tmp_path, text)
    assert warnings == []
    assert understood == [
        f"node: CXRNODE on 127.0.0.1:11112, data in {tmp_path / 'var'}",
        "database: postgresql+psycopg://db.example/cxrnode",
        "receive: PACS from 127.0.0.1, PACS2 from 127.0.0.1, "
        "CT1 from 127.0.0.1 (TLS, certificate ct1.hospital.example); at least 2048 MB stay free",
        "receive with TLS: 127.0.0.1:2762, client certificates required, own certificate until 2041-02-03",
        "analyse: bundle default, engine auto, up to 16 images a batch; "
        "before the rest: RequestedProcedurePriority = STAT, what ER sends",
        "report: after 5 s without a new image; what is not analysed: report",
        "destination pacs: ORTHANC at 127.0.0.1:14242, storage commitment (reports also of ARCHIVE from 127.0.0.1, "
        "PACS2 from 127.0.0.1), TLS",
        "http: http://127.0.0.1:8080/healthz /readyz /metrics",
        f"audit: the ledger is anchored in {tmp_path / 'anchors.jsonl'}, every 10000 records or 24 hours",
        "retention: received files go 7 days after their results are committed",
    ]


@pytest.mark.parametrize(
    ("old", "new", "warning"),
    [
        ('bind = "127.0.0.1"             #', 'bind = "0.0.0.0" #', "node.bind = 0.0.0.0: patient data crosses"),
        ('bind = "127.0.0.1"             #', 'bind = "::" #', "[receive.tls] adds a port with TLS"),
        ('host = "127.0.0.1"\nport = 14242', 'host = "pacs.example"\nport = 14242', "destination pacs without tls"),
        ('bind = "127.0.0.1"\nport = 8080', 'bind = "10.0.0.1"\nport = 8080', "http.bind = 10.0.0.1"),
        ("disk_watermark_mb = 2048", "disk_watermark_mb = 0", "fills the disk"),
        ('#anchor_file = "', 'anchor_file = "var/', "lies beside the ledger"),
    ],
)  # fmt: skip
def test_each_danger_is_told(tmp_path: Path, old: str, new: str, warning: str) -> None:
    assert old in EXAMPLE
    _, warnings = check(tmp_path, EXAMPLE.replace(old, new))
    warnings = [w for w in warnings if "node.bind = 127.0.0.1: storage commitment" not in w]  # of a remote destination
    assert len(warnings) == 1
    assert warning in warnings[0]


def test_an_empty_one_is_legal_and_of_no_use(tmp_path: Path) -> None:
    understood, warnings = check(tmp_path, "")
    assert "receive: nobody; at least 2048 MB stay free" in understood
    assert [w for w in warnings if "nobody can store" in w]
    assert [w for w in warnings if "results stay on this node" in w]


def test_dangers_of_tls(tmp_path: Path) -> None:
    with_tls_files(tmp_path)
    soon = Authority(tmp_path).issue("soon", not_after=datetime.now(UTC) + timedelta(days=9))
    soon.key.chmod(0o644)
    text = WHOLE.replace("tls/node.pem", soon.certificate.name).replace("tls/node.key", soon.key.name)
    text = text.replace("_certificate = true", "_certificate = false").replace(
        "verify_host = true", "verify_host = false"
    )
    said = "\n".join(check(tmp_path, text)[1])
    for warning in ("expires on", f"chmod 600 {soon.key}", "require_client_certificate = false", "verify_host = false"):
        assert said.count(warning) == 1


def test_the_plain_port_beside_tls_is_a_danger_until_it_is_switched_off(tmp_path: Path) -> None:
    with_tls_files(tmp_path)
    renewed = Authority(tmp_path).issue("renewed")
    text = WHOLE.replace("tls/node.pem", renewed.certificate.name).replace("tls/node.key", renewed.key.name)
    text = text.replace('bind = "127.0.0.1"             #', 'bind = "0.0.0.0" #')
    (warning,) = check(tmp_path, text)[1]
    assert "in the clear to port 11112; receive.plain = false closes it" in warning
    understood, warnings = check(tmp_path, text.replace("plain = true", "plain = false"))
    assert warnings == []
    assert understood[0] == f"node: CXRNODE with TLS alone, data in {tmp_path / 'var'}"


def test_tls_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with_tls_files(tmp_path)
    other = Authority(tmp_path).issue("other")
    (tmp_path / "cxrnode.toml").write_text(WHOLE.replace("tls/node.key", other.key.name))
    checked = cxrnode("config", "check", str(tmp_path / "cxrnode.toml"))
    assert checked.returncode == 2
    assert f"the key {other.key} does not belong to the certificate" in checked.stderr
