"""What the stages count: shared, bounded, and gone on with after a death."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cxrnode import metrics

COUNT = """
import os, signal, sys
from cxrnode import metrics
metrics.begin(sys.argv[1])
"""


def run(stage: str, code: str) -> int:
    return subprocess.run([sys.executable, "-c", COUNT + code, stage], check=False, timeout=60).returncode


def samples(folder: Path) -> dict[tuple[str, tuple[str, ...]], float]:
    return {(s.name, tuple(s.labels.values())): s.value for m in metrics.collect(folder) for s in m.samples}


def test_a_stage_that_was_killed_goes_on_counting() -> None:
    with metrics.shared_folder(["intake", "deliver"]) as folder:
        assert folder is not None
        for _ in range(2):
            assert run("intake", "metrics.received(0, 100, 0.02); os.kill(os.getpid(), signal.SIGKILL)") == -9
        assert (
            run("deliver", "metrics.tried('pacs', 'storage', 3, True); metrics.tried('pacs', 'storage', 2, False)") == 0
        )
        found, files = samples(folder), len(list(folder.iterdir()))
    assert found["cxrnode_receive_instances_total", ("0x0000",)] == 2
    assert found["cxrnode_receive_bytes_total", ()] == 200
    assert found["cxrnode_receive_seconds_bucket", ("0.025",)] == 2
    assert found["cxrnode_destination_failures", ("pacs", "storage")] == 2
    assert found["cxrnode_destination_breaker_open", ("pacs", "storage")] == 0
    assert files == 6
    assert not folder.exists()
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ


def test_the_oldest_request_without_an_answer_is_told_also_by_a_stage_that_hangs() -> None:
    hang = """
import time
first, second = metrics.answering(), metrics.answering()
first.__enter__(), time.sleep(0.05), second.__enter__()
first.__exit__(None, None, None) if %s else None
os.kill(os.getpid(), signal.SIGKILL)
"""
    with metrics.shared_folder(["intake"]) as folder:
        assert folder is not None
        assert metrics.unanswered_since(folder) == 0
        began = time.monotonic()
        assert run("intake", hang % "False") == -9
        since = metrics.unanswered_since(folder)
        assert began < since < time.monotonic()
        assert run("intake", hang % "True") == -9
        assert metrics.unanswered_since(folder) > since + 0.05
        assert run("intake", "") == 0
        assert metrics.unanswered_since(folder) == 0


def test_devices_are_bounded_also_over_restarts() -> None:
    score = "[metrics.scored(f'device {n}', ['normal'], [0.5]) for n in range(%d, %d)]"
    with metrics.shared_folder(["analyse"]) as folder:
        assert folder is not None
        for begin in (0, 20, 40):
            assert run("analyse", score % (begin, begin + 20)) == 0
        counts = {k: v for k, v in samples(folder).items() if k[0] == "cxrnode_score_ratio_count"}
        used = (folder / "histogram_analyse.db").stat().st_size
    assert len(counts) == metrics._MOST_DEVICES + 1
    assert counts["cxrnode_score_ratio_count", (metrics.OTHER, "normal")] == 60 - metrics._MOST_DEVICES
    assert used == metrics._FILE_BYTES  # which were taken at the start: a full disk cannot kill the stage


def test_without_a_node_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics.begin("intake")
    metrics.received(0, 1, 0.1)
    assert metrics._meters is None
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere")
    metrics.begin("intake")
    assert metrics._meters is None


def test_no_room_for_figures_is_no_reason_not_to_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with metrics.shared_folder(["intake"]) as folder:
        assert folder is None
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize(
    ("said", "label"),
    [
        (("Phantom Works", "P1"), "Phantom Works P1"),
        (("", ""), "unknown"),
        ((" A\n\x00 ", "M\xfcller" * 20), "A ? " + ("M?ller" * 20)[:60]),
    ],
)
def test_a_device_is_a_short_printable_name(said: Sequence[str], label: str) -> None:
    assert metrics.device_name(*said) == label
