"""Families of problems: what a factory shall do with a tape, in words and as an automaton."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

from resd.tasks.manufactoria.automata import Dfa, from_steps
from resd.tasks.manufactoria.parser import COLOURS

HAS = ("contains_substring", "contains_ordered", "contains_count")
ACCEPTORS = (*HAS, "starts_with", "ends_with", "exact_sequence")
WRITERS = ("append_sequence", "prepend_sequence")
FAMILIES = (*ACCEPTORS, *WRITERS)
_MAX_COUNT, _MAX_COLOURS = 6, 3
_DEAD = -1


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        family: one of `FAMILIES`.
        sequence: its colours; for contains_count each colour as often as it is required.
        index: place in the family's enumeration.
    """

    family: str
    sequence: str
    index: int

    @property
    def id(self) -> str:
        """Unique among all families."""
        group = "has" if self.family in HAS else "more"
        return f"{group}-{self.family}-{self.index}"

    @property
    def alphabet(self) -> str:
        """Colours that the input tapes are made of."""
        return "RB" if self.family == "prepend_sequence" else COLOURS

    @property
    def criterion(self) -> str:
        """What is asked for."""
        s = self.sequence
        counts = " and ".join(f"at least {s.count(c)} {c}" for c in dict.fromkeys(s))
        return {
            "contains_substring": f"Accept a tape if it contains {s} as consecutive colours",
            "contains_ordered": f"Accept a tape if it contains the colours {s} in this order, not "
            "necessarily next to each other",
            "contains_count": f"Accept a tape if it holds {counts}, in any order and place",
            "starts_with": f"Accept a tape if it starts with {s}",
            "ends_with": f"Accept a tape if it ends with {s}",
            "exact_sequence": f"Accept a tape if it is exactly {s}, no more and no less",
            "append_sequence": f"Accept every tape, and leave it with {s} added at its back",
            "prepend_sequence": f"Accept every tape of R and B, and leave it with {s} added at its "
            "front (no other colour may be left on it; input tapes hold only R and B)",
        }[self.family] + ("." if self.family in WRITERS else "; reject every other tape.")

    def output(self, tape: str) -> str | None:
        """The tape that shall be left; None where it does not matter."""
        if self.family == "append_sequence":
            return tape + self.sequence
        return self.sequence + tape if self.family == "prepend_sequence" else None

    def language(self) -> Dfa:
        """The tapes to accept."""
        return language(self.family, self.sequence)


def problems(family: str) -> list[Problem]:
    """The whole enumeration of a family, in a fixed order."""
    if family == "contains_count":
        return [Problem(family, s, i) for i, s in enumerate(_counts())]
    colours = "RB" if family == "prepend_sequence" else COLOURS
    every = (
        "".join(s) for length in range(1, 5) for s in itertools.product(colours, repeat=length)
    )
    return [Problem(family, s, i) for i, s in enumerate(every)]


def _counts() -> list[str]:
    """Requirements with a total of at most 6 over at most 3 colours."""
    found = []
    for size in range(1, _MAX_COLOURS + 1):
        for colours in itertools.combinations(COLOURS, size):
            for numbers in itertools.product(range(1, _MAX_COUNT + 1), repeat=size):
                if sum(numbers) <= _MAX_COUNT:
                    pairs = zip(colours, numbers, strict=True)
                    found.append("".join(c * n for c, n in pairs))
    return found


@cache
def language(family: str, s: str) -> Dfa:
    """The automaton of a family's criterion for a sequence."""
    n = len(s)
    if family in WRITERS:
        return from_steps(0, lambda q, c: 0, lambda q: True)
    if family == "contains_count":
        need = {c: s.count(c) for c in COLOURS}
        return from_steps(
            (0,) * len(COLOURS),
            lambda q, c: tuple(
                min(k + (c == own), need[own]) for k, own in zip(q, COLOURS, strict=True)
            ),
            lambda q: q == tuple(need[c] for c in COLOURS),
        )
    if family == "contains_ordered":
        return from_steps(0, lambda q, c: q if q == n else q + (s[q] == c), n.__eq__)
    if family == "contains_substring":
        return from_steps(0, lambda q, c: q if q == n else _overlap(s, s[:q] + c), n.__eq__)
    if family == "ends_with":
        return from_steps(0, lambda q, c: _overlap(s, s[:q] + c), n.__eq__)

    def follow(q: int, colour: str) -> int:
        if q == n and family == "starts_with":
            return n
        return q + 1 if 0 <= q < n and s[q] == colour else _DEAD

    return from_steps(0, follow, n.__eq__)


def _overlap(s: str, read: str) -> int:
    """Length of the longest prefix of `s` that `read` ends with."""
    return next(k for k in range(min(len(s), len(read)), -1, -1) if read.endswith(s[:k]))


def mistakes(problem: Problem) -> list[Dfa]:
    """Languages that usual wrong programs accept instead."""
    s, family = problem.sequence, problem.family
    others = [language(f, s) for f in ACCEPTORS if f != family]
    shorter = [s[:-1], s[1:], s[:1], s[-1:]]
    longer = [s + s[-1], s[0] + s, *(s + c for c in COLOURS)]
    turned = [s[::-1], "".join(sorted(s, key=COLOURS.index))]
    near = [
        language(family, t) for t in dict.fromkeys([*shorter, *longer, *turned]) if t != s and t
    ]
    return others + near + [_restarting(s, lost) for lost in (0, _DEAD)]


def _restarting(s: str, lost: int) -> Dfa:
    """A search for consecutive colours that forgets all, or gives up, on the first wrong one."""
    n = len(s)

    def step(q: int, colour: str) -> int:
        if q in (n, _DEAD):
            return q
        return q + 1 if s[q] == colour else lost

    return from_steps(0, step, n.__eq__)
