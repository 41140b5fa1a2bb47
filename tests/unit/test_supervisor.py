"""A stage counts as up when it says so, not when it has lived for a while: a slow machine takes its time."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import cxrnode.supervisor as module
from cxrnode.supervisor import Supervisor, tell_started
from tests.support.awaiting import await_true

# what each stage runs in place of a stage of the node
SCRIPTS = {
    "silent": "import time; time.sleep(60)",
    "up": "from cxrnode.supervisor import tell_started; tell_started(); import time; time.sleep(60)",
    "dying": "raise SystemExit(3)",
}


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(config: Path, stage: str) -> Sequence[str]:
        return [sys.executable, "-c", SCRIPTS[stage]]

    monkeypatch.setattr(module, "_command", command)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The supervisor takes two signals for itself."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_a_stage_is_up_when_it_says_so(tmp_path: Path) -> None:
    supervisor = Supervisor(config=tmp_path, stages=("silent", "up", "dying"))
    seen: list[list[str]] = []

    def up_is_up_and_dying_died() -> bool:
        seen.append(supervisor.down)
        return "up" not in seen[-1] and supervisor.deaths["dying"] > 1

    def watch() -> None:
        try:
            await_true(up_is_up_and_dying_died, lambda: str(seen[-5:]))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=watch)
    before = len(os.listdir("/proc/self/fd"))
    supervisor.run(on_started=watcher.start)
    watcher.join()
    assert seen[0] == ["silent", "up", "dying"]  # nothing is up before it said so
    assert seen[-1] == ["silent", "dying"]
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # each death closed its pipe


def test_without_a_supervisor_nobody_is_told() -> None:
    tell_started()


def test_a_supervisor_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    told, tell = os.pipe()
    os.close(told)
    monkeypatch.setenv(module._TELL, str(tell))
    tell_started()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(tell)


def test_a_stage_that_hangs_is_ended_with_its_stacks_and_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(
        SCRIPTS, "hangs",
        "from cxrnode.supervisor import tell_stacks_on_request, tell_started; tell_stacks_on_request(); "
        "tell_started(); import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "def waits_for_ever():\n    import time; time.sleep(600)\nwaits_for_ever()",
    )  # fmt: skip
    monkeypatch.setattr(module, "_LOOK_S", 0.1)
    supervisor = Supervisor(config=tmp_path, stages=("hangs", "up"))
    supervisor.hung = lambda: {} if supervisor.down or supervisor.deaths["hangs"] else {"hangs": "send pacs hangs"}
    started: list[float] = []

    def watch() -> None:
        try:
            await_true(lambda: not supervisor.down)
            started.append(supervisor.since("hangs"))
            await_true(lambda: supervisor.deaths["hangs"] == 1 and not supervisor.down)
            started.append(supervisor.since("hangs"))
        finally:
            for n in range(2):  # it does not drain; two that wait to be taken would be one
                await_true(lambda seen=n: supervisor._signals == seen)  # type: ignore[misc]
                os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=watch)
    supervisor.run(on_started=watcher.start)
    watcher.join()
    assert started[0] < started[1]
    assert supervisor.deaths == {"hangs": 1, "up": 0}
    assert "hangs is ended, to start again: send pacs hangs" in caplog.text
    assert "waits_for_ever" in capfd.readouterr().err
