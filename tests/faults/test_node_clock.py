"""A running node whose machine's clock jumps (the wall clock alone, as when somebody sets it)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cxrnode.store.database import Database
from tests.support.awaiting import await_true, film
from tests.support.node import Node
from tests.support.shifted_clock import ShiftedClock
from tests.support.store import kinds

pytestmark = pytest.mark.interop


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(folder=tmp_path / "node")
    yield node
    node.kill()


def clock(node: Node) -> str:
    return str(node.readiness().get("warnings", {}).get("clock", ""))


def figure(node: Node, name: str) -> float:
    families = text_string_to_metric_families(node.http("/metrics").decode())
    return next(s.value for family in families for s in family.samples if s.name == name)


@pytest.mark.parametrize(("jump_s", "seen"), [(3600, "ahead of"), (-3600, "behind"), (946_080_000, "ahead of")])
def test_a_jump_is_a_warning_until_it_is_undone_and_a_restart_does_not_forget_it(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: int, seen: str
) -> None:
    machine = ShiftedClock(tmp_path)
    machine.put_on(monkeypatch)
    node.start()
    assert clock(node) == ""
    machine.off(jump_s)
    assert seen in await_true(lambda: clock(node))
    assert figure(node, "cxrnode_clock_doubted") == 1
    assert abs(figure(node, "cxrnode_clock_offset_seconds") - jump_s) < 5
    assert node.stop() == 0
    node.start()
    assert seen in clock(node)
    assert node.readiness()["ready"]
    machine.off(0)
    await_true(lambda: not clock(node), lambda: node.log)
    assert figure(node, "cxrnode_clock_doubted") == 0
    assert figure(node, "cxrnode_clock_offset_seconds") == 0


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_no_jump_makes_the_node_claim_its_own_images_again_or_report_a_study_twice(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: int
) -> None:
    machine = ShiftedClock(tmp_path)
    machine.put_on(monkeypatch)
    node.start()
    studies = range(1, 25)
    for number in studies:
        if number in {8, 16}:
            machine.off(jump_s if number == 8 else 0)
        assert node.send(film(tmp_path, number)) == [0]

    def records() -> Counter[str]:
        with closing(Database(node.data_dir / "ledger.sqlite", read_only=True)) as database, database.begin() as c:
            return Counter(kinds(c))

    await_true(lambda: records()["study_reported"] >= len(studies), lambda: node.log[-3000:])
    found = records()
    assert {k: found[k] for k in ("received", "claimed", "analysed", "study_reported")} == dict.fromkeys(
        ("received", "claimed", "analysed", "study_reported"), len(studies)
    )
