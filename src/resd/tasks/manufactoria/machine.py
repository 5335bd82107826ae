"""The machine: a robot carries a tape through the nodes of a factory."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from resd.tasks.manufactoria.parser import EMPTY, END, NONE, PAINTERS, PULLERS, Factory

Reason = Literal["accept", "none", "loop", "unknown_node"]
MAX_VISITS = 1000


@dataclass(frozen=True)
class Verdict:
    """How a run ended.

    Attributes:
        finished: whether END was reached: the tape is accepted.
        tape: what is on the tape then, front first.
        reason: accept, none (a route to NONE or a missing one), loop (`MAX_VISITS` nodes were
            visited), or unknown_node (a route to a node that is not there).
    """

    finished: bool
    tape: str
    reason: Reason


@dataclass(frozen=True)
class Visit:
    """One node visited: the colour at the front before it ("" for none), and where it led."""

    node: str
    front: str
    target: str


def run(factory: Factory, tape: str, trace: list[Visit] | None = None) -> Verdict:
    """Run a factory on a tape.

    A puller removes the front colour if it is one of its own two, and takes that colour's route;
    otherwise it takes EMPTY and removes nothing. A painter appends its colour.

    Args:
        factory: the program.
        tape: colours R, B, Y, G, front first.
        trace: gets every node visited, if given.
    """
    queue, current = deque(tape), factory.start
    for _ in range(MAX_VISITS):
        node = factory.nodes.get(current)
        if node is None:
            break
        front = queue[0] if queue else ""
        route = "NEXT"
        if node.kind in PULLERS:
            route = EMPTY
            if front and front in PULLERS[node.kind]:
                route = queue.popleft()
        elif node.kind in PAINTERS:
            queue.append(PAINTERS[node.kind])
        current = node.routes.get(route, NONE)
        if trace is not None:
            trace.append(Visit(node.id, front, current))
    left = "".join(queue)
    if current == END:
        return Verdict(True, left, "accept")
    if current == NONE:
        return Verdict(False, left, "none")
    return Verdict(False, left, "loop" if current in factory.nodes else "unknown_node")
