"""Layered layout of a small directed graph (Sugiyama, Tagawa & Toda 1981): columns, order within them, heights.

A long edge runs through a lane of its source in every column between, so that it passes no box; edges of one source
share the lane. Meant for recipes (tens of steps): a few sweeps, the order with the fewest crossings wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Node = tuple[str, int]
"""(name, column): a box in its own column, a lane of it in any later one."""


@dataclass(frozen=True)
class Layout:
    """`column` of each box, and the height (of its middle) of each box and lane."""

    column: dict[str, int]
    heights: dict[Node, float]
    columns: int

    def route(self, source: str, target: str) -> list[Node]:
        """Where an edge runs: its source, lanes, its target."""
        lanes = range(self.column[source] + 1, self.column[target])
        return [(source, self.column[source]), *((source, c) for c in lanes), (target, self.column[target])]


def lay_out(needs: Mapping[str, Sequence[str]], box: float, lane: float, gap: float) -> Layout:
    """Place the nodes of `needs` (name -> names it needs, in an order that can run).

    `box`, `lane`: heights of a box and of a lane; `gap`: room between two of them. Heights start at 0.
    """
    column = _columns(needs)
    graph = _Graph(needs, column)
    order = graph.ordered()
    heights = _heights(graph, order, lambda node: box if column[node[0]] == node[1] else lane, gap)
    return Layout(column, heights, len(order))


def _columns(needs: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Each node just right of all it needs; what needs nothing, just left of its first use."""
    column: dict[str, int] = {}
    for name, sources in needs.items():
        column[name] = 1 + max((column[source] for source in sources), default=-1)
    for name in needs:
        uses = [column[user] for user, sources in needs.items() if name in sources]
        if not needs[name] and uses:
            column[name] = min(uses) - 1
    return column


class _Graph:
    """Boxes and lanes by column, and the links between neighbouring columns."""

    def __init__(self, needs: Mapping[str, Sequence[str]], column: Mapping[str, int]) -> None:
        self.columns: list[list[Node]] = [[] for _ in range(1 + max(column.values(), default=-1))]
        self.before: dict[Node, list[Node]] = {}
        self.after: dict[Node, list[Node]] = {}
        for name in needs:
            self._add((name, column[name]))
        for name, sources in needs.items():
            for source in sources:
                steps = [(source, c) for c in range(column[source], column[name])] + [(name, column[name])]
                for left, right in pairwise(steps):
                    self._add(right)
                    self._link(left, right)

    def _add(self, node: Node) -> None:
        if node not in self.before:
            self.before[node], self.after[node] = [], []
            self.columns[node[1]].append(node)

    def _link(self, left: Node, right: Node) -> None:
        if right not in self.after[left]:
            self.after[left].append(right)
            self.before[right].append(left)

    def ordered(self) -> list[list[Node]]:
        """Columns in the order with the fewest crossings that sweeping to and fro finds."""
        best = current = [list(nodes) for nodes in self.columns]
        fewest = self._crossings(best)
        for sweep in range(12):
            current = self._sweep(current, forward=sweep % 2 == 0)
            crossings = self._crossings(current)
            if crossings < fewest:
                best, fewest = current, crossings
        return best

    def _sweep(self, columns: list[list[Node]], forward: bool) -> list[list[Node]]:
        """Each column by the mean place of its nodes' neighbours in the column just done (the barycentre rule)."""
        columns = [list(nodes) for nodes in columns]
        sides = list(range(1, len(columns))) if forward else list(range(len(columns) - 2, -1, -1))
        neighbours = self.before if forward else self.after
        for index in sides:
            fixed = {node: place for place, node in enumerate(columns[index - 1 if forward else index + 1])}
            own = {node: place for place, node in enumerate(columns[index])}

            def centre(node: Node, fixed: dict[Node, int] = fixed, own: dict[Node, int] = own) -> float:
                places = [fixed[other] for other in neighbours[node]]
                return sum(places) / len(places) if places else float(own[node])

            columns[index].sort(key=centre)
        return columns

    def _crossings(self, columns: list[list[Node]]) -> int:
        total = 0
        for left, right in pairwise(columns):
            place = {node: index for index, node in enumerate(right)}
            links = [(i, place[other]) for i, node in enumerate(left) for other in self.after[node]]
            total += sum((a - c) * (b - d) < 0 for i, (a, b) in enumerate(links) for c, d in links[i + 1 :])
        return total


def _heights(graph: _Graph, order: list[list[Node]], size, gap: float) -> dict[Node, float]:  # type: ignore[no-untyped-def]
    heights: dict[Node, float] = {}
    for nodes in order:
        at = 0.0
        for node in nodes:
            heights[node] = at + size(node) / 2
            at += size(node) + gap
    for sweep in range(25):
        for nodes in order if sweep % 2 == 0 else reversed(order):
            wanted = [
                _mean([heights[n] for n in (*graph.before[node], *graph.after[node])], heights[node]) for node in nodes
            ]
            heights.update(zip(nodes, _apart(wanted, [size(node) for node in nodes], gap), strict=True))
    top = min((heights[node] - size(node) / 2 for node in heights), default=0.0)
    return {node: height - top for node, height in heights.items()}


def _apart(wanted: Sequence[float], sizes: Sequence[float], gap: float) -> list[float]:
    """Middles near `wanted`, in the given order, that do not overlap: halfway between pushing down and pushing up."""
    down, up = list(wanted), list(wanted)
    for i in range(1, len(wanted)):
        down[i] = max(down[i], down[i - 1] + (sizes[i - 1] + sizes[i]) / 2 + gap)
    for i in range(len(wanted) - 2, -1, -1):
        up[i] = min(up[i], up[i + 1] - (sizes[i + 1] + sizes[i]) / 2 - gap)
    return [(a + b) / 2 for a, b in zip(down, up, strict=True)]


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
