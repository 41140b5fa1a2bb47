"""deploy/monitoring: what Prometheus' own tool says of it, and that it asks for nothing that a node does not export.

Which figures a node exports is held against a running one in tests/end_to_end/test_node_watched.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.interop.conftest import require
from tests.support.watched import MONITORING

pytestmark = pytest.mark.interop


def promtool(*arguments: str) -> str:
    found = shutil.which("promtool")
    require([] if found else ["promtool"])
    done = subprocess.run(
        [str(found), *arguments], cwd=MONITORING, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    return found


def test_the_alerts_are_rules() -> None:
    assert "SUCCESS" in promtool("check", "rules", "alerts.yml")


def test_each_alert_fires_for_what_it_is_for() -> None:
    promtool("test", "rules", "alerts_test.yml", "drift_test.yml")
    tested = "".join((MONITORING / f"{name}_test.yml").read_text() for name in ("alerts", "drift"))
    alerts = [line.split()[-1] for line in (MONITORING / "alerts.yml").read_text().splitlines() if "- alert:" in line]
    assert len(alerts) > 10
    assert [a for a in alerts if a not in tested] == []


def test_what_the_dashboard_asks_is_promql(tmp_path: Path) -> None:
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    rules = [{"record": f"panel:{n}", "expr": expr} for n, expr in enumerate(asked)]
    path = tmp_path / "rules.yml"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(asked)} rules found" in promtool("check", "rules", str(path))


def test_no_panel_lies_on_another() -> None:
    taken = [
        (x, y)
        for p in panels()
        for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
        for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert len({p["id"] for p in panels()}) == len(panels())
