"""Which values of the forward pass to keep for the backward pass: as few as will do, and of those the last made."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from .graph import Node, ordered

_UNLIMITED = 1 << 30
_SOURCE, _SINK = "source", "sink"


def cut(results: Iterable[Node]) -> list[Node]:
    """The values to save so that ``results``, gradients, can be computed from them, with what is there in any case:
    states before the step, unit vectors and inputs.

    A minimum cut between the gates' parts and what the gradients take. Of several the one nearest to the gradients:
    least is computed again, and nothing more than once more.
    """
    nodes = ordered(results)
    late = _depending_on_gradients(nodes)
    wanted = {a for node in late for a in node.args if a not in late}
    wanted |= {node for node in results if node not in late}
    flow = _Flow()
    for node in ordered(wanted):
        flow.add((node, "in"), (node, "out"), _UNLIMITED if node.is_mask else 1)
        if node.op in ("x", "r"):
            flow.add(_SOURCE, (node, "in"), _UNLIMITED)
        for argument in node.args:
            flow.add((argument, "out"), (node, "in"), _UNLIMITED)
        if node in wanted:
            flow.add((node, "out"), _SINK, _UNLIMITED)
    below = flow.below_the_cut()
    return [node for node in ordered(wanted) if (node, "out") in below and (node, "in") not in below]


def _depending_on_gradients(nodes: Iterable[Node]) -> set[Node]:
    late: set[Node] = set()
    for node in nodes:
        if node.op == "ds" or any(a in late for a in node.args):
            late.add(node)
    return late


class _Flow:
    """A network, and its maximum flow by shortest paths: graphs have a few hundred edges."""

    def __init__(self):
        self.room: dict = {}  # of each node: its neighbours, and what may still flow to them

    def add(self, a, b, capacity: int) -> None:
        self.room.setdefault(a, {})[b] = capacity
        self.room.setdefault(b, {}).setdefault(a, 0)

    def below_the_cut(self) -> set:
        """All from which the sink can be reached when the flow is as large as it gets."""
        if _SOURCE not in self.room:
            return set()
        while path := self._path():
            amount = min(self.room[a][b] for a, b in path)
            for a, b in path:
                self.room[a][b] -= amount
                self.room[b][a] += amount
        below, pending = {_SINK}, deque([_SINK])
        while pending:
            b = pending.popleft()
            for a in self.room.get(b, ()):
                if a not in below and self.room[a].get(b, 0) > 0:
                    below.add(a)
                    pending.append(a)
        return below

    def _path(self) -> list[tuple] | None:
        came_from: dict = {_SOURCE: None}
        pending = deque([_SOURCE])
        while pending and _SINK not in came_from:
            a = pending.popleft()
            for b, room in self.room[a].items():
                if room > 0 and b not in came_from:
                    came_from[b] = a
                    pending.append(b)
        if _SINK not in came_from:
            return None
        path, b = [], _SINK
        while came_from[b] is not None:
            path.append((came_from[b], b))
            b = came_from[b]
        return path
