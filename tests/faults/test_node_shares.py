"""Receiving and delivering go before analysis where the processor is short."""

from __future__ import annotations

from pathlib import Path

from tests.support.node import Node, running_node


def test_analysis_gives_way_with_all_its_processes(tmp_path: Path) -> None:
    with running_node(Node(folder=tmp_path / "node")) as node:
        stages = node.stages()
        workers = stages["analyse"].children(recursive=True)
        assert workers
        usual = stages["intake"].nice()
        assert stages["deliver"].nice() == usual
        assert {process.nice() for process in [stages["analyse"], *workers]} == {usual + 5}
