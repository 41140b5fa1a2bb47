"""Where a network's trunk ends and its head begins, found in the graph of an exported bundle.

The trunk (convolutions: nearly all of the work) may run in half or int8. The head (pooling, LSTM, dense layers, softmax
and the Grad-CAM's product with the trunk's last map) stays in float32: it is small, and its sums and its choice of a
class do not forgive rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engines.base import EngineError
from engines.cpu import INPUT


@dataclass(frozen=True, slots=True, kw_only=True)
class Trunk:
    """`nodes`: indices into graph.node, in order; `maps`: the last map of each member network, [V*N, D, h, w]."""

    nodes: tuple[int, ...]
    maps: tuple[str, ...]


def find_trunk(graph: Any) -> Trunk:
    """The trunk of an onnx GraphProto; one map, or one for each member of an ensemble. Raises EngineError.

    A map is the last value through which everything passes that comes from the images (post-dominance), and of which
    every output is made: both the logits and the Grad-CAM read it.
    """
    flow = _Flow(graph)
    ends = sorted({end for root in flow.roots if (end := flow.last_common(root)) is not None})
    if not ends:
        raise EngineError("the model's graph has no map that both its classes and its Grad-CAM are made of: precision "
                          "fp32 is the only one for it")  # fmt: skip
    return Trunk(nodes=tuple(flow.ancestors(ends)), maps=tuple(graph.node[i].output[0] for i in ends))


class _Flow:
    """Who reads whose values; node indices rise along the flow (ONNX wants it), and the index past the last is a sink.

    Reading a value's shape is not reading the value.
    """

    def __init__(self, graph: Any) -> None:
        self._nodes = graph.node
        self._sink = len(graph.node)
        self._maker = {name: i for i, node in enumerate(graph.node) for name in node.output}
        self._outputs = {o.name for o in graph.output}
        self.roots = [i for i, n in enumerate(graph.node) if INPUT in n.input and n.op_type != "Shape"]
        self._next = self._consumers()
        self._made: dict[int, frozenset[str]] = {}  # node -> the graph's outputs that are made of its values
        self._past: dict[int, int] = {}  # node -> the next node that everything from it passes
        for i in reversed(range(self._sink)):
            self._pass(i)

    def last_common(self, root: int) -> int | None:
        found, node = None, root
        while node in self._past:
            found = node if self._made[node] == self._outputs else found
            node = self._past[node]
        return found

    def ancestors(self, ends: list[int]) -> list[int]:
        """The nodes that `ends` are made of, and they themselves, constants' too."""
        found, open_ = set(ends), list(ends)
        while open_:
            makers = {self._maker[name] for name in self._nodes[open_.pop()].input if name in self._maker} - found
            found |= makers
            open_ += makers
        return sorted(found)

    def _consumers(self) -> list[set[int]]:
        following: list[set[int]] = [set() for _ in self._nodes]
        for i, node in enumerate(self._nodes):
            if node.op_type != "Shape":
                for name in node.input:
                    if name in self._maker:
                        following[self._maker[name]].add(i)
            if self._outputs & set(node.output):
                following[i].add(self._sink)
        return following

    def _pass(self, i: int) -> None:
        live = [j for j in self._next[i] if j == self._sink or j in self._past]
        own = frozenset(self._outputs & set(self._nodes[i].output))
        self._made[i] = own.union(*(self._made.get(j, ()) for j in live))
        if live:
            meeting = live[0]
            for j in live[1:]:
                meeting = self._meet(meeting, j)
            self._past[i] = meeting

    def _meet(self, a: int, b: int) -> int:
        while a != b:
            a, b = (self._past[a], b) if a < b else (a, self._past[b])
        return a
