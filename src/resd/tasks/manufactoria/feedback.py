"""What is said of a wrong program: as a good compiler and a good judge would."""

from __future__ import annotations

from resd.tasks.manufactoria.families import Problem
from resd.tasks.manufactoria.machine import MAX_VISITS, Visit, run
from resd.tasks.manufactoria.parser import Factory, ParseError

_HEAD, _TAIL = 6, 8
_LONGEST_TAPE = 80


def parse_error(error: ParseError, source: str) -> str:
    """The error, and the line it stands in."""
    if not error.line:
        return f"The program does not parse: {error}."
    text = source.split("\n")[error.line - 1].replace("\t", "    ")
    return f"The program does not parse: {error}.\n    {error.line} | {text[:120]}"


def unproven(length: int) -> str:
    """For a program that paints where only pullers can be proven."""
    return (
        f"The program is right on every tape of up to {length} colours, but it reaches a painter, "
        "so it cannot be proven right for longer ones. Use pullers only."
    )


def refuted(problem: Problem, factory: Factory, tape: str, limit: int = MAX_VISITS) -> str:
    """The tape, what was expected, what happened, and the way the robot took.

    The limit of visits must be the one that the tape was found with.
    """
    trace: list[Visit] = []
    verdict = run(factory, tape, trace, limit)
    accept = problem.language().accepts(tape)
    wanted = problem.output(tape)
    expected = "accept" if accept else "reject"
    if wanted is not None:
        expected += f" and leave {_shown(wanted)}"
    last = trace[-1]
    did = {
        "accept": f"accepted it, leaving {_shown(verdict.tape)}",
        "none": "rejected it: " + _why_none(factory, last),
        "loop": f"ran in a loop: {len(trace)} nodes were visited",
        "unknown_node": f"rejected it: {last.node[:40]} leads to {last.target[:40]}, which is no "
        "node (the END node is named end)",
    }[verdict.reason]
    return (
        f"Wrong on the tape {_shown(tape)}: expected to {expected}; the program {did}.\n"
        f"The way it took: {_way(trace)}."
    )


def _why_none(factory: Factory, last: Visit) -> str:
    route = last.route if last.route == "NEXT" else f"[{last.route}]"
    front = f"front {last.front}" if last.front else "the tape empty"
    written = last.route in factory.nodes[last.node].routes
    how = f"takes its route {route} to NONE" if written else f"has no route {route}"
    return f"{last.node[:40]}, with {front}, {how}"


def _way(trace: list[Visit]) -> str:
    steps = [f"{v.node[:30]} ({v.front or 'empty'})" for v in trace]
    if len(steps) > _HEAD + _TAIL:
        left_out = len(steps) - _HEAD - _TAIL
        steps = [*steps[:_HEAD], f"[{left_out} more]", *steps[-_TAIL:]]
    return " -> ".join([*steps, trace[-1].target[:30]])


def _shown(tape: str) -> str:
    if not tape:
        return "(empty)"
    if len(tape) <= _LONGEST_TAPE:
        return tape
    return f"{tape[:_LONGEST_TAPE]}... ({len(tape)} colours)"
