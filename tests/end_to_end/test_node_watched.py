"""What a node tells those who watch it: figures, warnings, a log without patients; and what is made to read them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from cxrnode.dicom.status import CANNOT_UNDERSTAND, MISSING_UID
from tests.interop.conftest import require
from tests.support.watched import LOUD, MONITORING, Watched, leaks, watch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    (folder / "sitecustomize.py").write_text(LOUD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield watch(folder, seed=6)


def families(page: bytes) -> dict[str, Metric]:
    return {m.name: m for m in text_string_to_metric_families(page.decode())}


def value(page: bytes, sample: str, **labels: str) -> float:
    """The sum of the samples of this name that have these labels."""
    samples = [s for m in families(page).values() for s in m.samples if s.name == sample]
    assert samples, f"no {sample}"
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


def test_no_patient_is_in_what_a_node_writes_at_any_level(run: Watched) -> None:
    refused = {what: status for what, status in run.statuses.items() if status}
    damaged = dict.fromkeys(("cut in its pixels", "cut in its header"), CANNOT_UNDERSTAND)
    assert refused == damaged | {"no UID": MISSING_UID}
    assert len(run.tokens) > 200
    assert not leaks(run.tokens, run.log)
    assert not leaks(run.tokens, b"".join(run.pages.values()))


def test_the_search_would_find_them() -> None:
    for written in (b"x mueller^", "MUELLER".encode("utf-16-le"), b"4d55454c4c4552", b"x TVVFTExFUg== y"):
        assert leaks(["MUELLER"], written)


def test_every_line_of_the_log_is_a_record(run: Watched) -> None:
    records = [json.loads(line) for line in run.log.splitlines()]
    assert {r["stage"] for r in records} == {"node", "intake", "analyse", "deliver"}
    assert all({"time", "level", "logger", "message"} <= r.keys() for r in records)
    assert any(r.get("sop_instance_uid") == "1.2.826.0.1.77.1.1.1" and r.get("calling_aet") == "PACS" for r in records)
    assert any(r.get("destination") == "quotes" and r.get("status") == "0xC123" for r in records)


def test_the_figures_are_those_of_what_happened(run: Watched) -> None:
    page = run.before_kill
    assert value(page, "cxrnode_receive_instances_total") == len(run.statuses)
    assert value(page, "cxrnode_receive_instances_total", status="0xC000") == 2
    assert value(page, "cxrnode_receive_instances_total", status="0xC003") == 1
    assert value(page, "cxrnode_receive_seconds_count") == len(run.statuses)
    assert value(page, "cxrnode_receive_associations_rejected_total") == 1
    outcomes = {reason: value(page, "cxrnode_outcomes_total", reason=reason) for reason in ("lateral", "undecodable")}
    assert outcomes == {"lateral": 1, "undecodable": 1}
    analysed = value(page, "cxrnode_outcomes_total", outcome="analysed")
    assert analysed == value(page, "cxrnode_score_ratio_count", device="Phantom Works P1", label="normal")
    assert value(page, "cxrnode_batch_images_sum") == analysed
    assert value(page, "cxrnode_report_seconds_count", kind="capture") == analysed
    sent = value(page, "cxrnode_deliveries_total", destination="good", result="delivered")
    assert sent == value(page, "cxrnode_deliveries_total", destination="quotes", result="refused") > analysed
    assert value(page, "cxrnode_undelivered", destination="quotes", state="refused") == sent
    assert value(page, "cxrnode_undelivered", destination="away", state="pending") == sent
    assert value(page, "cxrnode_engine_info") == value(page, "cxrnode_ready") == 1


def test_a_stage_that_dies_goes_on_counting(run: Watched) -> None:
    page = run.pages["/metrics"]
    assert value(page, "cxrnode_stage_deaths_total", stage="intake") == 1
    assert value(page, "cxrnode_receive_instances_total") == len(run.statuses) + 1


def test_alerts_and_dashboard_ask_for_what_a_node_exports(run: Watched) -> None:
    exported = {s.name for m in families(run.pages["/metrics"]).values() for s in m.samples}
    for name in ("alerts.yml", "alerts_test.yml", "drift_test.yml", "dashboard.json"):
        asked = set(re.findall(r"\bcxrnode_[a-z0-9_]+(?=[\[{\s,)])", (MONITORING / name).read_text()))
        assert asked - exported == set(), name
    shown = (MONITORING / "dashboard.json").read_text()
    parts = re.compile("_(bucket|count|sum)$")
    assert {m for m in {parts.sub("", name) for name in exported} if m not in shown} == set()


def test_prometheus_finds_no_fault_with_the_figures(run: Watched) -> None:
    promtool = shutil.which("promtool")
    require([] if promtool else ["promtool"])
    done = subprocess.run(
        [str(promtool), "check", "metrics"], input=run.pages["/metrics"], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_a_destination_that_is_away_is_a_warning(run: Watched) -> None:
    said = json.loads(run.pages["/readyz"])
    assert said["ready"]
    assert list(said["warnings"]) == ["destination away"]
    assert value(run.pages["/metrics"], "cxrnode_destination_failures", destination="away") > 0
