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
        reason: accept, none (a route to NONE or a missing one), loop (the limit of visits is
            reached), or unknown_node (a route to END in capitals, which is no node).
    """

    finished: bool
    tape: str
    reason: Reason


@dataclass(frozen=True)
class Visit:
    """One node visited.

    Attributes:
        node: its id.
        front: the colour at the front before it, "" for none.
        route: the route it took, whether the node has it or not: NEXT, a colour, or EMPTY.
        target: where that led; NONE if there is no such route.
    """

    node: str
    front: str
    route: str
    target: str


def run(
    factory: Factory, tape: str, trace: list[Visit] | None = None, limit: int = MAX_VISITS
) -> Verdict:
    """Run a factory on a tape.

    A puller removes the front colour if it is one of its own two, and takes that colour's route;
    otherwise it takes EMPTY and removes nothing. A painter appends its colour.

    Args:
        factory: the program.
        tape: colours R, B, Y, G, front first.
        trace: gets every node visited, if given.
        limit: nodes that may be visited before END, START included.
    """
    queue, current = deque(tape), factory.start
    for _ in range(limit):
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
            trace.append(Visit(node.id, front, route, current))
    left = "".join(queue)
    if current == END:
        return Verdict(True, left, "accept")
    if current == NONE:
        return Verdict(False, left, "none")
    return Verdict(False, left, "loop" if current in factory.nodes else "unknown_node")


def decisive_visits(factory: Factory, tape: str) -> int:
    """A limit of visits that only an endless loop reaches, where no painter is on the way.

    Between two colours that are removed no node can come twice. At most 100,000, which no program
    that a model writes comes near.
    """
    return min((len(tape) + 1) * (len(factory.nodes) + 1), 100_000)
