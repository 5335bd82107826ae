"""Exact grading: a program of pullers is a finite automaton, and so is every criterion."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from resd.tasks.manufactoria.parser import COLOURS, EMPTY, END, NONE, PAINTERS, PULLERS, Factory

State = TypeVar("State", bound=Hashable)
ACCEPT, REJECT = ".accept", ".reject"  # no node has such a name


@dataclass(frozen=True)
class Dfa:
    """A complete deterministic automaton over R, B, Y, G that starts in state 0.

    Attributes:
        moves: a row a state, a next state a colour, in the order of `COLOURS`.
        accepting: states in which the tape read so far is accepted.
    """

    moves: tuple[tuple[int, ...], ...]
    accepting: frozenset[int]

    def accepts(self, tape: str) -> bool:
        """Whether a tape is in the language."""
        state = 0
        for colour in tape:
            state = self.moves[state][COLOURS.index(colour)]
        return state in self.accepting


class PaintsError(Exception):
    """A painter can be reached: the program is more than a finite automaton."""


def difference(one: Dfa, other: Dfa) -> str | None:
    """The shortest tape on which two automata differ, the first in the order of `COLOURS`."""
    return _search(
        (0, 0),
        lambda s: (s[0] in one.accepting) != (s[1] in other.accepting),
        lambda s, c: (one.moves[s[0]][c], other.moves[s[1]][c]),
    )


def counterexample(factory: Factory, language: Dfa) -> str | None:
    """The shortest tape on which a program and a language differ; None if they are equal.

    The limit on visits plays no part: it is there to end loops, which are found here for what they
    are.

    Raises:
        PaintsError: a painter can be reached, and no shorter tape shows a difference.
    """
    return _search(
        (factory.start, 0),
        lambda s: (resolve(factory, s[0], "") == ACCEPT) != (s[1] in language.accepting),
        lambda s, c: (resolve(factory, s[0], COLOURS[c]), language.moves[s[1]][c]),
    )


def resolve(factory: Factory, name: str, front: str) -> str:
    """Where a program stands after it has read one colour, or none at the end of the tape.

    Routes that read nothing are followed: the front colour decides which puller takes it.

    Returns:
        The next node, `ACCEPT` or `REJECT`; at the end of the tape one of the last two.

    Raises:
        PaintsError: a painter is on the way.
    """
    if name in (ACCEPT, REJECT):
        return name
    seen: set[str] = set()
    while name in factory.nodes and name not in seen:
        seen.add(name)
        node = factory.nodes[name]
        if node.kind in PAINTERS:
            raise PaintsError(node.id)
        if node.kind in PULLERS and front and front in PULLERS[node.kind]:
            target = node.routes.get(front, NONE)
            return {END: ACCEPT, NONE: REJECT}.get(target, target)
        name = node.routes.get(EMPTY if node.kind in PULLERS else "NEXT", NONE)
    return ACCEPT if name == END else REJECT


def from_steps(
    start: State, step: Callable[[State, str], State], final: Callable[[State], bool]
) -> Dfa:
    """The automaton that a step function describes; `final(state)` says which states accept.

    Raises:
        ValueError: there are more than 10,000 states.
    """
    numbers: dict[State, int] = {start: 0}
    moves: list[tuple[int, ...]] = []
    todo = deque([start])
    while todo:
        state = todo.popleft()
        row = []
        for colour in COLOURS:
            after = step(state, colour)
            if after not in numbers:
                numbers[after] = len(numbers)
                todo.append(after)
            row.append(numbers[after])
        moves.append(tuple(row))
        if len(numbers) > 10_000:
            raise ValueError("the automaton has more than 10,000 states")
    return Dfa(tuple(moves), frozenset(i for state, i in numbers.items() if final(state)))


def shortest_accepted(language: Dfa, state: int = 0) -> str | None:
    """The shortest tape that leads from a state to acceptance; None if there is none."""
    return _search(state, lambda s: s in language.accepting, lambda s, c: language.moves[s][c])


def shortest_rejected(language: Dfa, state: int = 0) -> str | None:
    """The shortest tape that leads from a state to rejection; None if there is none."""
    return _search(state, lambda s: s not in language.accepting, lambda s, c: language.moves[s][c])


def program(language: Dfa, order: Sequence[str] = ("PULLER_RB", "PULLER_YG")) -> str:
    """A program of pullers for a language, two pullers a state."""
    lines = ["START start:", "    NEXT a0", ""]
    for state, row in enumerate(language.moves):
        at_end = END if state in language.accepting else NONE
        for prefix, kind, empty in (("a", order[0], f"b{state}"), ("b", order[1], at_end)):
            lines.append(f"{kind} {prefix}{state}:")
            for colour in PULLERS[kind]:
                lines.append(f"    [{colour}] a{row[COLOURS.index(colour)]}")
            lines += [f"    [EMPTY] {empty}", ""]
    return "\n".join([*lines, "END end"])


def _search(
    start: State, found: Callable[[State], bool], step: Callable[[State, int], State]
) -> str | None:
    """Breadth first, so the first tape found is a shortest one."""
    paths = {start: ""}
    todo = deque([start])
    while todo:
        state = todo.popleft()
        if found(state):
            return paths[state]
        for i, colour in enumerate(COLOURS):
            after = step(state, i)
            if after not in paths:
                paths[after] = paths[state] + colour
                todo.append(after)
    return None
